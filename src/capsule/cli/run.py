"""The run verb: a command in a capsule with the caller's standard streams, and what is said of it."""

from __future__ import annotations

import gc
import os

from capsule import api
from capsule.base import signals
from capsule.base.errors import CapsuleError, PolicyError
from capsule.process.stdio import DEVNULL, INHERIT, PIPE, given

from .forward import Forwarding, die_of
from .request import effective, place_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.planner.plan import Terminal
    from capsule.policy.policy import Policy
    from capsule.process.handle import Process
    from capsule.process.result import Result

    from .options import Options
    from .report import Report
    from .stats import Live


def run(options: Options) -> int:
    """Run the command of the options and return the exit status of ours.

    Raises:
        CapsuleError: it was not run.
    """
    file = _report(options)
    ending = _Ending()
    try:
        policy = policy_of(options)
        result = _run_command(options, policy, ending)
    except CapsuleError as error:
        place_error(options, error)
        if file is not None:
            file.write_error(error)
        raise
    written = file is None or file.write_result(result)
    _say(options, result, policy)
    ending.follow(result)
    return result.exit_status if written else CapsuleError.exit_code


def policy_of(options: Options) -> Policy:
    """The policy of the options. With --verbose, it is said if a file tightened it."""
    policy, note = effective(options)
    if note and options.has("--verbose"):
        from .report import say

        say(note)
    return policy


def _report(options: Options) -> Report | None:
    name = options.last("--json")
    if name is None:
        return None
    from .report import Report

    return Report(name)


def _say(options: Options, result: Result, policy: Policy) -> None:
    """Say what the caller has to know, or asked for. Of a run that succeeded that is nothing."""
    verbose, stats = options.has("--verbose"), options.has("--stats")
    if result.ok and not (verbose or stats or result.set_aside or result.notes or result.hints):
        return
    from . import report

    # Quiet or not: it changed something on the host.
    report.tell_closing(result)
    if verbose:
        report.explain(result)
    elif not options.has("--quiet"):
        report.tell(result)
    if stats:
        from .stats import summary

        report.say(summary(result.usage, policy.limits))


class _Ending:
    """How we end: as the command did, if by a signal that came to us as well."""

    def __init__(self) -> None:
        # They came to us too.
        self.passed_on: set[int] = set()
        # Keys made them inside: our whole process group would have got them, a script around us too.
        self.typed: set[int] = set()

    def follow(self, result: Result) -> None:
        """Die of the signal that the command died of, if that is what whoever waits for us expects."""
        from capsule.process.result import Outcome

        number = result.signal
        if result.outcome is Outcome.SIGNALED and number is not None:
            if number in self.passed_on:
                die_of(number)
            if number in self.typed:
                die_of(number, group=True)


def _run_command(options: Options, policy: Policy, ending: _Ending) -> Result:
    captured = options.last("--json") == "-"
    ttys = [fd for fd in (0, 1, 2) if os.isatty(fd) and not (captured and fd > 0)]
    limited = policy.limits.output is not None
    stdio = [DEVNULL if fd in ttys else PIPE if fd > 0 and limited else INHERIT for fd in (0, 1, 2)]
    terminal = _terminal(ttys)
    if options.has("--verbose"):
        from . import report

        plan = api.plan(options.command, policy, terminal=terminal)
        if len(options.all("--verbose")) > 1:
            report.print_plan(plan)
        else:
            report.tell_view(plan, policy)
    with (
        Forwarding() as forwarding,
        _begin(options, policy, stdio, terminal) as process,
    ):
        from capsule.process.handle import loop_of

        if not captured:
            loop_of(process).pass_through(1, 2)
        ending.passed_on = forwarding.passed_on
        raw = options.has("--raw")
        if options.has("--stats") and os.isatty(2):
            from .stats import Live

            with Live(process, policy.limits) as live:
                return _attend(process, forwarding, ttys, ending, live, raw=raw)
        return _attend(process, forwarding, ttys, ending, raw=raw)


def _begin(options: Options, policy: Policy, stdio: list[int], terminal: Terminal | None) -> Process:
    """Start the command, with a file for lines about the network if one is named."""
    stdin, stdout, stderr = stdio
    name = options.last("--net-log")
    if name is None:
        words = given(stdin=stdin, stdout=stdout, stderr=stderr)
        return api.begin(options.command, policy, words, terminal)
    try:
        log = open(name, "ab", buffering=0)  # noqa: SIM115 - an error of the run is none of the file's
    except OSError as error:
        message = f"--net-log: cannot write {name}: {error.strerror}"
        hint = "name a file that you may write"
        raise PolicyError(message, field="net_log", value=name, hint=hint) from None
    with log:
        words = given(stdin=stdin, stdout=stdout, stderr=stderr, net_log=log)
        return api.begin(options.command, policy, words, terminal)


def _terminal(ttys: list[int]) -> Terminal | None:
    if not ttys:
        return None
    from . import terminal

    return terminal.describe(ttys)


def _attend(
    process: Process,
    forwarding: Forwarding,
    ttys: list[int],
    ending: _Ending,
    live: Live | None = None,
    *,
    raw: bool,
) -> Result:
    """Wait, while signals and, with a terminal, keys are passed on."""
    gc.enable()  # packaging/capsule-python
    if process.terminal is None:
        forwarding.begin(process, lambda: _suspend(process), lambda: None)
        return process.wait()
    from .terminal import Relay

    keyboard = 0 if 0 in ttys else None
    # The output may go elsewhere: then the keyboard's terminal is the one to write to.
    screens = [fd for fd in ttys if fd > 0] or [os.open(os.ttyname(0), os.O_WRONLY | os.O_NOCTTY)]
    relay = Relay(process, process.terminal, keyboard, screens[0], live, raw=raw)
    with relay:
        forwarding.begin(process, relay.suspend, relay.resume)
        result = process.wait()
    ending.typed = relay.typed_signals
    return result


def _suspend(process: Process) -> None:
    """Stop the command with us, as a shell's job, and continue it with us."""
    from capsule.process.handle import loop_of

    loop_of(process).signal_group(signals.SIGTSTP)
    os.kill(os.getpid(), signals.SIGSTOP)
    process.send_signal(signals.SIGCONT, group=True)

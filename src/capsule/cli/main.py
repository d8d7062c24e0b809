"""The command line: flags to a policy, and a result to an exit status.

What only some runs need is imported where it is needed: start-up time is a budget.
"""

from __future__ import annotations

import os
import sys

from capsule import api
from capsule.base import signals
from capsule.base.errors import CapsuleError, PolicyError
from capsule.process.result import Outcome

from . import report
from .options import help_text, parse
from .request import effective, place_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from capsule.planner.plan import Plan, Terminal
    from capsule.policy.policy import Policy
    from capsule.process.handle import Process
    from capsule.process.result import Result

    from .options import Options

VERBS = ("run", "plan", "policy", "doctor")

HELP = """\
usage: capsule [run] [OPTIONS] [--] COMMAND [ARG...]
       capsule plan [OPTIONS] [--] COMMAND [ARG...]
       capsule policy show [OPTIONS] | list | protected | schema
       capsule doctor [--json]

Run an untrusted program in an isolated environment: its own identity, files,
processes and network, without root and without a daemon.

  run      run the command (also without the word)
  plan     print every step that a run would take; nothing is executed
  policy   print a policy as TOML, the built-in profiles, the names that are
           protected, or the schema
  doctor   say what this host can enforce, what is missing, and the remedy

  capsule VERB --help   the options of a verb
  capsule --version     the version
"""

# Passed on to the command, as a terminal or a service manager would send them to it.
FORWARDED = (signals.SIGTERM, signals.SIGUSR1, signals.SIGUSR2)
# What a terminal sends to the whole foreground process group.
FORWARDED_TO_GROUP = (signals.SIGINT, signals.SIGQUIT, signals.SIGHUP)


# Seconds that a set-up may still take after a signal that would end a command.
PATIENCE = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _main(words)
        sys.stdout.flush()
        return status
    except CapsuleError as error:
        report.say(str(error))
        return error.exit_code
    except _Interrupted as interrupt:
        # Nothing runs any more: end as any program does.
        _die_of(interrupt.number)
    except BrokenPipeError:
        report.forget_output()
        return 128 + signals.SIGPIPE
    except OSError as error:
        report.forget_output()
        report.say(f"cannot write the output: {error.strerror}")
        return CapsuleError.exit_code


def entry() -> NoReturn:
    """The command itself: `main`, without what the interpreter does at its end (2 ms)."""
    # A parent may have left it ignored, and then nothing could be waited for.
    signals.set_handler(signals.SIGCHLD, signals.SIG_DFL)
    _open_standard_streams()
    os._exit(main())


def _open_standard_streams() -> None:
    """Where the caller closed 0, 1 or 2, put /dev/null: no file of ours may get their numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115
        # A name that the locale has no letters for is shown all the same.
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _main(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        (sys.stdout if words else sys.stderr).write(HELP)
        return 0 if words else 2
    if words[0] == "--version":
        from capsule import __version__

        print(f"capsule {__version__}")
        return 0
    verb = words.pop(0) if words[0] in VERBS else "run"
    if verb == "doctor":
        return _doctor(words)
    if verb == "policy":
        from . import policy as policy_verb

        sys.stdout.write(policy_verb.main(words))
        return 0
    options = parse(verb, words)
    if options.has("--help"):
        sys.stdout.write(help_text(verb))
        return 0
    if verb == "plan":
        print(_plan(options))
        return 0
    return _run(options)


def _plan(options: Options) -> Plan:
    try:
        return api.plan(options.command, _policy(options))
    except CapsuleError as error:
        place_error(options, error)
        raise


def _policy(options: Options) -> Policy:
    policy, note = effective(options)
    if note and options.has("--verbose"):
        report.say(note)
    return policy


def _die_of(number: int, *, group: bool = False) -> NoReturn:
    """End by a signal, so that a shell that waits sees why, and without a core file of ours."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # 1 and not 0: that stops a handler that core dumps are piped to as well.
    resource.setrlimit(resource.RLIMIT_CORE, (min(1, hard) if hard >= 0 else 1, hard))
    signals.set_handler(number, signals.SIG_DFL)
    os.kill(0 if group else os.getpid(), number)
    os._exit(128 + number)


def _run(options: Options) -> int:
    file = report.Report(options.last("--json"))
    try:
        result = _run_command(options, _policy(options))
    except CapsuleError as error:
        place_error(options, error)
        failure = error
        file.write(lambda: report.error_json(failure))
        raise
    written = file.write(lambda: report.result_json(result))
    # Quiet or not: it changed something on the host.
    report.tell_closing(result)
    if options.has("--verbose"):
        report.explain(result)
    elif not options.has("--quiet"):
        _tell(result)
    if result.outcome is Outcome.SIGNALED and result.signal in _ends_us:
        _die_of(result.signal or 0)
    if result.outcome is Outcome.SIGNALED and result.signal in _typed:
        _die_of(result.signal or 0, group=True)
    return result.exit_status if written else CapsuleError.exit_code


def _tell(result: Result) -> None:
    """What a run that did not succeed should be known for, beside its exit status."""
    if result.outcome not in (Outcome.EXITED, Outcome.SIGNALED):
        report.say(report.verdict(result))
    elif result.detail and not result.ok:
        report.say(result.describe())
    if result.denials and not result.ok:
        report.say(report.denial(result))


# Signals that came to us as well: the shell that sent them wants to see us die of them.
_ends_us: set[int] = set()
# Signals that keys made inside: our whole process group would have got them, a script around us too.
_typed: set[int] = set()


def _run_command(options: Options, policy: Policy) -> Result:
    captured = options.last("--json") == "-"
    ttys = [fd for fd in (0, 1, 2) if os.isatty(fd) and not (captured and fd > 0)]
    limited = policy.limits.output is not None
    stdio = [
        api.DEVNULL if fd in ttys else api.PIPE if fd > 0 and limited else api.INHERIT
        for fd in (0, 1, 2)
    ]
    terminal = _terminal(ttys)
    if options.has("--verbose"):
        report.print_plan(api.plan(options.command, policy, terminal=terminal))
    with (
        _Forwarding() as forwarding,
        api.start(
            options.command,
            policy,
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            terminal=terminal,
        ) as process,
    ):
        if not captured:
            process.pass_through(1, 2)
        return _attend(process, forwarding, ttys)


def _terminal(ttys: list[int]) -> Terminal | None:
    if not ttys:
        return None
    from . import terminal

    return terminal.describe(ttys)


def _attend(process: Process, forwarding: _Forwarding, ttys: list[int]) -> Result:
    """Wait, while signals and, with a terminal, keys are passed on."""
    if process.terminal is None:
        forwarding.begin(process, lambda: _suspend(process), lambda: None)
        return process.wait()
    from .terminal import Relay

    keyboard = 0 if 0 in ttys else None
    # The output may go elsewhere: then the keyboard's terminal is the one to write to.
    screens = [fd for fd in ttys if fd > 0] or [os.open(os.ttyname(0), os.O_WRONLY | os.O_NOCTTY)]
    relay = Relay(process, process.terminal, keyboard, screens[0])
    with relay:
        forwarding.begin(process, relay.suspend, relay.resume)
        result = process.wait()
    _typed.update(relay.typed_signals)
    return result


def _suspend(process: Process) -> None:
    """Stop the command with us, as a shell's job, and continue it with us."""
    process.signal_group(signals.SIGTSTP)
    os.kill(os.getpid(), signals.SIGSTOP)
    process.send_signal(signals.SIGCONT, group=True)


class _Interrupted(BaseException):
    """A signal that ends us came before there was a command to pass it on to."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Forwarding:
    """Pass signals on within the block. One that was ignored before stays ignored (nohup)."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._early: list[int] = []
        self._wake: tuple[int, ...] = ()
        self._before: dict[int, signals.Handler] = {}

    def __enter__(self) -> _Forwarding:
        for number in (*FORWARDED, *FORWARDED_TO_GROUP):
            self._handle(number, self._forward)
        self._handle(signals.SIGTSTP, lambda number, _: self._early.append(number))
        return self

    def begin(self, process: Process, suspend: Callable[[], None], resume: Callable[[], None]) -> None:
        """There is a command now."""
        self._process = process
        # A signal between the last line of Python and poll(2) would be noticed after it only.
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        process.watch(self._wake[0], 1, lambda: os.read(self._wake[0], 4096))  # POLLIN
        signals.set_wakeup(self._wake[1])
        signals.set_timer(0)
        self._handle(signals.SIGTSTP, lambda *_: suspend())
        for number in self._early:
            if number == signals.SIGTSTP:
                suspend()
            else:
                self._forward(number, None)
        self._handle(signals.SIGWINCH, lambda *_: resume())
        self._handle(signals.SIGCONT, lambda *_: resume())
        self._handle(signals.SIGALRM, lambda *_: resume())
        resume()

    def _handle(self, number: int, handler: signals.Handler) -> None:
        before = signals.get_handler(number)
        if before != signals.SIG_IGN:
            self._before.setdefault(number, before)
            signals.set_handler(number, handler)

    def _forward(self, number: int, _frame: object) -> None:
        if self._process is not None:
            _ends_us.add(number)
            self._process.send_signal(number, group=number in FORWARDED_TO_GROUP)
            return
        # The command may be running by now, or about to: what it does with the signal counts. But a
        # set-up that hangs, on a file system that does not answer, must not outlast it for long.
        self._early.append(number)
        self._handle(signals.SIGALRM, self._give_up)
        signals.set_timer(PATIENCE)

    def _give_up(self, _number: int, _frame: object) -> None:
        other = (signals.SIGUSR1, signals.SIGUSR2, signals.SIGTSTP)
        ends = [number for number in self._early if number not in other]
        if self._process is None and ends:
            raise _Interrupted(ends[0])

    def __exit__(self, *_exception: object) -> None:
        signals.set_timer(0)
        for number, before in self._before.items():
            signals.set_handler(number, before)
        if self._wake:
            signals.set_wakeup(-1)
            for fd in self._wake:
                os.close(fd)


def _doctor(words: list[str]) -> int:
    if words in (["--help"], ["-h"]):
        print("usage: capsule doctor [--json]\n\nSay what this host can enforce, and what to do.")
        return 0
    if words not in ([], ["--json"]):
        raise PolicyError(f"doctor: unknown option {words[0]}", hint="`capsule doctor --help`")
    from .doctor import doctor

    return doctor.main(json=bool(words))

"""What the command line says about a run, to people and to programs."""

from __future__ import annotations

import os
import sys

from capsule.base.errors import CapsuleError, PolicyError
from capsule.base.text import printable
from capsule.base.values import Choice
from capsule.process.result import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.base.values import Value
    from capsule.planner.plan import Plan
    from capsule.policy.policy import Policy
    from capsule.process.result import Result, Usage


def say(text: str) -> None:
    """One message on standard error, which may be closed or full."""
    try:
        sys.stderr.write(f"capsule: {text}\n")
        sys.stderr.flush()
    except OSError:
        forget_output(2)  # there is nowhere left to say it
    except ValueError:
        pass  # it was closed


def forget_output(fd: int = 1) -> None:
    """The reader has gone, or the disk is full: what is still buffered must not be tried again.

    The interpreter would, at its end, and make 120 of the exit status.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def print_plan(plan: Plan) -> None:
    """Every step, on standard error."""
    try:
        sys.stderr.write(f"{plan}\n")
        sys.stderr.flush()
    except OSError:
        pass  # as above


def tell_view(plan: Plan, policy: Policy) -> None:
    """Say what is there beside the system: unasked, and asked for."""
    for note in plan.notes:
        say(note)
    for mount in policy.mounts:
        source = f" of {mount.source}" if mount.source and mount.source != mount.at else ""
        say(printable(f"{mount.at}: {mount.kind.word}{source}"))


def verdict(result: Result) -> str:
    """One line on a run that did not end by itself, with what would let it."""
    flag = _ADVICE.get(result.outcome)
    more = f"; raise it with {flag}" if flag else ""
    return f"{result.outcome.value}: {result.detail}{more}"


_ADVICE = {
    Outcome.TIMED_OUT: "--timeout",
    Outcome.CPU_TIME: "--cpu-time",
    Outcome.IDLE: "--idle",
    Outcome.OUT_OF_MEMORY: "--memory",
    Outcome.OUTPUT_LIMIT: "--output",
}


def denial(result: Result) -> str:
    """One line on the refusal that is most likely to matter: the one that was new last."""
    others = len(result.denials) - 1
    kinds = [f"{others} more {'kind' if others == 1 else 'kinds'}"] if others else []
    kinds += [f"{result.denials_omitted} refusals of others"] if result.denials_omitted else []
    more = f" ({' and '.join(kinds)}: -v)" if kinds else ""
    return f"refused: {result.denials[-1].describe()}{more}"


def tell(result: Result) -> None:
    """Say what a run that did not succeed should be known for, beside its exit status."""
    if result.outcome not in (Outcome.EXITED, Outcome.SIGNALED):
        say(verdict(result))
    elif result.detail and not result.ok:
        say(result.describe())
    if result.denials and not result.ok:
        say(denial(result))
    for hint in result.hints:
        say(hint)


def explain(result: Result) -> None:
    """How the run ended, what it cost and what protected the host."""
    usage = result.usage
    say(
        f"{result.describe()}; wall {usage.wall:.3f} s, user {usage.cpu_user:.3f} s, "
        f"system {usage.cpu_system:.3f} s, {_peak(usage)} ({usage.source or 'no account'})"
    )
    for name, how in result.protections.items():
        say(f"{name}: {how}")
    for each in result.denials:
        say(f"refused: {each.describe()}")
    if result.network:
        say(f"network used: {'; '.join(one.describe() for one in result.network)}")
    if result.denials_omitted:
        say(f"refused: {result.denials_omitted} more, of kinds beyond the {len(result.denials)} told")
    for hint in result.hints:
        say(hint)


def _peak(usage: Usage) -> str:
    if usage.source != "cgroup":
        return f"peak memory of one process {usage.peak_memory >> 10} KiB"
    pids = "" if usage.peak_pids is None else f", at most {usage.peak_pids} processes"
    held = f", held back {usage.throttled:.3f} s" if usage.throttled else ""
    return f"peak memory {usage.peak_memory >> 10} KiB{pids}{held}"


def tell_closing(result: Result) -> None:
    """Say what was set aside and noticed at the end: the caller has to know, asked for or not."""
    for one in result.set_aside:
        done = f"is now {printable(one.moved_to)}" if one.moved_to else f"stays: {one.error}"
        say(
            f"the command made {printable(one.path)}, which programs on the host obey "
            f"({printable(one.guard)}); it {done}"
        )
    if result.set_aside:
        names = dict.fromkeys(one.guard for one in result.set_aside)
        options = " ".join(f"--unprotect {printable(name)}" for name in names)
        say(
            "hint: look at it before you rename it back (chmod u+x a directory first); "
            f"{options} leaves it where it is"
        )
    for note in result.notes:
        say(printable(note))


class Report:
    """Where the result is written as JSON. Opened before the run: to find out later would cost a run.

    Args:
        name: a file's name, or "-" for standard output.

    Raises:
        PolicyError: the file cannot be written.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._file = sys.stdout if name == "-" else open(name, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            message = f"--json: cannot write {name}: {error.strerror}"
            hint = "name a file that you may write, or - for standard output"
            raise PolicyError(message, field="json", value=name, hint=hint) from None

    def write_result(self, result: Result) -> bool:
        """Write how a run ended. False if the disk is full or the reader is gone."""
        return self._write(_of_result(result))

    def write_error(self, error: CapsuleError) -> bool:
        """Write why there is no result; likewise."""
        return self._write(_of_error(error))

    def _write(self, document: dict[str, object]) -> bool:
        import json

        try:
            self._file.write(json.dumps(document, indent=2) + "\n")
            self._file.flush()
        except OSError as error:
            say(f"cannot write the result to {self.name}: {error.strerror}")
            if self.name == "-":
                forget_output()
            else:
                self._forget()
            return False
        return True

    def _forget(self) -> None:
        """Let go of the file, with what is still buffered: else the interpreter tries it again."""
        try:
            self._file.close()
        except OSError:
            pass  # said already


def _of_result(result: Result) -> dict[str, object]:
    """The whole result."""
    fields = {name: getattr(result, name) for name in result.__value_fields__}
    fields["args"] = [_text(os.fsencode(word)) for word in result.args]
    fields["outcome"] = result.outcome.value
    fields["signal"] = result.signal
    fields["exit_status"] = result.exit_status
    fields["stdout"] = _text(result.stdout)
    fields["stderr"] = _text(result.stderr)
    fields["changes"] = [_plain(change) for change in result.changes]
    fields["denials"] = [_plain(each) for each in result.denials]
    fields["network"] = [_plain(one) for one in result.network]
    fields["set_aside"] = [_plain(one) for one in result.set_aside]
    fields["usage"] = {name: getattr(result.usage, name) for name in result.usage.__value_fields__}
    return fields


def _plain(value: Value) -> dict[str, object]:
    """A value's fields. A name that is not UTF-8 comes as `_text` has it."""
    fields = ((name, getattr(value, name)) for name in value.__value_fields__)
    return {
        name: field.value
        if isinstance(field, Choice)
        else _text(os.fsencode(field))
        if isinstance(field, str)
        else field
        for name, field in fields
    }


def _text(data: bytes | None) -> object:
    """Text where it is UTF-8, else base64 under that name: nothing is lost or made up."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        import base64

        return {"base64": base64.b64encode(data).decode()}


def _of_error(error: CapsuleError) -> dict[str, object]:
    """Why there is no result."""
    from capsule.launcher.failure import SetupError

    return {
        "outcome": None,
        "error": {
            "type": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_status": error.exit_code,
            "step": error.index + 1 if isinstance(error, SetupError) else None,
            "errno": getattr(error, "errno", None),
        },
    }

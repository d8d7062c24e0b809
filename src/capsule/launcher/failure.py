"""The errors of a set-up that failed: of a step, and of an end without a report."""

from __future__ import annotations

import os
from time import sleep

from capsule.base import signals
from capsule.base.errors import CapsuleError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .steps import Step


class SetupError(CapsuleError, OSError):
    """A step of the plan failed, so the command did not run and everything was taken down again.

    Attributes:
        step: the step that failed.
        index: its place in the plan, from 0.
        errno: the kernel's error number.
        filename: the path that the step was about, or None.
        exit_code: 127 if the command was not found, 126 if it cannot be executed, else 125.
    """

    def __init__(
        self, step: Step, index: int, count: int, errno: int, *, hint: str | None, exit_code: int
    ) -> None:
        message = f"cannot start: {step.describe()}: {os.strerror(errno)}"
        super().__init__(message, hint=hint)
        self.step = step
        self.index = index
        self.count = count
        self.errno = errno
        self.strerror = os.strerror(errno)
        self.filename = step.path
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        # OSError keeps errno, strerror and filename outside of __dict__.
        given = (self.step, self.index, self.count, self.errno, self.hint, self.exit_code)
        return (_rebuild_setup_error, given, {"message": self.message, "args": self.args})

    def __str__(self) -> str:
        where = f"  step {self.index + 1} of {self.count}. The command was not run."
        lines = [self.message, where]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


def _rebuild_setup_error(
    step: Step, index: int, count: int, errno: int, hint: str | None, exit_code: int
) -> SetupError:
    return SetupError(step, index, count, errno, hint=hint, exit_code=exit_code)


# --- an end without a report --------------------------------------------------------------------

# Bytes of stack below which a failure of the launcher may be for want of it; some 8 KiB are needed.
_LEAST_STACK = 64 << 10


def killed(*pids: int) -> HostError | None:
    """Say what it means that launcher or init, our children, ended by a signal; None if none did."""
    try:
        number = _signal_of(pids)
    except ChildProcessError:
        # Somebody else in this process reaps all children.
        return None
    if number == signals.SIGKILL:
        hint = "by somebody else, or by the kernel for want of memory (dmesg says so): run it again"
        return HostError("the launcher or init was killed during the set-up", hint=hint)
    if number == signals.SIGSYS:
        hint = (
            "run it without one (docker: --security-opt seccomp=unconfined); `capsule doctor` says more"
        )
        return HostError("a seccomp filter around Capsule killed the launcher or init", hint=hint)
    return starved() if number == signals.SIGSEGV else None


def starved() -> HostError | None:
    """Make the error of a stack that is too small for the launcher; None if it is large enough."""
    import resource

    if 0 <= resource.getrlimit(resource.RLIMIT_STACK)[0] < _LEAST_STACK:
        return HostError(
            "the limit of the stack is too low to set a capsule up", hint="raise ulimit -s"
        )
    return None


def _signal_of(pids: Sequence[int]) -> int:
    """Return the signal that ended one of these children, or is about to be seen to; 0 if none did.

    They are left to be reaped. Their pipes are closed, so they are at their very end, if not past it.
    """
    for _ in range(100):
        ends = [os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) for pid in pids]
        for end in ends:
            if end is not None and end.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                return end.si_status
        if all(ends):
            break
        sleep(0.001)
    return 0

"""The error of a step that failed."""

from __future__ import annotations

import os

from capsule.base.errors import CapsuleError

TYPE_CHECKING = False
if TYPE_CHECKING:
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

"""The exceptions.

CapsuleError                  .hint, .exit_code
├── PolicyError (ValueError)  the request is wrong; nothing was started
├── HostError                 this host cannot give what is required
├── SetupError (OSError)      a step failed; the command did not run
├── CommandFailed             only from Result.check()
└── InternalError             the launcher broke its protocol

A program that fails or meets a limit is a result, never one of these.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .result import Result
    from .steps import Step


def printable(text: str) -> str:
    """Text on one line that says nothing to a terminal: all else in it is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class CapsuleError(Exception):
    """Base of all errors of Capsule: the command was not run.

    Attributes:
        hint: what to do about it, a sentence, or None.
        exit_code: what ``capsule run`` ends with.
    """

    exit_code: int = 125

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # They name paths and words that others may have chosen.
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        """What failed, that the command was not run, what to do: one part a line."""
        lines = [self.message, "  The command was not run."]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def place(self, where: str) -> None:
        """Begin the message with where it stands in a file what the error is about."""
        # The key is in it, so the field's name would come twice.
        field = f"{getattr(self, 'field', '')}: "
        self.message = f"{printable(where)}: {self.message.removeprefix(field)}"
        self.args = (self.message, *self.args[1:])

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[CapsuleError], args: tuple[object, ...], state: dict[str, object]) -> object:
    """Unpickle without the constructor, whose parameters differ from class to class."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class PolicyError(CapsuleError, ValueError):
    """The request is wrong: nothing was started.

    Attributes:
        field: name of the policy's field or of the option.
        value: what it was set to.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, field: str = "", value: object = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.value = value


class HostError(CapsuleError):
    """This host cannot give a protection that is required: the message names it and the remedy."""


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


class CommandFailed(CapsuleError):
    """The command ran and did not succeed. Raised by `Result.check` alone.

    Attributes:
        result: the whole `Result`.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(result.describe())
        self.result = result

    def __str__(self) -> str:
        return self.message


class InternalError(CapsuleError):
    """The launcher broke its protocol. This is a defect of Capsule: please report it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="this is a defect of Capsule: please report it")

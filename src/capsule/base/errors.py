"""The exceptions.

CapsuleError                  .hint, .exit_code
├── PolicyError (ValueError)  the request is wrong; nothing was started
├── HostError                 this host cannot give what is required
├── SetupError (OSError)      a step failed; the command did not run
├── CommandFailed             only from Result.check()
├── CallFailed                a call of an Executor raised an exception, or had no result
├── Garbled                   what came out of an Executor's capsule is no result
└── InternalError             the launcher broke its protocol

A program that fails or meets a limit is a result, never one of these.
"""

from __future__ import annotations

from .text import printable


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
        """Return what failed, that the command was not run, what to do: one part a line."""
        lines = [self.message, "  The command was not run."]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def advise(self, hint: str) -> None:
        """Say what to do about it instead of what the hint has said."""
        self.hint = printable(hint)

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


class InternalError(CapsuleError):
    """The launcher broke its protocol. This is a defect of Capsule: please report it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="this is a defect of Capsule: please report it")

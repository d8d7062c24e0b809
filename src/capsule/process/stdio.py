"""The command's descriptors: what stdin=, text= and pass_fds= mean, and our ends of its streams."""

from __future__ import annotations

import codecs
import io
import os

from capsule.base.descriptors import CHUNK
from capsule.base.errors import PolicyError
from capsule.base.text import shown
from capsule.base.values import Value
from capsule.launcher.spawn import FIRST_USER_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import IO, Any, TypedDict

    from capsule.base.descriptors import Descriptors

    File = int | IO[Any] | None
    Stdio = File

    class Words(TypedDict, total=False):
        """What `given` takes."""

        input: bytes | str | None
        stdin: Stdio
        stdout: Stdio
        stderr: Stdio
        text: bool
        encoding: str | None
        errors: str | None
        pass_fds: Iterable[int]
        net_log: File


# The values of subprocess, so that either module's names do; INHERIT is Capsule's own.
PIPE, STDOUT, DEVNULL, INHERIT = -1, -2, -3, -4


class Encoding:
    """How bytes become text, as in `subprocess`; None of both is bytes."""

    def __init__(self, encoding: str, errors: str) -> None:
        self.encoding, self.errors = encoding, errors

    def decode(self, data: bytes) -> str:
        """Text with universal newlines."""
        text = data.decode(self.encoding, self.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")


class Streams:
    """Our ends of the pipes to the command; -1 for each that is no pipe."""

    def __init__(
        self,
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        *,
        input: bytes = b"",
        encoding: Encoding | None = None,
    ) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.input = memoryview(input)
        self.encoding = encoding
        self.blocks = True  # our ends of the outputs
        self._files: dict[str, IO[Any]] = {}

    def file(self, name: str, mode: str) -> IO[Any] | None:
        """One object a stream. Closing stdin's closes the pipe: the command sees its end."""
        fd = getattr(self, name)
        if name not in self._files and fd >= 0:
            self._block()
            file: IO[Any] = open(fd, mode, closefd=name == "stdin")  # noqa: SIM115
            if name == "stdin":
                self.stdin = -1
            coding = self.encoding
            if coding is not None:
                binary: Any = file
                file = io.TextIOWrapper(
                    binary, coding.encoding, coding.errors, write_through=mode == "wb"
                )
            self._files[name] = file
        return self._files.get(name)

    def unblock(self) -> None:
        """Have reads of the outputs return at once."""
        if self.blocks:
            self._set_blocking(False)

    def _block(self) -> None:
        """Have them wait, for somebody reads them as files."""
        if not self.blocks:
            self._set_blocking(True)

    def _set_blocking(self, blocks: bool) -> None:
        self.blocks = blocks
        for fd in (self.stdout, self.stderr):
            if fd >= 0:
                os.set_blocking(fd, blocks)

    def buffered(self, fd: int) -> bytes:
        """Return what the caller's own reader has fetched from the pipe but not handed out."""
        name = "stdout" if fd == self.stdout else "stderr"
        reader: Any = self._files.pop(name, None)
        if reader is None or reader.closed:
            return b""
        return bytes(getattr(reader, "buffer", reader).peek())

    def close_stdin(self) -> None:
        """No more input but what is given: the command sees the end of the file."""
        writer = self._files.get("stdin")
        if writer is not None and not writer.closed:
            try:
                writer.close()
            except BrokenPipeError:
                pass  # the command has closed its end
        if self.stdin >= 0 and not self.input:
            os.close(self.stdin)
            self.stdin = -1

    def give(self, data: bytes) -> None:
        """Have data written to the command's standard input, after what a writer has written.

        Raises:
            ValueError: there is no pipe to it, or it is closed.
        """
        writer = self._files.pop("stdin", None)
        if writer is not None and not writer.closed:
            self.stdin = os.dup(writer.fileno())
            writer.close()
        if self.stdin < 0:
            raise ValueError("standard input is no pipe: start it with stdin=PIPE")
        self.input = memoryview(data)

    def decode(self, data: bytes) -> Any:
        """Bytes, or text if that is wanted."""
        return self.encoding.decode(data) if self.encoding else data

    def write_input(self) -> bool:
        """Write a part of the input. True once there is no more: stdin is closed then.

        A command that does not read its input has a right not to.
        """
        try:
            self.input = self.input[os.write(self.stdin, self.input[:CHUNK]) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.input = memoryview(b"")
        if not self.input:
            os.close(self.stdin)
            self.stdin = -1
        return not self.input

    def move(self) -> Streams:
        """The same streams with another owner: this one closes nothing any more."""
        moved = Streams(self.stdin, self.stdout, self.stderr, encoding=self.encoding)
        moved.input = self.input
        moved.blocks = self.blocks
        self.stdin = self.stdout = self.stderr = -1
        return moved

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        for file in self._files.values():
            try:
                file.close()
            except (OSError, ValueError):
                pass  # what was not written has no reader any more
        for name in ("stdin", "stdout", "stderr"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)


# --- what is asked for -------------------------------------------------------------------------


def encoding_of(text: bool, encoding: str | None, errors: str | None) -> Encoding | None:
    """How text is meant, None for bytes.

    Raises:
        PolicyError: it is not as it has to be.
    """
    if not (text or encoding or errors):
        return None
    try:
        codecs.lookup(encoding or "utf-8")
        codecs.lookup_error(errors or "replace")
    except LookupError as error:
        hint = "name a codec and an error handler of Python's codecs module"
        raise PolicyError(f"encoding: {error}", field="encoding", hint=hint) from None
    return Encoding(encoding or "utf-8", errors or "replace")


def input_bytes(data: bytes | str | None, coding: Encoding | None) -> bytes:
    """Return what is to be read from standard input, as bytes.

    Raises:
        PolicyError: it is not as it has to be.
    """
    if isinstance(data, str):
        if coding is None:
            hint = "pass text=True, or bytes"
            message = "input: text needs text=True"
            raise PolicyError(message, field="input", value="...", hint=hint)
        return data.encode(coding.encoding)
    if data is not None and not isinstance(data, (bytes, bytearray, memoryview)):
        raise _not_bytes(data)
    return b"" if data is None else bytes(data)


# What a capsule that is made ahead has, for its command to get unless that is to have something else.
PLAIN = (DEVNULL, PIPE, PIPE)


class Given(Value):
    """What a caller says of the command's descriptors, checked.

    Attributes:
        stdio: what becomes 0, 1 and 2.
        input: what is written to its standard input.
        encoding: how bytes become text, or None.
        passed: further descriptors of the caller's that it keeps.
        net_log: for lines about the network, or -1.
    """

    stdio: tuple[Stdio, Stdio, Stdio]
    input: bytes = b""
    encoding: Encoding | None = None
    passed: tuple[int, ...] = ()
    net_log: int = -1

    def is_plain(self) -> bool:
        """Return whether it is nothing but what `PLAIN` says: what most are."""
        return not self.passed and self.stdio == PLAIN

    def streams(self) -> Streams:
        """Return what will be our ends of its pipes."""
        return Streams(input=self.input, encoding=self.encoding)


def given(
    input: bytes | str | None = None,
    stdin: Stdio = None,
    stdout: Stdio = PIPE,
    stderr: Stdio = PIPE,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    pass_fds: Iterable[int] = (),
    net_log: File = None,
) -> Given:
    """Check what `capsule.start` is given of them.

    Raises:
        PolicyError: it is not as it has to be.
    """
    coding = encoding_of(text, encoding, errors)
    data = input_bytes(input, coding)
    first = PIPE if input is not None else DEVNULL if stdin is None else stdin
    about = (first, stdout, stderr), data, coding, checked_fds(pass_fds)
    return Given(*about) if net_log is None else Given(*about, _open_file(net_log, "net_log"))


def check_input(input: object, stdin: object) -> None:
    """Refuse both: what a command is to read from standard input, and another standard input.

    Raises:
        PolicyError: there are both.
    """
    if input is not None and stdin is not None:
        raise PolicyError("input and stdin exclude each other", field="input", hint="leave one out")


def _not_bytes(data: object) -> PolicyError:
    hint = "pass bytes, or str with text=True"
    return PolicyError(f"input: not bytes: {shown(data)}", field="input", value=data, hint=hint)


def _null(theirs: Descriptors) -> int:
    return theirs.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))


def open_stdio(
    given: tuple[Stdio, Stdio, Stdio], streams: Streams, theirs: Descriptors
) -> tuple[int, int, int]:
    """The descriptors that become 0, 1 and 2; our ends of pipes go into *streams*."""
    stdin, stdout, stderr = given
    in_ = _open_stdin(stdin, streams, theirs)
    out = _open_output(stdout, "stdout", streams, theirs, 1)
    if stderr == STDOUT:
        return in_, out, out
    return in_, out, _open_output(stderr, "stderr", streams, theirs, 2)


def _open_stdin(given: Stdio, streams: Streams, theirs: Descriptors) -> int:
    if given != PIPE:
        return _open(given, "stdin", 0, theirs)
    read, streams.stdin = theirs.pipe()
    theirs.keep((streams.stdin,))
    return read


def _open_output(given: Stdio, name: str, streams: Streams, theirs: Descriptors, number: int) -> int:
    if given != PIPE:
        return _open(given, name, number, theirs)
    read, write = theirs.pipe()
    theirs.keep((read,))
    setattr(streams, name, read)
    return write


def _open(given: Stdio, name: str, number: int, theirs: Descriptors) -> int:
    """The descriptor that is meant. One of the caller's own that is closed becomes /dev/null."""
    if given == DEVNULL or given is None:
        return _null(theirs)
    fd = number if given == INHERIT else given if isinstance(given, int) else given.fileno()
    try:
        os.fstat(fd)
    except OSError:
        if given == INHERIT:
            return _null(theirs)
        hint = "pass one that is open, or PIPE, DEVNULL or INHERIT"
        message = f"{name}: descriptor {fd} is not open"
        raise PolicyError(message, field=name, value=fd, hint=hint) from None
    theirs.give(fd)
    return fd


def _open_file(file: int | IO[Any], name: str) -> int:
    fd = file if isinstance(file, int) else file.fileno()
    try:
        os.fstat(fd)
    except OSError:
        message = f"{name}: descriptor {fd} is not open"
        raise PolicyError(message, field=name, value=fd, hint="pass one that is open") from None
    return fd


def checked_fds(fds: Iterable[int]) -> tuple[int, ...]:
    """The descriptors that are passed on, each open and none standard.

    Raises:
        PolicyError: it is not as it has to be.
    """
    passed = tuple(sorted(set(fds)))
    for fd in passed:
        try:
            os.fstat(fd)
        except OSError:
            message = f"pass_fds: descriptor {fd} is not open"
            hint = "open it before the call, and close it after"
            raise PolicyError(message, field="pass_fds", value=fd, hint=hint) from None
        if fd <= 2:
            hint = "descriptors 0 to 2 are stdin, stdout and stderr"
            raise PolicyError(f"pass_fds: {fd} is standard", field="pass_fds", value=fd, hint=hint)
    return passed


def pairs_of(passed: Sequence[int]) -> list[tuple[int, int]]:
    """(Where the launcher gets it, the command's number). The former lie above all of the latter."""
    base = max(FIRST_USER_FD, passed[-1] + 1) if passed else FIRST_USER_FD
    return [(base + i, fd) for i, fd in enumerate(passed)]

"""The supervisor's ends of the command's standard streams."""

from __future__ import annotations

import io
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

CHUNK = 1 << 16


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
        self._files: dict[str, IO[Any]] = {}

    def file(self, name: str, mode: str) -> IO[Any] | None:
        """One object a stream. Closing stdin's closes the pipe: the command sees its end."""
        fd = getattr(self, name)
        if name not in self._files and fd >= 0:
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

    def buffered(self, fd: int) -> bytes:
        """What the caller's own reader has fetched from the pipe but not handed out."""
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


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, waiting for room where the descriptor does not block."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])


class Capture:
    """What was read of the command's output, up to a limit over all of it.

    Attributes:
        met: whether there was more.
    """

    def __init__(self, streams: Streams, limit: int | None) -> None:
        self.met = False
        self._streams = streams
        self._limit = limit
        self._size = 0
        self._kept: dict[int, bytearray] = {}
        self._sinks: dict[int, int] = {}

    def pass_through(self, stdout: int, stderr: int) -> None:
        """Write what comes on to descriptors of ours instead of keeping it."""
        self._sinks = {self._streams.stdout: stdout, self._streams.stderr: stderr}

    def read(self, fd: int) -> bytes | None:
        """What there is of one stream, within the limit: b"" if nothing for now, None at its end."""
        data = self._streams.buffered(fd)
        try:
            data += os.read(fd, CHUNK)
        except BlockingIOError:
            if not data:
                return b""
        return self.count(data) if data else None

    def keep(self, fd: int, data: bytes) -> None:
        """Keep what was read, or write it on."""
        if fd in self._sinks:
            write_all(self._sinks[fd], data)
        else:
            self._kept.setdefault(fd, bytearray()).extend(data)

    def count(self, data: bytes) -> bytes:
        """What of it is within the limit."""
        room = len(data) if self._limit is None else max(0, self._limit - self._size)
        self._size += len(data)
        self.met = self.met or len(data) > room
        return data[:room]

    def text(self, fd: int) -> Any:
        """All that was kept of a stream, None if nothing was to be."""
        if fd < 0 or fd in self._sinks:
            return None
        return self._streams.decode(bytes(self._kept.get(fd, b"")))

"""A running capsule, from its command's first instruction to its result."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import time
import warnings

from . import spawn
from .errors import InternalError
from .result import Outcome, Result, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import IO, Any, Self

    from .launch import Running
    from .plan import Plan
    from .policy import Limits

_CHUNK = 1 << 16
_TO_GROUP = 0x80
_END_OF_COMMAND, _END_BY_DEADLINE = range(2)
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


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

    def close(self) -> None:
        """Close what is open."""
        for name in ("stdin", "stdout", "stderr"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)


class Process:
    """A command that runs in a capsule. Made by `start`; there is no public constructor.

    Leaving the ``with`` block, or losing the last reference, kills and reaps everything. So does the
    end of this process, however it ends.

    Attributes:
        args: the command's argument vector.
        pid: process id of the capsule's init, as the host sees it.
        namespaces: the kinds of namespace that were entered.
        protections: each protection in force, and how it is enforced.
    """

    def __init__(
        self,
        running: Running,
        plan: Plan,
        limits: Limits,
        streams: Streams,
        terminal: int | None = None,
    ) -> None:
        self.args = plan.args
        self.pid = running.pid
        self.namespaces = plan.namespaces
        self.protections = dict(plan.protections)
        self.terminal = terminal
        self._running: Running | None = running
        self._limits = limits
        self._streams = streams
        self._files: dict[str, IO[Any]] = {}
        self._captured: dict[int, bytearray] = {}
        self._ended: tuple[int, ...] | None = None
        self._killed = False
        self._truncated = False
        self._result: Result | None = None

    # --- streams ------------------------------------------------------------------------

    @property
    def stdin(self) -> IO[Any] | None:
        """A writer to the command's standard input, or None unless it was started with PIPE."""
        return self._file("stdin", "wb")

    @property
    def stdout(self) -> IO[Any] | None:
        """A reader of the command's standard output, or None unless it is a pipe."""
        return self._file("stdout", "rb")

    @property
    def stderr(self) -> IO[Any] | None:
        """A reader of the command's standard error, or None unless it is a pipe."""
        return self._file("stderr", "rb")

    def _file(self, name: str, mode: str) -> IO[Any] | None:
        """One object a stream. Closing stdin's closes the pipe: the command sees its end."""
        fd = getattr(self._streams, name)
        if name not in self._files and fd >= 0:
            file: IO[Any] = open(fd, mode, closefd=name == "stdin")  # noqa: SIM115
            if name == "stdin":
                self._streams.stdin = -1
            coding = self._streams.encoding
            if coding is not None:
                binary: Any = file
                file = io.TextIOWrapper(
                    binary, coding.encoding, coding.errors, write_through=mode == "wb"
                )
            self._files[name] = file
        return self._files.get(name)

    # --- life ------------------------------------------------------------------------

    def fileno(self) -> int:
        """A pidfd (pidfd_open(2)) that is readable once everything inside is gone.

        Raises:
            ValueError: the process has been waited for.
        """
        if self._running is None:
            raise ValueError("the capsule has ended and was reaped")
        return self._running.pidfd

    def poll(self) -> Result | None:
        """Return the result if the command has ended, else None, at once."""
        if self._result is None and self._pump(0):
            return self._finish()
        return self._result

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end, reading meanwhile what the command writes to its pipes.

        Standard input is closed first if it is a pipe: a command that reads would wait for ever.

        Args:
            timeout: seconds after which to give up waiting; the command goes on. The limit that
                ends a command is `Limits.timeout`.

        Raises:
            TimeoutError: it has not ended within *timeout*.
        """
        if self._result is None:
            self._close_stdin()
            if not self._pump(timeout):
                raise TimeoutError(f"{self.args[0]} still runs after {timeout} s")
            return self._finish()
        return self._result

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the command: to it alone, or to its (foreground) process group.

        SIGKILL ends the whole capsule. After the end this does nothing.
        """
        if number == signal.SIGKILL:
            self.kill()
            return
        if self._running is not None and self._ended is None:
            byte = bytes([int(number) | (_TO_GROUP if group else 0)])
            with contextlib.suppress(BrokenPipeError):
                os.write(self._running.lifeline, byte)

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill everything in the capsule, at once."""
        if self._running is not None and self._ended is None:
            self._killed = True
            self._kill_init()

    def _kill_init(self) -> None:
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._running.pidfd, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def __del__(self) -> None:
        if getattr(self, "_running", None) is not None:
            warnings.warn(f"capsule of {self.args[0]!r} still runs", ResourceWarning, stacklevel=2)
            self._end()

    def __repr__(self) -> str:
        state = "running" if self._result is None else self._result.outcome.value
        return f"<Process {self.args[0]!r} pid={self.pid} {state}>"

    def _end(self) -> None:
        """Kill, reap and close, whatever state this is in."""
        if self._running is not None:
            self.kill()
            with contextlib.suppress(InternalError):
                self._read_status_to_end()
            self._release()

    # --- the loop ------------------------------------------------------------------------

    def _pump(self, timeout: float | None) -> bool:
        """Move output and input until the end (true) or the timeout (false)."""
        running = self._running
        if running is None or self._ended is not None:
            return True
        until = None if timeout is None else time.monotonic() + timeout
        poller = self._poller(running)
        while True:
            left = None if until is None else max(0.0, until - time.monotonic()) * 1000
            events = poller.poll(left)
            for fd, _ in events:
                if fd == running.status:
                    if self._read_status():
                        return True
                elif fd == self._streams.stdin:
                    self._write_input(poller)
                elif not self._read_output(fd):
                    poller.unregister(fd)
            if not events and left is not None and until is not None and time.monotonic() >= until:
                return False

    def _poller(self, running: Running) -> select.poll:
        poller = select.poll()
        poller.register(running.status, _READABLE)
        for fd in self._outputs():
            os.set_blocking(fd, False)
            poller.register(fd, _READABLE)
        if self._streams.stdin >= 0 and self._streams.input:
            os.set_blocking(self._streams.stdin, False)
            poller.register(self._streams.stdin, select.POLLOUT)
        return poller

    def _outputs(self) -> list[int]:
        return [fd for fd in (self._streams.stdout, self._streams.stderr) if fd >= 0]

    def _read_status(self) -> bool:
        """Take one record. True at the end: by a record, or because init is gone without one."""
        if self._running is None:
            return True
        record = spawn.read_record(self._running.status)
        if record is not None and record[0] == spawn.STOPPED:
            self._stopped(record[1])
            return False
        if record is not None and record[0] != spawn.ENDED:
            raise InternalError(f"a record of unknown kind {record[0]}")
        self._ended = () if record is None else record
        return True

    def _stopped(self, number: int) -> None:
        """The command was stopped. A terminal's relay overrides this; else it may stay so."""

    def _read_status_to_end(self) -> None:
        while self._ended is None:
            self._read_status()

    def _read_output(self, fd: int) -> bool:
        """Take what there is of one stream. False at its end."""
        captured = self._captured.setdefault(fd, bytearray())
        self._take_buffered(fd, captured)
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return True
        room = self._room()
        captured += data if room is None else data[:room]
        if room is not None and len(data) > room:
            self._truncated = True
            self._kill_init()
        return bool(data)

    def _take_buffered(self, fd: int, captured: bytearray) -> None:
        """What the caller's reader has fetched from the pipe but not handed out comes first."""
        name = "stdout" if fd == self._streams.stdout else "stderr"
        reader = self._files.pop(name, None)
        if reader is not None:
            binary: Any = getattr(reader, "buffer", reader)
            captured += binary.peek() if not binary.closed else b""

    def _room(self) -> int | None:
        if self._limits.output is None:
            return None
        return max(0, self._limits.output - sum(map(len, self._captured.values())))

    def _write_input(self, poller: select.poll) -> None:
        """Write a part of the input. A command that does not read it has a right not to."""
        streams = self._streams
        with contextlib.suppress(BlockingIOError):
            try:
                streams.input = streams.input[os.write(streams.stdin, streams.input[:_CHUNK]) :]
            except BrokenPipeError:
                streams.input = memoryview(b"")
        if not streams.input:
            poller.unregister(streams.stdin)
            os.close(streams.stdin)
            streams.stdin = -1

    def _close_stdin(self) -> None:
        writer = self._files.get("stdin")
        if writer is not None and not writer.closed:
            with contextlib.suppress(BrokenPipeError):
                writer.close()
        if self._streams.stdin >= 0 and not self._streams.input:
            os.close(self._streams.stdin)
            self._streams.stdin = -1

    # --- the end ------------------------------------------------------------------------

    def _finish(self) -> Result:
        """All inside is dead: what is in the pipes is all there will ever be."""
        for fd in self._outputs():
            while self._more(fd):
                pass
        self._result = self._make_result()
        self._release()
        return self._result

    def _more(self, fd: int) -> bool:
        """Whether another read may bring something: not at the end, nor once the pipe is empty."""
        before = len(self._captured.get(fd, b""))
        return self._read_output(fd) and len(self._captured[fd]) > before and not self._truncated

    def _release(self) -> None:
        """Reap init and close everything of ours."""
        running, self._running = self._running, None
        if running is None:
            return
        spawn.reap(running.pid)
        for fd in (running.pidfd, running.status, running.lifeline):
            os.close(fd)
        for file in self._files.values():
            with contextlib.suppress(OSError, ValueError):
                file.close()
        self._streams.close()
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None

    def _make_result(self) -> Result:
        outcome, returncode, detail = self._verdict()
        return Result(
            args=self.args,
            outcome=outcome,
            returncode=returncode,
            stdout=self._text(self._streams.stdout),
            stderr=self._text(self._streams.stderr),
            truncated=self._truncated,
            usage=_usage(self._ended or ()),
            namespaces=self.namespaces,
            protections=self.protections,
            detail=detail,
        )

    def _verdict(self) -> tuple[Outcome, int, str]:
        """(Outcome, returncode, detail). What was done to the command comes before what it did."""
        if self._truncated:
            limit = self._limits.output
            return Outcome.OUTPUT_LIMIT, -signal.SIGKILL, f"more than {limit} bytes of output"
        if not self._ended:
            who = "by the caller" if self._killed else "from outside of the capsule"
            return Outcome.KILLED, -signal.SIGKILL, f"killed {who}"
        status, reason = self._ended[1:3]
        if reason == _END_BY_DEADLINE:
            return Outcome.TIMED_OUT, -signal.SIGKILL, f"after {self._limits.timeout:g} s"
        if os.WIFSIGNALED(status):
            return Outcome.SIGNALED, -os.WTERMSIG(status), ""
        return Outcome.EXITED, os.WEXITSTATUS(status), ""

    def _text(self, fd: int) -> Any:
        if fd < 0:
            return None
        data = bytes(self._captured.get(fd, b""))
        return data if self._streams.encoding is None else self._streams.encoding.decode(data)


def _usage(record: tuple[int, ...]) -> Usage:
    if not record:
        return Usage()
    wall, user, system, peak, minor, major, voluntary, involuntary = record[3:11]
    return Usage(
        wall=wall / 1e6,
        cpu_user=user / 1e6,
        cpu_system=system / 1e6,
        peak_memory=peak * 1024,
        minor_faults=minor,
        major_faults=major,
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
    )

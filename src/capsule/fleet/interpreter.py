"""Interpreters in capsules: one for each call, or one that forks for each.

What comes from them is read as hostile (`codec`): it may be garbage, too much, nothing at all, or about
another call.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import sys
import threading
import time

from capsule.api import start
from capsule.base.errors import CapsuleError
from capsule.base.text import printable
from capsule.process.handle import loop_of
from capsule.process.result import CommandFailed, Outcome, Result
from capsule.process.stdio import DEVNULL, PIPE

from .codec import Garbled, decode
from .worker import HEAD, SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from capsule.policy.policy import Policy
    from capsule.process.handle import Process

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
# Seconds for the imports that are named ahead. Nothing foreign has run by then.
_PATIENCE = 120.0


class CallFailed(CapsuleError):
    """A call in a capsule raised an exception, or ended without a result. Its words come from there.

    Attributes:
        type: the name of the exception's class.
        traceback: the traceback as text, or "".
    """

    def __init__(self, type: str, message: str = "", traceback: str = "") -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type, self.traceback = type, traceback
        self._said = message

    def __reduce__(self) -> tuple[Any, ...]:
        return CallFailed, (self.type, self._said, self.traceback)

    def __str__(self) -> str:
        return (
            f"{self.message}\n\nIn the capsule:\n{self.traceback}" if self.traceback else self.message
        )


class Kind:
    """What all calls of an executor have in common."""

    def __init__(
        self,
        policy: Policy,
        max_workers: int,
        preload: tuple[str, ...],
        share: bool,
        trust_results: bool,
        result_size: int,
        python: str,
    ) -> None:
        self.max_workers, self._python = max_workers, python
        self.timeout = policy.limits.timeout
        self._policy = policy.replace(limits=policy.limits.replace(timeout=None))
        self._trusted, self.most = trust_results, result_size
        self.setup = pickle.dumps({"path": sys.path, "preload": preload, "share": share})
        with open(_SOURCE, encoding="utf-8") as file:
            self._source = file.read()

    def start(self, stdout: int) -> tuple[Process, socket.socket]:
        """Start an interpreter, and return it with our end of a channel to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            args = [self._python, "-I", "-c", self._source, str(theirs.fileno())]
            try:
                process = start(
                    args, self._policy, pass_fds=[theirs.fileno()], stdout=stdout, stderr=stdout
                )
            except BaseException:
                ours.close()
                raise
        return process, ours

    def request(self, call: bytes, source: str | None) -> dict[str, Any]:
        """A request with a name of its own."""
        name = os.urandom(8).hex()
        return {
            "id": name, "call": call, "source": source, "trusted": self._trusted, "most": self.most,
        }  # fmt: skip

    def read(self, answer: tuple[bytes, bytes], request: dict[str, Any]) -> Any:
        """The value of an answer.

        Raises:
            CallFailed: the call raised an exception.
            Garbled: it is no answer to this request.
        """
        found = decode(*answer, unpickle=pickle.loads if self._trusted else None)
        if found["id"] != request["id"]:
            raise Garbled("a result for another call")
        if "error" in found:
            raise failed(found["error"])
        if "value" not in found:
            raise Garbled("a result that is none")
        return found["value"]


def failed(error: object) -> CallFailed:
    """Make of what a worker says of an exception text that is safe to print."""
    words = error if isinstance(error, dict) else {}
    said = [words.get(name) for name in ("type", "message", "traceback")]
    lines = [one.split("\n") if isinstance(one, str) else [] for one in said]
    return CallFailed(*("\n".join(map(printable, one)) for one in lines))


class _Answer:
    """An answer that comes in pieces."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()

    is_whole = False

    def add(self, data: bytes) -> bool:
        """Take a piece, and return whether it is whole now.

        Raises:
            Garbled: it is larger than it may be, or longer than it says.
        """
        self._data += data
        if len(self._data) < HEAD.size:
            return False
        whole = HEAD.size + sum(HEAD.unpack_from(self._data))
        # What is an error may be a little longer than a result.
        if whole > self._most + (1 << 17):
            raise Garbled(f"a result of {whole} bytes, more than the {self._most} allowed")
        if len(self._data) > whole:
            raise Garbled("more than a result")
        self.is_whole = len(self._data) == whole
        return self.is_whole

    def parts(self) -> tuple[bytes, bytes]:
        """(The text, the bytes beside it)."""
        size = HEAD.unpack_from(self._data)[0]
        return bytes(self._data[HEAD.size : HEAD.size + size]), bytes(self._data[HEAD.size + size :])


def framed(request: object) -> bytes:
    """A request as it is sent."""
    data = request if isinstance(request, bytes) else pickle.dumps(request)
    return SIZE.pack(len(data)) + data


class Worker:
    """An interpreter in a capsule, for one call."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._process, self._channel = kind.start(PIPE)
        # It begins at once, and has mostly said that it is ready when there is a call. If it has ended
        # already, the call says why.
        with contextlib.suppress(OSError):
            self._channel.sendall(framed(kind.setup))
        self._channel.setblocking(False)

    def perform(self, request: dict[str, Any]) -> Any:
        """Have a request answered."""
        found = decode(*self._exchange(b"", _PATIENCE))
        if "error" in found:
            raise failed(found["error"])
        answer = self._exchange(framed(request), self._kind.timeout)
        return self._kind.read(answer, request)

    def _exchange(self, data: bytes, timeout: float | None) -> tuple[bytes, bytes]:
        """Send, and return the answer, while what it writes is read."""
        loop, answer, channel = loop_of(self._process), _Answer(self._kind.most), self._channel
        left, closed = memoryview(data), False

        def turn() -> None:
            nonlocal left, closed
            try:
                if left:
                    left = left[channel.send(left) :]
                    if not left:
                        loop.watch(channel.fileno(), select.POLLIN, turn)
                    return
                piece = channel.recv(1 << 18)
            except (BrokenPipeError, ConnectionResetError):
                piece = b""
            closed = not piece
            if closed or answer.add(piece):
                loop.pause()

        loop.watch(channel.fileno(), select.POLLOUT if left else select.POLLIN, turn)
        try:
            ended = loop.run(timeout)
        finally:
            loop.unwatch(channel.fileno())
        if closed:
            # Its end says more, if it comes at once.
            ended = loop.run(1.0)
            if not ended:
                raise CallFailed("EOFError", "the interpreter has closed its channel")
        if answer.is_whole or (ended and self._last(answer)):
            return answer.parts()
        raise self._end_of(ended)

    def _last(self, answer: _Answer) -> bool:
        """Read what an interpreter has left that has ended; return whether it is an answer."""
        try:
            while piece := self._channel.recv(1 << 18):
                if answer.add(piece):
                    return True
        except OSError:
            pass
        return False

    def _end_of(self, ended: bool) -> CapsuleError:
        """Say what it means that there is no answer."""
        if not ended:
            self._process.kill()
        result = self._process.wait()
        if not ended:
            result = _timed_out(result, self._kind.timeout)
        if result.ok:
            return CallFailed("SystemExit", "the interpreter ended without a result")
        return CommandFailed(result)

    def kill(self) -> None:
        """Kill all that is in it, at once."""
        self._process.kill()

    def end(self) -> None:
        """Kill and reap it."""
        self._channel.close()
        with self._process:
            pass


def _timed_out(result: Result, timeout: float | None) -> Result:
    detail = f"after {timeout:g} s" if timeout is not None else "while it was made ready"
    return result.replace(outcome=Outcome.TIMED_OUT, returncode=-9, detail=detail)


class Zygotes:
    """One interpreter in a capsule, forked for each call; another one when it has ended."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._now: tuple[Process, socket.socket] | None = None

    def prepare(self) -> tuple[Process, socket.socket]:
        """Return the interpreter, and the channel to it."""
        with self._lock:
            if self._now is None or _has_ended(self._now[0]):
                self._end()
                self._now = self._make()
            return self._now

    def _make(self) -> tuple[Process, socket.socket]:
        process, ours = self._kind.start(DEVNULL)
        try:
            answer = _talk(process, ours, framed(self._kind.setup), _PATIENCE, self._kind)
            found = decode(*answer) if answer is not None else {}
            if "error" in found or answer is None:
                raise failed(found["error"]) if found else CommandFailed(process.wait(0))
        except BaseException:
            ours.close()
            with process:
                pass
            raise
        ours.setblocking(True)
        return process, ours

    def perform(self, request: dict[str, Any]) -> Any:
        """Have a request answered by a fork. What has not begun is begun again, once."""
        for _ in range(2):
            process, control = self.prepare()
            ours, theirs = socket.socketpair()
            with ours:
                # Where it has ended, that is seen below.
                with theirs, self._lock, contextlib.suppress(OSError):
                    socket.send_fds(control, [request["id"].encode()], [theirs.fileno()])
                if _has_begun(process, ours):
                    return self._answer(process, control, ours, request)
            with self._lock:
                if self._now is not None and self._now[0] is process:
                    self._end()
        raise CommandFailed(process.wait())

    def _answer(
        self, process: Process, control: socket.socket, ours: socket.socket, request: dict[str, Any]
    ) -> Any:
        answer = _talk(process, ours, framed(request), self._kind.timeout, self._kind)
        if answer is not None:
            return self._kind.read(answer, request)
        with self._lock:
            if _has_ended(process):
                raise CommandFailed(process.wait())
            with contextlib.suppress(OSError):
                control.send(request["id"].encode())
        result = Result(args=process.args, outcome=Outcome.TIMED_OUT, returncode=-9)
        raise CommandFailed(_timed_out(result, self._kind.timeout))

    def end(self) -> None:
        """End the interpreter."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._now is not None:
            process, control = self._now
            self._now = None
            control.close()
            with process:
                pass


def _has_ended(process: Process) -> bool:
    waiting = select.poll()
    try:
        waiting.register(process.fileno(), select.POLLIN)
    except ValueError:
        return True  # and it has been waited for
    return bool(waiting.poll(0))


def _has_begun(process: Process, channel: socket.socket) -> bool:
    """Wait until a fork says that it is there; false if it or the process ended before."""
    waiting = select.poll()
    try:
        for fd in (channel.fileno(), process.fileno()):
            waiting.register(fd, select.POLLIN)
        ready = dict(waiting.poll(_PATIENCE * 1000))
        return channel.fileno() in ready and bool(channel.recv(1))
    except (ConnectionResetError, ValueError):
        return False  # another thread has waited for it


def _talk(
    process: Process, channel: socket.socket, data: bytes, timeout: float | None, kind: Kind
) -> tuple[bytes, bytes] | None:
    """Send, and return the answer; None if the time is over or the process ended.

    Raises:
        CallFailed: the other side closed the channel.
        Garbled: it sent too much.
    """
    until = None if timeout is None else time.monotonic() + timeout
    answer, left = _Answer(kind.most), memoryview(data)
    channel.setblocking(False)
    waiting = select.poll()
    try:
        waiting.register(process.fileno(), select.POLLIN)
    except ValueError:
        return None  # another thread has waited for it
    while until is None or time.monotonic() < until:
        waiting.register(channel, select.POLLOUT if left else select.POLLIN)
        patience = None if until is None else max(0.0, until - time.monotonic()) * 1000
        ready = dict(waiting.poll(patience))
        if channel.fileno() in ready:
            try:
                if left:
                    left = left[channel.send(left) :]
                    continue
                piece = channel.recv(1 << 18)
            except (BrokenPipeError, ConnectionResetError):
                piece = b""
            if not piece:
                raise CallFailed("EOFError", "the call ended without a result")
            if answer.add(piece):
                return answer.parts()
        elif ready:
            return None
    return None

"""One thread that moves bytes between many pairs of sockets, by splice(2): nothing of it is kept here.

What one side does not take stays in its kernel's buffers and one pipe, so the other side has to wait.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _socket import SHUT_WR, SO_ERROR, SO_LINGER, SOL_SOCKET
from fcntl import fcntl
from select import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, epoll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    Pipe = tuple[int, int]

CHUNK = 1 << 20
# Of one connection's, before it is another one's turn.
TURNS = 16
_PIPE_SIZE, _F_SETPIPE_SZ, _SPARE = 1 << 18, 1031, 16
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_RESET = struct.pack("ii", 1, 0)
EDGES = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET


class Loop:
    """epoll(7), and what is to be called.

    Attributes:
        now: CLOCK_MONOTONIC of this turn, in seconds.
        trouble: the first error that a handler let out, or "": it ends nothing but that handler.
    """

    def __init__(self) -> None:
        self._epoll = epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._again: list[Callable[[int], None]] = []
        self.now = time.monotonic()
        self.trouble = ""

    def add(self, fd: int, handler: Callable[[int], None], events: int = EPOLLIN) -> None:
        """Have a handler called with the events of a descriptor."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def remove(self, fd: int) -> None:
        """Undo `add`; before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def again(self, handler: Callable[[int], None]) -> None:
        """Have it called in the next turn in any case."""
        self._again.append(handler)

    def turn(self, timeout: float) -> None:
        """Wait for events, so many seconds at most, and have them handled."""
        ready = self._epoll.poll(0 if self._again else timeout, 256)
        self.now = time.monotonic()
        again, self._again = self._again, []
        for fd, events in ready:
            # One before it may have removed it.
            handler = self._handlers.get(fd)
            if handler is not None:
                self._call(handler, events)
        for handler in again:
            self._call(handler, 0)

    def _call(self, handler: Callable[[int], None], events: int) -> None:
        try:
            handler(events)
        except Exception as error:  # noqa: BLE001 - whatever is sent, the other connections go on
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            line = 0 if trace is None else trace.tb_lineno
            self.trouble = self.trouble or f"{error!r}, line {line}"[:300]


class Pipes:
    """Pipes that are empty, for whoever has something to move."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []

    def take(self) -> Pipe:
        """Return one.

        Raises:
            OSError: no more can be made.
        """
        if self._free:
            return self._free.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl(pipe[1], _F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # the user has many: a smaller one does, too
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take one back that is empty."""
        if len(self._free) < _SPARE:
            self._free.append(pipe)
        else:
            close(pipe)


def close(pipe: Pipe) -> None:
    """Close both ends."""
    for fd in pipe:
        os.close(fd)


class Flow:
    """One direction of a connection.

    Attributes:
        moved: bytes that have arrived.
        done: whether its end has arrived, too.
        readable: whether there may be something to read.
        writable: whether there may be room.
    """

    __slots__ = (
        "_ended", "_held", "_pipe", "_pipes", "_sink", "_source",
        "done", "moved", "readable", "writable",
    )  # fmt: skip

    def __init__(self, source: socket, sink: socket, pipes: Pipes) -> None:
        self._source, self._sink, self._pipes = source, sink, pipes
        self._pipe: Pipe | None = None
        self._held = self.moved = 0
        self._ended = self.done = False
        self.readable, self.writable = True, True

    def move(self) -> bool:
        """Move what there is; return whether there is more to be moved at once.

        Raises:
            OSError: one side is gone.
        """
        if self.done:
            return False
        return all(self._drain() if self._held else self._fill() for _ in range(TURNS))

    def _fill(self) -> bool:
        if self._ended:
            self.done = True
            self._sink.shutdown(SHUT_WR)
            return False
        if not self.readable:
            return False
        pipe = self._pipe = self._pipes.take()
        try:
            self._held = os.splice(self._source.fileno(), pipe[1], CHUNK, flags=_FLAGS)
        except BlockingIOError:
            self.readable = False
        else:
            self._ended = not self._held
        finally:
            if not self._held:
                self._pipes.give(pipe)
                self._pipe = None
        return self.readable

    def _drain(self) -> bool:
        pipe = self._pipe
        if pipe is None or not self.writable:
            return False
        try:
            sent = os.splice(pipe[0], self._sink.fileno(), self._held, flags=_FLAGS)
        except BlockingIOError:
            self.writable = False
            return False
        self._held -= sent
        self.moved += sent
        if not self._held:
            self._pipes.give(pipe)
            self._pipe = None
        return True

    def release(self) -> None:
        """Let go of what it holds."""
        if self._pipe is not None:
            close(self._pipe)  # it is not empty
            self._pipe = None


class Pair:
    """Two sockets that are connected to each other through here.

    Args:
        loop: waits for them.
        pipes: for what is moved.
        inside: the socket of the capsule's, connected, of our own.
        outside: the other one, likewise.
        on_move: called when something has moved.
        on_end: called once, when both are closed; with an errno if it did not end by itself.

    Attributes:
        out: the flow from inside to outside.
        back: the other one.
        on_read: called, as long as it is set, instead of moving anything of *out*.
    """

    def __init__(
        self,
        loop: Loop,
        pipes: Pipes,
        inside: socket,
        outside: socket,
        on_move: Callable[[], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._loop, self.inside, self.outside = loop, inside, outside
        self.out, self.back = Flow(inside, outside, pipes), Flow(outside, inside, pipes)
        self._on_move, self._on_end = on_move, on_end
        self.on_read: Callable[[], None] | None = None
        self._is_open = True
        loop.add(inside.fileno(), lambda events: self._hear(events, self.out, self.back), EDGES)
        loop.add(outside.fileno(), lambda events: self._hear(events, self.back, self.out), EDGES)

    def _hear(self, events: int, read: Flow, written: Flow) -> None:
        if events & ~EPOLLOUT:
            read.readable = True  # an end or an error is read as well
        if events & ~EPOLLIN:
            written.writable = True
        self.move()

    def move(self, _events: int = 0) -> None:
        """Move what there is in both directions."""
        if self._is_open and self.on_read is not None:
            self.on_read()
        if self._is_open:
            self._move()

    def _move(self) -> None:
        moved = self.out.moved + self.back.moved
        try:
            more = (self.on_read is None and self.out.move()) | self.back.move()
        except OSError as error:
            self.end(error.errno or errno.EIO)
            return
        if moved != self.out.moved + self.back.moved:
            self._on_move()
        if self.out.done and self.back.done:
            self.end(0)
        elif more:
            self._loop.again(self.move)

    def end(self, error: int) -> None:
        """Close both; by a reset, if they have not ended by themselves."""
        if not self._is_open:
            return
        self._is_open = False
        for flow in (self.out, self.back):
            flow.release()
        for one in (self.inside, self.outside):
            self._loop.remove(one.fileno())
            if error:
                reset(one)
            else:
                one.close()
        self._on_end(error)


def reset(one: socket) -> None:
    """Close a connection by a reset, so that the other side learns of it at once."""
    try:
        one.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    except OSError:
        pass  # it is gone
    one.close()


def error_of(one: socket) -> int:
    """Return the errno that connecting ended with, or 0."""
    return one.getsockopt(SOL_SOCKET, SO_ERROR)

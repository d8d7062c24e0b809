"""The loop that runs while a command does: what it writes is read, what it is to read is written."""

from __future__ import annotations

import os
import select
import time

from capsule.base import signals
from capsule.base.descriptors import CHUNK

from .records import TO_GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from capsule.confine.cgroup import Leaf

    from .launch import Running
    from .records import Records
    from .stdio import Streams

    class Poller(Protocol):
        """What of `select.poll` is used."""

        def register(self, fd: int, events: int, /) -> None:
            """Watch a descriptor, or for other events than before."""

        def unregister(self, fd: int, /) -> None:
            """Watch it no more."""

        def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
            """Wait, and return (descriptor, events) of those that are ready."""


# Milliseconds between two looks at what a cgroup holds, on a kernel that keeps no peak of it.
SAMPLING = 20.0
# Bytes of what is written on that are looked at in the end.
LAST = 1 << 13
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class Loop:
    """What goes between us and one capsule.

    Attributes:
        capture: what was read of its output.
        on_end: called when all inside is dead and the pipes are empty.
    """

    def __init__(
        self,
        running: Running,
        records: Records,
        streams: Streams,
        limit: int | None,
        leaf: Leaf | None,
    ) -> None:
        self.capture = Capture(streams, limit)
        self.on_end: Callable[[], None] | None = None
        self._running = running
        self._records = records
        self._streams = streams
        self._leaf = leaf
        self._elsewhere: set[int] = set()
        self._paused = False
        self._watched: dict[int, tuple[int, Callable[[], object]]] = {}
        self._poller: Poller = select.poll()
        # What is called again and again: when next, how often, and what.
        self._next, self._interval = 0.0, 0.0
        self._tick: Callable[[], None] | None = None

    def kill(self) -> None:
        """Kill init, and with it everything inside. Not after the descriptors were closed."""
        if self._leaf is not None:
            self._leaf.hurry()
        signals.send_by_pidfd(self._running.pidfd, signals.SIGKILL)

    def watch(self, fd: int, events: int, handler: Callable[[], object]) -> None:
        """Have `run` call a handler whenever poll(2) reports one of the events."""
        self._watched[fd] = (events, handler)
        self._poller.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Undo `watch`."""
        if self._watched.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def every(self, seconds: float, handler: Callable[[], None]) -> None:
        """Have a handler called again and again while `run` waits."""
        self._next, self._interval, self._tick = time.monotonic() + seconds, seconds, handler

    def on_stop(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the signal that stops the command."""
        self._records.on_stop = handler

    def signal_group(self, number: int) -> None:
        """Send a signal to the command's group and wait, for a moment, for it to stop or end of it."""
        if not self._records.has_ended():
            self._records.tell(number | TO_GROUP)
            self._records.read_stop(0.1)

    def pass_through(self, stdout: int, stderr: int) -> None:
        """Write what the command writes on to descriptors of ours instead of keeping it."""
        self.capture.pass_through(stdout, stderr)

    def pause(self) -> None:
        """Have `run` return before the end: for a handler that has what it waited for."""
        self._paused = True

    def use(self, poller: Poller) -> None:
        """Have something else wait from here on, which calls `run` when it is time."""
        self._poller = poller
        self._watch_streams()

    @property
    def sampling(self) -> float | None:
        """Seconds within which `run` is to be called again in any case, None for no such need."""
        return SAMPLING / 1000 if self._leaf is not None and self._leaf.sampled else None

    def read_elsewhere(self, fd: int) -> None:
        """Leave a stream to somebody who hands in what is to be kept of it."""
        self._elsewhere.add(fd)
        self.unwatch(fd)

    def run(self, timeout: float | None) -> bool:
        """Move output and input until the end (true) or the timeout (false)."""
        self._paused = False
        if self._records.has_ended():
            return True
        until = None if timeout is None else time.monotonic() + timeout
        self._watch_streams()
        while not (self._records.has_ended() or self._paused):
            events = self._poller.poll(self._patience(until))
            for fd, _ in events:
                # A handler before this one may have ended the watch.
                if fd in self._watched:
                    self._watched[fd][1]()
            self._call_tick()
            if until is not None and time.monotonic() >= until:
                break
        return self._records.has_ended()

    def drain(self) -> None:
        """All inside is dead: what is in the pipes is all there will ever be."""
        for fd in self._outputs():
            while self._read_output(fd):
                pass
        if self.on_end is not None:
            self.on_end()

    def _call_tick(self) -> None:
        if self._tick is not None and time.monotonic() >= self._next and not self._records.has_ended():
            self._tick()
            self._next = time.monotonic() + self._interval

    def _patience(self, until: float | None) -> float | None:
        """Milliseconds to wait for anything to happen."""
        if self._tick is not None:
            until = self._next if until is None else min(until, self._next)
        left = None if until is None else max(0.0, until - time.monotonic()) * 1000
        if self._leaf is None or not self._leaf.sampled:
            return left
        self._leaf.sample()
        return SAMPLING if left is None else min(left, SAMPLING)

    def _watch_streams(self) -> None:
        self.watch(self._running.status, _READABLE, self._records.read)
        self.watch(self._running.pidfd, select.POLLIN, self._records.notice_end)
        self._streams.unblock()
        for fd in self._outputs():
            self.watch(fd, _READABLE, self._reader(fd))
        if self._streams.stdin >= 0 and self._streams.input:
            os.set_blocking(self._streams.stdin, False)
            self.watch(self._streams.stdin, select.POLLOUT, self._write_input)

    def _reader(self, fd: int) -> Callable[[], object]:
        return lambda: self._read_output(fd)

    def _outputs(self) -> list[int]:
        ours = (self._streams.stdout, self._streams.stderr)
        return [fd for fd in ours if fd >= 0 and fd not in self._elsewhere]

    def _read_output(self, fd: int) -> bool:
        """Take what there is of one stream. False once there is no more for now."""
        data = self.capture.read(fd)
        if data is None:
            self.unwatch(fd)
        if self.capture.met:
            self.kill()
        if data:
            self.capture.keep(fd, data)
        return bool(data) and not self.capture.met

    def count_output(self, data: bytes) -> bytes:
        """Return what of it is within the limit. Beyond, everything is killed."""
        kept = self.capture.count(data)
        self.capture.remember(kept)
        if self.capture.met:
            self.kill()
        return kept

    def _write_input(self) -> None:
        fd = self._streams.stdin
        if self._streams.write_input():
            self.unwatch(fd)


class Capture:
    """What was read of the command's output, up to a limit over all of it.

    Attributes:
        met: whether there was more.
        last: the end of what was not kept but written on, both streams together.
    """

    def __init__(self, streams: Streams, limit: int | None) -> None:
        self.met = False
        self.last = b""
        self._streams = streams
        self._limit = limit
        self._size = 0
        self._kept: dict[int, bytearray] = {}
        self._sinks: dict[int, int] = {}

    def pass_through(self, stdout: int, stderr: int) -> None:
        """Write what comes on to descriptors of ours instead of keeping it."""
        self._sinks = {self._streams.stdout: stdout, self._streams.stderr: stderr}

    def read(self, fd: int) -> bytes | None:
        """Return what there is of one stream, within the limit: b"" if nothing, None at its end."""
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
            self.remember(data)
        else:
            self._kept.setdefault(fd, bytearray()).extend(data)

    def remember(self, data: bytes) -> None:
        """Take note of what was written on: a program that fails says last what it lacked."""
        self.last = (self.last + data[-LAST:])[-LAST:]

    def count(self, data: bytes) -> bytes:
        """Return what of it is within the limit."""
        room = len(data) if self._limit is None else max(0, self._limit - self._size)
        self._size += len(data)
        self.met = self.met or len(data) > room
        return data[:room]

    def text(self, fd: int) -> Any:
        """All that was kept of a stream, None if nothing was to be."""
        if fd < 0 or fd in self._sinks:
            return None
        return self._streams.decode(bytes(self._kept.get(fd, b"")))


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, waiting for room where the descriptor does not block."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])

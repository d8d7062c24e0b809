"""Capsules on an event loop of asyncio: by pidfds and pipes, without a thread."""

from __future__ import annotations

import asyncio
import os
import select
import weakref
from contextlib import asynccontextmanager

from capsule.api import start
from capsule.base.descriptors import CHUNK
from capsule.process.handle import is_reaped_elsewhere, loop_of, result_of, streams_of
from capsule.process.stdio import check_input, input_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Any, Unpack

    from capsule.api import Args, Options
    from capsule.policy.policy import Policy
    from capsule.process.handle import Process
    from capsule.process.result import Result, Usage


async def run_async(
    args: Args,
    policy: Policy | None = None,
    *,
    check: bool = False,
    **options: Unpack[Options],
) -> Result:
    """Run a command in a capsule, as `capsule.run`, while the event loop goes on.

    Cancelled, it kills and reaps everything before the cancellation goes on. The start itself, some
    milliseconds, is not waited for: it takes the thread of the loop, as that of any subprocess does.

    Args:
        args: the command and its arguments.
        policy: what it may see and do; None is ``Policy()``.
        check: raise CommandFailed unless the command ended with status 0.
        options: as `capsule.run`.

    Raises:
        PolicyError, HostError, SetupError, CommandFailed: as `capsule.run`.
    """
    return await run_by(lambda: start(args, policy, **options), options, check=check)


async def run_by(begin: Callable[[], Process], options: Options, *, check: bool) -> Result:
    """Run what *begin* starts. Input goes with its options, and excludes another standard input."""
    check_input(options.get("input"), options.get("stdin"))
    async with start_by(begin) as process:
        result = await process.wait()
    return result.check() if check else result


def start_async(
    args: Args, policy: Policy | None = None, **options: Unpack[Options]
) -> AbstractAsyncContextManager[AsyncProcess]:
    """Start a command in a capsule: ``async with capsule.start_async(...) as process``.

    Leaving the block, by cancellation too, kills and reaps everything.

    Args:
        args: the command and its arguments.
        policy: what it may see and do; None is ``Policy()``.
        options: as `capsule.start`.

    Raises:
        PolicyError, HostError, SetupError: as `capsule.run`.
    """
    return start_by(lambda: start(args, policy, **options))


@asynccontextmanager
async def start_by(begin: Callable[[], Process]) -> AsyncIterator[AsyncProcess]:
    """Start what *begin* starts, and end it with the block.

    One after the other: between two starts the loop has a turn.
    """
    loop = asyncio.get_running_loop()
    async with _gates.setdefault(loop, asyncio.Lock()):
        await asyncio.sleep(0)
        started = begin()
    with started:
        process = AsyncProcess(started)
        try:
            await process._open()
            yield process
        finally:
            process._close()


_gates: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
_gates = weakref.WeakKeyDictionary()


class AsyncProcess:
    """A command that runs in a capsule, for the event loop that it was started on.

    Attributes:
        args: the command's argument vector.
        pid: process id of the capsule's init, as the host sees it.
        namespaces: the kinds of namespace that were entered.
        protections: each protection in force, and how it is enforced.
        stdin: a writer to the command's standard input, or None unless it was started with PIPE.
    """

    def __init__(self, process: Process) -> None:
        self.args, self.pid = process.args, process.pid
        self.namespaces, self.protections = process.namespaces, process.protections
        self.stdin: asyncio.StreamWriter | None = None
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._readers: dict[int, _Pipe] = {}
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._one = asyncio.Lock()
        self._poller: _Poller | None = None
        self._writing: _Writing | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def _open(self) -> None:
        """Make a writer, where there is something to write to."""
        streams = streams_of(self._process)
        if streams.stdin < 0 or streams.input:
            return
        file = self._process.stdin
        self._writing = protocol = _Writing(asyncio.StreamReader())
        transport, _ = await self._loop.connect_write_pipe(
            lambda: protocol, getattr(file, "buffer", file)
        )
        self.stdin = asyncio.StreamWriter(transport, protocol, None, self._loop)

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        """A reader of the command's standard output, or None unless it is a pipe. It gives bytes."""
        return self._reader(streams_of(self._process).stdout)

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        """A reader of the command's standard error, or None unless it is a pipe. It gives bytes."""
        return self._reader(streams_of(self._process).stderr)

    def _reader(self, fd: int) -> asyncio.StreamReader | None:
        if fd >= 0 and fd not in self._readers:
            loop_of(self._process).read_elsewhere(fd)
            self._readers[fd] = _Pipe(self._loop, fd)
        return self._readers[fd].reader if fd >= 0 else None

    # --- life ---------------------------------------------------------------------------------

    async def wait(self) -> Result:
        """Wait for the end, reading meanwhile what the command writes to its pipes; as `Process.wait`.

        Cancelled, it leaves the command running: `asyncio.timeout` around it gives up waiting.
        """
        async with self._one:
            result = result_of(self._process)
            if result is not None:
                return result
            if self.stdin is not None:
                self.stdin.close()
            else:
                streams_of(self._process).close_stdin()
            self._watch()
            for fd in list(self._readers):
                await self._collect(fd)
            await self._ended.wait()
            if self._error is not None:
                raise self._error
            await self._gone()
            return self._process.wait()

    async def communicate(self, input: bytes | str | None = None) -> tuple[Any, Any]:
        """Write *input*, close standard input and read until the end, as `Process.communicate`.

        Raises:
            ValueError: there is input, and standard input is no pipe.
        """
        if input:
            if self.stdin is None:
                raise ValueError("standard input is no pipe: start it with stdin=PIPE")
            self.stdin.write(input_bytes(input, streams_of(self._process).encoding))
        result = await self.wait()
        return result.stdout, result.stderr

    def poll(self) -> Result | None:
        """Return the result if the end has been waited for, else None."""
        return result_of(self._process)

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the command: to it alone, or to its (foreground) process group.

        Raises:
            ValueError: there is no such signal.
        """
        self._process.send_signal(number, group=group)

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill everything in the capsule, at once."""
        self._process.kill()

    def usage(self) -> Usage:
        """Return what the command has used up to now; after the end, what it used in all."""
        return self._process.usage()

    def __repr__(self) -> str:
        return f"<Async{repr(self._process)[1:]}"

    # --- on the loop ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Have the loop of the process run whenever it has something to do."""
        if self._poller is None:
            self._poller = _Poller(self._loop, self._turn)
            loop_of(self._process).use(self._poller)
            self._turn()

    def _turn(self) -> None:
        if self._ended.is_set():
            return
        loop = loop_of(self._process)
        try:
            ended = loop.run(0)
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            self._error, ended = error, True
            self._process.kill()
        if ended:
            self._ended.set()
            self._unwatch()
        elif loop.sampling is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(loop.sampling, self._turn)

    def _unwatch(self) -> None:
        if self._poller is not None:
            self._poller.close()
        if self._timer is not None:
            self._timer.cancel()

    async def _collect(self, fd: int) -> None:
        """Read what is left of a stream that was read elsewhere, within the limit."""
        capture, reader = loop_of(self._process).capture, self._readers[fd].reader
        while data := await reader.read(CHUNK):
            capture.keep(fd, loop_of(self._process).count_output(data))

    async def _gone(self) -> None:
        """Wait until init is gone as well, which takes long where it held much memory."""
        if is_reaped_elsewhere(self._process):
            return
        gone = asyncio.Event()
        fd = self._process.fileno()
        self._loop.add_reader(fd, gone.set)
        try:
            await gone.wait()
        finally:
            self._loop.remove_reader(fd)

    def _close(self) -> None:
        self._unwatch()
        for pipe in self._readers.values():
            pipe.close()
        if self.stdin is not None and self._writing is not None and not self._writing.lost:
            self.stdin.transport.abort()


class _Poller:
    """An event loop by the words of `select.poll`: what is ready, it says itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Callable[[], None]) -> None:
        self._loop, self._turn = loop, turn
        self._fds: set[int] = set()
        self._ready: list[tuple[int, int]] = []

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor: for room to write, or else for all that there may be to read."""
        self._fds.add(fd)
        if events & select.POLLOUT:
            self._loop.add_writer(fd, self._notice, fd)
        else:
            self._loop.add_reader(fd, self._notice, fd)

    def unregister(self, fd: int) -> None:
        """Watch it no more."""
        self._fds.discard(fd)
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)

    def poll(self, _timeout: float | None = None) -> list[tuple[int, int]]:
        """Return what the loop has said was ready."""
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Watch nothing more."""
        for fd in list(self._fds):
            self.unregister(fd)

    def _notice(self, fd: int) -> None:
        self._ready.append((fd, 0))
        self._turn()


class _Writing(asyncio.StreamReaderProtocol):
    """Flow control of a pipe that is written to, which knows whether it is lost."""

    lost = False

    def connection_lost(self, error: Exception | None) -> None:
        """Remember it: its transport can do no more."""
        self.lost = True
        super().connection_lost(error)


class _Pipe:
    """Feeds a reader from a pipe, as far as it has room: what it asks of a transport."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self.reader = asyncio.StreamReader()
        self._loop, self._fd = loop, fd
        os.set_blocking(fd, False)
        self.reader.set_transport(self)  # type: ignore[arg-type]
        self.resume_reading()

    def pause_reading(self) -> None:
        """There is enough."""
        self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """There is room again."""
        if not self.reader.at_eof():
            self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return
        if data:
            self.reader.feed_data(data)
        else:
            self.close()

    def close(self) -> None:
        """Stop, at the end of the file or of the process."""
        self._loop.remove_reader(self._fd)
        self.reader.feed_eof()

"""Capsules on an event loop: many at once on one thread, and nothing left however they end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

import capsule
from capsule import Outcome
from tests.support import await_end, children, needs, nothing_left, open_descriptors

HANG = 60


def on_a_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run it on a loop of its own; meanwhile there is no other thread, and then nothing is left."""
    threads = threading.active_count()

    async def alone() -> Any:
        found = await main()
        assert threading.active_count() == threads
        return found

    capsule.run(["true"])
    with nothing_left():
        return asyncio.run(asyncio.wait_for(alone(), HANG))


async def echo(number: int) -> bytes:
    """What a command with input says."""
    result = await capsule.run_async(["sh", "-c", f"cat; echo {number}"], input=b"x" * number)
    assert isinstance(result.stdout, bytes)
    return result.stdout


def test_many_at_once() -> None:
    """200 on one loop, each with its own input and result; the loop goes on meanwhile."""

    async def main() -> tuple[list[bytes], int]:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*map(echo, range(200)))
        ticking.cancel()
        return found, turns

    found, turns = on_a_loop(main)
    assert found == [b"x" * number + b"%d\n" % number for number in range(200)]
    assert turns > 10


def test_it_is_as_by_run() -> None:
    """Outcome, output, denials, and the errors of a command that cannot be run."""
    words = ["sh", "-c", "echo out; echo err >&2; unshare -r true; exit 3"]

    async def main() -> None:
        result, plain = await capsule.run_async(words, text=True), capsule.run(words, text=True)
        usage = plain.usage
        assert result.replace(usage=usage) == plain
        with pytest.raises(capsule.CommandFailed):
            await capsule.run_async(words, check=True)
        with pytest.raises(capsule.SetupError):
            await capsule.run_async(["nowhere"])
        with pytest.raises(capsule.PolicyError):
            await capsule.run_async(["true"], input=b"x", stdin=capsule.DEVNULL)
        ended = await capsule.run_async(["sleep", "60"], timeout=0.2)
        assert ended.outcome is Outcome.TIMED_OUT
        cut = await capsule.run_async(["yes"], output=1000)
        assert cut.outcome is Outcome.OUTPUT_LIMIT
        assert isinstance(cut.stdout, bytes)
        assert len(cut.stdout) == 1000

    on_a_loop(main)


def test_cancellation_kills() -> None:
    """asyncio.timeout ends the run: when it is over, nothing is left of the capsule."""

    async def main() -> None:
        before = children()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await capsule.run_async(["sleep", "60"])
        assert children() == before

    on_a_loop(main)


def _cancel_at_random(count: int, run: Callable[..., Awaitable[capsule.Result]]) -> int:
    moments = random.Random(2)

    async def one() -> bool:
        try:
            async with asyncio.timeout(moments.uniform(0, 0.8)):
                return (await run(["sh", "-c", "sleep 0.2; echo done"])).ok
        except TimeoutError:
            return False

    async def main() -> int:
        return sum(await asyncio.gather(*(one() for _ in range(count))))

    return asyncio.run(asyncio.wait_for(main(), 2 * HANG))


def test_random_cancellation() -> None:
    """200 at once, each cancelled at some moment or not: nothing is left."""
    capsule.run(["true"])
    with nothing_left():
        assert 0 <= _cancel_at_random(200, capsule.run_async) <= 200


def test_random_cancellation_in_a_pool() -> None:
    """The same in capsules that were made ahead."""
    capsule.run(["true"])
    before, fds = children(), len(open_descriptors())
    with capsule.Pool(size=8) as pool:
        assert pool.fill(HANG)
        _cancel_at_random(100, pool.run_async)
        assert pool.fill(HANG)
        assert len(children() - before) == 8
    assert (children(), len(open_descriptors())) == (before, fds)


def test_a_pool_on_a_loop() -> None:
    """A run finds a capsule, and its process streams."""

    async def main() -> None:
        with capsule.Pool(size=4) as pool:
            assert pool.fill(HANG)
            result = await pool.run_async(["echo", "here"], text=True)
            assert (result.stdout, result.usage.warm) == ("here\n", True)
            async with pool.start_async(["cat"], stdin=capsule.PIPE) as process:
                assert await process.communicate(b"through") == (b"through", b"")

    asyncio.run(asyncio.wait_for(main(), HANG))


def test_streams() -> None:
    """Lines go to and fro while the command runs; what was not read is in the result."""

    async def main() -> None:
        async with capsule.start_async(
            ["sh", "-c", "cat; echo end >&2"], stdin=capsule.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for turn in range(3):
                process.stdin.write(b"%d\n" % turn)
                await process.stdin.drain()
                assert await process.stdout.readline() == b"%d\n" % turn
            process.stdin.write(b"last\n")
            result = await process.wait()
            assert (result.stdout, result.stderr, result.ok) == (b"last\n", b"end\n", True)
            assert await process.wait() is result
            assert process.poll() is result
            assert "exited" in repr(process)

    on_a_loop(main)


def test_more_than_a_pipe_holds() -> None:
    """Both ways, many times what a pipe takes, and a reader that is slow."""
    data = os.urandom(3 << 20)

    async def main() -> None:
        async with capsule.start_async(["cat"], stdin=capsule.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(data)
            first = await process.stdout.readexactly(1 << 20)
            await asyncio.sleep(0.05)
            result = await process.wait()
            assert first + result.stdout == data
        async with capsule.start_async(["cat"], stdin=capsule.PIPE, text=True) as process:
            assert await process.communicate("é" * 200_000) == ("é" * 200_000, "")

    on_a_loop(main)


def test_the_limit_of_output_counts_what_is_left() -> None:
    """What wait() reads of a stream that was read before is within the limit as well."""

    async def main() -> None:
        async with capsule.start_async(["yes"], output=100_000) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"y\n"
            assert (await process.wait()).outcome is Outcome.OUTPUT_LIMIT

    on_a_loop(main)


def test_signals() -> None:
    """A signal reaches the command; the end of the block ends the rest; waiting can be given up."""

    async def main() -> None:
        async with capsule.start_async(["sleep", "60"]) as process:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await process.wait()
            assert process.poll() is None
            assert process.usage().wall > 0
            process.terminate()
            assert (await process.wait()).returncode == -signal.SIGTERM
        async with capsule.start_async(["sleep", "60"]) as process:
            pid = process.pid
        assert await_end(pid)
        async with capsule.start_async(["sleep", "60"]) as process:
            process.kill()
            assert (await process.wait()).outcome is Outcome.KILLED

    on_a_loop(main)


def test_two_wait_for_one() -> None:
    """Both have the same result."""

    async def main() -> None:
        async with capsule.start_async(["sh", "-c", "sleep 0.1; echo x"]) as process:
            first, second = await asyncio.gather(process.wait(), process.wait())
            assert first is second

    on_a_loop(main)


def test_a_command_that_does_not_read() -> None:
    """It has a right not to: the run goes on."""

    async def main() -> None:
        async with capsule.start_async(
            ["sh", "-c", "exec <&-; echo ok"], stdin=capsule.PIPE
        ) as process:
            assert await process.communicate(b"x" * (1 << 20)) == (b"ok\n", b"")

    on_a_loop(main)


@needs("cgroup")
def test_a_cgroup() -> None:
    """One is removed as by run."""

    async def main() -> None:
        result = await capsule.run_async(["true"], memory="64M", pids=9)
        assert result.ok
        assert result.notes == ()

    on_a_loop(main)

"""Many capsules at once: in threads, in an event loop, beside other children."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import capsule
from capsule import PIPE, Outcome
from tests.support import HANG, PYTHON, nothing_left


def echo(number: int) -> bytes:
    """What a capsule answers."""
    result = capsule.run(["sh", "-c", 'echo "$0"; cat', str(number)], input=b"x" * number)
    return bytes(result.check().stdout)


def test_twenty_threads() -> None:
    """Runs in twenty threads at once have each their own output, and leave nothing."""
    with nothing_left():
        with ThreadPoolExecutor(20) as pool:
            outputs = list(pool.map(echo, range(60)))
        assert outputs == [b"%d\n" % number + b"x" * number for number in range(60)]


def test_many_capsules_alive_at_once() -> None:
    """Fifty commands run side by side, each ends for itself."""
    with nothing_left():
        started = [capsule.start(["cat"], stdin=PIPE) for _ in range(50)]
        for number, process in reversed(list(enumerate(started))):
            assert process.stdin is not None
            process.stdin.write(str(number).encode())
        for number, process in enumerate(started):
            assert process.wait(HANG).stdout == str(number).encode()


def test_capsules_do_not_hold_each_others_pipes() -> None:
    """A command sees the end of its input although another one was started meanwhile."""
    with capsule.start(["cat"], stdin=PIPE) as first, capsule.start(["cat"], stdin=PIPE) as second:
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(HANG).ok
        assert second.poll() is None


def test_a_start_beside_threads_that_start_programs() -> None:
    """Programs that other threads start neither inherit a capsule's pipes nor lose their own."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def spawn() -> None:
        while not stop.is_set():
            done = subprocess.run(["echo", "hi"], capture_output=True)
            if done.stdout != b"hi\n" or done.returncode != 0:
                failures.append(AssertionError(done))

    threads = [threading.Thread(target=spawn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            assert echo(number).startswith(b"%d\n" % number)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_inside_a_running_event_loop() -> None:
    """asyncio.to_thread runs many at once; the loop goes on meanwhile."""

    async def main() -> list[bytes]:
        return await asyncio.gather(*(asyncio.to_thread(echo, number) for number in range(10)))

    assert asyncio.run(main()) == [b"%d\n" % number + b"x" * number for number in range(10)]


def test_an_event_loop_can_watch_the_end() -> None:
    """add_reader on the process itself: no thread, no polling."""

    async def main() -> capsule.Result:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        with capsule.start(["cat"], stdin=PIPE) as process:
            loop.add_reader(process.fileno(), ended.set)
            try:
                await asyncio.sleep(0)
                assert not ended.is_set()
                assert process.stdin is not None
                process.stdin.close()
                await asyncio.wait_for(ended.wait(), HANG)
            finally:
                loop.remove_reader(process.fileno())
            result = process.poll()
            assert result is not None
            return result

    with nothing_left():
        assert asyncio.run(main()).outcome is Outcome.EXITED


def test_run_within_a_coroutine() -> None:
    """run() itself needs no loop and disturbs none."""

    async def main() -> bool:
        return capsule.run(["true"]).ok

    assert asyncio.run(main())


_IGNORES_ITS_CHILDREN = """
import os, signal
import capsule
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    capsule.run(["true"])
except capsule.HostError as error:
    print(error.message)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
print(capsule.run(["true"]).ok, sorted(os.listdir("/proc/self/fd")))
"""


def test_a_caller_that_ignores_sigchld() -> None:
    """Where the kernel reaps all children at once, nobody could wait for init: HostError."""
    done = subprocess.run(
        [PYTHON, "-c", _IGNORES_ITS_CHILDREN], capture_output=True, timeout=HANG, text=True
    )
    assert (done.stderr, done.stdout.splitlines()) == (
        "",
        [
            "this process ignores SIGCHLD, so a capsule cannot be waited for",
            "True ['0', '1', '2', '3']",
        ],
    )


_OTHERS_REAP = """
import os, threading
import capsule
stop = threading.Event()
def reap():
    while not stop.is_set():
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
thread = threading.Thread(target=reap)
thread.start()
try:
    for _ in range(100):
        result = capsule.run(["sh", "-c", "exit 3"])
        assert (result.outcome, result.returncode) == (capsule.Outcome.EXITED, 3), result
finally:
    stop.set()
    thread.join()
print("done")
"""


def test_a_caller_that_reaps_all_children() -> None:
    """A wait for any child elsewhere in the program takes no result away."""
    done = subprocess.run([PYTHON, "-c", _OTHERS_REAP], capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr) == (b"done\n", b"")


def test_a_fork_in_the_middle_holds_nobody_up() -> None:
    """A child of the caller that holds copies of all pipes does not keep run() from returning."""
    with nothing_left():
        process = capsule.start(["cat"], stdin=PIPE)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        try:
            process.kill()
            assert process.wait(HANG).outcome is Outcome.KILLED
        finally:
            os.close(write)
            os.waitpid(pid, 0)

"""The ends of pools: nothing is left, however they, their runs or their processes end."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import capsule
from tests.integration.test_lifeline import kill_at_random
from tests.support import HANG, PYTHON, await_end, children, open_descriptors


def test_nothing_is_left() -> None:
    """No process, no descriptor, when the block ends; whatever was under way."""
    capsule.run(["true"])
    before, fds = children(), open_descriptors()
    for count in range(8):
        with capsule.Pool(size=3) as pool:
            for _ in range(count):
                pool.run(["true"])
            if count % 2:
                pool.drop()
    assert children() == before
    assert _without_own(open_descriptors()) == _without_own(fds)


def _without_own(fds: dict[int, str]) -> list[str]:
    """What /proc says of a thread, it holds open; and bases are held."""
    return sorted(name for name in fds.values() if "/task/" not in name and "mnt:" not in name)


def test_many_threads() -> None:
    """Each run has its own result, and the pool's capsules are as many as there were."""
    before = children()
    with capsule.Pool(size=4) as pool:
        found: list[bytes] = []

        def several(number: int) -> None:
            found.extend(pool.run(["echo", f"{number} {turn}"]).stdout for turn in range(10))

        threads = [threading.Thread(target=several, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(b"%d %d\n" % (n, t) for n in range(8) for t in range(10))
        assert pool.fill(HANG)
        assert len(children() - before) == 4


FORKING = """
import os, sys
import capsule
with capsule.Pool(size=2) as pool:
    pool.fill(60)
    pid = os.fork()
    if pid == 0:
        first = pool.run(["echo", "child"])
        second = pool.fill(60) and pool.run(["echo", "child"])
        pool.close()
        os._exit(0 if not first.usage.warm and second.usage.warm and pool.ready == 0 else 1)
    status = os.waitpid(pid, 0)[1]
    result = pool.run(["echo", "parent"])
    print(status, result.usage.warm, result.stdout)
left = open(f"/proc/self/task/{os.getpid()}/children").read()
print([left])
"""


def test_a_forked_child_has_its_own() -> None:
    """The parent's capsules are the parent's; they go on waiting."""
    done = subprocess.run([PYTHON, "-c", FORKING], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("0 True b'parent\\n'\n['']\n", "")


LEAVING = """
import glob, os, signal, sys
import capsule
pool = capsule.Pool(size=3)
pool.fill(60)
print(*[open(path).read() for path in glob.glob("/proc/self/task/*/children")], flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_end_of_the_process(how: str) -> None:
    """At exit all are dropped; killed, they end with it."""
    done = subprocess.run([PYTHON, "-c", LEAVING, how], capture_output=True, text=True, timeout=HANG)
    assert done.stderr == ""
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 3
    assert all(map(await_end, pids))


INTERRUPTED = """
import glob, os, random, signal, sys, time, warnings
import capsule
class Interrupt(BaseException):
    pass
def interrupt(number, frame):
    raise Interrupt
told = sys.unraisablehook
sys.unraisablehook = lambda what: None if what.exc_type is Interrupt else told(what)
warnings.simplefilter("ignore", ResourceWarning)
signal.signal(signal.SIGALRM, interrupt)
moments = random.Random(1)
with capsule.Pool(size=2) as pool:
    for _ in range(int(sys.argv[1])):
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0002, 0.006))
            pool.run(["sleep", "0.002"])
            time.sleep(1)
        except Interrupt:
            pass
    assert pool.fill(60)
    print(sum(len(open(path).read().split()) for path in glob.glob("/proc/self/task/*/children")))
print([open(f"/proc/self/task/{os.getpid()}/children").read()])
"""


def test_an_exception_at_any_moment() -> None:
    """A handler that raises in the middle of a run leaves the pool as it was."""
    done = subprocess.run(
        [PYTHON, "-c", INTERRUPTED, "150"], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("2\n['']\n", "")


_POOL = """
def tell_once(*args, **options):
    os.posix_spawn = posix_spawn
    return tell_and_spawn(*args, **options)
os.posix_spawn = tell_once
pool = capsule.Pool(size=3)
while True:
    pool.run(["sh", "-c", "setsid sleep 0.002 & trap : TERM; sleep 0.001"])
"""


@pytest.mark.row("F-14")
def test_a_supervisor_that_is_killed() -> None:
    """At 30 random moments of its life."""
    kill_at_random(_POOL, 30, 3, 0.06)


@pytest.mark.slow
def test_a_thousand_supervisors_that_are_killed() -> None:
    """The same at 1,000."""
    kill_at_random(_POOL, 1000, 3, 0.06)


@pytest.mark.slow
def test_ten_thousand_runs() -> None:
    """From four threads: each has its own result, and nothing is left."""
    capsule.run(["true"])
    before, fds = children(), len(open_descriptors())
    with capsule.Pool(size=8) as pool:

        def several(number: int) -> int:
            words = [["sh", "-c", f"echo {number} {turn}; exit 3"] for turn in range(2500)]
            results = [pool.run(one) for one in words]
            right = [b"%d %d\n" % (number, turn) for turn in range(2500)]
            assert [result.stdout for result in results] == right
            return sum(result.usage.warm for result in results)

        with ThreadPoolExecutor(4) as threads:
            assert sum(threads.map(several, range(4))) > 100
    assert (children(), len(open_descriptors())) == (before, fds)

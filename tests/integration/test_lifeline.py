"""Whatever ends the supervisor ends the capsule: at any moment, and however it dies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support import HANG, PYTHON, await_end, descendants

# One process that has imported Capsule and, for each line it reads, forks a supervisor. That one
# tells its pid in the moment before it starts the launcher: what comes earlier is no capsule yet.
_NURSERY = """
import json, os, sys
import capsule
capsule.probe()
posix_spawn = os.posix_spawn
def tell_and_spawn(*args, **options):
    os.write(1, json.dumps({"supervisor": os.getpid()}).encode() + b"\\n")
    return posix_spawn(*args, **options)
os.posix_spawn = tell_and_spawn
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        EVENT
        os._exit(0)
    os.waitpid(pid, 0)
"""


class Nursery:
    """Makes supervisors that can be killed."""

    def __init__(self, process: subprocess.Popen[bytes], others: set[int]) -> None:
        self.process = process
        self.others = others

    def read(self) -> dict[str, int]:
        """The next line that a supervisor writes."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], HANG)[0]
        told: dict[str, int] = json.loads(self.process.stdout.readline())
        return told

    def supervisor(self) -> int:
        """Pid of a new supervisor that is about to start its capsule."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"next\n")
        self.process.stdin.flush()
        return self.read()["supervisor"]

    def survivors(self, *but: int) -> list[str]:
        """Processes of the supervisors that do not end by themselves.

        Orphans come to this process, which the tests' conftest made their reaper. Who lives may yet
        start another; so look again until a whole look finds nobody.
        """
        known = {self.process.pid, *self.others, *but}
        while alive := [s for s in descendants(os.getpid()) if s.alive and s.pid not in known]:
            for found in alive:
                if not await_end(found.pid):
                    return [f"{found.pid} ({found.name})"]
        return []


def kill(pid: int) -> None:
    """SIGKILL, which is no chance to clean up; the nursery reaps."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


@contextlib.contextmanager
def nursery(event: str) -> Iterator[Nursery]:
    """A nursery whose supervisors run some source."""
    others = {s.pid for s in descendants(os.getpid())}
    code = _NURSERY.replace("EVENT", event.strip().replace("\n", "\n        "))
    with subprocess.Popen(
        [PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield Nursery(process, others)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(HANG) == 0
        finally:
            for found in descendants(process.pid):
                kill(found.pid)
            process.kill()


_RUN = 'capsule.run(["sh", "-c", "setsid sleep 1000 & trap : TERM INT HUP; sleep 1000"])'


# The whole start takes some 3 ms; a few later ones find it running.
_START_AND_MORE = 0.006


def kill_at_random(event: str, count: int, seed: int, most: float) -> None:
    """SIGKILL to supervisors in the first seconds of an event, *most* at most: nobody survives."""
    moments = random.Random(seed)
    with nursery(event) as born:
        for _ in range(count):
            supervisor = born.supervisor()
            moment = moments.uniform(0, most)
            time.sleep(moment)
            kill(supervisor)
            assert born.survivors() == [], f"killed after {moment:.6f} s"


@pytest.mark.row("F-14")
def test_a_supervisor_killed_at_any_moment_of_the_start_leaves_nobody() -> None:
    """SIGKILL to the supervisor at 40 random moments around the start: nobody survives."""
    kill_at_random(_RUN, 40, 1, _START_AND_MORE)


@pytest.mark.slow
def test_a_supervisor_killed_at_many_moments_of_the_start_leaves_nobody() -> None:
    """The same at 500 moments."""
    kill_at_random(_RUN, 500, 2, _START_AND_MORE)


_START = """
process = capsule.start(["sh", "-c", "setsid sleep 1000 & trap : TERM INT HUP; echo; sleep 1000"])
process.stdout.readline()
os.write(1, json.dumps({"init": process.pid}).encode() + b"\\n")
"""


@pytest.mark.row("F-14")
def test_a_supervisor_killed_during_the_run_leaves_nobody() -> None:
    """SIGKILL to the supervisor while the command and its daemon run: nobody survives."""
    with nursery(_START + "process.wait()") as born:
        supervisor = born.supervisor()
        init = born.read()["init"]
        assert len([s for s in descendants(init) if s.alive]) >= 2
        kill(supervisor)
        assert born.survivors() == []


@pytest.mark.parametrize(
    "end",
    ["os._exit(1)", "os.abort()", "import ctypes; ctypes.string_at(0)", "os.kill(os.getpid(), 15)"],
)
def test_a_supervisor_that_ends_otherwise_leaves_nobody(end: str) -> None:
    """An exit without a word, a crash or another signal is the same."""
    no_core = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
"""
    with nursery(no_core + _START + end) as born:
        born.supervisor()
        born.read()
        assert born.survivors() == []


@pytest.mark.row("F-14")
def test_a_child_of_the_supervisor_does_not_keep_the_capsule_alive() -> None:
    """A fork that holds copies of all descriptors, the lifeline's too, is not the supervisor."""
    fork = """
if os.fork() == 0:
    os.write(1, json.dumps({"child": os.getpid()}).encode() + b"\\n")
    import signal
    signal.pause()
process.wait()
"""
    with nursery(_START + fork) as born:
        supervisor = born.supervisor()
        born.read()
        child = born.read()["child"]
        kill(supervisor)
        assert born.survivors(child) == []
        assert child in {s.pid for s in descendants(os.getpid()) if s.alive}
        kill(child)
        assert born.survivors() == []


def test_a_supervisor_that_is_stopped_does_not_end_the_capsule() -> None:
    """Stopped is not dead: the capsule goes on, and its deadline is kept by init."""
    start = _START.replace('1000"])', '1000"], timeout=0.3)').replace(
        "echo;", "echo; kill -STOP $PPID;"
    )
    with nursery(start + "os.kill(os.getpid(), 19); process.wait()") as born:
        supervisor = born.supervisor()
        init = born.read()["init"]
        assert await_end(init)
        assert supervisor in {s.pid for s in descendants(os.getpid()) if s.state == "T"}
        kill(supervisor)
        assert born.survivors() == []

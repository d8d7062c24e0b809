"""Limits that need no cgroup, and what comes of those that do where there is none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import HostError, Limits, Outcome, Policy
from tests.support import (
    BOMB,
    CAPSULE,
    FORKS,
    HANG,
    PYTHON,
    ROOM,
    ask,
    assert_denied,
    await_line,
    needs,
)

PROBE = [PYTHON, "-I", "-S", "-c"]
SPIN = "while :; do :; done"
# All that can be had without a cgroup, so that these tests are the same wherever they run.
DEGRADED = ("memory", "pids", "cpus", "cpu_time")

# Fork until it fails, tell how many there are beside the first, and let go of them.
FORK = """
import errno, os, sys
pids, end = [], os.pipe()
while len(pids) < int(sys.argv[1]):
    try:
        pid = os.fork()
    except OSError as error:
        print(len(pids), errno.errorcode[error.errno])
        break
    if pid == 0:
        os.close(end[1])
        os._exit(len(os.read(end[0], 1)))
    pids.append(pid)
else:
    print(len(pids))
"""
_OPEN = """
fds = []
try:
    while len(fds) < 60:
        fds.append(os.dup(0))
finally:
    for fd in fds:
        os.close(fd)
"""


# --- of each process --------------------------------------------------------------------------


_WRITE_TWICE = """
import tempfile
with {} as file:
    for _ in range(2):
        os.write(file.fileno(), b"x" * 4096)
"""


@pytest.mark.row("F-04", "F-07")
def test_the_size_of_a_file() -> None:
    """What exceeds it is EFBIG, of a memfd as well, or SIGXFSZ for who does not ignore that."""
    for file in ("tempfile.TemporaryFile()", "open(os.memfd_create('x'), 'wb')"):
        act = _WRITE_TWICE.format(file)
        assert_denied(act, errno.EFBIG, file_size=4096)
        assert capsule.run([*PROBE, f"import os\n{act}"], file_size=8192).ok
    script = "head -c 4096 /dev/zero >/tmp/file && echo fits; exec head -c 5000 /dev/zero >/tmp/file"
    result = capsule.run(["sh", "-c", script], file_size="4K", text=True)
    assert (result.outcome, result.signal, result.stdout) == (Outcome.SIGNALED, 25, "fits\n")
    assert "beyond 4K" in result.detail


def test_open_files() -> None:
    """The command itself may have so many, and no capability to raise it again."""
    assert_denied(_OPEN, errno.EMFILE, open_files=32)
    code = "import resource; tell(resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert ask(code, open_files=32) == [32, 32]
    raise_it = """
import resource
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 33))
except ValueError as error:
    tell(str(error))
"""
    assert ask(raise_it, open_files=32) == "not allowed to raise maximum limit"


# --- processes --------------------------------------------------------------------------------


@needs("counted processes")
@pytest.mark.row("F-01")
def test_no_more_processes_than_the_bound() -> None:
    """By default 2048; of these the command is one. The caller's own other processes do not count."""
    result = capsule.run([*PROBE, FORK, "3000"], text=True)
    assert result.stdout == "2047 EAGAIN\n"
    result = capsule.run([*PROBE, FORK, "100"], pids=32, allow_degraded=["pids"], text=True)
    assert result.stdout == "31 EAGAIN\n"
    assert_denied(FORKS, errno.EAGAIN, pids=32, allow_degraded=["pids"])


@needs("real root", "own pid_max")
@pytest.mark.row("F-01")
def test_the_bound_where_root_of_the_host_runs_it() -> None:
    """RLIMIT_NPROC does not hold for that; the host's own kernel.pid_max stays as it is."""
    before = Path("/proc/sys/kernel/pid_max").read_text()
    result = capsule.run([*PROBE, FORK, "3000"], id_map="host-root", text=True)
    count, error = result.stdout.split()
    assert error == "EAGAIN"
    assert 1900 < int(count) < 2048
    assert Path("/proc/sys/kernel/pid_max").read_text() == before


@needs("counted processes")
def test_capsules_do_not_count_each_other() -> None:
    """Two of them beside each other have the bound each."""
    waits = [*PROBE, FORK + "\nsys.stdout.flush(); sys.stdin.read()", "2000"]
    with capsule.start(waits, stdin=capsule.PIPE) as one:
        assert await_line(one) == b"2000\n"
        assert capsule.run([*PROBE, FORK, "2000"]).stdout == b"2000\n"


# The second makes orphans without end: init has one more to take whenever it has taken one.
# The bomb of orphans is begun by a shell of its own: what cannot fork any more ends.
BOMBS = {"forks": [*PROBE, BOMB], "orphans": ["sh", "-c", "b() { b | b & }; (b); exec sleep 60"]}


@needs("counted processes")
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.row("F-01")
def test_a_fork_bomb_does_not_take_the_host_down(name: str) -> None:
    """Under plain defaults it ends with its timeout, and meanwhile the host can fork."""
    with capsule.start(BOMBS[name], timeout=1) as process:
        done = [subprocess.run(["true"]).returncode for _ in range(10)]
        result = process.wait(HANG)
    assert done == [0] * 10
    assert result.outcome is Outcome.TIMED_OUT


# --- times --------------------------------------------------------------------------------------


@pytest.mark.row("F-17")
def test_cpu_time_of_the_tree() -> None:
    """Four that spin use it up together; none of them did alone. The account says how much it was."""
    script = f"for i in 1 2 3 4; do ({SPIN}) & done; wait"
    result = capsule.run(["sh", "-c", script], cpu_time=1, allow_degraded=DEGRADED)
    assert (result.outcome, result.returncode, result.exit_status) == (Outcome.CPU_TIME, -9, 124)
    assert result.detail == "after 1 s of CPU time"
    used = result.usage.cpu_user + result.usage.cpu_system
    assert 0.9 <= used <= 1.3


def test_cpu_time_of_processes_that_have_ended() -> None:
    """What was waited for counts, whoever waited."""
    # So much work, and not so much time: on a busy machine that may be none.
    burn = "sh -c 'i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done'"
    for script in (f"while :; do {burn}; done", f"while :; do ({burn} &); sleep 0.1; done"):
        result = capsule.run(["sh", "-c", script], cpu_time=0.5, timeout=HANG, allow_degraded=DEGRADED)
        assert result.outcome is Outcome.CPU_TIME


def test_time_that_is_not_used_up() -> None:
    """Who sleeps uses none."""
    result = capsule.run(["sleep", f"{0.3 * ROOM}"], cpu_time=0.2 * ROOM, allow_degraded=DEGRADED)
    assert result.ok


@pytest.mark.parametrize("script", ["sleep 60", "kill -STOP $$", "read x </proc/self/fd/0; sleep 60"])
def test_idle(script: str) -> None:
    """Who waits or is stopped is idle."""
    result = capsule.run(["sh", "-c", script], idle=0.3, timeout=HANG)
    assert (result.outcome, result.exit_status) == (Outcome.IDLE, 124)


@pytest.mark.parametrize("act", ["echo x", ":", "echo x >/tmp/file"])
def test_who_does_a_little_now_and_then_is_not_idle(act: str) -> None:
    """A line of output costs less than a clock tick, and counts."""
    script = f"for i in 1 2 3 4 5 6 7 8; do {act}; sleep 0.1; done; exec sleep 60"
    result = capsule.run(["sh", "-c", script], idle=0.4, timeout=HANG)
    assert result.outcome is Outcome.IDLE
    assert result.usage.wall > 0.8


def test_init_keeps_the_times_while_nobody_waits() -> None:
    """The caller need not be in wait()."""
    for limit in ({"cpu_time": 0.2, "allow_degraded": DEGRADED}, {"idle": 0.2}):
        script = SPIN if "cpu_time" in limit else "sleep 60"
        with capsule.start(["sh", "-c", script], **limit) as process:
            os.set_blocking(process.fileno(), True)
            until = time.monotonic() + HANG
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            assert process.poll() is not None


# --- without a cgroup -------------------------------------------------------------------------


@needs("no cgroup")
@pytest.mark.parametrize(
    ("flag", "value"),
    [("memory", "64M"), ("pids", "9"), ("cpus", "1"), ("cpu-time", "9"), ("cpu-weight", "9")],
)
def test_a_limit_that_needs_one_is_refused(flag: str, value: Any) -> None:
    """Nothing is run; the error names the limit, the reason and the remedy."""
    done = subprocess.run([CAPSULE, f"--{flag}", value, "echo", "ran"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (125, "")
    first, second, hint = done.stderr.splitlines()
    field = flag.replace("-", "_")
    assert first.startswith(f"capsule: {field}: a limit of all processes together needs a cgroup")
    assert second.strip() == "The command was not run."
    assert "boot with: " in hint or "systemd-run --user --scope -p Delegate=yes" in hint
    assert (f"--allow-degraded {flag}" in hint) is (flag != "cpu-weight")
    with pytest.raises(HostError):
        capsule.run(["true"], Policy(limits=Limits(**{field: value})))


@needs("no cgroup")
@pytest.mark.row("F-03")
def test_degraded_memory() -> None:
    """One process cannot have more, and all together are ended when they are seen to have more."""
    degraded: dict[str, Any] = {"memory": "64M", "allow_degraded": ["memory"]}
    assert_denied(
        "import mmap\nmmap.mmap(-1, 128 << 20, flags=mmap.MAP_PRIVATE)", errno.ENOMEM, **degraded
    )
    result = capsule.run([*PROBE, "bytearray(128 << 20)"], **degraded)
    assert (result.outcome, result.returncode) == (Outcome.EXITED, 1)
    assert b"MemoryError" in result.stderr
    assert result.protections["memory"].startswith("degraded: RLIMIT_DATA of 64M for each process; ")
    each = "import os, time; os.fork(); os.fork(); data = b'x' * (30 << 20); time.sleep(60)"
    result = capsule.run([*PROBE, each], timeout=HANG, **degraded)
    assert (result.outcome, result.detail) == (Outcome.OUT_OF_MEMORY, "limit 64M")


@needs("no cgroup")
def test_degraded_memory_counts_shared_pages_once() -> None:
    """Forks of a process of 30 MiB hold no more than it does."""
    code = """
import os, time
data = b"x" * (30 << 20)
for _ in range(4):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
for _ in range(4):
    os.wait()
tell(len(data))
"""
    assert ask(code, memory="64M", allow_degraded=["memory"]) == 30 << 20


@needs("no cgroup")
def test_degraded_cpus() -> None:
    """Half a CPU is one, and a program sees that; nothing else promises it."""
    code = "tell(len(os.sched_getaffinity(0)))"
    assert ask(code, cpus=0.5, allow_degraded=["cpus"]) == 1
    assert ask(code) == len(os.sched_getaffinity(0))
    result = capsule.run(["true"], cpus=0.5, allow_degraded=["cpus"])
    assert result.protections["cpus"] == (
        "degraded: affinity to 1 of the CPUs, which a program can change"
    )


# --- the account ------------------------------------------------------------------------------


def test_usage_while_it_runs() -> None:
    """It grows, says where it comes from, and ends as the result's."""
    with capsule.start(["sh", "-c", f"echo on; {SPIN}"]) as process:
        await_line(process)
        before = process.usage()
        until = time.monotonic() + HANG
        while process.usage().cpu_user < before.cpu_user + 0.1 and time.monotonic() < until:
            time.sleep(0.02)
        after = process.usage()
        assert after.cpu_user >= before.cpu_user + 0.1
        assert after.wall > before.wall
        assert (after.source, after.peak_pids) == ("proc", None)
        assert 100_000 < after.peak_memory < 50_000_000
        process.terminate()
        result = process.wait()
        assert process.usage() == result.usage
    assert result.usage.source == "wait4"
    assert process.usage() == result.usage


def test_usage_of_a_capsule_that_was_killed() -> None:
    """It has no last word, and nobody waits for one."""
    with capsule.start(["sleep", "60"]) as process:
        process.kill()
        while process.usage().source == "proc":
            pass
        assert process.wait().outcome is Outcome.KILLED
    assert process.usage().source == ""


def test_the_report_has_it_all() -> None:
    """Also as JSON."""
    done = subprocess.run([CAPSULE, "--json", "-", "true"], capture_output=True)
    usage = json.loads(done.stdout)["usage"]
    assert usage["source"] == "wait4"
    assert {"peak_pids", "throttled", "oom_kills"} <= usage.keys()


def test_four_ways_to_137() -> None:
    """Who kills it makes the outcome. The fourth, out of memory, needs a cgroup: tests/limits."""
    exited, killed = capsule.run(["sh", "-c", "exit 137"]), capsule.run(["sh", "-c", "kill -9 $$"])
    with capsule.start(["sleep", "60"]) as process:
        process.kill()
        by_caller = process.wait()
    outcomes = [result.outcome for result in (exited, killed, by_caller)]
    assert outcomes == [Outcome.EXITED, Outcome.SIGNALED, Outcome.KILLED]
    assert {result.exit_status for result in (exited, killed, by_caller)} == {137}

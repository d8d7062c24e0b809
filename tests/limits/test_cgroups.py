"""Limits of a whole capsule, with a kernel that has cgroup v2 and a cgroup that is the caller's.

Most machines that run the tests have none, or none that is the caller's: `./check --kernels 6.1` runs
these under a kernel of its own.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import HostError, Outcome
from capsule.confine import cgroup
from capsule.host import delegation
from tests.support import (
    BOMB,
    CAPSULE,
    FORKS,
    HANG,
    PYTHON,
    ROOM,
    ask,
    assert_denied,
    await_end,
    await_line,
    needs,
    nothing_left,
    shared_directory,
)

pytestmark = needs("cgroup")

PROBE = [PYTHON, "-I", "-S", "-c"]
MIB = 1 << 20
SPIN = "while :; do :; done"
EIGHT = f"for i in 1 2 3 4 5 6 7 8; do ({SPIN}) & done; wait"
# The guests are emulated: what takes milliseconds elsewhere takes long there.
LONG = 6 * HANG


def place() -> str:
    """The directory in which leaves are made."""
    return delegation.find().directory


def made(settings: dict[str, str]) -> cgroup.Leaf:
    """A leaf where one can be made."""
    at = delegation.find()
    return cgroup.make(at.directory, at.controllers, settings, callers=at.callers)


def leaves() -> list[str]:
    """Those that there are."""
    return [name for name in os.listdir(place()) if name.startswith(cgroup.LEAF)]


@pytest.fixture(autouse=True)
def _no_leaf_is_left() -> Iterator[None]:
    before = sorted(os.listdir(place()))
    yield
    assert sorted(os.listdir(place())) == before


def leaf_of(process: capsule.Process) -> Path:
    """Where a capsule is, as the host sees it."""
    path = Path(f"/proc/{process.pid}/cgroup").read_text().strip().removeprefix("0::")
    return Path(place(), os.path.basename(path))


# --- memory -----------------------------------------------------------------------------------

# Each takes so many bytes in one way.
KINDS = {
    "anonymous": "data = bytearray(size)\nfor i in range(0, size, 4096): data[i] = 1",
    "shared": "import mmap\ndata = mmap.mmap(-1, size)\nfor i in range(0, size, 4096): data[i] = 1",
    "tmpfs": (
        "with open('/tmp/file', 'wb') as file:\n"
        "  for i in range(size >> 20): file.write(bytes(1 << 20))"
    ),
    "memfd": "fd = os.memfd_create('x')\nfor i in range(size >> 20): os.write(fd, bytes(1 << 20))",
    "many processes": (
        "import time\nfor _ in range(8):\n"
        "  if os.fork() == 0:\n    data = bytearray(size // 8)\n"
        "    for i in range(0, len(data), 4096): data[i] = 1\n    time.sleep(60)\n"
        "time.sleep(60)"
    ),
}
STACK = """
#include <string.h>
int deeper(int level)
{
    volatile char frame[65536];
    memset((char *)frame, level, sizeof frame);
    return level == 0 ? frame[0] : deeper(level - 1) + frame[1];
}
int main(int count, char **words) { return deeper(count > 1 ? 16 * 1024 : 16) & 0; }
"""


def assert_out_of_memory(result: capsule.Result, limit: int) -> None:
    """The verdict, and a peak within five of a hundred of the limit."""
    assert (result.outcome, result.returncode, result.exit_status) == (Outcome.OUT_OF_MEMORY, -9, 137)
    assert result.usage.oom_kills > 0
    assert 0.95 * limit <= result.usage.peak_memory <= 1.05 * limit
    assert result.detail.startswith(f"limit {limit // MIB}M, peak ")
    assert not result.ok


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.row("F-03")
def test_more_memory_than_the_limit(kind: str) -> None:
    """Four times as much is out of memory, in whatever way; a capsule beside it is untouched."""
    code = f"import os\nsize = {128 * MIB}\n{KINDS[kind]}"
    neighbour = [*PROBE, "print(len(bytearray(b'x') * (1 << 20)), flush=True); input(); print('well')"]
    with capsule.start(neighbour, memory="32M", stdin=capsule.PIPE, text=True) as other:
        await_line(other)
        # The control: the same fits where there is room for it.
        if kind == "tmpfs":
            assert capsule.run([*PROBE, code], memory="256M", timeout=LONG).ok
        assert_out_of_memory(capsule.run([*PROBE, code], memory="32M", timeout=LONG), 32 * MIB)
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.close()
        result = other.wait()
    assert (result.outcome, result.stdout) == (Outcome.EXITED, "well\n")


@needs("gcc")
@pytest.mark.row("F-03")
def test_more_stack_than_the_limit() -> None:
    """A stack without a limit of its own is memory like any other."""
    with shared_directory() as folder:
        (folder / "stack.c").write_text(STACK)
        program = folder / "stack"
        subprocess.run(["gcc", "-O0", "-o", program, folder / "stack.c"], check=True)
        grow = f"ulimit -s unlimited && exec {program}"
        shown: dict[str, Any] = {"mounts": [capsule.Mount.read_only(folder)], "memory": "32M"}
        assert capsule.run(["sh", "-c", grow], **shown).ok
        result = capsule.run(["sh", "-c", f"{grow} deep"], timeout=LONG, **shown)
    assert_out_of_memory(result, 32 * MIB)


def test_the_line_on_standard_error() -> None:
    """What happened, how much it was, and what to do."""
    code = f"import os\nsize = {128 * MIB}\n{KINDS['anonymous']}"
    done = subprocess.run([CAPSULE, "-m", "32M", *PROBE, code], capture_output=True, text=True)
    assert done.returncode == 137
    assert done.stderr == "capsule: out of memory: limit 32M, peak 32M; raise it with --memory\n"


def test_a_limit_that_nothing_fits_into() -> None:
    """Either it cannot be set up, and says why, or its command ran out of memory at once."""
    with nothing_left():
        try:
            result = capsule.run([*PROBE, ""], memory="1M")
            told: object = result.outcome
        except HostError as error:
            told = error.message
    assert told in (Outcome.OUT_OF_MEMORY, "memory: the limit is too low to set the capsule up")


def test_a_set_up_that_the_limit_kills() -> None:
    """Files in memory count: the error is about the limit, and not about somebody who kills."""
    with nothing_left(), pytest.raises(HostError) as caught:
        capsule.run(["true"], memory="1M", mounts=[capsule.Mount.content(b"x" * 4 * MIB, "/tmp/big")])
    assert caught.value.message == "memory: the limit is too low to set the capsule up"


def test_who_stays_within_the_limit_runs() -> None:
    """And the peak is what it took."""
    result = capsule.run([*PROBE, "bytearray(b'x' * (20 << 20))"], memory="128M")
    assert result.ok
    assert 40 * MIB < result.usage.peak_memory < 100 * MIB
    assert result.usage.oom_kills == 0


def test_four_ways_to_137() -> None:
    """Exit status 137, a SIGKILL of its own, an OOM kill and a kill by the caller are told apart."""
    limits: dict[str, Any] = {"memory": "32M"}
    code = f"import os\nsize = {128 * MIB}\n{KINDS['anonymous']}"
    found = [
        capsule.run(["sh", "-c", "exit 137"], **limits),
        capsule.run(["sh", "-c", "kill -9 $$"], **limits),
        capsule.run([*PROBE, code], **limits),
    ]
    with capsule.start(["sleep", "60"], **limits) as process:
        process.kill()
        found.append(process.wait())
    assert [result.exit_status for result in found] == [137] * 4
    assert [result.outcome for result in found] == [
        Outcome.EXITED,
        Outcome.SIGNALED,
        Outcome.OUT_OF_MEMORY,
        Outcome.KILLED,
    ]


# --- processes and CPU ------------------------------------------------------------------------


@pytest.mark.row("F-01")
def test_a_fork_bomb() -> None:
    """It never has more than the limit, and ends with its deadline."""
    result = capsule.run([*PROBE, BOMB], pids=32, timeout=1 + ROOM)
    assert result.outcome is Outcome.TIMED_OUT
    assert result.usage.peak_pids == 32


def test_one_process_more() -> None:
    """It is refused with EAGAIN."""
    assert_denied(FORKS, errno.EAGAIN, pids=32)


def test_the_limit_of_processes_is_told() -> None:
    """As a detail of how the program ended, with what would help; not where it did no harm."""
    script = "for i in 1 2 3 4 5 6; do sleep 60 & done; exit 3"
    done = subprocess.run([CAPSULE, "--pids", "4", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "the limit of 4 processes was met" in done.stderr.splitlines()[-1]
    assert done.stderr.endswith("raise it with --pids\n")
    result = capsule.run(
        [*PROBE, "import os\ntry: [os.fork() for _ in range(9)]\nexcept OSError: pass"], pids=4
    )
    assert result.ok
    assert "was met" in result.detail


def test_half_a_cpu() -> None:
    """Eight that spin get half a CPU together, and the account says how long they were held back."""
    result = capsule.run(["sh", "-c", EIGHT], cpus=0.5, timeout=4 + ROOM)
    assert result.outcome is Outcome.TIMED_OUT
    used = (result.usage.cpu_user + result.usage.cpu_system) / result.usage.wall
    assert 0.44 <= used <= 0.56
    assert result.usage.throttled > 1


@pytest.mark.row("F-17")
def test_cpu_time_of_the_tree() -> None:
    """Eight that spin use up two seconds, and a little more until init looks."""
    result = capsule.run(["sh", "-c", EIGHT], cpu_time=2, timeout=LONG)
    assert result.outcome is Outcome.CPU_TIME
    assert 1.9 <= result.usage.cpu_user + result.usage.cpu_system <= 2.6


def test_cpu_time_of_processes_that_nobody_waits_for() -> None:
    """The cgroup counts those that /proc and wait4 forget: whose parent ignores SIGCHLD."""
    code = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        os._exit(0)
    time.sleep(0.1)
"""
    result = capsule.run([*PROBE, code], cpu_time=1, timeout=LONG)
    assert result.outcome is Outcome.CPU_TIME


def test_weights() -> None:
    """They are set, and the kernel's to keep."""
    with capsule.start(["sleep", "60"], cpu_weight=7) as process:
        assert (leaf_of(process) / "cpu.weight").read_text() == "7\n"


def test_what_weights_are_for() -> None:
    """Of two that spin on all CPUs, the one with a hundred times the weight gets by far the most."""
    with (
        capsule.start(["sh", "-c", EIGHT], cpu_weight=1, timeout=3) as light,
        capsule.start(["sh", "-c", EIGHT], cpu_weight=100, timeout=3) as heavy,
    ):
        used = [process.wait().usage for process in (heavy, light)]
    assert used[0].cpu_user > 5 * used[1].cpu_user


def test_idle_in_a_cgroup() -> None:
    """Init's own looks do not count."""
    result = capsule.run(["sleep", "60"], idle=1, memory="64M", timeout=LONG)
    assert result.outcome is Outcome.IDLE


def test_a_kill_while_held_back() -> None:
    """With hardly any CPU to die with, everything is gone all the same."""
    result = capsule.run(["sh", "-c", EIGHT], cpus=0.01, timeout=1)
    assert result.outcome is Outcome.TIMED_OUT
    with capsule.start(["sh", "-c", EIGHT], cpus=0.01) as process:
        process.kill()
        assert process.wait().outcome is Outcome.KILLED


# --- the leaf ---------------------------------------------------------------------------------


def test_the_files_of_a_leaf() -> None:
    """What is set is what was asked for; swap is none unless asked for."""
    limits: dict[str, Any] = {"memory": "64M", "pids": 9, "cpus": 1.5}
    with capsule.start(["sleep", "60"], **limits) as process:
        leaf = leaf_of(process)
        names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
        found = {name: (leaf / name).read_text().strip() for name in names}
        assert found == {
            "memory.max": str(64 * MIB),
            "memory.swap.max": "0",
            "memory.oom.group": "1",
            "pids.max": "10",
            "cpu.max": "150000 100000",
        }
    unlimited = capsule.Policy(limits=capsule.Limits(memory="64M", swap=None))
    with capsule.start(["sleep", "60"], unlimited) as process:
        assert (leaf_of(process) / "memory.swap.max").read_text() == "max\n"


def test_the_flags_set_them_too() -> None:
    """The command line makes the same of them: the one leaf that there is meanwhile says so."""
    flags = ["-m", "64M", "--swap", "1M", "--cpus", "0.5", "--cpu-weight", "50", "--pids", "8"]
    words = [CAPSULE, "run", *flags, "--", "sh", "-c", "echo ready; read line"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (leaf,) = Path(delegation.find().directory).glob(f"capsule-{process.pid}-*")
        names = ("memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max")
        found = [(leaf / name).read_text().strip() for name in names]
    assert found == [str(64 * MIB), str(MIB), "50000 100000", "50", "9"]
    assert process.returncode == 1  # read(1) met the end of its input


# Its cgroup, and at once that of a child, as their cgroup namespace shows them: "/" is the leaf.
WHERE = "read -r one </proc/self/cgroup; (read -r two </proc/self/cgroup; echo $one $two)"


@pytest.mark.parametrize("hundred", range(1, 6))
def test_nothing_runs_outside_of_the_leaf(hundred: int) -> None:
    """Of 500 starts none, neither at its first instruction nor after a fork."""
    with nothing_left():
        for _ in range(100):
            result = capsule.run(["sh", "-c", WHERE], pids=8)
            assert (result.stdout, result.stderr) == (b"0::/ 0::/\n", b""), hundred


def test_the_leaf_is_where_the_namespace_begins() -> None:
    """Init and the command are in it, and what it is called outside nobody sees."""
    both = "read -r a </proc/self/cgroup; read -r b </proc/1/cgroup; echo $a; echo $b"
    with capsule.start(["sh", "-c", f"{both}; exec sleep 60"], pids=8) as process:
        leaf = leaf_of(process)
        assert leaf.name.startswith(f"{cgroup.LEAF}{os.getpid()}-")
        assert await_line(process) + await_line(process) == b"0::/\n0::/\n"
        pids = (leaf / "cgroup.procs").read_text().split()
        assert len(pids) == 2
        assert str(process.pid) in pids
    assert not leaf.exists()


@pytest.mark.row("E-12")
def test_no_cgroup_file_system_inside() -> None:
    """There is nothing to read or write of it."""
    code = "tell([os.path.exists('/sys/fs/cgroup'), 'cgroup' in open('/proc/self/mountinfo').read()])"
    assert ask(code, memory="64M") == [False, False]


# As root of a namespace of one's own, what a cgroup file system would take.
REWRITE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWCGROUP, NEWUSER = 0x20000, 0x2000000, 0x10000000
outcomes = []
for flags in (NEWUSER | NEWNS, NEWUSER | NEWNS | NEWCGROUP):
    if os.fork() == 0:
        done = libc.unshare(flags) == 0
        if done:
            done = libc.mount(b"none", b"/tmp", b"cgroup2", 0, None) == 0
        if done:
            open("/tmp/memory.max", "w").write("max")
        os._exit(0 if done else ctypes.get_errno())
    outcomes.append(os.waitstatus_to_exitcode(os.wait()[1]))
tell(outcomes)
"""


def test_no_cgroup_namespace_inside() -> None:
    """Refused as too many of them, to the root of a user namespace of one's own, too."""
    act = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x2000000) < 0:
    raise OSError(ctypes.get_errno(), "unshare")
"""
    assert_denied(act, errno.ENOSPC, memory="128M", seccomp="off")


@pytest.mark.row("E-12")
def test_the_command_cannot_rewrite_its_limits() -> None:
    """Where it may make user namespaces, too: it gets no cgroup namespace to mount one for."""
    found = ask(REWRITE, memory="128M", seccomp="nest")
    assert found == [1, 28]  # EPERM: the namespace is not its own; ENOSPC: none may be made
    # The control: without a leaf a namespace can be made, which shows nothing that is anyone's.
    assert ask("import ctypes; tell(ctypes.CDLL(None).unshare(0x12000000))", seccomp="nest") == 0
    # Without a filter there are no user namespaces either.
    assert ask(REWRITE, memory="128M", seccomp="off") == [28, 28]


@pytest.mark.parametrize("half", [1, 2])
def test_many_in_a_row(half: int) -> None:
    """200 leave no leaf, process or descriptor."""
    with nothing_left():
        for _ in range(100):
            assert capsule.run(["true"], memory="64M", pids=16, cpus=1).ok, half


def test_many_at_once() -> None:
    """Twenty, each with a leaf of its own."""
    with nothing_left(), ThreadPoolExecutor(20) as pool:
        runs = [pool.submit(capsule.run, ["sh", "-c", WHERE], memory="64M", pids=16) for _ in range(60)]
        assert {run.result().stdout for run in runs} == {b"0::/ 0::/\n"}


@pytest.mark.row("F-14")
def test_what_a_killed_supervisor_left_is_removed() -> None:
    """Its capsule ends with it; the next capsule there removes its empty cgroup, but no live one's."""
    code = """
import capsule, os, sys
with capsule.start(["sleep", "60"], pids=4) as process:
    print(process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9
    assert await_end(int(done.stdout))
    with capsule.start(["sleep", "60"], pids=4) as process:
        assert len(leaves()) == 2
        cgroup.sweep(place())
        assert leaves() == [leaf_of(process).name]


def test_a_leaf_is_removed_when_the_interpreter_ends() -> None:
    """Also where nobody left a with block."""
    code = "import capsule; process = capsule.start(['sleep', '1000'], pids=4)"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr, leaves()) == (0, "", [])


@pytest.mark.parametrize("by_file", [True, False])
def test_what_is_left_in_a_leaf_is_killed(monkeypatch: pytest.MonkeyPatch, by_file: bool) -> None:
    """By cgroup.kill, or by hand where the kernel has none, and however fast it forks."""
    if not by_file:
        has = cgroup.Leaf._has
        monkeypatch.setattr(
            cgroup.Leaf, "_has", lambda leaf, name: name != "cgroup.kill" and has(leaf, name)
        )
    leaf = made({"pids.max": "64"})
    join = f"""
import signal
open({leaf.path + "/cgroup.procs"!r}, "w").write("0")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
"""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", join + BOMB]) as bomb:
        until = time.monotonic() + LONG
        while leaf.account().pids_met == 0 and time.monotonic() < until:
            time.sleep(0.01)
        leaf.remove()
        assert not leaf.left
        assert bomb.wait() == -signal.SIGKILL


def test_a_set_up_that_fails_leaves_no_leaf() -> None:
    """Whatever step it is."""
    with nothing_left():
        with pytest.raises(capsule.SetupError):
            capsule.run(["/nosuch"], memory="64M")
        with pytest.raises(HostError, match=r"the kernel refuses a limit: memory\.max"):
            made({"memory.max": "much"})


def test_usage_while_it_runs() -> None:
    """Of the cgroup, and it grows; in the end it is the result's."""
    with capsule.start(["sh", "-c", SPIN], memory="64M", pids=4) as process:
        until = time.monotonic() + LONG
        while process.usage().cpu_user < 0.2 and time.monotonic() < until:
            time.sleep(0.02)
        used = process.usage()
        assert used.source == "cgroup"
        assert used.cpu_user >= 0.2
        assert used.peak_memory > 100_000
        assert used.memory is not None
        assert 0 < used.memory <= used.peak_memory
        assert used.pids == 1
        process.terminate()
        result = process.wait()
    assert result.usage == process.usage()
    assert (result.usage.source, result.usage.peak_pids) == ("cgroup", 1)
    assert (result.usage.memory, result.usage.pids) == (None, None)


@needs("unprivileged")
def test_degraded_is_nothing_less_where_there_is_a_cgroup() -> None:
    """To accept less does not mean to get less."""
    result = capsule.run(["true"], memory="64M", pids=4, allow_degraded=["memory", "pids"])
    assert f"cgroup in {place()} (a delegated subtree): memory.max 64M" in result.protections["memory"]
    assert "degraded" not in result.protections["pids"]

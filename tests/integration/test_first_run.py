"""The first run of a process presumes what the kernel offers; its own launcher checks that."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule.confine import landlock
from capsule.host.host import _offered, expected
from capsule.launcher import spawn
from capsule.launcher import steps as s
from tests.support import HANG

REFUSE = Path(__file__).with_name("refuse.py")

# Launchers that were started, how the command ended, how often it ran, what is known of the kernel.
FIRST = """
import json, os, sys
started = 0
def hook(event, args):
    global started
    started += event == "os.posix_spawn"
sys.addaudithook(hook)
import capsule
from capsule.host import host
table = {table}
if table is not None:
    host.RELEASES = table
before = sorted(os.listdir("/proc/self/fd"))
answers = []
for _ in range(2):
    started = 0
    result = capsule.run(["sh", "-c", "echo x"], {policy}, input=b"y")
    answers.append([started, result.stdout.decode(), result.protections.get("landlock", "")])
    assert sorted(os.listdir("/proc/self/fd")) == before
children = open(f"/proc/self/task/{{os.getpid()}}/children").read()
assert children == "", children
print(json.dumps([answers, host.is_presumed(), capsule.probe().presumed, capsule.probe().landlock_abi]))
"""


def first(*before: str, table: str = "None", policy: str = "None") -> Any:
    """What a fresh process tells of its first two runs."""
    done = run_first(*before, table=table, policy=policy)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_first(*before: str, table: str, policy: str) -> subprocess.CompletedProcess[str]:
    """That process, however it ended."""
    code = FIRST.format(table=table, policy=policy)
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG)


def is_usual() -> bool:
    """Whether this kernel offers what others of its release do, and we are under no filter."""
    host = capsule.probe()
    offered = _offered(host.kernel)
    return not host.outer_seccomp and offered == {"landlock_abi": host.landlock_abi}


def test_a_first_run_starts_one_launcher() -> None:
    """Where the kernel is as its release says, nobody asks it beforehand; elsewhere it is asked."""
    answers, presumed, asked, abi = first()
    if is_usual():
        assert [started for started, _, _ in answers] == [1, 1]
        assert presumed
    else:
        assert answers[0][0] in (2, 3)
        assert answers[1][0] == 1
        assert not presumed
    assert [out for _, out, _ in answers] == ["x\n", "x\n"]
    # What is public has been found.
    assert not asked
    assert abi == capsule.probe().landlock_abi


@pytest.mark.parametrize("more", [-1, 1])
def test_a_kernel_that_is_not_as_presumed_is_asked(more: int) -> None:
    """More or less than its release says: the first launcher refuses, and the run is what it is."""
    abi = abs(capsule.probe().landlock_abi + more)
    answers, presumed, _, found = first(table=f"{{{abi}: '5.0'}}")
    # One that refused, one that asked, the capsule's; below a filter none is presumed.
    assert answers[0][0] == (2 if capsule.probe().outer_seccomp else 3)
    assert answers[1][0] == 1
    assert not presumed
    assert found == capsule.probe().landlock_abi
    told = [landlock for _, _, landlock in answers]
    assert told[0] == told[1]
    assert told[0] == capsule.run(["true"]).protections["landlock"]


def test_what_a_presumed_kernel_lacks_is_asked_for() -> None:
    """A policy that needs more than the release says is not refused before the kernel was asked."""
    policy = "capsule.Policy(tcp_connect=(443,), network=capsule.Network.HOST)"
    done = run_first(table="{1: '5.0'}", policy=policy)
    if capsule.probe().landlock_abi >= landlock.OF_TCP:
        answers, presumed, _, _ = json.loads(done.stdout)
        assert [out for _, out, _ in answers] == ["x\n", "x\n"]
        assert not presumed
    else:
        assert "HostError: tcp_connect" in done.stderr


def test_below_a_filter_nothing_is_presumed() -> None:
    """A container's filter takes calls away: the kernel is asked, and no launcher started in vain."""
    filtered = [sys.executable, str(REFUSE), "mount_setattr=ENOSYS", "--"]
    answers, presumed, _, _ = first(*filtered)
    assert [started for started, _, _ in answers] == [2, 1]
    assert [out for _, out, _ in answers] == ["x\n", "x\n"]
    assert not presumed


def performed(steps: tuple[s.Step, ...]) -> tuple[int, ...]:
    """The report of a launcher, nothing if it came to its end."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        child = spawn.spawn(s.encode(steps), (null, null, null))
        report = os.read(child.error, spawn.REPORT_SIZE)
        spawn.reap(child.pid)
        for fd in (child.error, child.status, child.lifeline):
            os.close(fd)
    finally:
        os.close(null)
    return tuple(memoryview(report).cast("i"))


def test_each_expectation_is_compared() -> None:
    """The step passes with what the probe found, and fails with any value of another kernel."""
    right = expected(capsule.probe())
    assert performed((right, s.Stop())) == ()
    for index, value in enumerate(right):
        wrong = [*right]
        wrong[index] = value + 1
        assert performed((s.Expect(*wrong), s.Stop())) == (0, errno.EOPNOTSUPP)

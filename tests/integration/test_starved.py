"""Killed, stopped and starved: a capsule runs, or fails with one clear message, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import CAPSULE, HANG, PYTHON, RACES, ROOM, lab, needs, shared_directory

# --- killed and stopped -------------------------------------------------------------------------

# Runs one capsule for each line, tells each launcher's pid, and in the end what came of it.
_RUNS = """
import json, os, sys
import capsule
capsule.probe()
posix_spawn = os.posix_spawn
def tell(value):
    os.write(1, json.dumps(value).encode() + b"\\n")
def spawn_and_tell(*args, **options):
    pid = posix_spawn(*args, **options)
    tell(pid)
    return pid
os.posix_spawn = spawn_and_tell
fds = sorted(os.listdir("/proc/self/fd"))
for line in sys.stdin:
    try:
        result = capsule.run(["sh", "-c", "sleep 0.003; echo ran"])
        told = [result.outcome.value, result.stdout.decode()]
    except capsule.CapsuleError as error:
        told = [type(error).__name__, str(error)]
    from capsule.process import base
    base.drop_all()
    left = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    assert not left, ("a child is left", [open(f"/proc/{pid}/stat").read() for pid in left], told)
    assert sorted(os.listdir("/proc/self/fd")) == fds, "a descriptor is left"
    tell(told)
"""


@contextlib.contextmanager
def runs() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs capsules."""
    with subprocess.Popen(
        [PYTHON, "-c", _RUNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield process
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(HANG) == 0
        finally:
            process.kill()


def _line(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], HANG)[0], "nothing more comes"
    return json.loads(process.stdout.readline())


def _run_one(process: subprocess.Popen[bytes], moment: float, number: int) -> tuple[str, str]:
    """One run, of whose processes one gets a signal at a moment; what came of it."""
    assert process.stdin is not None
    process.stdin.write(b"next\n")
    told = _line(process)
    assert isinstance(told, int)
    time.sleep(moment)
    # Launcher, init, or the init of a base.
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pidfds = []
    for pid in pids[:1]:
        with contextlib.suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(int(pid)))
    for fd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
            if number == signal.SIGSTOP:
                time.sleep(0.005)
                signal.pidfd_send_signal(fd, signal.SIGCONT)
        os.close(fd)
    while isinstance(told, int):
        told = _line(process)
    return told[0], told[1]


_WHY = "the launcher or init was killed during the set-up\n  The command was not run.\n  hint: "


def _kill_some(count: int, seed: int) -> None:
    moments = random.Random(seed)
    ends: Counter[str] = Counter()
    with runs() as process:
        for _ in range(count):
            kind, text = _run_one(process, moments.uniform(0, 0.006 * ROOM), signal.SIGKILL)
            ends[kind] += 1
            if kind == "HostError":
                assert text.startswith(_WHY)
            else:
                assert (kind, text) in (("exited", "ran\n"), ("killed", "ran\n"), ("killed", ""))
    assert ends["HostError"], ends
    assert ends["killed"], ends


@pytest.mark.row("F-22")
def test_a_launcher_or_init_that_is_killed_at_any_moment() -> None:
    """SIGKILL at random moments: an error that says so, or a result that says so; nothing is left."""
    _kill_some(3 * RACES, 1)


@pytest.mark.slow
def test_a_launcher_or_init_that_is_killed_at_500_moments() -> None:
    """The same at 500 moments."""
    _kill_some(500, 2)


def _stop_some(count: int, seed: int) -> None:
    moments = random.Random(seed)
    with runs() as process:
        for _ in range(count):
            told = _run_one(process, moments.uniform(0, 0.006 * ROOM), signal.SIGSTOP)
            assert told == ("exited", "ran\n")


@pytest.mark.row("F-22")
def test_a_launcher_or_init_that_is_stopped_for_a_while() -> None:
    """SIGSTOP at random moments, and SIGCONT later: the command runs as if nothing had been."""
    _stop_some(RACES, 3)


@pytest.mark.slow
def test_a_launcher_or_init_that_is_stopped_at_500_moments() -> None:
    """The same at 500 moments."""
    _stop_some(500, 4)


# --- limits of the caller -----------------------------------------------------------------------

_LIMITED = """
import json, os, resource, sys
import capsule
from capsule.process import base
which, limits = getattr(resource, sys.argv[1]), json.loads(sys.argv[2])
capsule.probe()
soft, hard = resource.getrlimit(which)
told = []
before = set(os.listdir("/proc/self/fd"))
for limit in limits:
    resource.setrlimit(which, (limit, hard))
    try:
        told.append(["ok" if capsule.run(["true"]).ok else "failed", 0, "", ""])
    except Exception as error:
        kind = type(error).__name__
        told.append([kind, getattr(error, "errno", 0), str(error), getattr(error, "hint", "")])
    resource.setrlimit(which, (soft, hard))
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    # What was not in use is closed: a base is meant to stay.
    base.drop_all()
    left = set(os.listdir("/proc/self/fd")) - before
    left = {os.readlink(f"/proc/self/fd/{fd}") for fd in left if os.path.exists(f"/proc/self/fd/{fd}")}
    assert not left, ("a descriptor is left", limit, left, told[-1])
    assert children == "", "a child is left"
print(json.dumps(told))
"""


def limited(which: str, limits: list[int]) -> list[list[Any]]:
    """[kind, errno, message, hint] of a run under each soft limit, in a process of its own."""
    command = [PYTHON, "-c", _LIMITED, which, json.dumps(limits)]
    done = subprocess.run(command, capture_output=True, timeout=HANG)
    assert done.returncode == 0, done.stderr.decode()
    told: list[list[Any]] = json.loads(done.stdout)
    return told


def test_too_few_descriptors() -> None:
    """Whatever the limit of open files is, it is the capsule that runs or an error that names it."""
    told = limited("RLIMIT_NOFILE", list(range(4, 40)))
    kinds = [kind for kind, *_ in told]
    assert kinds[-1] == "ok"
    assert "HostError" in kinds
    for kind, _, message, hint in told:
        assert kind in ("ok", "HostError", "SetupError"), message
        assert kind == "ok" or "open files" in hint


@needs("unprivileged")
def test_too_few_processes() -> None:
    """Where the user's processes are limited, the error names the limit; root has none."""
    (told,) = limited("RLIMIT_NPROC", [1])
    kind, error, message, hint = told
    assert kind in ("HostError", "SetupError"), message
    assert error in (0, None, errno.EAGAIN)
    assert "ulimit -u" in hint


@pytest.mark.parametrize(
    ("which", "option", "limits"),
    [
        ("RLIMIT_FSIZE", "ulimit -f", [0, 1, 4096, 20000, 1 << 22]),
        ("RLIMIT_STACK", "ulimit -s", [0, 4096, 8192, 16384, 65536, 1 << 20]),
        ("RLIMIT_DATA", "ulimit -d", [1 << 12, 1 << 16, 1 << 20, 1 << 28]),
        ("RLIMIT_AS", "", [0, 1 << 20, 1 << 23, 1 << 24, 20 << 20, 24 << 20, 28 << 20, 1 << 30]),
    ],
)
def test_limits_that_a_start_does_not_fit_into(which: str, option: str, limits: list[int]) -> None:
    """Files, stack, data, addresses: it runs, or an error names the limit; nothing is left."""
    told = limited(which, limits)
    kinds = [kind for kind, *_ in told]
    assert kinds[-1] == "ok"
    assert kinds[0] != "ok"
    for kind, _, message, hint in told:
        # Where this very process gets no memory, Python says so in its own way; and what a start fits
        # into, the command may not.
        assert kind in ("ok", "failed", "HostError", "MemoryError"), message
        assert kind != "HostError" or option in hint


@pytest.mark.parametrize("flags", ["-f 0", "-f 10", "-n 14", "-t 1", "-c 0", "-l 0", "-v 100000"])
def test_the_command_line_under_a_limit(flags: str) -> None:
    """It runs, or its status is 125 and its message has three lines at most."""
    words = ["sh", "-c", f'ulimit {flags}; exec "$@"', "sh", CAPSULE, "--chdir", "/", "echo", "ran"]
    done = subprocess.run(words, capture_output=True, timeout=HANG)
    if done.returncode == 0:
        assert (done.stdout, done.stderr) == (b"ran\n", b"")
    else:
        assert (done.returncode, done.stdout) == (125, b"")
        assert done.stderr.startswith(b"capsule: ")
        assert done.stderr.count(b"\n") == 3
        assert b"ulimit" in done.stderr


# --- disks that are full ------------------------------------------------------------------------

_FULL = """
mount -t tmpfs -o size=64k none "$1"
mkdir -m 700 "$1/kept" "$1/work" "$1/lower"
mount -t tmpfs -o size=8k,nr_inodes=3 none "$2"
head -c 100000 /dev/zero > "$2/filling" 2>/dev/null || :
head -c 1000000 /dev/zero > "$1/filling" 2>/dev/null || :
"""
_FULL_RUNS = """
import subprocess, tempfile
import capsule
place = sys.argv[2]
os.environ["TMPDIR"] = os.environ["HOME"] = place
def attempt(**options):
    mounts = options.pop("mounts", ())
    try:
        result = capsule.run(["sh", "-c", "echo x > /tmp/y && cat /tmp/y"], mounts=mounts, **options)
        return [result.outcome.value, result.stdout.decode()]
    except capsule.CapsuleError as error:
        return [type(error).__name__, str(error)]
told = []
try:
    os.write(os.open(place + "/filling", os.O_WRONLY | os.O_APPEND), b"x" * 4096)
except OSError as error:
    told.append(error.errno)
told.append(attempt(cwd="/"))
told.append(attempt(cwd=place, mounts=[capsule.Mount.read_write(place)]))
kept = capsule.Mount.overlay(place + "/lower", "/o", keep=place + "/kept/layer")
told.append(attempt(cwd="/", mounts=[kept]))
told.append(sorted(os.listdir(sys.argv[3])) + sorted(os.listdir(place)))
tell(told)
"""


@needs("overlay")
def test_a_full_disk_and_a_full_tmp() -> None:
    """With no room in /tmp, TMPDIR and HOME a capsule runs: it needs none; what needs room says so."""
    # Not in /tmp, over which one lies that is full; unless these tests themselves lie there.
    with shared_directory("/var/tmp") as place, shared_directory("/var/tmp") as other:
        tmp = other if f"{sys.prefix}/".startswith("/tmp/") else "/tmp"
        full, plain, mounted, kept, names = lab(_FULL, _FULL_RUNS, place, tmp)
    assert full == errno.ENOSPC
    assert plain == mounted == ["exited", "x\n"]
    assert kept[0] in ("exited", "SetupError", "PolicyError"), kept
    assert kept[0] == "exited" or "No space left on device" in kept[1]
    assert names == ["filling", "filling", "kept", "lower", "work"]

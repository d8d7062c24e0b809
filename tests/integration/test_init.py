"""PID 1 of the capsule: what it is, what it does, and that nobody inside can look into it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import subprocess
import time

import pytest

import capsule
from capsule.confine import landlock
from tests.support import HANG, PYTHON, ask, assert_denied, needs, open_descriptors, sleeper, stat

# What a process that may be looked into offers; the control looks into a child of its own.
_TARGET = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

pid = given["pid"]
if pid is None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
"""
OUTSIDE, INSIDE = {"pid": None}, {"pid": 1}


@pytest.mark.row("F-16")
def test_the_command_is_not_pid_1() -> None:
    """PID 1 is Capsule's init, and the command is its child, with nobody else there."""
    code = """
tell([os.getpid() != 1, os.getppid(), open("/proc/1/comm").read(), open("/proc/1/cmdline").read(),
      sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) == [1, os.getpid()]])
"""
    assert ask(code) == [True, 1, "capsule-launch\n", "capsule-launch\0", True]


@pytest.mark.parametrize(
    "act",
    [
        'open(f"/proc/{pid}/environ", "rb").read()',
        'open(f"/proc/{pid}/mem", "rb")',
        'open(f"/proc/{pid}/maps", "rb").read()',
        'open(f"/proc/{pid}/auxv", "rb").read()',
        'os.stat(f"/proc/{pid}/root/etc")',
        'os.readlink(f"/proc/{pid}/root")',
        'os.readlink(f"/proc/{pid}/cwd")',
        'os.readlink(f"/proc/{pid}/exe")',
        'os.readlink(f"/proc/{pid}/ns/mnt")',
        'os.listdir(f"/proc/{pid}/fd")',
        'os.listdir(f"/proc/{pid}/fdinfo")',
        'os.readlink(f"/proc/{pid}/fd/1")',
        'os.listdir(f"/proc/{pid}/map_files")',
    ],
)
@pytest.mark.row("B-01")
def test_proc_says_nothing_of_init(act: str) -> None:
    """Every file of /proc/1 that shows memory, descriptors or places is closed with EACCES."""
    assert_denied(_TARGET + act, errno.EACCES, outside=OUTSIDE, inside=INSIDE)


@pytest.mark.parametrize(
    "act",
    [
        "checked(libc.ptrace(0x4206, pid, 0, 0))  # PTRACE_SEIZE",
        "checked(libc.syscall(438, os.pidfd_open(pid), 1, 0))  # pidfd_getfd",
        """
data = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
ours = Vector(ctypes.addressof(data), 8)
theirs = Vector(id(None), 8)  # the child is a copy of this process: the address is there in both
checked(libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))
""",
    ],
    ids=["ptrace", "pidfd_getfd", "process_vm_readv"],
)
@pytest.mark.row("B-02")
def test_init_cannot_be_seized(act: str) -> None:
    """Nobody inside can trace init, take its descriptors or read its memory: EPERM."""
    assert_denied(_TARGET + act, errno.EPERM, outside=OUTSIDE, inside=INSIDE)


@pytest.mark.row("F-15")
def test_no_signal_from_inside_touches_init() -> None:
    """Every signal to PID 1 from inside, SIGKILL and SIGSTOP too, changes nothing."""
    code = """
import signal
for number in signal.valid_signals():
    for _ in range(3):
        os.kill(1, number)
os.kill(1, signal.SIGCONT)
tell(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1]))
"""
    assert ask(code, landlock="off") == 0
    if capsule.probe().landlock_abi >= landlock.OF_SCOPES:
        signals_it = "import signal\nos.kill(given.get('pid', 1), given['number'])"
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            with sleeper() as other:
                outside = {"pid": other.pid, "number": number}
                assert_denied(signals_it, errno.EPERM, outside=outside, inside={"number": number})


@pytest.mark.row("B-16", "F-15")
def test_killing_everything_leaves_init() -> None:
    """kill(-1) inside reaches the command's own processes and neither init nor the host."""
    code = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.posix_spawn("/bin/sleep", ["sleep", "100"], {}, setsigdef=[signal.SIGTERM])
os.kill(-1, signal.SIGTERM)
tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert ask(code) == -15
    assert stat(os.getpid()) is not None


@pytest.mark.row("F-02", "F-13")
def test_orphans_are_reaped() -> None:
    """Zombies of orphans do not pile up: init takes them."""
    code = """
for _ in range(50):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(3)
        os._exit(0)
    os.wait()
# Init takes them as soon as it is scheduled; the run's time limit guards this loop.
while {int(name) for name in os.listdir("/proc") if name.isdigit()} != {1, os.getpid()}:
    os.sched_yield()
tell("none left")
"""
    assert ask(code, timeout=HANG) == "none left"


# --- secrets of the caller ------------------------------------------------------------------

# Reads whatever can be read below given places. The secret comes over a pipe, so that it is in
# nobody's arguments; the scanner's own memory, which holds it then, is the one thing left out.
_SCANNER = """
import json, os, sys
places, secret = sys.argv[1:], sys.stdin.buffer.read()
own = f"/proc/{os.getpid()}"
found, read = [], 0

def look(path):
    global read
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        data = os.read(fd, 1 << 20)
    finally:
        os.close(fd)
    read += 1
    if secret in data:
        found.append(path)

def look_into_memory(folder):
    with open(f"{folder}/maps") as maps, open(f"{folder}/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, OverflowError):
                continue
            if secret in data:
                found.append(f"{folder}/mem {line.split()[-1]}")

for place in places:
    for folder, _, files in os.walk(place):
        for name in files:
            path = f"{folder}/{name}"
            try:
                if os.path.islink(path):
                    if secret.decode() in os.readlink(path):
                        found.append(path)
                elif name == "mem":
                    if not folder.startswith((own, "/proc/self", "/proc/thread-self")):
                        look_into_memory(folder)
                elif name not in ("pagemap", "kmsg"):
                    look(path)
            except OSError:
                pass
print(json.dumps([sorted(found), read]))
"""

# Holds the secret in its environment, its arguments and its heap, scans itself from outside, then
# has a capsule scanned from inside.
_CALLER = """
import json, os, subprocess, sys
import capsule
from capsule.confine import landlock
heap = [sys.argv[1] + f" copy {n}" for n in range(100)]
secret, scanner = sys.argv[1].encode(), sys.stdin.read()
command = [sys.executable, "-I", "-S", "-c", scanner]
outside = subprocess.run(
    [*command, f"/proc/{os.getpid()}"], input=secret, capture_output=True, check=True
)
inside = capsule.run([*command, "/proc"], input=secret)
print(json.dumps([json.loads(outside.stdout), json.loads(inside.check().stdout)]))
"""


@pytest.mark.row("B-01")
def test_no_secret_of_the_caller_is_readable() -> None:
    """What the caller has in environment, arguments and memory is nowhere in the capsule's /proc."""
    secret = secrets.token_hex(32)
    done = subprocess.run(
        [PYTHON, "-c", _CALLER, secret],
        input=_SCANNER.encode(),
        capture_output=True,
        env={**os.environ, "SECRET": secret},
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    (outside, _), (inside, files_read) = json.loads(done.stdout)
    assert any("environ" in path for path in outside), "the control found nothing"
    assert any("cmdline" in path for path in outside), "the control found nothing"
    assert inside == []
    assert files_read > 100


@needs("real root")
@pytest.mark.row("B-04")
def test_init_holds_no_descriptor_of_the_caller() -> None:
    """Init keeps the status pipe, the lifeline, a pidfd of the supervisor, a signalfd, a listener.

    To its own user it is closed, so only root can look. The listener may still be on its way in the
    socket that it comes over, when the command runs already.
    """
    until = time.monotonic() + HANG
    kinds = ["socket:"]
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        while "socket:" in kinds and time.monotonic() < until:
            kinds = [what.partition("[")[0] for what in open_descriptors(process.pid).values()]
    assert sorted(kinds) == [*["anon_inode:"] * 2, "anon_inode:seccomp notify", "pipe:", "pipe:"]

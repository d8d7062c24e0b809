"""The compiled filters in the kernel itself: it decides as the simulator and the table do."""

from __future__ import annotations

import errno
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capsule.confine.seccomp import filters, numbers
from capsule.confine.seccomp.spec import Seccomp

HANG = 20
LOADER = Path(__file__).with_name("loader.py")
# Where the call is let through, the kernel stumbles over these: nothing happens.
BAD_POINTER, BAD_DESCRIPTOR = 8, 0xFFFFFFF
HIGH = 0x123 << 32
CLONE_FILES = 0x400

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the numbers are those of x86_64"
)

# Name for the answer, call, arguments, errno inside, errnos outside of which one must come.
Probe = tuple[str, str, tuple[int, ...], int, tuple[int, ...]]
REFUSED: tuple[Probe, ...] = (
    ("unshare", "unshare", (CLONE_FILES,), errno.EPERM, (0,)),
    ("clone3", "clone3", (BAD_POINTER, 88), errno.ENOSYS, (errno.EFAULT,)),
    ("mount", "mount", (BAD_POINTER, BAD_POINTER, 0, 0, 0), errno.EPERM, (errno.EFAULT,)),
    (
        "move_mount",
        "move_mount",
        (BAD_DESCRIPTOR, 0, 0, 0, 0),
        errno.ENOSYS,
        (errno.EFAULT, errno.EPERM),
    ),
    ("process_vm", "process_vm_readv", (1, 0, 0, 0, 0, 1), errno.EPERM, (errno.EINVAL,)),
    ("keyctl", "keyctl", (0xFFFF,), errno.ENOSYS, (errno.EOPNOTSUPP,)),
    ("vmsplice", "vmsplice", (BAD_DESCRIPTOR, 0, 0, 0), errno.EPERM, (errno.EBADF, 0)),
    (
        "name_to_handle",
        "name_to_handle_at",
        (BAD_DESCRIPTOR, BAD_POINTER),
        errno.EOPNOTSUPP,
        (errno.EFAULT, errno.EBADF),
    ),
    ("tiocsti", "ioctl", (BAD_DESCRIPTOR, 0x5412), errno.EPERM, (errno.EBADF,)),
    ("tiocsti_high", "ioctl", (BAD_DESCRIPTOR, HIGH | 0x5412), errno.EPERM, (errno.EBADF,)),
    ("tiocsetd", "ioctl", (BAD_DESCRIPTOR, 0x5423), errno.EPERM, (errno.EBADF,)),
    ("lease", "fcntl", (BAD_DESCRIPTOR, HIGH | 1024), errno.EPERM, (errno.EBADF,)),
    ("notify", "fcntl", (BAD_DESCRIPTOR, 1026), errno.EPERM, (errno.EBADF,)),
    (
        "pair",
        "socketpair",
        (2, 1, 0, BAD_POINTER),
        errno.EAFNOSUPPORT,
        (errno.EFAULT, errno.EOPNOTSUPP),
    ),
    ("netfilter", "socket", (16, 3, 12), errno.EPROTONOSUPPORT, (0,)),
    ("packet_high", "socket", (HIGH | 17, 3, 0), errno.EAFNOSUPPORT, (0, errno.EPERM)),
    ("raw", "socket", (2, 3, 255), errno.EPERM, (0, errno.EPERM)),
    ("personality", "personality", (0x40000,), errno.EPERM, (0,)),
    (
        "device",
        "mknodat",
        (BAD_DESCRIPTOR, BAD_POINTER, 0x2000),
        errno.EPERM,
        (errno.EFAULT, errno.EPERM),
    ),
    ("set_mm", "prctl", (35, 99, 0, 0, 0), errno.EPERM, (errno.EINVAL, errno.EPERM)),
    ("ptrace", "ptrace", (0,), errno.EPERM, (0,)),
)
ALLOWED: tuple[Probe, ...] = (
    ("getpid", "getpid", (), 0, (0,)),
    ("winsize", "ioctl", (BAD_DESCRIPTOR, 0x5413), errno.EBADF, (errno.EBADF,)),
    ("get_flags", "fcntl", (BAD_DESCRIPTOR, 3), errno.EBADF, (errno.EBADF,)),
    ("inet", "socket", (2, 1 | 0x80000, 6), 0, (0,)),
    ("unix_high", "socket", (HIGH | 1, 2, 0), 0, (0,)),
    ("route", "socket", (16, 3, 0), 0, (0,)),
    ("ask", "personality", (0xFFFFFFFF,), 0, (0,)),
    ("fifo", "mknodat", (BAD_DESCRIPTOR, BAD_POINTER, 0x1000), errno.EFAULT, (errno.EFAULT,)),
)
# What the kernel refuses by itself to some callers: it proves nothing there, and is not counted.
VACUOUS = {"raw": errno.EPERM, "device": errno.EPERM, "set_mm": errno.EPERM}


def attempts(filters: list[Path], probes: tuple[Probe, ...]) -> dict[str, int]:
    """The errno of each call, under these filters."""
    table = numbers.numbers("x86_64")
    lines = [f"{name} {table[call]} {' '.join(map(str, args))}\n" for name, call, args, _, _ in probes]
    done = subprocess.run(
        [sys.executable, LOADER, *filters, "--", "-"],
        input="".join(lines), stdout=subprocess.PIPE, text=True, timeout=HANG, check=True,
    )  # fmt: skip
    return {name: int(number) for name, number in map(str.split, done.stdout.splitlines())}


@pytest.fixture
def default(tmp_path: Path) -> Path:
    return written(tmp_path / "filter", Seccomp())


def written(path: Path, spec: Seccomp) -> Path:
    """The compiled filter in a file."""
    made = filters.load(spec, listener=False)
    assert made is not None
    path.write_bytes(bytes.fromhex(made.program))
    return path


def test_refused_calls(default: Path) -> None:
    """Each refused call is reached outside, has the table's errno inside; harmless ones work."""
    outside = attempts([], REFUSED)
    for name, _, _, _, reached in REFUSED:
        assert outside[name] in reached, (name, outside[name])
    inside = attempts([default], (*REFUSED, *ALLOWED))
    for name, _, _, expected, _ in (*REFUSED, *ALLOWED):
        assert inside[name] == expected, (name, inside[name])
    vacuous = [name for name, number in VACUOUS.items() if outside[name] == number]
    assert len(vacuous) <= len(VACUOUS)


def test_allowed_calls_are_as_outside(default: Path) -> None:
    """What is allowed answers as it does without a filter."""
    assert attempts([default], ALLOWED) == attempts([], ALLOWED)


def test_profiles_differ(tmp_path: Path) -> None:
    """Debug lets ptrace through and strict no socket; what both refuse stays refused."""
    found = {
        p: attempts([written(tmp_path / p, Seccomp(p))], REFUSED[-1:])
        for p in ("debug", "nest", "strict")
    }
    assert [found[p]["ptrace"] for p in ("debug", "nest", "strict")] == [0, errno.EPERM, errno.EPERM]
    strict = attempts([tmp_path / "strict"], ALLOWED)
    assert (strict["inet"], strict["getpid"]) == (errno.EAFNOSUPPORT, 0)


def test_x32_is_killed(default: Path) -> None:
    """A number of x32 ends the process with SIGSYS; without the filter it is an error or the call."""
    script = "import ctypes; ctypes.CDLL(None).syscall(0x40000000 | 39); print('alive')"
    command = [sys.executable, "-c", script]
    outside = subprocess.run(command, stdout=subprocess.PIPE, timeout=HANG)
    assert outside.stdout == b"alive\n"
    inside = subprocess.run([sys.executable, LOADER, default, "--", *command], timeout=HANG)
    assert inside.returncode == -signal.SIGSYS


def test_programs_with_threads_and_children(default: Path) -> None:
    """An interpreter with threads, subprocesses, sockets and files does not notice the filter."""
    script = (
        "import subprocess, threading, socket, tempfile, asyncio, select\n"
        "threads = [threading.Thread(target=lambda: None) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "assert subprocess.run(['true']).returncode == 0\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "tempfile.TemporaryFile().write(b'x'); asyncio.run(asyncio.sleep(0))\n"
        "print('done')\n"
    )
    command: list[str | Path] = [sys.executable, LOADER, default, "--", sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=HANG)
    assert done.stdout == b"done\n"

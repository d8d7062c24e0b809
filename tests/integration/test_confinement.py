"""What cannot be undone: no privilege, now or later, and a session of its own."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy
from tests.support import (
    HANG,
    PYTHON,
    ask,
    await_line,
    command_of,
    lab,
    needs,
    probe_args,
    shared_directory,
    sleeper,
    stat,
)

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status_of(text: str) -> dict[str, str]:
    """The fields of a /proc/PID/status."""
    return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


def assert_powerless(text: str) -> None:
    """No capability in any set, and no way to gain one."""
    status = status_of(text)
    assert {name: int(status[name], 16) for name in SETS} == dict.fromkeys(SETS, 0)
    assert status["NoNewPrivs"] == "1"


# --- privilege ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"uid": 1000, "gid": 1000}, {"network": "host"}])
@pytest.mark.row("B-07", "E-02")
def test_the_command_has_no_capability(options: dict[str, Any]) -> None:
    """All five sets are empty and no_new_privs is set, for root inside as for others."""
    result = capsule.run(["cat", "/proc/self/status"], text=True, **options)
    assert_powerless(result.stdout)


@pytest.mark.row("B-07")
def test_the_host_sees_no_capability() -> None:
    """From outside it is the same: the command has none in any user namespace."""
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        assert_powerless(Path(f"/proc/{command_of(process)}/status").read_text())


@pytest.mark.row("B-07")
def test_being_root_gives_no_capability_and_that_is_locked() -> None:
    """The securebits say that root is nobody special, and cannot be changed any more."""
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28
bits = libc.prctl(PR_GET_SECUREBITS)
tell([bits, libc.prctl(PR_SET_SECUREBITS, 0), errno.errorcode[ctypes.get_errno()]])
"""
    bits, changed, error = ask(code)
    noroot, locks = 0b11, 1 << 3 | 0b11 << 6
    assert bits & noroot == noroot
    assert bits & locks == locks
    assert (changed, error) == (-1, "EPERM")


_PRIVILEGED = {
    "mount": 'checked(libc.mount(b"none", b"/proc", b"tmpfs", 0, None))',
    "bind": 'checked(libc.mount(b"/usr", b"/proc", None, 4096, None))',
    "remount": 'checked(libc.mount(None, b"/proc", None, 32 | 4096, None))',
    "umount": 'checked(libc.umount2(b"/usr/share", 2))',
    "chroot": 'os.chroot("/usr")',
    "hostname": 'import socket; socket.sethostname("other")',
    "loopback": """
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS, up
""",
    "raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()",
    "new namespace": "checked(libc.unshare(0x00020000))  # CLONE_NEWNS",
}

_CHECKED = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def outcome(act):
    try:
        exec(act)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""


@needs("unshare")
@pytest.mark.parametrize("name", _PRIVILEGED)
@pytest.mark.row("B-07", "E-02")
def test_root_inside_can_do_nothing_that_needs_root(name: str) -> None:
    """What root of plain namespaces may do, root of a capsule may not: EPERM."""
    mounts = "mount -t tmpfs none /usr/share"
    assert lab(mounts, f"{_CHECKED}tell(outcome(sys.argv[2]))", _PRIVILEGED[name]) == "done"
    inside = f"{_CHECKED}tell([outcome(given['act']), outcome('os.stat(\"/tmp\")')])"
    assert ask(inside, given={"act": _PRIVILEGED[name]}) == ["EPERM", "done"]


def _set_uid(path: Path) -> None:
    path.chmod(0o4755)


def _set_capability(path: Path) -> None:
    """struct vfs_cap_data: revision 2, effective, CAP_NET_RAW permitted."""
    os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))


@needs("real root", "setpriv")
@pytest.mark.parametrize("empower", [_set_uid, _set_capability])
@pytest.mark.parametrize("kind", [Mount.read_only, Mount.read_write])
@pytest.mark.row("B-08")
def test_a_program_with_privileges_has_none_inside(
    empower: Callable[[Path], None], kind: Callable[[Path], Mount]
) -> None:
    """A set-uid program and one with file capabilities run with those of the command: none."""
    with shared_directory() as directory:
        program = directory / "cat"
        shutil.copy(shutil.which("cat") or "/bin/cat", program)
        program.chmod(0o755)
        empower(program)
        command = [str(program), "/proc/self/status"]
        user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
        outside = status_of(subprocess.run([*user, *command], capture_output=True, text=True).stdout)
        assert outside["Uid"].split()[1] == "0" or int(outside["CapEff"], 16) != 0
        result = capsule.run(command, Policy(mounts=(kind(directory),), uid=1000), text=True)
        assert_powerless(result.stdout)
        assert status_of(result.stdout)["Uid"].split() == ["1000"] * 4


@pytest.mark.parametrize("command", [["su", "-c", "id"], ["newuidmap", "1", "0", "0", "1"], ["mount"]])
@pytest.mark.row("B-09")
def test_helpers_of_the_host_give_nothing(command: list[str]) -> None:
    """The host's own set-uid programs run without their privilege."""
    program = shutil.which(command[0])
    if program is None or not os.stat(program).st_mode & 0o4000:
        command = [PYTHON, "-c", "import os; os.setuid(1)"]
    script = (
        'cat /proc/self/status; "$@" >/tmp/output 2>&1; echo "ended with $?"; cat /proc/self/status'
    )
    result = capsule.run(["sh", "-c", script, "sh", *command], text=True)
    before, _, after = result.stdout.partition("ended with ")
    assert_powerless(before)
    assert_powerless(after)
    assert command == ["mount"] or not after.startswith("0\n")


# --- session and signals ------------------------------------------------------------------------


def test_the_command_has_a_session_of_its_own() -> None:
    """Neither the caller's session nor its process group nor its terminal."""
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        inside, ours = stat(command_of(process)), stat(os.getpid())
        assert inside is not None
        assert ours is not None
        assert inside.session == process.pid != ours.session
        assert inside.group == inside.pid != ours.group
    assert ask("tell([os.getsid(0), os.getpgrp() == os.getpid()])") == [1, True]


def test_signals_are_as_after_a_login() -> None:
    """Nothing is blocked or ignored, whatever the caller's process does with its signals."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        status = status_of(capsule.run(["cat", "/proc/self/status"], text=True).stdout)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, before)
    # Signals 32 and 33 are the C library's own, and no program's business.
    own = 0b11 << 31
    assert [int(status[name], 16) & ~own for name in ("SigBlk", "SigIgn", "SigPnd")] == [0, 0, 0]


def test_the_callers_umask_and_limits_stay() -> None:
    """The umask and the limits of the caller are the command's, but for core dumps.

    A limit of 1, unlike 0, also keeps the kernel from piping a core to a handler of the host.
    """
    umask = os.umask(0o027)
    try:
        code = """
import resource
os.mkdir("/tmp/made")
tell([oct(os.stat("/tmp/made").st_mode & 0o777), resource.getrlimit(resource.RLIMIT_NOFILE),
      resource.getrlimit(resource.RLIMIT_CORE)])
"""
        mode, files, core = ask(code)
    finally:
        os.umask(umask)
    assert (mode, core) == ("0o750", [1, 1])
    assert tuple(files) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_a_caller_without_core_dumps_can_start_a_capsule() -> None:
    """Where the caller's hard limit is already 0, which nobody may raise again, it stays 0."""
    code = """
import resource, sys
import capsule
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.stdout.buffer.write(capsule.run(["sh", "-c", "ulimit -Sc; ulimit -Hc"]).stdout)
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr) == (b"0\n0\n", b"")


@pytest.mark.row("B-12")
def test_a_crash_leaves_no_core() -> None:
    """A command that dumps core writes none, and its end is told by its signal."""
    with shared_directory() as directory:
        directory.chmod(0o777)
        policy = Policy(mounts=(Mount.read_write(directory),), cwd=str(directory))
        result = capsule.run(["sh", "-c", "ulimit -c unlimited; kill -SEGV $$"], policy)
        assert result.signal == signal.SIGSEGV
        assert os.listdir(directory) == []


@pytest.mark.row("B-16")
def test_nothing_of_the_supervisor_can_be_reached_by_signal() -> None:
    """kill() to every number but its own finds init and nobody else; the parent has no other name."""
    code = """
found = []
for pid in range(1, 5000):
    if pid != os.getpid():
        try:
            os.kill(pid, 0)
            found.append(pid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                found.append(pid)
tell([found, os.getppid()])
"""
    assert ask(code) == [[1], 1]


_OWNED = """
import fcntl, signal
signal.signal(signal.SIGIO, signal.SIG_IGN)
refused = []
for owner in given["owners"]:
    try:
        fcntl.fcntl(0, fcntl.F_SETOWN, owner)
    except OSError as error:
        refused.append(errno.errorcode[error.errno])
os.write(1, json.dumps(refused).encode() + b"\\n")
os.read(0, 1)
"""


@pytest.mark.row("B-16")
def test_no_process_of_the_host_can_be_made_an_owner() -> None:
    """F_SETOWN, whose SIGIO would reach anybody, finds no process of the host: ESRCH."""
    with sleeper(start_new_session=True) as other:
        # In a PID namespace that has just begun it could be a number that is somebody inside.
        assert other.pid > 8
        command = probe_args(_OWNED, {"owners": [other.pid, -other.pid]})
        with capsule.start(command, stdin=capsule.PIPE) as process:
            assert await_line(process) == b'["ESRCH", "ESRCH"]\n'

"""What several test files share: probes on both sides of the wall, processes, reasons to skip."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import glob
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import capsule
from capsule.confine import landlock
from capsule.host import delegation
from capsule.host.host import _has_capability, version
from capsule.planner import limits, tail
from capsule.process import base

PYTHON = sys.executable
# The command beside the package: where that is not the environment's, tests/fuzz/coverage.py put it.
_PREFIX = Path(capsule.__file__).parents[4]
_SCRIPTS = _PREFIX / "bin" if (_PREFIX / "bin/capsule").exists() else sysconfig.get_path("scripts")
CAPSULE = os.path.join(_SCRIPTS, "capsule")

# Whether ids are the kernel's own and the caller is root: only then do they map to nobody's.
# Not asked of probe(): the unit tests, which import this too, do without a launcher.
REAL_ROOT = os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] == "4294967295"
NOBODY = 65534
OUTSIDE_UID = NOBODY if REAL_ROOT else os.geteuid()
OUTSIDE_GID = NOBODY if REAL_ROOT else os.getegid()

# How many times slower than a usual machine this one may be: emulation is.
ROOM = int(os.environ.get("CAPSULE_ROOM", "1"))
# Guards against a hang, far above what anything here takes. No test measures time with it.
HANG = 20.0 * ROOM
# Starts in which a race is tried; thousands of them in the slow lanes.
RACES = max(12, 60 // ROOM)


# --- probes ---------------------------------------------------------------------------------
#
# A probe is Python source that calls tell(value) once and may read its arguments from `given`.

_PRELUDE = """
import errno, json, os, sys
given = json.loads(sys.argv[1])
def tell(value):
    os.write(1, json.dumps(value).encode())
"""


def probe_args(code: str, given: dict[str, Any] | None = None) -> list[str]:
    """The command that runs a probe."""
    return [PYTHON, "-I", "-S", "-c", _PRELUDE + code, json.dumps(given or {})]


Run = Callable[..., capsule.Result]


def ask(
    code: str,
    policy: capsule.Policy | None = None,
    given: dict[str, Any] | None = None,
    *,
    run: Run | None = None,
    **options: Any,
) -> Any:
    """What a probe tells from inside a capsule."""
    words = probe_args(code, given)
    result = capsule.run(words, policy, **options) if run is None else run(words, **options)
    assert result.ok, (result.describe(), result.stdout, result.stderr)
    return json.loads(result.stdout)


def ask_outside(code: str, given: dict[str, Any] | None = None, **options: Any) -> Any:
    """What the same probe tells from outside."""
    done = subprocess.run(probe_args(code, given), capture_output=True, timeout=HANG, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_ATTEMPT = """
try:
    exec(given["act"], {"os": os, "sys": sys, "given": given})
    outcome = "done"
except OSError as error:
    outcome = errno.errorcode[error.errno]
"""

# That the capsule as such works: a denial in one where nothing works would prove nothing.
_HARMLESS = """
with open("/tmp/harmless", "w+") as file:
    file.write("done")
    file.seek(0)
    tell([outcome, file.read(), os.getpid() > 1])
"""


def assert_denied(
    act: str,
    error: int,
    *,
    outside: dict[str, Any] | None = None,
    inside: dict[str, Any] | None = None,
    policy: capsule.Policy | None = None,
    run: Run | None = None,
    **options: Any,
) -> None:
    """A denial in three parts: done outside, that very errno inside, and a harmless act works there.

    Args:
        act: Python source; it fails by raising OSError.
        error: the errno inside.
        outside: what the act finds in `given` outside.
        inside: what it finds there inside, if that differs.
        policy: the capsule's.
        run: what runs it inside, if not `capsule.run`.
        options: for that.
    """
    outside = outside or {}
    told = ask_outside(_ATTEMPT + "tell(outcome)", {"act": act, **outside})
    assert told == "done", f"the control outside failed: {told}"
    here = {"act": act, **(outside if inside is None else inside)}
    told = ask(_ATTEMPT + _HARMLESS, policy, here, run=run, **options)
    assert told == [errno.errorcode[error], "done", True]


# --- processes ------------------------------------------------------------------------------


class Stat(NamedTuple):
    """A line of /proc/PID/stat."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it has not ended: a zombie runs nothing and holds nothing."""
        return self.state not in "ZX"


def stat(pid: int) -> Stat | None:
    """What /proc says of a process, or None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="surrogateescape") as file:
            head, _, tail = file.read().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = tail.split()
    parent, group, session = map(int, words[1:4])
    return Stat(pid, head.partition("(")[2], words[0], parent, group, session, int(words[19]))


def descendants(top: int) -> list[Stat]:
    """All processes below one, itself excluded."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    all_ = [found for pid in pids if (found := stat(pid))]
    below: set[int] = set()
    new = {top}
    while new:
        below |= new
        new = {s.pid for s in all_ if s.parent in below} - below
    return [s for s in all_ if s.pid in below and s.pid != top]


def command_of(process: capsule.Process) -> int:
    """The command's process id on the host: init's one child while the command runs alone."""
    (found,) = (s.pid for s in descendants(process.pid) if s.parent == process.pid)
    return found


def await_end(pid: int) -> bool:
    """Wait until a process has ended, whoever reaps it. False if it still runs after HANG."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], HANG)[0])
    finally:
        os.close(pidfd)


def await_line(process: capsule.Process) -> bytes:
    """The next line that the command writes: it has come as far as that."""
    assert process.stdout is not None
    line = b""
    # Byte by byte from the pipe itself: a reader's buffer would hide from select what it holds.
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], [], [], HANG)[0], "nothing was written"
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            break
        line += byte
    return line


def open_descriptors(pid: int | str = "self") -> dict[int, str]:
    """Descriptors of a process, and what they are; of this one, but for the bases that it holds."""
    if pid == "self":
        base.drop_all()
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def children() -> set[tuple[int, int]]:
    """Children of this process, zombies too."""
    return {(s.pid, s.started) for s in descendants(os.getpid()) if s.parent == os.getpid()}


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """This process holds the same descriptors and children after the block as before it."""
    before = open_descriptors(), children()
    yield
    assert (open_descriptors(), children()) == before


def lab(mounts: str, code: str, *arguments: object) -> Any:
    """What a probe tells that runs with all capabilities in namespaces of its own, without a capsule.

    Args:
        mounts: shell commands that mount, with the arguments as $1, $2...
        code: the probe, which may import capsule.
        arguments: for both: the probe has them as sys.argv[2:].
    """
    # Who is not root becomes it in a user namespace; that of a capsule is nested in it then.
    flags = "-mnui" if REAL_ROOT else "-Urmnui"
    words = [str(word) for word in arguments]
    command = [PYTHON, "-c", _PRELUDE + code, "{}", *words]
    script = f'set -e\n{mounts}\nshift {len(words)}\nexec "$@"'
    done = subprocess.run(
        ["unshare", flags, "sh", "-c", script, "sh", *words, *command],
        capture_output=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


# Python source of an act: forty children at once, which end with it.
FORKS = """
pids, gate = [], os.pipe()
try:
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            os.close(gate[1])
            os._exit(len(os.read(gate[0], 1)))
        pids.append(pid)
finally:
    os.close(gate[1])
    for pid in pids:
        os.waitpid(pid, 0)
"""
# Python source that forks without end.
BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


# --- places ---------------------------------------------------------------------------------


@contextlib.contextmanager
def shared_directory(parent: str | None = None) -> Iterator[Path]:
    """A directory outside of any home that the capsule's outside ids can read and search.

    pytest's own temporary directories are closed to others: what root starts runs as nobody.
    """
    path = Path(tempfile.mkdtemp(prefix="capsule-test-", dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def give(path: Path) -> Path:
    """Make a path writable for the capsule's outside ids."""
    if REAL_ROOT:
        os.chown(path, OUTSIDE_UID, OUTSIDE_GID)
    return path


def host(**changes: Any) -> capsule.Host:
    """A usual host: merged /usr, a few files of /etc, a user 1000, a new kernel."""
    usual = capsule.Host(
        kernel="6.12.0",
        system=(("/usr", None), ("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")),
        etc=(("/etc/ssl", None), ("/etc/localtime", "/usr/share/zoneinfo/Etc/UTC")),
        etc_files=(("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n"),),
        masked=("/proc/kcore", "/proc/keys"),
        masked_for_all=("/proc/keys",),
        read_only=("/proc/sys",),
        landlock_abi=7,
    )
    return usual.replace(**changes)


# --- reasons to skip ------------------------------------------------------------------------


class Need(NamedTuple):
    """What a test needs of the host.

    Attributes:
        reason: why it is skipped where that is missing.
        met: finds out, by trying.
        optional: whether CI, too, may lack it. A tool is not: CI installs those.
    """

    reason: str
    met: Callable[[], bool]
    optional: bool = False


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as server:
            server.bind(("::1", 0))
    except OSError:
        return False
    return True


def _has_io_uring() -> bool:
    """A call with a pointer that leads nowhere: who may use it learns of that (425 on every CPU)."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(425, 1, None) < 0 and ctypes.get_errno() == errno.EFAULT


def _has_route() -> bool:
    """Connecting a datagram socket looks for a route and sends nothing; RFC 5737 has the address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return client.connect_ex(("192.0.2.1", 9)) == 0


def _has_no_range() -> bool:
    found = capsule.probe()
    return found.subuids is None or found.subgids is None


def closed_place() -> str | None:
    """A directory of the host that the caller may not search."""
    for path in ("/root", "/lost+found", "/etc/ssl/private", "/var/cache/ldconfig", "/etc/polkit-1"):
        if os.path.isdir(path) and not os.access(path, os.X_OK):
            return path
    return None


def _has_cgroup() -> bool:
    found = delegation.find()
    return bool(found.way) and set(found.controllers) == set(delegation.CONTROLLERS)


def _has_overlay() -> bool:
    try:
        return capsule.run(["true"], capsule.Policy(mounts=[capsule.Mount.overlay("/usr", "/x")])).ok
    except capsule.HostError:
        return False


def _deletes_below() -> bool:
    """Whether what a directory of the lower layer holds can be deleted with it."""
    with shared_directory() as lower:
        (lower / "gone").mkdir()
        (lower / "gone" / "file").touch()
        for path in (lower, lower / "gone", lower / "gone" / "file"):
            give(path)
        mounts = [capsule.Mount.overlay(lower, "/x")]
        return _has_overlay() and capsule.run(["rm", "-r", "/x/gone"], capsule.Policy(mounts=mounts)).ok


def _tool(name: str, *, optional: bool = False) -> Need:
    return Need(f"{name} is not installed", lambda: shutil.which(name) is not None, optional)


def _has_postgres() -> bool:
    return bool(shutil.which("initdb") or glob.glob("/usr/lib/postgresql/*/bin/initdb"))


NEEDS: dict[str, Need] = {
    "real root": Need("only root of the initial user namespace can do this", lambda: REAL_ROOT, True),
    "unprivileged": Need("this is about a caller who is not root", lambda: not REAL_ROOT, True),
    "ipv6": Need("the host has no IPv6 loopback", _has_ipv6, True),
    "mqueue": Need(
        "the kernel has no POSIX message queues", lambda: os.path.isdir("/proc/sys/fs/mqueue"), True
    ),
    "io_uring": Need("the caller may not use io_uring", _has_io_uring, True),
    "closed place": Need(
        "no usual directory is closed to the caller", lambda: closed_place() is not None, True
    ),
    "no subids": Need("the caller has a range of subordinate ids", _has_no_range, True),
    "fuse": Need(
        "the caller may not open /dev/fuse", lambda: os.access("/dev/fuse", os.R_OK | os.W_OK), True
    ),
    "resolver": Need(
        "the host has no resolv.conf(5)", lambda: os.path.exists("/etc/resolv.conf"), True
    ),
    "route": Need("the host has no route to the network", _has_route, True),
    "mount_setattr": Need("the kernel is older than 5.12", lambda: capsule.probe().mount_setattr, True),
    "overlay": Need("the kernel has no overlay in a user namespace (before 5.11)", _has_overlay, True),
    "overlay deletes": Need(
        "a layer in memory cannot delete a directory of the lower one (before 6.6)",
        _deletes_below,
        True,
    ),
    "cgroup": Need("no cgroup with memory, pids and cpu is the caller's to divide", _has_cgroup, True),
    "systemd session": Need(
        "there is no session of systemd's without a delegated cgroup",
        lambda: delegation.find().way == delegation.SCOPE,
        True,
    ),
    "root of a guest": Need(
        "this changes the settings of the system's systemd",
        lambda: REAL_ROOT and "CAPSULE_KERNEL" in os.environ and os.path.isdir("/run/systemd/system"),
        True,
    ),
    "guest": Need(
        "this is about a kernel that the tests start", lambda: "CAPSULE_KERNEL" in os.environ, True
    ),
    "no cgroup": Need("a cgroup is the caller's to divide", lambda: not delegation.find().way, True),
    "CAP_SYS_RESOURCE": Need(
        "the caller cannot hold the least oom_score_adj", lambda: _has_capability(24), True
    ),
    "ipc limits": Need(
        "root of an IPC namespace sets none of its limits (before 6.9)",
        lambda: version(capsule.probe().kernel) >= tail.SETS_IPC,
        True,
    ),
    "landlock": Need(
        "the kernel has no Landlock (before 5.13)", lambda: capsule.probe().landlock_abi > 0, True
    ),
    "landlock ports": Need(
        "Landlock has no ports (before 6.7)",
        lambda: capsule.probe().landlock_abi >= landlock.OF_TCP,
        True,
    ),
    "landlock scopes": Need(
        "Landlock has no scopes (before 6.12)",
        lambda: capsule.probe().landlock_abi >= landlock.OF_SCOPES,
        True,
    ),
    "counted processes": Need(
        "the kernel counts no processes by user namespace (before 5.14)",
        lambda: version(capsule.probe().kernel) >= limits.COUNTS_BY_NAMESPACE,
        True,
    ),
    "own pid_max": Need(
        "PID namespaces have no kernel.pid_max of their own (before 6.14)",
        lambda: version(capsule.probe().kernel) >= limits.OWN_PID_MAX,
        True,
    ),
    "postgres": Need("postgres is not installed", _has_postgres, True),
    **{
        name: _tool(name)
        for name in (
            "bindfs",
            "busybox",
            "curl",
            "gcc",
            "gdb",
            "git",
            "gpg",
            "ip",
            "ldd",
            "make",
            "newuidmap",
            "setpriv",
            "sqlite3",
            "ssh-keygen",
            "openssl",
            "strace",
            "unshare",
            "update-alternatives",
        )
    },
    # Hundreds of megabytes, or servers that an installation would start.
    **{name: _tool(name, optional=True) for name in ("javac", "node", "npm", "redis-server")},
}

_is_met = functools.cache(lambda name: NEEDS[name].met())


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test where one of these is missing. In CI no other reason to skip is accepted."""
    missing = [name for name in names if not _is_met(name)]
    reason = NEEDS[missing[0]].reason if missing else ""
    return pytest.mark.skipif(bool(missing), reason=reason)


def overlay_apart(names: Iterable[str]) -> list[Any]:
    """The same for parametrize; the one called overlay is skipped where there is none."""
    return [pytest.param(n, marks=needs("overlay")) if n == "overlay" else n for n in names]


def may_skip(reason: str) -> bool:
    """Whether CI accepts a skip: for a listed reason, and one that holds when it is tried again."""
    return any(n.reason == reason and n.optional and not n.met() for n in NEEDS.values())


# --- an outsider ----------------------------------------------------------------------------


@contextlib.contextmanager
def sleeper(**options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, for probes that must not reach it."""
    code = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)

"""Control groups: the only code of Python's that touches their files; cgroups(7), version 2.

A capsule with limits gets one leaf, in a directory that is the caller's to divide. The launcher clones
init into it (CLONE_INTO_CGROUP, Linux 5.7), so nothing of a capsule ever runs outside. Inside there is
no cgroup file system.
"""

from __future__ import annotations

import errno
import os
import time

from capsule.base import signals
from capsule.base.errors import HostError
from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# The directories of leaves, and the one that the caller's own processes go to; see `move_callers`.
LEAF, CALLERS = "capsule-", "supervisor"
# Seconds until what was killed must be gone from a leaf.
PATIENCE = 10.0


class Account(Value):
    """What the processes of a leaf have used; cgroup-v2.rst of the kernel. None where it does not say.

    Attributes:
        cpu_user: seconds, of cpu.stat.
        cpu_system: seconds, likewise.
        throttled: seconds for which they were held back by cpu.max.
        peak_memory: bytes, of memory.peak (Linux 5.19), or the largest that was seen.
        peak_pids: likewise of pids.peak (Linux 6.1).
        oom_kills: how many processes the kernel killed for want of memory.
        memory_met: how often they were about to exceed memory.max.
        pids_met: how often a fork failed for pids.max.
    """

    cpu_user: float = 0.0
    cpu_system: float = 0.0
    throttled: float = 0.0
    peak_memory: int | None = None
    peak_pids: int | None = None
    oom_kills: int = 0
    memory_met: int = 0
    pids_met: int = 0


_swept: set[str] = set()


def make(
    directory: str, controllers: Sequence[str], settings: Mapping[str, str], *, callers: bool
) -> Leaf:
    """Make a leaf with these contents of its files.

    Args:
        directory: where, a cgroup that is the caller's to divide.
        controllers: those that it has.
        settings: what is written to files of the leaf.
        callers: processes of the caller's are in the directory, which have to be moved.

    Raises:
        HostError: the kernel refuses one of them.
    """
    _enable(directory, controllers, callers=callers)
    if directory not in _swept:
        _swept.add(directory)
        sweep(directory)
    leaf = _new_leaf(directory)
    try:
        for name, value in settings.items():
            leaf.write(name, value)
    except BaseException:
        leaf.remove()
        raise
    return leaf


def _enable(directory: str, controllers: Sequence[str], *, callers: bool) -> None:
    """Let the children have the controllers."""
    path = f"{directory}/cgroup.subtree_control"
    lacks = set(controllers) - set(read_text(path).split())
    if not lacks:
        return
    if callers:
        move_callers(directory)
    try:
        _write(path, " ".join(f"+{each}" for each in sorted(lacks)))
    except OSError as error:
        raise _refused(path, error) from None


def move_callers(directory: str) -> None:
    """Give the processes of a delegated cgroup a leaf: with limits for children it may have none."""
    leaf = f"{directory}/{CALLERS}"
    try:
        os.makedirs(leaf, exist_ok=True)
        for _ in range(100):  # a fork meanwhile leaves one behind
            pids = read_text(f"{directory}/cgroup.procs").split()
            if not pids:
                return
            for pid in pids:
                try:
                    _write(f"{leaf}/cgroup.procs", pid)
                except ProcessLookupError:
                    pass  # it has ended
    except OSError as error:
        raise _refused(leaf, error) from None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _refused(path: str, error: OSError) -> HostError:
    return HostError(
        f"the kernel refuses a cgroup: {path}: {error.strerror}",
        hint="another program may have changed the cgroups: `capsule doctor` looks again",
    )


def _new_leaf(directory: str) -> Leaf:
    """A new one, locked: who does not hold the lock takes an empty one for left behind."""
    for _ in range(100):
        path = f"{directory}/{LEAF}{os.getpid()}-{os.urandom(4).hex()}"
        try:
            os.mkdir(path, 0o755)
            fd = _open_locked(path)
        except FileNotFoundError:
            fd = None  # somebody swept it away before it was locked
        except OSError as error:
            raise _refused(path, error) from None
        if fd is not None:
            return Leaf(path, fd)
    raise HostError(f"new cgroups in {directory} are removed at once", hint="find out by whom")


def _open_locked(path: str) -> int | None:
    """A descriptor that holds the lock of a leaf, None if another does; OSError if it is gone."""
    import fcntl  # only with limits

    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(path)  # swept away between the two?
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def sweep(directory: str) -> None:
    """Remove leaves whose supervisor was killed: nobody holds their lock, and nothing is in them."""
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        try:
            fd = _open_locked(path) if name.startswith(LEAF) else None
        except OSError:
            continue
        if fd is not None:
            Leaf(path, fd).drop()


class Leaf:
    """A capsule's own cgroup.

    Attributes:
        path: its directory.
        fd: a descriptor of that, -1 when it is removed.
        left: whether it is there.
        sampled: whether `sample` has to be called now and then: the kernel keeps no peaks.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.left = True
        self._peak_memory = 0
        self._peak_pids = 0
        # Where the kernel keeps no record, what was seen is all there is.
        self.sampled = any(
            self._has(f"{each}.current") and not self._has(f"{each}.peak")
            for each in ("memory", "pids")
        )

    def write(self, name: str, value: str) -> None:
        """Write one of its files.

        Raises:
            HostError: the kernel refuses that.
        """
        try:
            _write(f"{self.path}/{name}", value)
        except OSError as error:
            raise HostError(
                f"the kernel refuses a limit: {name} of a cgroup as {value}: {error.strerror}",
                hint="choose another; one of swap needs swap accounting (boot with: swapaccount=1)",
            ) from None

    def in_use(self) -> tuple[int | None, int | None]:
        """(Bytes, processes and threads) at this moment."""
        return self._number("memory.current"), self._number("pids.current")

    def sample(self) -> None:
        """Remember the most that was seen in use."""
        memory, pids = self.in_use()
        self._peak_memory = max(self._peak_memory, memory or 0)
        self._peak_pids = max(self._peak_pids, pids or 0)

    def account(self) -> Account:
        """Return what was used up to now."""
        if self.sampled:
            self.sample()
        cpu, memory = self._table("cpu.stat"), self._table("memory.events")
        met, limit = memory.get("max", 0), self._number("memory.max")
        peak = self._number("memory.peak")
        if peak is None and self._has("memory.current"):
            # Where a charge beyond the limit was tried, all of the limit was in use.
            peak = limit if met and limit else self._peak_memory
        pids = self._number("pids.peak")
        return Account(
            cpu_user=cpu.get("user_usec", 0) / 1e6,
            cpu_system=cpu.get("system_usec", 0) / 1e6,
            throttled=cpu.get("throttled_usec", 0) / 1e6,
            peak_memory=peak,
            peak_pids=pids if pids is not None else self._peak_pids or None,
            oom_kills=memory.get("oom_kill", 0),
            memory_met=met,
            pids_met=self._table("pids.events").get("max", 0),
        )

    def _has(self, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=self.fd)

    def _number(self, name: str) -> int | None:
        text = self._text(name)
        return int(text) if text.strip().isdigit() else None

    def _table(self, name: str) -> dict[str, int]:
        rows = (line.split() for line in self._text(name).splitlines())
        return {row[0]: int(row[1]) for row in rows}

    def _text(self, name: str) -> str:
        """By the descriptor: a third of the price of a path of five names."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return ""
        try:
            return os.read(fd, 4096).decode("ascii")
        finally:
            os.close(fd)

    def hurry(self) -> None:
        """Lift the limit of CPU: who is held back by it takes its time to die."""
        try:
            _write(f"{self.path}/cpu.max", "max")
        except OSError:
            pass  # there is none

    def drop(self) -> None:
        """Remove it if nothing is in it, and let go of it. The lock is held until it is gone."""
        self._rmdir()
        os.close(self.fd)
        self.fd = -1

    def remove(self) -> None:
        """Remove it, with all that is still in it. Whether that went, *left* says."""
        if self.fd < 0:
            return
        until = time.monotonic() + PATIENCE
        pause = 0.0002
        while not self._rmdir() and time.monotonic() < until:
            self._kill()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        self.drop()

    def _rmdir(self) -> bool:
        try:
            os.rmdir(self.path)
            self.left = False
        except OSError as error:
            self.left = self.left and error.errno != errno.ENOENT
        return not self.left

    def _kill(self) -> None:
        """Kill what is in it; with init dead, that is nothing, or about to be nothing."""
        try:
            if self._has("cgroup.kill"):  # Linux 5.14
                _write(f"{self.path}/cgroup.kill", "1")
                return
            # Frozen, nobody forks and nobody ends but by our hand: so no process is missed, and no
            # process id is another's by the time it is used.
            _write(f"{self.path}/cgroup.freeze", "1")
            for pid in self._text("cgroup.procs").split():
                os.kill(int(pid), signals.SIGKILL)
        except OSError:
            pass  # it has ended meanwhile; the next round looks again


def read_text(path: str) -> str:
    """A file of the kernel's, "" if it is not there or not for us."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""

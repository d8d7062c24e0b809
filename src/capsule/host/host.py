"""What this host offers: facts, found by trying, never judgements."""

from __future__ import annotations

import os

from capsule.base import signals
from capsule.base.descriptors import Descriptors, read_file
from capsule.base.errors import HostError, InternalError
from capsule.base.values import Value
from capsule.confine.landlock import RELEASES
from capsule.launcher import spawn, steps

from .ids import Range, has_initial_ids, helper, subordinate
from .places import PROC_MASKED, PROC_READ_ONLY, SYSCTLS, installed, is_there, of_etc, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .delegation import Delegation


CAP_SYS_ADMIN = 21


class Host(Value):
    """The facts that decide a plan. A test makes its own; `probe` finds the real ones.

    Attributes:
        kernel: the release, as in uname(2).
        uid: effective user id of the caller.
        gid: effective group id of the caller.
        initial_ids: whether ids are the kernel's own: the initial user namespace, not a container's.
        mount_api: fsopen(2), open_tree(2), move_mount(2) are there (5.2).
        openat2: openat2(2) is there (5.6).
        mount_admin: the caller has CAP_SYS_ADMIN in the initial user namespace: real root.
        mount_setattr: mount_setattr(2) is there (5.12).
        landlock_abi: version of Landlock, 0 for none.
        outer_seccomp: the caller is under a seccomp filter itself.
        seccomp: filters can be installed.
        seccomp_listener: one with a listener can: the caller is under none that has one (5.0).
        machine: the architecture, as in uname(2).
        system: (path, link target or None) for each of SYSTEM that is there.
        etc: likewise for what is shown of /etc, without those in etc_files.
        etc_files: (path, content) of the small files of that.
        installed: what is shown beside, at its own path: data of programs in /var, programs in /opt,
            the processors in /sys.
        masked: those of PROC_MASKED that are there.
        masked_for_all: those of them that not only the host's root may open.
        read_only: those of PROC_READ_ONLY that are there.
        sysctls: those of SYSCTLS that are there.
        groups: the caller's supplementary groups.
        subuids: the caller's range of /etc/subuid, or None.
        subgids: likewise of /etc/subgid.
        newuidmap: path of newuidmap(1), or None.
        newgidmap: path of newgidmap(1), or None.
        resolv_conf: the file that /etc/resolv.conf is, or None.
        cpus: how many there are.
        page_size: bytes in a page of memory.
        cgroup: where cgroups can be made; None if nobody looked.
        presumed: what the kernel offers is what its release does, until a launcher finds otherwise.
    """

    kernel: str = "5.10"
    uid: int = 1000
    gid: int = 1000
    initial_ids: bool = True
    mount_api: bool = True
    openat2: bool = True
    mount_admin: bool = False
    mount_setattr: bool = True
    landlock_abi: int = 0
    outer_seccomp: bool = False
    seccomp: bool = True
    seccomp_listener: bool = True
    machine: str = "x86_64"
    system: tuple[tuple[str, str | None], ...] = ()
    etc: tuple[tuple[str, str | None], ...] = ()
    etc_files: tuple[tuple[str, str], ...] = ()
    installed: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    masked_for_all: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    subuids: Range | None = None
    subgids: Range | None = None
    newuidmap: str | None = None
    newgidmap: str | None = None
    resolv_conf: str | None = None
    cpus: int = 1
    page_size: int = 4096
    cgroup: Delegation | None = None
    presumed: bool = False

    def __repr__(self) -> str:
        """Without the files' contents."""
        shown = (n for n in self.__value_fields__ if n not in _LONG)
        return f"Host({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


_LONG = ("system", "etc", "etc_files", "installed")
_cache: dict[tuple[int, int], Host] = {}


def probe(*, refresh: bool = False, cgroups: bool = False) -> Host:
    """Return what this host offers, found once per process and identity.

    The launcher tries the system calls; nothing is guessed from the kernel's version.

    Args:
        refresh: look again, for instance after packages were installed.
        cgroups: look for a place for cgroups, too, which only some limits need.

    Raises:
        HostError: the launcher cannot be started.
        InternalError: the launcher did not answer.
    """
    identity = (os.geteuid(), os.getegid())
    if refresh or is_presumed() or identity not in _cache:
        # An exception of a handler would leave a launcher that nobody reaps.
        with signals.Held():
            _cache[identity] = _probe(*identity)
    return _with_cgroup(_cache[identity]) if cgroups else _cache[identity]


def presume(*, cgroups: bool = False) -> Host:
    """As `probe`, but without a launcher: it is the capsule's own that finds whether the kernel is so.

    Nothing is presumed of an old kernel, to whose release distributions add, or below a filter.
    """
    identity = (os.geteuid(), os.getegid())
    if identity not in _cache:
        offered = _offered(os.uname().release)
        if offered is None or _status(b"Seccomp") != b"0":
            return probe(cgroups=cgroups)
        _cache[identity] = Host(**_facts(*identity), **offered, presumed=True)
    return _with_cgroup(_cache[identity]) if cgroups else _cache[identity]


def is_presumed() -> bool:
    """Return whether what is known of the kernel comes from its release alone."""
    found = _cache.get((os.geteuid(), os.getegid()))
    return found is not None and found.presumed


def forget(path: str) -> bool:
    """Look at this host anew if it shows a path unasked, which is gone; return whether it does."""
    identity = (os.geteuid(), os.getegid())
    found = _cache.get(identity)
    if found is None or not (path in found.installed or any(path == at for at, _ in found.etc)):
        return False
    del _cache[identity]
    return True


def expected(host: Host) -> steps.Expect:
    """The step that fails where the kernel is another than this."""
    return steps.Expect(
        *map(int, (host.mount_setattr, host.openat2, host.mount_api)),
        *map(int, (host.landlock_abi, host.outer_seccomp, host.seccomp)),
    )


def _offered(release: str) -> dict[str, Any] | None:
    """Say what kernels of a release offer of what differs; None if one cannot."""
    abi = max((abi for abi, since in RELEASES.items() if version(release) >= version(since)), default=0)
    return {"landlock_abi": abi} if abi else None


_last: tuple[Host, Host] | None = None


def _with_cgroup(host: Host) -> Host:
    """The same with where cgroups can be made, which may change; if not, the very same as before."""
    global _last  # noqa: PLW0603
    from . import delegation  # only where it is asked for

    found = delegation.find()
    last = _last
    if last is None or last[0] is not host or last[1].cgroup != found:
        last = _last = host, host.replace(cgroup=found)
    return last[1]


def _facts(uid: int, gid: int) -> dict[str, Any]:
    """Find out what can be read."""
    etc, etc_files = of_etc()
    masked = tuple(filter(is_there, PROC_MASKED))
    initial = has_initial_ids(unsure=True)
    return {
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "uid": uid,
        "gid": gid,
        # Unsure, root is taken for the host's: its capsules then act as nobody.
        "initial_ids": initial,
        "mount_admin": uid == 0 and initial and _has_capability(CAP_SYS_ADMIN),
        "system": system(),
        "etc": etc,
        "etc_files": etc_files,
        "installed": installed(),
        "masked": masked,
        "masked_for_all": tuple(filter(_is_open_to_others, masked)),
        "read_only": tuple(filter(is_there, PROC_READ_ONLY)),
        "sysctls": tuple(name for name in SYSCTLS if is_there(f"/proc/sys/{name}")),
        "groups": tuple(sorted(os.getgroups())),
        "subuids": subordinate("/etc/subuid", uid),
        "subgids": subordinate("/etc/subgid", uid),
        "newuidmap": helper("newuidmap"),
        "newgidmap": helper("newgidmap"),
        "resolv_conf": _resolv_conf(),
        "cpus": os.cpu_count() or 1,
        "page_size": os.sysconf("SC_PAGESIZE"),
    }


def _probe(uid: int, gid: int) -> Host:
    with _Asking() as kernel:
        facts = _facts(uid, gid)  # meanwhile the launcher asks
        mount_setattr, openat2, mount_api, landlock_abi, outer, filters, listener = kernel.answer()
    return Host(
        mount_api=bool(mount_api),
        openat2=bool(openat2),
        mount_setattr=bool(mount_setattr),
        landlock_abi=landlock_abi,
        outer_seccomp=outer > 0,
        seccomp=bool(filters),
        seccomp_listener=bool(listener),
        **facts,
    )


class _Asking:
    """The launcher at work on the question what its system calls answer."""

    def __enter__(self) -> _Asking:
        with Descriptors() as fds:
            null = fds.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            self._child = spawn.spawn(
                steps.encode((steps.Features(), steps.Stop())), (null, null, null)
            )
        return self

    def __exit__(self, *_exception: object) -> None:
        spawn.reap(self._child.pid)
        for fd in (self._child.error, self._child.status, self._child.lifeline):
            os.close(fd)

    def answer(self) -> tuple[int, ...]:
        """The values of its record, in the order of step_features."""
        record = spawn.read_record(self._child.status)
        if record is not None and record[0] == spawn.FEATURES:
            return record[1:8]
        report = os.read(self._child.error, spawn.REPORT_SIZE)
        if len(report) != spawn.REPORT_SIZE:
            from capsule.launcher.failure import killed

            nothing = InternalError("the launcher did not say what the kernel offers")
            raise killed(self._child.pid) or nothing
        why = os.strerror(memoryview(report).cast("i")[1])
        hint = "a seccomp filter around Capsule forbids close_range(2), of Linux 5.9: `capsule doctor`"
        raise HostError(f"the launcher cannot work on this host: {why}", hint=hint)


def version(kernel: str) -> tuple[int, ...]:
    """The numbers at the beginning of a release such as 6.1.0-18-amd64, for what cannot be tried."""
    numbers: list[int] = []
    for part in kernel.split("-", 1)[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _has_capability(number: int) -> bool:
    """Return whether it is in the effective set; a container's root has few."""
    return bool(int(_status(b"CapEff") or b"0", 16) >> number & 1)


def _status(name: bytes) -> bytes:
    """The value of a field of /proc/self/status, empty if it cannot be had; proc_pid_status(5)."""
    try:
        return read_file("/proc/self/status").partition(b"\n" + name + b":")[2].split(None, 1)[0]
    except (OSError, IndexError):
        return b""


def _is_open_to_others(path: str) -> bool:
    try:
        return os.stat(path).st_mode & 0o066 != 0
    except OSError:
        return False


def _resolv_conf() -> str | None:
    path = os.path.realpath("/etc/resolv.conf")
    return path if os.path.isfile(path) else None

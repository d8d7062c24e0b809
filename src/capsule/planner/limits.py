"""From the limits of a policy to what enforces each on this host: pure."""

from __future__ import annotations

import math

from capsule.base.errors import HostError, PolicyError
from capsule.base.text import describe_size, is_below
from capsule.base.values import Value
from capsule.host.host import version
from capsule.launcher import steps as s
from capsule.policy.mounts import MountKind
from capsule.policy.policy import DEGRADABLE, IdMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from capsule.files.found import Found
    from capsule.host.host import Host
    from capsule.policy.limits import Limits
    from capsule.policy.policy import Policy

# setrlimit(2)
RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_CORE, RLIMIT_NPROC, RLIMIT_NOFILE = 1, 2, 4, 6, 7
# So many processes does nobody miss, and so many does a host survive: what podman gives, too.
DEFAULT_PIDS = 2048
# Init is one of those that are counted.
INIT = 1
# Microseconds; cpu.max takes no share below a thousandth of a second.
PERIOD = 100_000
# RLIMIT_NPROC counts by user namespace; before, all processes of the user on the host.
COUNTS_BY_NAMESPACE = (5, 14)

_CONTROLLER = {"memory": "memory", "cpus": "cpu", "cpu_weight": "cpu", "pids": "pids", "cpu_time": ""}
_NONE = "no limit"
# Whoever can make user namespaces (--seccomp nest, off) could make a cgroup namespace in one, mount
# the cgroup file system for it, and change the limits: the files are the caller's, and so is the user
# inside. The capsule's own cgroup namespace is not theirs to mount in.
_NO_CGROUP_NAMESPACES = s.Sysctl("user/max_cgroup_namespaces", "0")
# Each PID namespace has a kernel.pid_max of its own. Before, it would be the host's.
OWN_PID_MAX = (6, 14)


class Bounds(Value):
    """What holds a capsule within its limits.

    Attributes:
        settings: (file, content) of its cgroup; None if it needs none.
        launcher_steps: of the launcher, before the namespaces.
        sysctls: settings of the capsule's own namespaces, before the host's tree is gone.
        init_steps: of init.
        command_steps: of the command.
        protections: each limit, and what enforces it.
    """

    settings: tuple[tuple[str, str], ...] | None = None
    launcher_steps: tuple[s.Step, ...] = ()
    sysctls: tuple[s.Step, ...] = ()
    init_steps: tuple[s.Step, ...] = ()
    command_steps: tuple[s.Step, ...] = ()
    protections: tuple[tuple[str, str], ...] = ()


def make_bounds(policy: Policy, host: Host) -> Bounds:
    """Choose what enforces the limits of a policy.

    Raises:
        HostError: the host cannot enforce one of them, and the policy does not say that it may do less.
    """
    limits = policy.limits
    degraded = _degraded(policy, host)
    in_cgroup = set(limits.of_tree()) > set(degraded)
    settings = tuple(_settings(limits, degraded)) if in_cgroup else None
    where = _where(host) if in_cgroup else ""
    return Bounds(
        settings=settings,
        launcher_steps=() if settings is None else (s.Cgroup(where, _in_words(settings)),),
        sysctls=tuple(_sysctls(policy, host, settings is not None)),
        init_steps=tuple(_init_steps(limits, host, degraded)),
        command_steps=tuple(_command_steps(policy, host, degraded)),
        protections=tuple(_protections(policy, host, where, degraded)),
    )


def check_out_of_reach(bounds: Bounds, host: Host, found: Iterable[Found]) -> None:
    """No limits on a capsule to which the cgroup that holds them is shown writable.

    Raises:
        PolicyError: it is.
    """
    if bounds.settings is None or host.cgroup is None:
        return
    from capsule.host.delegation import SCOPE  # was imported to find it

    at = host.cgroup
    for one in found:
        # A scope comes to be somewhere below its service manager's own cgroup.
        below = is_below(at.directory, one.path) or (
            at.way == SCOPE and is_below(one.path, at.directory)
        )
        if one.mount.kind is MountKind.READ_WRITE and below:
            message = f"mounts: {one.path} shown writable would let the command change its own limits"
            hint = "show it read-only (--ro), or what lies beside its cgroups"
            raise PolicyError(message, field="mounts", value=one.path, hint=hint)


def _degraded(policy: Policy, host: Host) -> tuple[str, ...]:
    """The limits of the tree that go without a cgroup, each in its own weaker way."""
    own = host.cgroup
    has = ("", *own.controllers) if own is not None and own.way else ()
    lacks = tuple(name for name in policy.limits.of_tree() if _CONTROLLER[name] not in has)
    for name in lacks:
        if name not in policy.allow_degraded:
            raise _refusal(name, host)
    if "pids" in lacks and not _counts_pids(policy, host):
        hint = "run Linux 5.14 or later, without --uid-map, or get a cgroup: `capsule doctor` says how"
        message = f"pids: without a cgroup, this kernel ({host.kernel}) has no count of processes"
        raise HostError(message, hint=hint)
    return lacks


def _refusal(name: str, host: Host) -> HostError:
    from capsule.host.delegation import conclude  # only where something is missing

    seen, remedy = conclude(host.cgroup)
    flag = name.replace("_", "-")
    less = f"; or accept less: --allow-degraded {flag} (docs/limits.md)"
    return HostError(
        f"{name}: a limit of all processes together needs a cgroup of version 2, and none can be made: "
        f"{seen}",
        hint="; ".join(remedy.splitlines()) + (less if name in DEGRADABLE else ""),
    )


def _where(host: Host) -> str:
    assert host.cgroup is not None
    return f"{host.cgroup.directory} ({host.cgroup.way})"


def _counts_pids(policy: Policy, host: Host) -> bool:
    """Each id has a count of its own, a range of ids as many of them; root of the host has none."""
    return version(host.kernel) >= COUNTS_BY_NAMESPACE and policy.id_map is IdMap.CALLER


def _sysctls(policy: Policy, host: Host, in_cgroup: bool) -> Iterator[s.Step]:
    if in_cgroup and policy.seccomp.nests:
        yield _NO_CGROUP_NAMESPACES
    if policy.limits.pids is None and _has_pid_max(policy, host):
        yield s.Sysctl("kernel/pid_max", str(DEFAULT_PIDS))


def _has_pid_max(policy: Policy, host: Host) -> bool:
    """Return whether that is what bounds processes where RLIMIT_NPROC does not."""
    return not _counts_pids(policy, host) and version(host.kernel) >= OWN_PID_MAX


# --- in a cgroup ----------------------------------------------------------------------------


def _settings(limits: Limits, degraded: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if limits.memory is not None and "memory" not in degraded:
        yield "memory.max", str(limits.memory)
        yield "memory.swap.max", "max" if limits.swap is None else str(limits.swap)
        yield "memory.oom.group", "1"
    if limits.cpus is not None and "cpus" not in degraded:
        yield "cpu.max", f"{round(limits.cpus * PERIOD)} {PERIOD}"
    if limits.cpu_weight is not None:
        yield "cpu.weight", str(limits.cpu_weight)
    if limits.pids is not None and "pids" not in degraded:
        yield "pids.max", str(limits.pids + INIT)


def _in_words(settings: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings) or "for its account"


# --- steps ------------------------------------------------------------------------------------


def _init_steps(limits: Limits, host: Host, degraded: tuple[str, ...]) -> Iterator[s.Step]:
    if limits.timeout is not None:
        yield s.Deadline(_milliseconds(limits.timeout))
    if limits.cpu_time is not None:
        yield s.CpuTime(max(1, round(limits.cpu_time * 1e6)), host.cpus)
    if limits.idle is not None:
        yield s.Idle(_milliseconds(limits.idle))
    if "memory" in degraded:
        yield s.WatchMemory(limits.memory)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _command_steps(policy: Policy, host: Host, degraded: tuple[str, ...]) -> Iterator[s.Step]:
    limits = policy.limits
    # Not 0: core(5), only a limit of 1 stops a handler that the host pipes core dumps to as well.
    yield s.Rlimit(RLIMIT_CORE, 1, 1, "core dumps")
    if limits.file_size is not None:
        yield s.Rlimit(RLIMIT_FSIZE, limits.file_size, limits.file_size, "the size of a file")
    if limits.open_files is not None:
        yield s.Rlimit(RLIMIT_NOFILE, limits.open_files, limits.open_files, "open files")
    if "memory" in degraded:
        yield s.Rlimit(RLIMIT_DATA, limits.memory, limits.memory, "the private memory of a process")
    if "cpus" in degraded and limits.cpus is not None:
        yield s.Affinity(math.ceil(limits.cpus))
    if limits.pids is None or "pids" in degraded:
        number = (limits.pids or DEFAULT_PIDS) + INIT
        if _counts_pids(policy, host):
            yield s.Rlimit(RLIMIT_NPROC, number, number, "processes")


# --- in words -----------------------------------------------------------------------------------


def _protections(
    policy: Policy, host: Host, where: str, degraded: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    limits = policy.limits
    texts = {
        "memory": _memory(limits, where, degraded),
        "cpus": _cpus(limits, where, degraded),
        "pids": _pids(policy, host, where, degraded),
        "cpu_time": _cpu_time(limits, where),
    }
    for name, text in texts.items():
        if text:
            yield name, f"degraded: {text}" if name in degraded else text


def _memory(limits: Limits, where: str, degraded: tuple[str, ...]) -> str:
    if limits.memory is None:
        return ""
    size = describe_size(limits.memory)
    if "memory" in degraded:
        return (
            f"RLIMIT_DATA of {size} for each process; the sum of what they hold is looked at every "
            "50 ms; files in memory that nobody has mapped are not counted"
        )
    swap = _NONE if limits.swap is None else describe_size(limits.swap)
    return f"cgroup in {where}: memory.max {size}, swap {swap}"


def _cpus(limits: Limits, where: str, degraded: tuple[str, ...]) -> str:
    parts = []
    if limits.cpus is not None and "cpus" in degraded:
        return f"affinity to {math.ceil(limits.cpus)} of the CPUs, which a program can change"
    if limits.cpus is not None:
        parts.append(f"cpu.max {limits.cpus:g} CPUs")
    if limits.cpu_weight is not None:
        parts.append(f"cpu.weight {limits.cpu_weight}")
    return f"cgroup in {where}: {', '.join(parts)}" if parts else ""


def _pids(policy: Policy, host: Host, where: str, degraded: tuple[str, ...]) -> str:
    limits = policy.limits
    if limits.pids is not None and "pids" not in degraded:
        return f"cgroup in {where}: pids.max {limits.pids}"
    if _has_pid_max(policy, host):
        return f"kernel.pid_max {DEFAULT_PIDS} of the PID namespace"
    if not _counts_pids(policy, host):
        return f"{_NONE} but those of the caller"
    return f"RLIMIT_NPROC {limits.pids or DEFAULT_PIDS}, which counts by user namespace"


def _cpu_time(limits: Limits, where: str) -> str:
    if limits.cpu_time is None:
        return ""
    account = f"cpu.stat of the cgroup in {where}" if where else "the clocks of the processes there are"
    return f"init ends everything after {limits.cpu_time:g} s of CPU time by {account}"

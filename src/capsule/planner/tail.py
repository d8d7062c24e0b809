"""What is closed in every run: settings of its namespaces, rlimits, keys; pure."""

from __future__ import annotations

from capsule.base.text import describe_size
from capsule.host.host import version
from capsule.launcher import steps as s
from capsule.policy.limits import BYTES, RESOURCES, UNLIMITED, parse_ulimit
from capsule.policy.policy import Network

from .limits import Bounds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from capsule.host.host import Host
    from capsule.policy.policy import Policy

    from .identity import Ids

MIB = 1 << 20
# Root of an IPC namespace may set what is counted in it.
SETS_IPC = (6, 9)
# proc(5). What a new namespace allows is next to no limit, and all of it is the kernel's memory. These
# are still some times what programs use; POSIX message queues have RLIMIT_MSGQUEUE besides.
_SHARED = 512 * MIB
_IPC = {
    "kernel/shmmax": str(_SHARED),
    "kernel/shmall": "",  # pages
    "kernel/msgmni": "1024",
    "kernel/sem": "32000 64000 500 1024",
    "fs/mqueue/queues_max": "64",
}
# namespaces(7): how many of each kind there may be. Every kernel from 5.6 on has all of them.
_NAMESPACES = tuple(
    f"user/max_{kind}_namespaces"
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
)
# Before, where a user namespace has no uid 0 or no gid 0, its settings of the network are EACCES.
SETS_NETWORK = (6, 11)
# Of its own network namespace, where nobody else has ports or gets echoes; ip(7), icmp(7).
_PORTS, _PINGS = "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"
# setrlimit(2). Each is lowered to this where the caller has more: what the kernel gives by default, or
# nobody's programs reach. No real-time priority, no lower nice value.
CEILINGS = {
    "memlock": 8 * MIB,
    "nofile": 65536,
    "sigpending": 4096,
    "msgqueue": 819200,
    "nice": 0,
    "rtprio": 0,
}


_last: tuple[Host, tuple[object, ...], Bounds] | None = None


def with_tail(bounds: Bounds, policy: Policy, host: Host, ids: Ids) -> Bounds:
    """Add what is closed in every run to what holds this one within its limits."""
    tail = _tail(policy, host, ids)
    return Bounds(
        bounds.settings,
        (*tail.launcher_steps, *bounds.launcher_steps),
        (*bounds.sysctls, *tail.sysctls),
        bounds.init_steps,
        (*tail.command_steps, *bounds.command_steps),
        (*tail.protections, *bounds.protections),
    )


def _tail(policy: Policy, host: Host, ids: Ids) -> Bounds:
    """The same from run to run, and so remembered: all that it depends on is in the key."""
    global _last  # noqa: PLW0603
    limits = policy.limits
    key = (limits.ulimits, limits.open_files, policy.seccomp.nests, policy.network, ids)
    last = _last
    if last is None or last[0] is not host or last[1] != key:
        last = _last = host, key, _make_tail(policy, host, ids)
    return last[2]


def _make_tail(policy: Policy, host: Host, ids: Ids) -> Bounds:
    sysctls = tuple(_sysctls(policy, host, ids))
    shared = f"; System V shared memory of {describe_size(_SHARED)}, few queues and semaphores"
    if not any(step[0] == "kernel/shmall" for step in sysctls):
        shared = ""
    return Bounds(
        # Never spared before others for want of memory, as a caller may be. Both as the caller: on the
        # account of whose keys the keyring is.
        launcher_steps=(s.OomScoreAdj(0), s.Keyring()),
        sysctls=sysctls,
        command_steps=tuple(_rlimits(policy)),
        protections=(
            ("ipc", f"IPC namespace{shared}"),
            ("namespaces", _NESTED if policy.seccomp.nests else _NO_NAMESPACES),
            ("keyring", _KEYRING),
            ("groups", _groups(host, ids)),
        ),
    )


_NO_NAMESPACES = "none can be made: user.max_*_namespaces are 0"
_NESTED = "can be made inside: asked for"
_KEYRING = "an empty session keyring of this user's capsules, to which nobody can write"


def _sysctls(policy: Policy, host: Host, ids: Ids) -> Iterator[s.Step]:
    if version(host.kernel) >= SETS_IPC and ids.set_up[0] == 0:
        for name in filter(_IPC.__contains__, host.sysctls):
            yield s.Sysctl(name, _IPC[name] or str(_SHARED // host.page_size))
    has_root = ids.set_up == (0, 0) or version(host.kernel) >= SETS_NETWORK
    if policy.network is not Network.HOST and has_root:
        gid = ids.command[1]
        own = {_PORTS: "0", _PINGS: f"{gid} {gid}"}
        yield from (s.Sysctl(name, own[name]) for name in host.sysctls if name in own)
    if not policy.seccomp.nests:
        for name in _NAMESPACES:
            yield s.Sysctl(name, "0")


def _rlimits(policy: Policy) -> Iterator[s.Step]:
    asked = [parse_ulimit(text) for text in policy.limits.ulimits]
    named = {name for name, *_ in asked}
    if policy.limits.open_files is not None:
        named.add("nofile")
    lowered = {name: most for name, most in CEILINGS.items() if name not in named}
    words = ", ".join(
        f"{name} {describe_size(most) if name in BYTES else most}" for name, most in lowered.items()
    )
    yield s.Ceilings(tuple((RESOURCES[name], most) for name, most in lowered.items()), words)
    for name, resource, soft, hard in asked:
        shown = ("unlimited" if value == UNLIMITED else str(value) for value in (soft, hard))
        yield s.Setrlimit(resource, soft, hard, name, *shown)


def _groups(host: Host, ids: Ids) -> str:
    """Say which groups of the caller's reach files that uid and gid do not."""
    others = [gid for gid in host.groups if gid != ids.outside[1]]
    if ids.helpers is not None or not others or (host.uid == 0 and host.initial_ids):
        return "no supplementary groups"
    return f"the caller's stay, which only root can drop: {' '.join(map(str, others))}"

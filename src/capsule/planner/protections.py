"""What a plan promises, each protection with what enforces it: pure."""

from __future__ import annotations

from capsule.confine.seccomp.filters import OFF
from capsule.policy.policy import IdMap, Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.confine.seccomp.filters import Filter
    from capsule.policy.policy import Policy

    from .identity import Ids
    from .limits import Bounds

# capabilities(7), by number
_CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
}
OVER_IDS_NAMES = tuple(f"CAP_{name}" for name in _CAPABILITIES)
OVER_IDS = sum(1 << number for number in _CAPABILITIES.values())


def kept_capabilities(policy: Policy) -> int:
    """Root over a range of ids is there to use them: chown(2), setuid(2) and the like."""
    return OVER_IDS if policy.id_map is IdMap.AUTO and policy.uid == 0 else 0


def protections(
    policy: Policy, ids: Ids, filter_: Filter | None, bounds: Bounds, *, landlock: str
) -> dict[str, str]:
    """Return what is promised, each with what enforces it."""
    return {
        "identity": f"user namespace: uid {ids.command[0]} inside is uid {ids.outside[0]} outside",
        "processes": "PID namespace; init is not dumpable; all end with the command or the supervisor",
        "files": "mount namespace; pivot_root to a tmpfs, the host's tree detached; read-only binds",
        "hostname": "UTS namespace",
        "cgroup": "cgroup namespace",
        "network": _network(policy),
        "capabilities": (
            f"only those over the mapped ids: {', '.join(OVER_IDS_NAMES)}"
            if kept_capabilities(policy)
            else "all five sets empty, securebits locked"
        ),
        "no_new_privs": "set",
        "landlock": landlock,
        "seccomp": OFF if filter_ is None else filter_.summary,
        "session": "session of its own",
        **dict(bounds.protections),
        "descriptors": "only the standard ones and those named by the caller",
    }


def _network(policy: Policy) -> str:
    if policy.network is Network.HOST:
        return "none: the host's network is shared"
    kept = "network namespace with a loopback interface only"
    if isinstance(policy.network, Network):
        return kept
    return f"{kept}; a proxy outside connects to {', '.join(policy.network.rules)}"

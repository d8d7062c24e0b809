"""The second wall: a Landlock ruleset that says of files what the view says, computed from it; pure.

Everything that is shown may be read. So one rule for the root holds for all that is shown read-only,
and each place that can be written has a rule of its own. Rules only add up towards the leaves: what is
read-only, noexec or covered below a place that is not, only the mount keeps so. But with a ruleset in
force no mount can be changed.
"""

from __future__ import annotations

from capsule.base.errors import HostError, PolicyError
from capsule.base.text import is_below
from capsule.confine import landlock as ll
from capsule.launcher import steps as s
from capsule.policy.policy import LANDLOCK_AUTO, LANDLOCK_OFF, Network

from .view import Layers, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from capsule.host.host import Host
    from capsule.policy.policy import Policy

    from .view import View

_KERNEL_HAS_NONE = "none: the kernel has no Landlock (`capsule doctor` says why)"
_OFF = "off: asked for"
_NESTED = "none: mounts can be made inside, which Landlock would refuse"


def abi_of(policy: Policy, host: Host) -> int:
    """The version (ABI) that a run uses, 0 for no ruleset.

    Raises:
        PolicyError: it is asked for, and something that excludes it.
        HostError: the policy asks for more than the kernel has.
    """
    asked = _asked(policy)
    if policy.landlock == LANDLOCK_OFF or policy.seccomp.nests:
        if asked:
            off = (
                "landlock off"
                if policy.landlock == LANDLOCK_OFF
                else "making namespaces or mounts inside"
            )
            hint = f"leave {asked} out, or what excludes it"
            raise PolicyError(f"{asked} does not go with {off}", field=asked, hint=hint)
        return 0
    if policy.limits_tcp and policy.network is not Network.HOST:
        hint = "add --net host, whose TCP it limits, or leave it out"
        raise PolicyError(f"{asked}: there is no network to limit", field=asked, hint=hint)
    least = ll.OF_TCP if policy.limits_tcp else 0
    if policy.landlock != LANDLOCK_AUTO:
        least = max(least, int(policy.landlock))
    if host.landlock_abi < least:
        has = f"ABI {host.landlock_abi}" if host.landlock_abi else "none"
        hint = f"run Linux {ll.RELEASES[least]} or later, or leave it out; see `capsule doctor`"
        raise HostError(
            f"{asked}: Landlock of ABI {least} is required; the kernel has {has}", hint=hint
        )
    return min(host.landlock_abi, ll.NEWEST)


def _asked(policy: Policy) -> str:
    """Which field asks for Landlock by name, if one does."""
    if policy.limits_tcp:
        return "tcp_bind" if policy.tcp_connect is None else "tcp_connect"
    return "" if policy.landlock in (LANDLOCK_AUTO, LANDLOCK_OFF) else "landlock"


def make_ruleset(policy: Policy, abi: int, view: View) -> Iterator[s.Step]:
    """Steps of init, after its last mount: a rule is about what lies at its place by then."""
    if abi == 0:
        return
    net = ll.BIND_TCP | ll.CONNECT_TCP if policy.limits_tcp else 0
    yield s.LandlockRuleset(ll.handled(abi), net, ll.scoped(abi), f"ABI {abi}")
    known = ll.handled(abi)
    for path, rights in rules(view):
        yield s.LandlockBeneath(path, rights & known, ll.words(rights & known))
    for ports, right, verb in (
        (policy.tcp_connect, ll.CONNECT_TCP, "connections to"),
        (policy.tcp_bind, ll.BIND_TCP, "listening on"),
    ):
        for port in ports or ():
            yield s.LandlockPort(port, right, verb)


def inherited(abi: int) -> Iterator[s.Step]:
    """A file that the command was handed can be opened anew by its name in /proc (`cat /dev/stdin`)."""
    if abi:
        known = ll.handled(abi)
        reading, writing = ll.READ_FILE | ll.EXECUTE | ll.IOCTL_DEV, ll.WRITE | ll.IOCTL_DEV
        yield s.LandlockInherited(reading & known, writing & known, ll.EVERYTHING & known)


def rules(view: View) -> list[tuple[str, int]]:
    """(Path, rights to what is beneath it), parents first; what a parent gives is not said again."""
    wanted = [(path, rights) for path, place in view.places if (rights := _rights(path, place, view))]
    # What holds files and is noexec must not inherit that right from the root.
    noexec = any(rights & ll.READ and not rights & ll.EXECUTE for _, rights in wanted)
    everywhere = ll.READ if noexec else ll.READ | ll.EXECUTE
    found = [("/", everywhere)]
    for path, more in wanted:
        for top, rights in found:
            if more and is_below(path, top):
                more &= ~rights  # noqa: PLW2901
        if more:
            found.append((path, more))
    return found


# Of places, those that hold files.
_HOLDING = (Source, Layers, s.Tmpfs)


def _rights(path: str, place: Source | Layers | s.Step, view: View) -> int:
    """Return what is to be possible beneath a place."""
    if path == "/proc":
        # A process' own files; /proc/sys and the like are read-only mounts.
        return ll.WRITE
    if path == "/dev" and isinstance(place, s.Directory):
        return ll.WRITE_FILE | ll.IOCTL_DEV
    if not isinstance(place, _HOLDING) or path in view.closed:
        return 0
    if isinstance(place, Source) and place.device is not None:
        return ll.WRITE_FILE | ll.IOCTL_DEV
    attributes = place[4] if isinstance(place, s.Tmpfs) else place.attributes
    rights = ll.READ | ll.EXECUTE if attributes & s.READ_ONLY else ll.EVERYTHING
    if attributes & s.NO_EXEC:
        rights &= ~ll.EXECUTE
    if isinstance(place, Source) and not place.how & s.DIRECTORY:
        rights &= ll.OF_A_FILE
    return rights


def describe(policy: Policy, abi: int) -> str:
    """Say what is in force, for `protections`."""
    if abi == 0:
        if policy.landlock == LANDLOCK_OFF:
            return _OFF
        return _NESTED if policy.seccomp.nests else _KERNEL_HAS_NONE
    parts = ["files as they are shown", "no change of mounts"]
    parts += ["signals and abstract sockets stay inside"] if ll.scoped(abi) else []
    if policy.limits_tcp:
        parts.append(f"TCP: {_ports(policy.tcp_connect, 'connect')}, {_ports(policy.tcp_bind, 'bind')}")
    missing = ll.lacks(abi)
    lacking = f"; lacks {'; '.join(missing)}" if missing else ""
    return f"ABI {abi}: {', '.join(parts)}{lacking}"


def _ports(ports: tuple[int, ...] | None, verb: str) -> str:
    return f"{verb} {' '.join(map(str, ports))}" if ports else f"no {verb}"

"""The one place that orders steps: a pure function from policy, host and command to a plan.

The order is the proof of much that is promised: sources are taken while the host's tree is in sight
and with the caller's rights, places are made when it is gone, and what cannot be undone comes after
all that can fail.
"""

from __future__ import annotations

from . import steps as s
from .errors import HostError
from .identity import make_ids
from .policy import IdMap, Network
from .values import Value
from .view import BOUND, DEVICE_ATTRIBUTES, DEVICES, Source, make_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .command import Command
    from .host import Host
    from .identity import Ids
    from .policy import Policy
    from .view import View

# What Capsule itself puts there: directories, links, small files, mount points.
ROOT_SIZE, ROOT_INODES = 4 << 20, 4096

RLIMIT_CORE = 4

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


class Terminal(Value):
    """A terminal for the command: which of descriptors 0 to 2 it becomes, and its size."""

    descriptors: tuple[int, ...] = (0, 1, 2)
    rows: int = 24
    columns: int = 80


class Plan(Value):
    """What will be done, in order. Its text is what ``capsule plan`` prints.

    Attributes:
        steps: the steps.
        args: the command's argument vector.
        namespaces: the kinds of namespace that are entered.
        protections: each protection, and how it is enforced.
        notes: what was shown unasked, and why.
        owner: (uid, gid) on the host of the command, where real root may give it something; or None.
    """

    steps: tuple[s.Step, ...]
    args: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    protections: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None

    def __str__(self) -> str:
        width = len(str(len(self.steps)))
        lines = [f"{i:{width}} {step.describe()}" for i, step in enumerate(self.steps, 1)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def encode(self) -> bytes:
        """The plan as the launcher reads it."""
        return s.encode(self.steps)


def make_plan(
    policy: Policy,
    host: Host,
    command: Command,
    *,
    descriptors: Sequence[tuple[int, int]] = (),
    terminal: Terminal | None = None,
) -> Plan:
    """Compile a policy, for this host, for this command.

    Args:
        policy: what is wanted.
        host: what the kernel offers.
        command: what is to be run.
        descriptors: (ours, the command's) of each descriptor that is passed on.
        terminal: the terminal to open, if any.

    Raises:
        PolicyError: parts of the policy contradict each other.
        HostError: the host lacks what the policy requires.
    """
    _check_host(host)
    ids = make_ids(policy, host)
    building, notes = _remembered_building(policy, host, command, ids)
    return Plan(
        steps=(
            *building,
            *_machine(policy, terminal),
            *_command_steps(policy, command, ids, descriptors),
        ),
        args=command.args,
        namespaces=_namespaces(policy).names(),
        protections=_protections(policy, ids),
        notes=notes,
        owner=ids.outside if host.uid == 0 and host.initial_ids else None,
    )


def _building(
    policy: Policy, host: Host, command: Command, ids: Ids
) -> tuple[tuple[s.Step, ...], tuple[str, ...]]:
    """(Steps from the namespaces to the last mount, notes)."""
    view = make_view(policy, host, command, ids)
    steps = (
        *_launcher_steps(_namespaces(policy), ids, host),
        *_take(view, ids),
        s.PivotRoot(ROOT_SIZE, ROOT_INODES),
        *_build(view),
    )
    return steps, view.notes


_last: tuple[object, Host, tuple[tuple[s.Step, ...], tuple[str, ...]]] | None = None


def _remembered_building(
    policy: Policy, host: Host, command: Command, ids: Ids
) -> tuple[tuple[s.Step, ...], tuple[str, ...]]:
    """As `_building`, which is most of the plan and the same from run to run (100 us each).

    All that it depends on is in the key, so that this stays a pure function. Two threads at once may
    each do the work, no more.
    """
    global _last  # noqa: PLW0603
    key = (
        *(policy.mounts, policy.root, policy.network, policy.hostname, policy.uid, policy.gid, ids),
        *(policy.id_map, command.home, command.cwd, command.working_directory),
        *(command.shown, command.root_entries),
    )
    last = _last
    if last is None or last[1] is not host or last[0] != key:
        last = _last = (key, host, _building(policy, host, command, ids))
    return last[2]


def _check_host(host: Host) -> None:
    if host.mount_api and host.openat2:
        return
    missing = "openat2" if host.mount_api else "the mount API (fsopen, open_tree, move_mount)"
    hint = f"Capsule needs Linux 5.10 or later with no seccomp filter around it; this is {host.kernel}"
    raise HostError(f"the kernel does not offer {missing}", hint=hint)


def _namespaces(policy: Policy) -> s.Namespaces:
    wanted = dict(s.NAMESPACES)
    if policy.network is Network.HOST:
        del wanted["net"]
    return s.Namespaces(sum(wanted.values()))


def _launcher_steps(namespaces: s.Namespaces, ids: Ids, host: Host) -> Iterator[s.Step]:
    # In a user namespace of a container setgroups may be denied, and there is nothing to drop.
    if host.uid == 0 and host.initial_ids:
        yield s.DropGroups()
    yield namespaces
    if ids.helpers is not None:
        yield s.MapHelper(ids.helpers[1], ids.gid_map)
        yield s.MapHelper(ids.helpers[0], ids.uid_map)
        return
    if not ids.ranged:
        # A caller that is not root may write its group's map only where setgroups is denied.
        yield s.DenySetgroups()
    yield s.GidMap(ids.gid_map)
    yield s.UidMap(ids.uid_map)


def _take(view: View, ids: Ids) -> Iterator[s.Step]:
    """Init's first steps, while the host's tree is in sight: copies of what will be shown.

    Taken with the caller's own ids, hence with no more rights to open than the caller has.
    """
    yield s.Undumpable()
    if ids.helpers is not None:
        yield s.DropGroups()
    yield s.Session()
    yield s.Private()
    numbers = {path: (major, minor) for path, major, minor in DEVICES}
    for path, place in view.places:
        if path in numbers and isinstance(place, Source) and place.path == path:
            yield s.Device(path, *numbers[path], DEVICE_ATTRIBUTES if view.at_once else 0)
        elif isinstance(place, Source) and path != "/proc":
            yield s.Tree(place.path, _attributes(place) if view.at_once else 0)
    yield s.Identity(*ids.set_up)
    yield s.Proc()


def _attributes(source: Source) -> int:
    return BOUND | (s.READ_ONLY if source.read_only else 0)


def _build(view: View) -> Iterator[s.Step]:
    """Places and mounts in the new root; last of all the root turns read-only."""
    devices = {path for path, _, _ in DEVICES}
    number = 0
    proc = sum(isinstance(place, Source) for path, place in view.places if path != "/proc")
    later: Iterable[s.Step] = ()
    for path, place in view.places:
        if not isinstance(place, Source):
            yield place
        elif path == "/proc":
            yield s.Attach(proc, path, "the new proc file system")
            later = _proc_steps(view)
        else:
            yield s.Attach(number, path, place.path)
            number += 1
            if not view.at_once:
                # At once, for what is attached below it may have other attributes.
                is_device = path in devices and place.path == path
                wanted = DEVICE_ATTRIBUTES if is_device else _attributes(place)
                yield s.Remount(path, wanted, 1)
    yield from later
    yield s.Remount("/", s.READ_ONLY | s.NO_SUID | s.NO_DEV, 0)


def _proc_steps(view: View) -> Iterator[s.Step]:
    """Cover what tells of the host, protect what changes it."""
    closed = s.READ_ONLY | s.NO_SUID | s.NO_DEV | s.NO_EXEC
    at_once = closed if view.at_once else 0
    for path in view.read_only:
        yield s.Protect(path, at_once)
    if view.masked:
        yield s.Mask(at_once, view.masked)
    if not view.at_once:
        for path in (*view.read_only, *view.masked):
            yield s.Remount(path, closed, 0)


def _machine(policy: Policy, terminal: Terminal | None) -> Iterator[s.Step]:
    if policy.network is Network.NONE:
        yield s.Loopback()
    yield s.Hostname(policy.hostname)
    if terminal is not None:
        bits = sum(1 << fd for fd in terminal.descriptors)
        yield s.Terminal(bits, terminal.rows, terminal.columns)
    if policy.limits.timeout is not None:
        yield s.Deadline(max(1, round(policy.limits.timeout * 1000)))


def _command_steps(
    policy: Policy, command: Command, ids: Ids, descriptors: Sequence[tuple[int, int]]
) -> Iterator[s.Step]:
    """First what can fail, then what cannot be undone. Landlock and seccomp come before exec."""
    for ours, theirs in descriptors:
        yield s.Descriptor(ours, theirs)
    yield s.Chdir(command.cwd)
    # Not 0: core(5), only a limit of 1 stops a handler that the host pipes core dumps to as well.
    yield s.Rlimit(RLIMIT_CORE, 1, 1, "core dumps")
    kept = _kept_capabilities(policy)
    yield s.BoundingSet(kept)
    if policy.id_map is IdMap.AUTO:
        yield s.Credentials(*ids.command)
    yield s.Capabilities(kept)
    yield s.NoNewPrivs()
    yield s.Exec(command.paths, command.args, command.env)


def _kept_capabilities(policy: Policy) -> int:
    """Root over a range of ids is there to use them: chown(2), setuid(2) and the like."""
    return OVER_IDS if policy.id_map is IdMap.AUTO and policy.uid == 0 else 0


def _protections(policy: Policy, ids: Ids) -> dict[str, str]:
    """What is promised, each with what enforces it."""
    network = (
        "network namespace with a loopback interface only"
        if policy.network is Network.NONE
        else "none: the host's network is shared"
    )
    return {
        "identity": f"user namespace: uid {ids.command[0]} inside is uid {ids.outside[0]} outside",
        "processes": "PID namespace; init is not dumpable; all end with the command or the supervisor",
        "files": "mount namespace; pivot_root to a tmpfs, the host's tree detached; read-only binds",
        "ipc": "IPC namespace",
        "hostname": "UTS namespace",
        "cgroup": "cgroup namespace",
        "network": network,
        "capabilities": (
            f"only those over the mapped ids: {', '.join(OVER_IDS_NAMES)}"
            if _kept_capabilities(policy)
            else "all five sets empty, securebits locked"
        ),
        "no_new_privs": "set",
        "session": "session of its own",
        "descriptors": "only the standard ones and those named by the caller",
    }

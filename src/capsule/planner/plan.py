"""The one place that orders steps: a pure function from policy, host and command to a plan.

The order is the proof of much that is promised: sources are taken while the host's tree is in sight
and with the caller's rights, places are made when it is gone, and what cannot be undone comes after
all that can fail.
"""

from __future__ import annotations

from capsule.base.errors import HostError
from capsule.base.values import Value
from capsule.confine.seccomp.filters import load
from capsule.launcher import steps as s
from capsule.policy.policy import IdMap, Network

from . import kept
from .identity import make_ids
from .limits import check_out_of_reach, make_bounds
from .protections import kept_capabilities, protections
from .ruleset import abi_of, describe, inherited, make_ruleset
from .tail import with_tail
from .view import CLOSED, INODE, Layers, Source, check_file_systems, check_trees, make_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from capsule.confine.seccomp.filters import Filter
    from capsule.files.found import Survey, Watch
    from capsule.host.host import Host
    from capsule.policy.policy import Policy
    from capsule.program.command import Command

    from .identity import Ids
    from .limits import Bounds
    from .network import Way
    from .view import View

# What Capsule itself puts there: directories, links, small files, mount points.
ROOT_SIZE, ROOT_INODES = 4 << 20, 4096


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
        overlays: (place, lower layer on the host, directory that keeps the upper one or "").
        watched: writable trees to look through at the end.
        filter: of system calls, or None.
        cgroup: (file, content) of the capsule's own cgroup, or None if it has none.
        way: how the network is reached from inside, and what is inside from the network; or None.
    """

    steps: tuple[s.Step, ...]
    args: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    protections: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None
    overlays: tuple[tuple[str, str, str], ...] = ()
    watched: tuple[Watch, ...] = ()
    filter: Filter | None = None
    cgroup: tuple[tuple[str, str], ...] | None = None
    way: Way | None = None

    @property
    def gifts(self) -> int:
        """How many descriptors init will send: upper layers in memory, sockets, then a terminal."""
        sockets = 0 if self.way is None else self.way.gifts
        return (
            sum(not kept for _, _, kept in self.overlays)
            + sockets
            + sum(isinstance(step, s.Terminal) for step in self.steps)
        )

    def __str__(self) -> str:
        width = len(str(len(self.steps)))
        lines = [f"{i:{width}} {step.describe()}" for i, step in enumerate(self.steps, 1)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def encode(self) -> bytes:
        """The plan as the launcher reads it."""
        return kept.encode(self.steps)


def make_plan(
    policy: Policy,
    host: Host,
    command: Command,
    survey: Survey,
    *,
    descriptors: Sequence[tuple[int, int]] = (),
    terminal: Terminal | None = None,
) -> Plan:
    """Compile a policy, for this host, for this command, with what lies where the policy points.

    Args:
        policy: what is wanted.
        host: what the kernel offers.
        command: what is to be run.
        survey: what was found where the policy points.
        descriptors: (ours, the command's) of each descriptor that is passed on.
        terminal: the terminal to open, if any.

    Raises:
        PolicyError: parts of the policy contradict each other.
        HostError: the host lacks what the policy requires.
    """
    plan: Plan = kept.whole(
        lambda: _make_plan(policy, host, command, survey, descriptors, terminal),
        lambda plan: plan.replace(args=command.args, steps=(*plan.steps[:-1], _exec(command))),
        *(policy, host, command, survey, tuple(descriptors), terminal),
    )
    return plan


def _exec(command: Command) -> s.Exec:
    return s.Exec(command.paths, command.args, command.env)


def _make_plan(
    policy: Policy,
    host: Host,
    command: Command,
    survey: Survey,
    descriptors: Sequence[tuple[int, int]],
    terminal: Terminal | None,
) -> Plan:
    _check_host(host)
    ids = make_ids(policy, host)
    filter_ = _filter(policy, host, command, ids)
    bounds = with_tail(make_bounds(policy, host), policy, host, ids)
    check_out_of_reach(bounds, host, survey.found)
    abi = abi_of(policy, host)
    given = policy, host, command, survey, ids, bounds, abi
    way = _way(policy)
    building, notes = kept.view(lambda: _building(*given), *given)
    return Plan(
        steps=(
            *building,
            *_machine(policy, way, terminal, bounds, filter_),
            *_command_steps(policy, command, ids, filter_, bounds, descriptors, abi),
        ),
        args=command.args,
        namespaces=_namespaces(policy).names(),
        protections=protections(policy, ids, filter_, bounds, landlock=describe(policy, abi)),
        notes=notes,
        owner=ids.outside if host.uid == 0 and host.initial_ids else None,
        overlays=_overlays(building, survey),
        watched=survey.watched,
        filter=filter_,
        cgroup=bounds.settings,
        way=way,
    )


def _way(policy: Policy) -> Way | None:
    """The way in and out, if there is one."""
    if isinstance(policy.network, Network) and not policy.publish:
        return None
    from .network import make_way  # only where there is one

    return make_way(policy)


def _filter(policy: Policy, host: Host, command: Command, ids: Ids) -> Filter | None:
    """The filter for system calls; which ids exist inside is a part of it."""
    found = load(
        policy.seccomp,
        ids=None if ids.ranged else ids.command,
        pretend_chown=policy.pretend_chown,
        listener=host.seccomp_listener,
        document=command.filter_rules,
        arch=host.machine,
    )
    if found is not None and not host.seccomp:
        hint = "`capsule doctor` says why; --seccomp off runs without one"
        raise HostError("the kernel lets no filter of system calls be installed", hint=hint)
    return found


def _overlays(building: Iterable[s.Step], survey: Survey) -> tuple[tuple[str, str, str], ...]:
    """In the order of the steps, in which init sends what it makes."""
    found = {one.mount.at: one for one in survey.found}
    places = [step[0] for step in building if isinstance(step, s.Overlay)]
    return tuple((at, found[at].path, found[at].keep) for at in places)


def _building(
    policy: Policy, host: Host, command: Command, survey: Survey, ids: Ids, bounds: Bounds, abi: int
) -> tuple[tuple[s.Step, ...], tuple[str, ...]]:
    """(Steps from the first to the last mount, notes)."""
    view = make_view(policy, host, command, survey, ids)
    sources = _sources(view)
    check_trees(len(sources) + 1, policy)
    steps = (
        *bounds.launcher_steps,
        *_take_mapped(sources, ids),
        *_launcher_steps(_namespaces(policy), ids, host),
        *_take(view, sources, ids, host),
        s.PivotRoot(ROOT_SIZE + _content_size(view), ROOT_INODES),
        *_build(view, sources),
        *bounds.sysctls,
        *make_ruleset(policy, abi, view),
    )
    check_file_systems(steps)
    return steps, view.notes


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


def _sources(view: View) -> list[Source]:
    """Return what is taken from the host, in the order in which it is: the launcher's first.

    Its place in this list is its number in the plan. The new proc file system is the last.
    """
    found: list[Source] = []
    for path, place in view.places:
        if isinstance(place, Layers):
            found += [place.lower] if place.upper is None else [place.lower, place.upper]
        elif isinstance(place, Source) and path != "/proc":
            found.append(place)
    return sorted(found, key=lambda source: source.owner is None)


def _take_mapped(sources: list[Source], ids: Ids) -> Iterator[s.Step]:
    """By the launcher, while it still is root on the host."""
    for source in sources:
        if source.owner is not None:
            maps = [f"{on} {seen} 1" for on, seen in zip(source.owner, ids.outside, strict=True)]
            yield s.MappedTree(source.path, source.attributes, source.how, *maps)


def _take(view: View, sources: list[Source], ids: Ids, host: Host) -> Iterator[s.Step]:
    """Init's first steps, while the host's tree is in sight: copies of what will be shown.

    Taken with the caller's own ids, hence with no more rights to open than the caller has.
    """
    yield s.Undumpable()
    if ids.helpers is not None:
        yield s.DropGroups()
    yield s.Session()
    yield s.Private()
    for source in sources:
        attributes = source.attributes if view.at_once else 0
        if source.device is not None:
            yield s.Device(source.path, *source.device, attributes)
        elif source.owner is None:
            yield s.Tree(source.path, attributes, source.how)
    yield s.Identity(*ids.set_up)
    if host.uid == 0:
        # The ids changed, and so the kernel has set it to what fs.suid_dumpable says.
        yield s.Undumpable()
    yield s.Proc()


def _content_size(view: View) -> int:
    """Return what the files that the policy brings take in the root's tmpfs."""
    sizes = (len(place[2]) // 2 for _, place in view.places if isinstance(place, s.Content))
    return sum(size + -size % 4096 for size in sizes)


def _build(view: View, sources: list[Source]) -> Iterator[s.Step]:
    """Places and mounts in the new root; last of all the root turns read-only."""
    number = {id(source): position for position, source in enumerate(sources)}
    later: Iterable[s.Step] = ()
    yield s.Covers("/proc")
    for path, place in view.places:
        if isinstance(place, Layers):
            yield _overlay(path, place, number)
        elif isinstance(place, s.Protect | s.Hide) and not view.at_once:
            yield from _closed_later(place)
        elif not isinstance(place, Source):
            yield place
        elif path == "/proc":
            yield s.Attach(len(sources), path, "the new proc file system")
            later = _proc_steps(view)
        else:
            yield s.Attach(number[id(place)], path, place.path)
            if not view.at_once:
                # At once, for what is attached below it may have other attributes.
                yield s.Remount(path, place.attributes, 1)
    yield from later
    for path in (*view.closed, "/"):
        yield s.Remount(path, CLOSED if path != "/" else s.READ_ONLY | s.NO_SUID | s.NO_DEV, 0)


def _closed_later(place: s.Protect | s.Hide) -> Iterator[s.Step]:
    """For a kernel that cannot restrict a copy before it is attached."""
    yield type(place)(place[0], 0, *place[2:])
    # What may be missing cannot be remounted for sure. It is private to the capsule all the same.
    if place[1] and not (isinstance(place, s.Hide) and place[2]):
        yield s.Remount(place[0], place[1], 0)


def _overlay(path: str, place: Layers, number: dict[int, int]) -> s.Overlay:
    upper = s.Overlay.NONE if place.upper is None else number[id(place.upper)]
    inodes = place.size // INODE
    return s.Overlay(path, number[id(place.lower)], upper, place.size, inodes, place.attributes)


def _proc_steps(view: View) -> Iterator[s.Step]:
    """Cover what tells of the host, protect what changes it."""
    at_once = CLOSED if view.at_once else 0
    for path in view.read_only:
        yield s.Protect(path, at_once)
    if view.masked:
        yield s.Mask(at_once, view.masked)
    if not view.at_once:
        for path in (*view.read_only, *view.masked):
            yield s.Remount(path, CLOSED, 0)


def _machine(
    policy: Policy, way: Way | None, terminal: Terminal | None, bounds: Bounds, filter_: Filter | None
) -> Iterator[s.Step]:
    if policy.network is not Network.HOST:
        yield s.Loopback()
    if way is not None:
        yield from way.steps()
    yield s.Hostname(policy.hostname)
    if terminal is not None:
        bits = sum(1 << fd for fd in terminal.descriptors)
        yield s.Terminal(bits, terminal.rows, terminal.columns)
    yield from bounds.init_steps
    if filter_ is not None:
        yield s.Filter(filter_.program, int(filter_.told))
    yield s.Fork()


def _command_steps(
    policy: Policy,
    command: Command,
    ids: Ids,
    filter_: Filter | None,
    bounds: Bounds,
    descriptors: Sequence[tuple[int, int]],
    abi: int,
) -> Iterator[s.Step]:
    """First what can fail, then what cannot be undone; the filter last, for it may refuse the rest."""
    yield from inherited(abi)
    for ours, theirs in descriptors:
        yield s.Descriptor(ours, theirs)
    yield s.Chdir(command.cwd)
    yield from bounds.command_steps
    kept = kept_capabilities(policy)
    yield s.BoundingSet(kept)
    if policy.id_map is IdMap.AUTO:
        yield s.Credentials(*ids.command)
    yield s.Capabilities(kept)
    yield s.NoNewPrivs()
    if abi:
        yield s.LandlockRestrict()
    if filter_ is not None:
        yield s.Seccomp(filter_.summary)
    yield _exec(command)

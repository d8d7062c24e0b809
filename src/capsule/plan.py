"""The one place that orders steps: a pure function from policy, host and command to a plan.

The order is the proof of much that is promised: sources are taken while the host's tree is in sight
and with the caller's rights, places are made when it is gone, and what cannot be undone comes after
all that can fail.
"""

from __future__ import annotations

from . import steps as s
from .command import SHARED_PLACES, is_below
from .errors import HostError, PolicyError
from .policy import IdMap, MountKind, Network
from .values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .command import Command
    from .host import Host
    from .policy import Mount, Policy

# The host id of who is started by real root: the kernel's own choice for "nobody"; user_namespaces(7).
NOBODY = 65534

KIB, MIB = 1 << 10, 1 << 20
ROOT_SIZE, TMP_SIZE, HOME_SIZE, SHM_SIZE = 4 * MIB, 512 * MIB, 512 * MIB, 64 * MIB

BOUND = s.NO_SUID | s.NO_DEV
# A device on a read-only mount can still be written to: it is its inode that cannot be changed.
DEVICE_ATTRIBUTES = s.READ_ONLY | s.NO_SUID | s.NO_EXEC

# (path, major, minor); Documentation/admin-guide/devices.txt of the kernel
DEVICES = (
    ("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7),
    ("/dev/random", 1, 8), ("/dev/urandom", 1, 9), ("/dev/tty", 5, 0),
)  # fmt: skip
DEVICE_LINKS = (
    ("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin"), ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"), ("pts/ptmx", "/dev/ptmx"),
)  # fmt: skip

RLIMIT_CORE = 4


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
    """

    steps: tuple[s.Step, ...]
    args: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    protections: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

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
    ids = _ids(policy, host)
    view = _view(policy, host, command, ids)
    namespaces = _namespaces(policy)
    plan = (
        *_launcher_steps(namespaces, ids, host),
        *_take(view, ids),
        s.PivotRoot(ROOT_SIZE, 4096),
        *_build(view),
        *_machine(policy, terminal),
        *_command_steps(policy, command, ids, descriptors),
    )
    return Plan(
        steps=plan,
        args=command.args,
        namespaces=namespaces.names(),
        protections=_protections(policy, ids),
        notes=view.notes,
    )


def _check_host(host: Host) -> None:
    if host.mount_api and host.openat2:
        return
    missing = "openat2" if host.mount_api else "the mount API (fsopen, open_tree, move_mount)"
    hint = f"Capsule needs Linux 5.10 or later with no seccomp filter around it; this is {host.kernel}"
    raise HostError(f"the kernel does not offer {missing}", hint=hint)


# --- identity ---------------------------------------------------------------------------


class _Ids(Value):
    """Who the command is, inside and outside.

    Attributes:
        uid_map: lines of uid_map; user_namespaces(7).
        gid_map: likewise.
        helpers: newuidmap and newgidmap, if they have to write the maps.
        set_up: (uid, gid) inside that init takes.
        command: (uid, gid) inside of the command.
        outside: uid on the host of the command.
    """

    uid_map: str
    gid_map: str
    helpers: tuple[str, str] | None
    set_up: tuple[int, int]
    command: tuple[int, int]
    outside: int


def _ids(policy: Policy, host: Host) -> _Ids:
    if policy.id_map is IdMap.AUTO:
        return _ranged_ids(policy, host)
    uid, gid = _outside(policy, host)
    inside = (policy.uid, policy.gid)
    return _Ids(f"{policy.uid} {uid} 1", f"{policy.gid} {gid} 1", None, inside, inside, uid)


def _outside(policy: Policy, host: Host) -> tuple[int, int]:
    """The caller's ids, but for real root those of nobody, unless host root was named."""
    if policy.id_map is IdMap.HOST_ROOT:
        if host.uid != 0:
            hint = "leave it out: the ids inside are then your own"
            raise PolicyError("id_map: host-root is for root only", field="id_map", hint=hint)
        return 0, 0
    if host.uid == 0 and host.initial_ids:
        return NOBODY, NOBODY
    return host.uid, host.gid


def _ranged_ids(policy: Policy, host: Host) -> _Ids:
    uids, gids = host.subuids, host.subgids
    if uids is None or gids is None:
        table = "/etc/subuid" if uids is None else "/etc/subgid"
        hint = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
        raise HostError(f"id_map auto: {table} gives uid {host.uid} no range", hint=hint)
    real_root = host.uid == 0 and host.initial_ids
    helpers = (host.newuidmap, host.newgidmap)
    if not real_root and None in helpers:
        hint = "install newuidmap and newgidmap: the package uidmap (Debian) or shadow-utils (Fedora)"
        raise HostError("id_map auto: newuidmap or newgidmap is missing", hint=hint)
    for field, id_, range_ in (("uid", policy.uid, uids), ("gid", policy.gid, gids)):
        if id_ > range_.count - (1 if real_root else 0):
            hint = f"the range has {range_.count} ids"
            raise PolicyError(
                f"{field}: {id_} is outside of the map", field=field, value=id_, hint=hint
            )
    if real_root:
        maps = (f"0 {uids.start} {uids.count}", f"0 {gids.start} {gids.count}")
        outside = uids.start + policy.uid
    else:
        # Root inside is the caller; every other id is one of the range.
        maps = (
            f"0 {host.uid} 1 1 {uids.start} {uids.count}",
            f"0 {host.gid} 1 1 {gids.start} {gids.count}",
        )
        outside = host.uid if policy.uid == 0 else uids.start + policy.uid - 1
    used = None if real_root else (str(helpers[0]), str(helpers[1]))
    return _Ids(*maps, used, (0, 0), (policy.uid, policy.gid), outside)


def _namespaces(policy: Policy) -> s.Namespaces:
    wanted = dict(s.NAMESPACES)
    if policy.network is Network.HOST:
        del wanted["net"]
    return s.Namespaces(sum(wanted.values()))


def _launcher_steps(namespaces: s.Namespaces, ids: _Ids, host: Host) -> Iterator[s.Step]:
    if host.uid == 0:
        yield s.DropGroups()
    yield namespaces
    if ids.helpers is not None:
        yield s.MapHelper(ids.helpers[1], ids.gid_map)
        yield s.MapHelper(ids.helpers[0], ids.uid_map)
        return
    # A caller that is not root may write its group's map only where setgroups is denied.
    yield s.DenySetgroups()
    yield s.GidMap(ids.gid_map)
    yield s.UidMap(ids.uid_map)


# --- the view ---------------------------------------------------------------------------


class _Source(Value):
    """A tree of the host and where it goes."""

    path: str
    read_only: bool = True


class _View(Value):
    """What stands where in the new root.

    Attributes:
        places: for each path, a `_Source` to attach or a step to take, parents before children.
        notes: what was shown unasked, and why.
        read_only: parts of /proc to make read-only.
        masked: parts of /proc to cover.
        at_once: whether mount_setattr(2) makes a whole tree read-only at once.
    """

    places: tuple[tuple[str, _Source | s.Step], ...]
    notes: tuple[str, ...]
    read_only: tuple[str, ...]
    masked: tuple[str, ...]
    at_once: bool


def _view(policy: Policy, host: Host, command: Command, ids: _Ids) -> _View:
    places: dict[str, _Source | s.Step] = {}
    notes: list[str] = []
    if policy.root is not None:
        # Each entry of it: the root itself stays Capsule's own, where mount points can be made.
        for path, target in command.root_entries:
            places[path] = _Source(policy.root + path) if target is None else s.Symlink(target, path)
    else:
        _place_system(places, host, policy)
        _place_generated(places, policy, command)
    _place_private(places, command, ids, whole_root=policy.root is not None)
    _place_command(places, notes, command)
    for mount in policy.mounts:
        places[mount.at] = _mounted(mount, ids)
    # By depth, and otherwise as given: what lies in another is attached after it.
    ordered = sorted(places.items(), key=lambda place: place[0].count("/"))
    # What only the host's root may open needs no cover from anyone else.
    masked = host.masked if policy.id_map is IdMap.HOST_ROOT else host.masked_for_all
    return _View(tuple(ordered), tuple(notes), host.read_only, masked, host.mount_setattr)


def _linked(path: str, target: str | None) -> _Source | s.Step:
    return _Source(path) if target is None else s.Symlink(target, path)


def _place_system(places: dict[str, _Source | s.Step], host: Host, policy: Policy) -> None:
    """The host's programs, and what they need of /etc."""
    for path, target in (*host.system, *host.etc):
        places[path] = _linked(path, target)
    for path, content in host.etc_files:
        places[path] = s.File(path, 0o644, content)
    if policy.network is Network.HOST and host.resolv_conf is not None:
        places["/etc/resolv.conf"] = _Source(host.resolv_conf)


def _place_generated(places: dict[str, _Source | s.Step], policy: Policy, command: Command) -> None:
    """The files that would tell of the host's users and names, made up instead."""
    people = [(0, 0, "root", command.home, "/bin/sh")]
    if policy.uid not in (0, NOBODY):
        people.append((policy.uid, policy.gid, "user", command.home, "/bin/sh"))
    people.append((NOBODY, NOBODY, "nobody", "/nonexistent", "/usr/sbin/nologin"))
    groups = {0: "root", policy.gid: "user", 5: "tty", NOBODY: "nogroup"} | {0: "root"}
    files = {
        "passwd": "".join(f"{n}:x:{u}:{g}:{n}:{h}:{sh}\n" for u, g, n, h, sh in people),
        "group": "".join(f"{name}:x:{gid}:\n" for gid, name in groups.items()),
        "hosts": f"127.0.0.1 localhost {policy.hostname}\n::1 localhost\n",
        "hostname": f"{policy.hostname}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    for name, content in files.items():
        places[f"/etc/{name}"] = s.File(f"/etc/{name}", 0o644, content)


def _place_private(
    places: dict[str, _Source | s.Step], command: Command, ids: _Ids, *, whole_root: bool
) -> None:
    """Directories of the capsule's own: /tmp, the home, /dev, /proc and what surrounds them."""
    places["/tmp"] = _tmpfs("/tmp", TMP_SIZE, 0o1777, ids)
    places[command.home] = _tmpfs(command.home, HOME_SIZE, 0o700, ids)
    places["/dev"] = s.Tmpfs("/dev", 64 * KIB, 64, 0o755, s.NO_SUID | s.NO_EXEC, *ids.set_up)
    places["/dev/shm"] = _tmpfs("/dev/shm", SHM_SIZE, 0o1777, ids)
    places["/dev/pts"] = s.Devpts("/dev/pts")
    for path, _, _ in DEVICES:
        places[path] = _Source(path)
    for target, path in DEVICE_LINKS:
        places[path] = s.Symlink(target, path)
    places["/proc"] = _Source("/proc")
    if whole_root:
        return
    places["/run"] = s.Directory("/run", 0o755)
    places["/var"] = s.Directory("/var", 0o755)
    places["/var/run"] = s.Symlink("../run", "/var/run")
    places["/var/tmp"] = s.Symlink("../tmp", "/var/tmp")


def _place_command(places: dict[str, _Source | s.Step], notes: list[str], command: Command) -> None:
    """The working directory, and what the program needs besides the host's own programs."""
    shown: list[tuple[str, str]] = list(command.shown)
    if command.working_directory is not None:
        shown.append((command.working_directory, "the working directory"))
    elif command.cwd in SHARED_PLACES or is_below(command.home, command.cwd):
        places.setdefault(command.cwd, s.Directory(command.cwd, 0o755))
    visible = [path for path, place in places.items() if isinstance(place, _Source)]
    for path, reason in sorted(shown, key=lambda pair: pair[0].count("/")):
        if any(is_below(path, top) for top in visible):
            continue
        visible.append(path)
        places[path] = _Source(path)
        notes.append(f"{s._show(path)} is shown read-only: {reason}")


def _tmpfs(path: str, size: int, mode: int, ids: _Ids) -> s.Tmpfs:
    return s.Tmpfs(path, size, size // 4096, mode, BOUND, *ids.command)


def _mounted(mount: Mount, ids: _Ids) -> _Source | s.Step:
    if mount.kind is MountKind.TMPFS:
        return _tmpfs(mount.at, mount.size, 0o755, ids)
    return _Source(mount.source, mount.kind is MountKind.READ_ONLY)


def _take(view: _View, ids: _Ids) -> Iterator[s.Step]:
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
        if path in numbers and isinstance(place, _Source) and place.path == path:
            yield s.Device(path, *numbers[path], DEVICE_ATTRIBUTES if view.at_once else 0)
        elif isinstance(place, _Source) and path != "/proc":
            yield s.Tree(place.path, _attributes(place) if view.at_once else 0)
    yield s.Identity(*ids.set_up)
    yield s.Proc()


def _attributes(source: _Source) -> int:
    return BOUND | (s.READ_ONLY if source.read_only else 0)


def _build(view: _View) -> Iterator[s.Step]:
    """Places and mounts in the new root; last of all the root and /dev turn read-only."""
    devices = {path for path, _, _ in DEVICES}
    number = 0
    proc = sum(isinstance(place, _Source) for path, place in view.places if path != "/proc")
    later: list[s.Step] = []
    for path, place in view.places:
        if not isinstance(place, _Source):
            yield place
        elif path == "/proc":
            yield s.Attach(proc, path, "the new proc file system")
            later += _proc_steps(view)
        else:
            yield s.Attach(number, path, place.path)
            number += 1
            if not view.at_once:
                wanted = DEVICE_ATTRIBUTES if path in devices else _attributes(place)
                later.append(s.Remount(path, wanted, 1))
    yield from later
    yield s.Remount("/dev", DEVICE_ATTRIBUTES, 0)
    yield s.Remount("/", s.READ_ONLY | s.NO_SUID | s.NO_DEV, 0)


def _proc_steps(view: _View) -> Iterator[s.Step]:
    """Cover what tells of the host, protect what changes it."""
    closed = s.READ_ONLY | s.NO_SUID | s.NO_DEV | s.NO_EXEC
    covers: list[s.Step] = [s.Protect(path, closed if view.at_once else 0) for path in view.read_only]
    covers += [s.Mask(path, closed if view.at_once else 0) for path in view.masked]
    for cover in covers:
        yield cover
        if not view.at_once:
            yield s.Remount(cover[0], closed, 0)


# --- the rest ---------------------------------------------------------------------------


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
    policy: Policy, command: Command, ids: _Ids, descriptors: Sequence[tuple[int, int]]
) -> Iterator[s.Step]:
    """First what can fail, then what cannot be undone. Landlock and seccomp come before exec."""
    for ours, theirs in descriptors:
        yield s.Descriptor(ours, theirs)
    yield s.Chdir(command.cwd)
    yield s.Rlimit(RLIMIT_CORE, 0, 0, "core dumps")
    yield s.BoundingSet()
    if policy.id_map is IdMap.AUTO:
        yield s.Credentials(*ids.command)
    yield s.Capabilities()
    yield s.NoNewPrivs()
    yield s.Exec(command.paths, command.args, command.env)


def _protections(policy: Policy, ids: _Ids) -> dict[str, str]:
    """What is promised, each with what enforces it."""
    network = (
        "network namespace with a loopback interface only"
        if policy.network is Network.NONE
        else "none: the host's network is shared"
    )
    return {
        "identity": f"user namespace: uid {ids.command[0]} inside is uid {ids.outside} outside",
        "processes": "PID namespace; init is not dumpable; all end with the command or the supervisor",
        "files": "mount namespace; pivot_root to a tmpfs, the host's tree detached; read-only binds",
        "ipc": "IPC namespace",
        "hostname": "UTS namespace",
        "cgroup": "cgroup namespace",
        "network": network,
        "capabilities": "all five sets empty, securebits locked",
        "no_new_privs": "set",
        "session": "session of its own",
        "descriptors": "only the standard ones and those named by the caller",
    }

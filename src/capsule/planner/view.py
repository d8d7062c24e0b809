"""What stands where in the capsule's root: pure, from policy, host and command."""

from __future__ import annotations

from capsule.base.errors import PolicyError
from capsule.base.text import is_below, printable
from capsule.base.values import Value
from capsule.files.found import Shown
from capsule.host.host import version
from capsule.host.ids import NOBODY
from capsule.host.places import MADE, SHARED
from capsule.launcher import steps as s
from capsule.policy.mounts import MountKind
from capsule.policy.policy import IdMap, Network, System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from capsule.files.found import Found, Survey
    from capsule.host.host import Host
    from capsule.policy.policy import Policy
    from capsule.program.command import Command

    from .identity import Ids

    Places = dict[str, "Source | Layers | s.Step"]

# Of the host, the new proc file system among them; of its own. TREES_MAX, OURS_MAX of launcher/mount.c.
TREES = FILE_SYSTEMS = 1024
KIB, MIB = 1 << 10, 1 << 20
TMP_SIZE = HOME_SIZE = SHM_SIZE = 512 * MIB
# A file of one byte takes a page, a directory nothing but its inode: for each file there may be one. In
# the kernel's memory an inode takes about a KiB, hence all of them half as much as the files may.
INODE = 2 * KIB
# A hidden directory holds nothing but mount points.
HIDDEN_SIZE = 256 * KIB

BOUND = s.NO_SUID | s.NO_DEV
CLOSED = s.READ_ONLY | s.NO_SUID | s.NO_DEV | s.NO_EXEC
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


class Source(Value):
    """A tree of the host, or a device node.

    Attributes:
        path: where it lies on the host.
        attributes: those of mount_setattr(2) that it gets.
        how: how its path is resolved; see `steps.Tree`.
        owner: (uid, gid) on the host as whom the command acts in it, or None for its own.
        device: (major, minor) of a device node, or None.
    """

    path: str
    attributes: int = BOUND | s.READ_ONLY
    how: int = 0
    owner: tuple[int, int] | None = None
    device: tuple[int, int] | None = None


class Layers(Value):
    """An overlay. Without an upper layer of the host's, it is a tmpfs of that size."""

    lower: Source
    upper: Source | None
    size: int
    attributes: int


class View(Value):
    """What stands where in the new root.

    Attributes:
        places: for each path, what is attached there or the step that makes it; parents come first.
        notes: what was done unasked, and why.
        read_only: parts of /proc to make read-only.
        masked: parts of /proc to cover.
        closed: places to make read-only when all is in them.
        at_once: whether mount_setattr(2) makes a whole tree read-only at once.
    """

    places: tuple[tuple[str, Source | Layers | s.Step], ...]
    notes: tuple[str, ...]
    read_only: tuple[str, ...]
    masked: tuple[str, ...]
    closed: tuple[str, ...]
    at_once: bool


def make_view(policy: Policy, host: Host, command: Command, survey: Survey, ids: Ids) -> View:
    """Decide what stands where; of two things at one place, the later one."""
    places: Places = {}
    notes = list(survey.notes)
    if policy.root is not None:
        # Each entry of it: the root itself stays Capsule's own, where mount points can be made.
        for path, target in command.root_entries:
            places[path] = _linked(path, target, survey.root or policy.root, s.NO_LINKS)
    else:
        _place_system(places, host, policy, command)
        _place_generated(places, policy, command, ids)
        if ids.outside[0] != host.uid:
            _place_git(places)
    _place_private(places, policy, command, ids)
    _place_mounts(places, survey.found, ids, _mapping(policy, host, ids))
    _place_command(places, notes, command, survey)
    _place_guards(places, survey)
    notes += _warn_of_old_layers(places, host)
    in_var_tmp = any(path.startswith("/var/tmp/") for path in places)
    if in_var_tmp and isinstance(places.get("/var/tmp"), s.Symlink):
        # Behind a link it would not be at its own path.
        places["/var/tmp"] = _tmpfs("/var/tmp", TMP_SIZE, 0o1777, ids)
    # By depth, and otherwise as given: what lies in another is attached after it. The proc file system
    # comes first of all, since a remount of whole trees reads the table of mounts in it.
    ordered = sorted(places.items(), key=lambda place: (place[0] != "/proc", _depth(place[0], command)))
    # What only the host's root may open needs no cover from anyone else.
    masked = host.masked if policy.id_map is IdMap.HOST_ROOT else host.masked_for_all
    closed = _hidden_directories(survey.found)
    return View(
        tuple(ordered), tuple(notes), host.read_only, masked, closed, at_once=host.mount_setattr
    )


def _depth(path: str, command: Command) -> int:
    """How deep a place lies; what is in the home by its other name is in it, and that comes before."""
    home, other = command.home, command.home_elsewhere
    if not other or not is_below(path, other):
        return path.count("/")
    if path == other:
        return min(home.count("/"), other.count("/"))
    return path.count("/") - other.count("/") + home.count("/")


def _warn_of_old_layers(places: Places, host: Host) -> list[str]:
    """Before 6.6 a tmpfs has no user.* attributes, which say that a directory hides the lower one."""
    if version(host.kernel) >= (6, 6):
        return []
    return [
        f"overlay at {printable(path)}: before Linux 6.6, with a layer in memory, a directory of the "
        "host that holds something cannot be deleted, nor one that was deleted be made again "
        "(EIO); with a layer that is kept (--keep) they can"
        for path, place in places.items()
        if isinstance(place, Layers) and place.upper is None
    ]


class Mapping(Value):
    """Id-mapped mounts: who the command is on the host, and whether layers can be mapped."""

    outside: tuple[int, int]
    layers: bool


def _mapping(policy: Policy, host: Host, ids: Ids) -> Mapping | None:
    """Only real root may make id-mapped mounts, and root on the host has no need of one."""
    if not (host.mount_admin and host.mount_setattr) or policy.id_map is IdMap.HOST_ROOT:
        return None
    # That cannot be tried beforehand. An overlay over a mapped layer is EINVAL before 5.19; over one
    # that is not mapped, what is root's cannot be changed.
    return Mapping(ids.outside, version(host.kernel) >= (5, 19))


def _linked(path: str, target: str | None, top: str = "", how: int = 0) -> Source | s.Step:
    return Source(top + path, how=how) if target is None else s.Symlink(target, path)


def _place_system(places: Places, host: Host, policy: Policy, command: Command) -> None:
    """The host's programs, and what they need of /etc; or only what the command needs of both."""
    if policy.system is System.NEEDED:
        top = command.working_directory
        for path, target, _ in command.needed:
            if top is None or not is_below(path, top):
                places[path] = _linked(path, target, how=s.NO_LINKS)
    else:
        for path, target in (*host.system, *host.etc):
            places[path] = _linked(path, target)
        for path, content in host.etc_files:
            places[path] = s.File(path, 0o644, content)
        places.update((path, Source(path)) for path in host.installed)
    if policy.network is Network.HOST and host.resolv_conf is not None:
        places["/etc/resolv.conf"] = Source(host.resolv_conf)
    elif not isinstance(policy.network, Network):
        from .network import RESOLV_CONF

        places["/etc/resolv.conf"] = s.File("/etc/resolv.conf", 0o644, RESOLV_CONF)


def _place_generated(places: Places, policy: Policy, command: Command, ids: Ids) -> None:
    """The files that would tell of the host's users and names, made up instead."""
    uid, gid = ids.command
    people = {0: (0, "root", command.home, "/bin/sh")}
    if uid:
        people[uid] = (gid, command.user, command.home, "/bin/sh")
    people.setdefault(NOBODY, (NOBODY, "nobody", "/nonexistent", "/usr/sbin/nologin"))
    groups = {0: "root", gid: command.group, 5: "tty", NOBODY: "nogroup"} | {0: "root"}
    files = {
        "passwd": "".join(f"{n}:x:{u}:{g}:{n}:{h}:{sh}\n" for u, (g, n, h, sh) in people.items()),
        "group": "".join(f"{name}:x:{gid}:\n" for gid, name in groups.items()),
        "hosts": f"127.0.0.1 localhost {policy.hostname}\n::1 localhost\n{command.hosts}",
        "hostname": f"{policy.hostname}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    for name, content in files.items():
        places[f"/etc/{name}"] = s.File(f"/etc/{name}", 0o644, content)


def _place_git(places: Places) -> None:
    """Where the command is not who calls it, what is the caller's seems to be of others to git.

    It then refuses a repository, for it would run what that names: here nothing else is to happen.
    """
    there = places.get("/etc/gitconfig")
    own = f"{there[2]}\n" if isinstance(there, s.File) else ""
    places["/etc/gitconfig"] = s.File("/etc/gitconfig", 0o644, f"{own}[safe]\n\tdirectory = *\n")


def _place_private(places: Places, policy: Policy, command: Command, ids: Ids) -> None:
    """Directories of the capsule's own: /tmp, the home, /dev, /proc and what surrounds them."""
    places["/tmp"] = _tmpfs("/tmp", TMP_SIZE, 0o1777, ids)
    places[command.home] = _tmpfs(command.home, HOME_SIZE, 0o700, ids)
    if command.home_elsewhere:
        # Both names lead to it: what is the caller's by either is there.
        places[command.home_elsewhere] = s.Symlink(command.home, command.home_elsewhere)
    # In the root's own tmpfs: each device is a mount of its own, and only they are not nodev.
    places["/dev"] = s.Directory("/dev", 0o755)
    shared = min(SHM_SIZE, max(policy.limits.memory or SHM_SIZE, 4 * KIB))
    places["/dev/shm"] = _tmpfs("/dev/shm", shared, 0o1777, ids)
    places["/dev/pts"] = s.Devpts("/dev/pts")
    for path, major, minor in DEVICES:
        places[path] = Source(path, DEVICE_ATTRIBUTES, device=(major, minor))
    for target, path in DEVICE_LINKS:
        places[path] = s.Symlink(target, path)
    places["/proc"] = Source("/proc")
    if policy.root is not None:
        return
    places["/run"] = s.Directory("/run", 0o755)
    places["/var"] = s.Directory("/var", 0o755)
    places["/var/run"] = s.Symlink("../run", "/var/run")
    places["/var/tmp"] = s.Symlink("../tmp", "/var/tmp")


def _place_mounts(places: Places, found: tuple[Found, ...], ids: Ids, mapping: Mapping | None) -> None:
    """Place what the policy's mounts ask for, in its order."""
    asked = {one.mount.at for one in found}
    for one in found:
        mount = one.mount
        if mount.kind is not MountKind.DIRECTORY:
            # What was asked for brings what it holds: nothing of the default view is put into it.
            for path in [path for path in places if path != mount.at and is_below(path, mount.at)]:
                if path not in asked:
                    del places[path]
        if mount.kind is MountKind.HIDE:
            places[mount.at] = _cover(one, places.get(mount.at), ids)
        elif mount.kind is not MountKind.DIRECTORY or mount.at not in places:
            places[mount.at] = _mounted(one, ids, mapping)


def _cover(one: Found, there: Source | Layers | s.Step | None, ids: Ids) -> s.Step:
    """Return what stands at a hidden place. Mounts that were given later may lie in a directory."""
    at = one.mount.at
    if one.is_directory:
        return s.Tmpfs(at, HIDDEN_SIZE, HIDDEN_SIZE // 4096, 0o555, BOUND | s.NO_EXEC, *ids.set_up)
    if there is not None:
        return s.File(at, 0o444, "")
    return s.Hide(at, CLOSED, int(one.mount.optional))


def _hidden_directories(found: tuple[Found, ...]) -> tuple[str, ...]:
    return tuple(one.mount.at for one in found if one.mount.kind is MountKind.HIDE and one.is_directory)


def _place_command(places: Places, notes: list[str], command: Command, survey: Survey) -> None:
    """The working directory, and what the program needs besides the host's own programs."""
    shown = list(command.shown)
    own = command.working_directory
    if own is not None:
        shown.append(Shown(own, "the working directory", survey.cwd or own))
    elif command.cwd in SHARED or (command.cwd != "/" and is_below(command.home, command.cwd)):
        places.setdefault(command.cwd, s.Directory(command.cwd, 0o755))
    if command.left_out and command.left_out not in ("/", *MADE, "/var/tmp"):
        notes.append(
            f"{printable(command.left_out)} is not shown: it is a home, or may hold what is not "
            "one's own; --ro, --rw or --overlay shows what is needed of it"
        )
    visible = [path for path, place in places.items() if isinstance(place, Source | Layers)]
    # What was hidden stays so, whatever the command needs.
    visible += [one.mount.at for one in survey.found if one.mount.kind is MountKind.HIDE]
    for one in sorted(shown, key=lambda one: one.path.count("/")):
        if any(is_below(one.path, top) for top in visible):
            continue
        visible.append(one.path)
        how = s.NO_LINKS | (s.DIRECTORY if one.is_directory else 0)
        places[one.path] = Source(one.source, how=how)
        notes.append(f"{printable(one.path)} is shown read-only: {one.reason}")


def _place_guards(places: Places, survey: Survey) -> None:
    """Cover what patterns hide, and protect what guards name in writable trees."""
    for one in survey.guarded:
        places.setdefault(one.at, s.Protect(one.at, s.READ_ONLY if one.read_only else 0))
    for path, _ in survey.hidden:
        # What is gone by then, or a link that leads nowhere inside, need not be hidden.
        if not isinstance(places.get(path), Source | Layers | s.Tmpfs | s.File):
            places[path] = s.Hide(path, CLOSED, 1)


def _tmpfs(path: str, size: int, mode: int, ids: Ids, attributes: int = 0) -> s.Tmpfs:
    return s.Tmpfs(path, size, size // INODE, mode, BOUND | attributes, *ids.command)


def _mounted(one: Found, ids: Ids, mapping: Mapping | None) -> Source | Layers | s.Step:
    mount = one.mount
    if mount.kind in _MADE:
        return _MADE[mount.kind](one)
    attributes = s.NO_EXEC if mount.noexec else 0
    if mount.kind is MountKind.TMPFS:
        return _tmpfs(mount.at, mount.size, 0o755, ids, attributes)
    how = s.NO_LINKS | (s.DIRECTORY if one.is_directory else 0)
    if mount.kind is MountKind.DEVICE:
        attributes = DEVICE_ATTRIBUTES if one.device else s.NO_SUID | s.NO_EXEC
        return Source(one.path, attributes, how, device=one.device)
    attributes |= BOUND
    if mount.kind is MountKind.READ_WRITE:
        return Source(one.path, attributes, how, _owner(one, mapping))
    attributes |= s.READ_ONLY
    if mount.kind is MountKind.READ_ONLY:
        return Source(one.path, attributes, how)
    lower = Source(one.path, attributes, how, _layer_owner(one, mapping))
    attributes &= ~s.READ_ONLY
    kept = Source(one.keep, BOUND, s.NO_LINKS | s.DIRECTORY) if one.keep else None
    return Layers(lower, kept, mount.size, attributes)


def _owner(one: Found, mapping: Mapping | None) -> tuple[int, int] | None:
    """As whom the command acts in a writable tree when root starts it: the owner, but never root."""
    uid, gid = one.owner
    if mapping is None or uid == 0 or one.owner == mapping.outside:
        return None
    return uid, gid or NOBODY


def _layer_owner(one: Found, mapping: Mapping | None) -> tuple[int, int] | None:
    """Likewise below an overlay, where nothing of root's can come to be: root as well."""
    if mapping is None or not mapping.layers or one.owner == mapping.outside:
        return None
    return one.owner


# What is made from the mount alone.
_MADE: dict[MountKind, Callable[[Found], s.Step]] = {
    MountKind.SYMLINK: lambda one: s.Symlink(one.mount.source, one.mount.at),
    MountKind.DIRECTORY: lambda one: s.Directory(one.mount.at, one.mount.mode),
    MountKind.FILE: lambda one: s.Content(one.mount.at, one.mount.mode, one.data.hex()),
    MountKind.CONTENT: lambda one: s.Content(one.mount.at, one.mount.mode, one.data.hex()),
}


def check_trees(count: int, policy: Policy) -> None:
    """No more of the host's trees than the launcher holds at once."""
    if count > TREES:
        field = "mounts" if policy.root is None else "root"
        hint = "show a directory above several of them instead of each"
        if policy.root is not None:
            hint = f"each entry of {policy.root} is one: move some of them into a directory of it"
        message = f"{field}: {count} trees of the host; a capsule takes at most {TREES:,}"
        raise PolicyError(message, field=field, value=count, hint=hint)


def check_file_systems(steps: Iterable[s.Step]) -> None:
    """No more file systems of its own: the root, each tmpfs, each overlay whose layer is in memory."""
    own = sum(
        isinstance(step, s.PivotRoot | s.Tmpfs)
        or (isinstance(step, s.Overlay) and step[2] == step.NONE)
        for step in steps
    )
    if own > FILE_SYSTEMS:
        message = f"mounts: {own} file systems in memory; a capsule has at most {FILE_SYSTEMS:,}"
        hint = "ask for fewer tmpfs, overlays and hidden directories, or for one above several of them"
        raise PolicyError(message, field="mounts", value=own, hint=hint)

"""What stands where in the capsule's root: pure, from policy, host and command."""

from __future__ import annotations

from . import steps as s
from .command import SHARED_PLACES, is_below
from .identity import NOBODY
from .policy import IdMap, MountKind, Network
from .values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .command import Command
    from .host import Host
    from .identity import Ids
    from .policy import Mount, Policy

KIB, MIB = 1 << 10, 1 << 20
TMP_SIZE, HOME_SIZE, SHM_SIZE = 512 * MIB, 512 * MIB, 64 * MIB

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


class Source(Value):
    """A tree of the host and where it goes."""

    path: str
    read_only: bool = True


class View(Value):
    """What stands where in the new root.

    Attributes:
        places: for each path, a `Source` to attach or a step to take, parents before children.
        notes: what was shown unasked, and why.
        read_only: parts of /proc to make read-only.
        masked: parts of /proc to cover.
        at_once: whether mount_setattr(2) makes a whole tree read-only at once.
    """

    places: tuple[tuple[str, Source | s.Step], ...]
    notes: tuple[str, ...]
    read_only: tuple[str, ...]
    masked: tuple[str, ...]
    at_once: bool


def make_view(policy: Policy, host: Host, command: Command, ids: Ids) -> View:
    """Decide what stands where; of two things at one place, the later one."""
    places: dict[str, Source | s.Step] = {}
    notes: list[str] = []
    if policy.root is not None:
        # Each entry of it: the root itself stays Capsule's own, where mount points can be made.
        for path, target in command.root_entries:
            places[path] = Source(policy.root + path) if target is None else s.Symlink(target, path)
    else:
        _place_system(places, host, policy)
        _place_generated(places, policy, command)
    _place_private(places, command, ids, whole_root=policy.root is not None)
    for mount in policy.mounts:
        # What was asked for brings what it holds: nothing of the default view is put into it.
        for path in [path for path in places if path != mount.at and is_below(path, mount.at)]:
            if not any(path == other.at for other in policy.mounts):
                del places[path]
        places[mount.at] = _mounted(mount, ids)
    _place_command(places, notes, command)
    # By depth, and otherwise as given: what lies in another is attached after it. The proc file system
    # comes first of all, since a remount of whole trees reads the table of mounts in it.
    ordered = sorted(places.items(), key=lambda place: (place[0] != "/proc", place[0].count("/")))
    # What only the host's root may open needs no cover from anyone else.
    masked = host.masked if policy.id_map is IdMap.HOST_ROOT else host.masked_for_all
    return View(tuple(ordered), tuple(notes), host.read_only, masked, host.mount_setattr)


def _linked(path: str, target: str | None) -> Source | s.Step:
    return Source(path) if target is None else s.Symlink(target, path)


def _place_system(places: dict[str, Source | s.Step], host: Host, policy: Policy) -> None:
    """The host's programs, and what they need of /etc."""
    for path, target in (*host.system, *host.etc):
        places[path] = _linked(path, target)
    for path, content in host.etc_files:
        places[path] = s.File(path, 0o644, content)
    if policy.network is Network.HOST and host.resolv_conf is not None:
        places["/etc/resolv.conf"] = Source(host.resolv_conf)


def _place_generated(places: dict[str, Source | s.Step], policy: Policy, command: Command) -> None:
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
    places: dict[str, Source | s.Step], command: Command, ids: Ids, *, whole_root: bool
) -> None:
    """Directories of the capsule's own: /tmp, the home, /dev, /proc and what surrounds them."""
    places["/tmp"] = _tmpfs("/tmp", TMP_SIZE, 0o1777, ids)
    places[command.home] = _tmpfs(command.home, HOME_SIZE, 0o700, ids)
    # In the root's own tmpfs: each device is a mount of its own, and only they are not nodev.
    places["/dev"] = s.Directory("/dev", 0o755)
    places["/dev/shm"] = _tmpfs("/dev/shm", SHM_SIZE, 0o1777, ids)
    places["/dev/pts"] = s.Devpts("/dev/pts")
    for path, _, _ in DEVICES:
        places[path] = Source(path)
    for target, path in DEVICE_LINKS:
        places[path] = s.Symlink(target, path)
    places["/proc"] = Source("/proc")
    if whole_root:
        return
    places["/run"] = s.Directory("/run", 0o755)
    places["/var"] = s.Directory("/var", 0o755)
    places["/var/run"] = s.Symlink("../run", "/var/run")
    places["/var/tmp"] = s.Symlink("../tmp", "/var/tmp")


def _place_command(places: dict[str, Source | s.Step], notes: list[str], command: Command) -> None:
    """The working directory, and what the program needs besides the host's own programs."""
    shown: list[tuple[str, str]] = list(command.shown)
    if command.working_directory is not None:
        shown.append((command.working_directory, "the working directory"))
    elif command.cwd in SHARED_PLACES or (command.cwd != "/" and is_below(command.home, command.cwd)):
        places.setdefault(command.cwd, s.Directory(command.cwd, 0o755))
    visible = [path for path, place in places.items() if isinstance(place, Source)]
    for path, reason in sorted(shown, key=lambda pair: pair[0].count("/")):
        if any(is_below(path, top) for top in visible):
            continue
        visible.append(path)
        places[path] = Source(path)
        notes.append(f"{s.show(path)} is shown read-only: {reason}")


def _tmpfs(path: str, size: int, mode: int, ids: Ids) -> s.Tmpfs:
    return s.Tmpfs(path, size, size // 4096, mode, BOUND, *ids.command)


def _mounted(mount: Mount, ids: Ids) -> Source | s.Step:
    if mount.kind is MountKind.TMPFS:
        return _tmpfs(mount.at, mount.size, 0o755, ids)
    return Source(mount.source, mount.kind is MountKind.READ_ONLY)

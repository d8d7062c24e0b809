"""What is to be run: the argument vector, where its program lies, and what that needs to be seen.

This reads the host's files with the caller's rights, before the plan, so that the plan can be pure.
"""

from __future__ import annotations

import os
from itertools import islice

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.base.values import Value
from capsule.confine.seccomp.filters import read_document
from capsule.files.found import Shown
from capsule.host.ids import NOBODY, own_names
from capsule.host.places import ROOT_OWN, home_inside, is_of_system, known_homes, may_show, real_path
from capsule.policy.mounts import MountKind
from capsule.policy.policy import IdMap, Network, System

from .scripts import (
    ITSELF,
    candidates,
    first_line,
    hops,
    is_executable,
    is_isolated,
    programs,
    user_site,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from capsule.policy.policy import Policy

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = ("PATH", "LANG", "LANGUAGE", "TERM", "COLORTERM", "TZ")

_NO_SITE = "PYTHONNOUSERSITE"
_SNAPS = ("/snap/bin", "/var/lib/snapd/snap/bin")
# Of PATH, as many directories are looked at.
_FOLDERS = 64
# A working directory that lies in one of these is there.
HOLDING = (
    MountKind.READ_ONLY,
    MountKind.READ_WRITE,
    MountKind.OVERLAY,
    MountKind.TMPFS,
    MountKind.DIRECTORY,
)
EMPTY = (MountKind.TMPFS, MountKind.DIRECTORY)


class Command(Value):
    """A command with all that was found out about it.

    Attributes:
        args: the argument vector.
        paths: the paths to execute, the first that is there counts.
        found: the one that is there on the host, or None.
        cwd: working directory inside.
        env: NAME=VALUE words.
        home: home directory inside.
        user: name of the command's user inside.
        group: of its group.
        working_directory: directory of the host to show read-only at its own path, or None.
        shown: what else of the host the program needs, read-only.
        root_entries: (path inside, link target or None) of what ``Policy.root`` holds.
        needed: (path, link target or None, reason) of the host's programs that it needs, if only those
            are to be shown.
        filter_rules: content of the file that ``Policy.seccomp`` names, or None.
        search: its PATH.
        home_elsewhere: where the home is without the links in its path, if that is another path.
        left_out: the working directory, if it would be shown were it no home or the like.
        hosts: what /etc/hosts says, if the network is the host's.
    """

    args: tuple[str, ...]
    paths: tuple[str, ...]
    found: str | None
    cwd: str
    env: tuple[str, ...]
    home: str
    user: str = "root"
    group: str = "root"
    working_directory: str | None = None
    shown: tuple[Shown, ...] = ()
    root_entries: tuple[tuple[str, str | None], ...] = ()
    needed: tuple[tuple[str, str | None, str], ...] = ()
    filter_rules: bytes | None = None
    search: str = ""
    home_elsewhere: str = ""
    left_out: str = ""
    hosts: str = ""


def resolve(args: Sequence[str | bytes | os.PathLike[str]], policy: Policy) -> Command:
    """Find out where the command lies and what it needs.

    Raises:
        PolicyError: there is no command, or a word of it cannot be passed on.
    """
    words = _words(args)
    homes = known_homes()
    last = _last
    name = words[0], is_isolated(words)
    if last is not None and last.holds(policy, name, homes):
        return last.command if words == last.command.args else last.command.replace(args=words)
    command = _resolve(words, policy, homes, isolated=name[1])
    _remember(policy, name, homes, command)
    return command


def _resolve(words: tuple[str, ...], policy: Policy, homes: list[str], *, isolated: bool) -> Command:
    home = home_inside(homes[0], whole_root=bool(policy.root))
    user, group = _names(policy)
    env = _environment(policy, home, user)
    cwd, working_directory, left_out = _working_directory(policy, homes)
    search = env.get("PATH", os.defpath)
    paths = candidates(words[0], search, _lookup_directory(policy, cwd))
    found = None if policy.root else next(filter(is_executable, paths), None)
    if found is not None and os.path.dirname(found) in _SNAPS:
        raise _is_snap(words[0])
    elsewhere = "" if policy.root or home != homes[0] else real_path(home)
    shown: dict[str, Shown] = {}
    if found is not None and policy.system is System.ALL:
        steps = tuple(programs(found, search))
        for one in _needs(steps, search, homes, host_root=policy.id_map is IdMap.HOST_ROOT):
            shown.setdefault(one.path, one)
        if not (isolated or env.get(_NO_SITE) or os.environ.get(_NO_SITE)):
            shown.update((one.path, one) for one in user_site(steps, homes[0]))
    hosts = ""
    if policy.network is not Network.NONE and policy.root is None:
        from .network import certificates, hosts_file  # most have none

        hosts = hosts_file() if policy.network is Network.HOST else ""
        shown.update((one.path, one) for one in certificates(policy, env, homes))
    return Command(
        args=words,
        paths=paths,
        found=found,
        cwd=cwd,
        env=tuple(f"{name}={value}" for name, value in env.items()),
        home=home,
        user=user,
        group=group,
        working_directory=working_directory,
        shown=tuple(shown.values()),
        root_entries=() if policy.root is None else _root_entries(policy.root),
        needed=_needed(policy, found, search),
        filter_rules=read_document(policy.seccomp),
        search=search,
        home_elsewhere="" if elsewhere == home else elsewhere,
        left_out=left_out,
        hosts=hosts,
    )


class _Kept(Value):
    """A program of the system, with all that finding it depended on."""

    policy: Policy
    name: tuple[str, bool]
    homes: list[str]
    environment: dict[bytes, bytes]
    seen: tuple[object, ...]
    command: Command

    def holds(self, policy: Policy, name: tuple[str, bool], homes: list[str]) -> bool:
        """Return whether the same would be found again. Homes are the same list as long as they are."""
        if policy is not self.policy or name != self.name or homes is not self.homes:
            return False
        if _raw_environment() != self.environment:
            return False
        found = next(filter(is_executable, self.command.paths), None)
        return found is not None and found == self.command.found and _seen(self.command) == self.seen


_last: _Kept | None = None


def _remember(policy: Policy, name: tuple[str, bool], homes: list[str], command: Command) -> None:
    """Keep what depends on nothing but what `_Kept` compares: no script, no link out of the system.

    What PATH shows is compared by what it is: who makes a link lead elsewhere changes that.

    Of another working directory than the caller's own, the links on the way may change.
    """
    global _last  # noqa: PLW0603
    plain = policy.cwd is None and policy.root is None and policy.system is System.ALL
    environment = _raw_environment()
    if not plain or environment is None or command.found is None or command.filter_rules is not None:
        return
    if any(one.reason == ITSELF for one in command.shown) or first_line(command.found):
        return
    _last = _Kept(policy, name, homes, dict(environment), _seen(command), command)


def _raw_environment() -> dict[bytes, bytes] | None:
    """Return what os.environ decodes anew at each look; None if it is no longer Python's own."""
    return getattr(os.environ, "_data", None)


def _seen(command: Command) -> tuple[object, ...]:
    """Where the caller is; which file the program is, what is shown besides; the places of others."""
    looked_at = (str(command.found), f"{command.home}/.local/lib", *_unusual(command.search))
    looked_at += ("/etc/hosts",) if command.hosts else ()
    shown = (one.path for one in command.shown)
    return _cwd(), *map(_state, looked_at), *(_state(path)[:2] for path in shown)


def _cwd() -> str:
    """Where the caller is; nowhere, if that was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _state(path: str) -> tuple[int, ...]:
    try:
        now = os.stat(path)
    except (OSError, ValueError):
        return ()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _lookup_directory(policy: Policy, cwd: str) -> str:
    """Where a command with a slash in its name is looked for: here, even if that is not shown."""
    if policy.cwd is not None or policy.show_cwd or policy.root is not None:
        return cwd
    return _cwd() or cwd


def _needed(policy: Policy, found: str | None, search: str) -> tuple[tuple[str, str | None, str], ...]:
    if policy.system is System.ALL or found is None:
        return ()
    from .needed import needed  # only where it is asked for

    return needed(found, search)


def _words(args: Sequence[str | bytes | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(args, (str, bytes)) or not args:
        hint = 'pass a list of words, for instance ["ls", "-l"]; a shell is ["sh", "-c", "..."]'
        raise PolicyError(f"args: not a command: {args!r}", field="args", value=args, hint=hint)
    try:
        words = tuple(os.fsdecode(word) for word in args)
    except TypeError:
        hint = "pass str, bytes or paths: str(5), not 5"
        message = "args: not all words are text"
        raise PolicyError(message, field="args", value=args, hint=hint) from None
    if not words[0] or any("\0" in word for word in words):
        hint = "name a program first; no word can hold a NUL byte"
        message = "args: an empty command or a NUL byte"
        raise PolicyError(message, field="args", value=args, hint=hint)
    return words


def _root_entries(root: str) -> tuple[tuple[str, str | None], ...]:
    """Return what lies directly in a directory that is to be the root, but for what is made."""
    try:
        with os.scandir(root) as entries:
            found = {e.name: os.readlink(e.path) if e.is_symlink() else None for e in entries}
    except OSError as error:
        hint = "pass a directory that holds a root file system, for instance an unpacked image"
        message = f"root: cannot read {root}: {error.strerror}"
        raise PolicyError(message, field="root", value=root, hint=hint) from None
    return tuple((f"/{name}", found[name]) for name in sorted(found) if f"/{name}" not in ROOT_OWN)


def _names(policy: Policy) -> tuple[str, str]:
    """(Name of the user, of the group) inside."""
    if policy.keep_id:
        return own_names()
    return "root" if policy.uid == 0 else "nobody" if policy.uid == NOBODY else "user", "user"


def _environment(policy: Policy, home: str, user: str) -> dict[str, str]:
    host = os.environ
    if policy.env is not None:
        env = dict(policy.env)
    elif policy.inherit_env:
        env = dict(host)
    else:
        env = {n: host[n] for n in host if n in PASSED_ON or n.startswith("LC_")}
        env["HOME"] = home
        env["USER"] = user
        if policy.network is not Network.NONE:
            from .network import variables

            env |= variables(policy, host)
    if policy.env is None:
        env.setdefault("PATH", DEFAULT_PATH)
    for name, value in policy.extra_env:
        if value is not None:
            env[name] = value
        elif name in host:
            env[name] = host[name]
    return env


def _working_directory(policy: Policy, homes: list[str]) -> tuple[str, str | None, str]:
    """(Where the command starts, what to show there, what is not). Homes and the like never are."""
    base = _cwd()
    if policy.cwd is None and policy.root:
        return "/", None, ""
    if not base and (policy.cwd is None or not policy.cwd.startswith("/")):
        hint = "change to a directory that exists, or name one with --chdir (cwd=)"
        raise PolicyError("cwd: the working directory is gone", field="cwd", hint=hint)
    cwd = os.path.normpath(os.path.join(base, policy.cwd or "."))
    cwd = "/" + cwd.lstrip("/")
    covering = [mount for mount in policy.mounts if mount.kind in HOLDING and is_below(cwd, mount.at)]
    # What is made up holds nothing: what lies below it is not there, unless it was asked for.
    empty = covering and all(mount.kind in EMPTY and mount.at != cwd for mount in covering)
    if policy.root or (covering and not empty):
        return cwd, None, ""
    left_out = ""
    if policy.show_cwd and not empty:
        if not may_show(cwd, homes):
            left_out = cwd
        elif os.path.isdir(cwd):
            return cwd, cwd, ""
        elif policy.cwd is None:
            raise _out_of_reach(cwd)
    inside = cwd if policy.cwd is not None or _is_inside(cwd, homes) else "/"
    return inside, None, left_out


def _out_of_reach(cwd: str) -> PolicyError:
    """The error about a directory that somebody has closed above the caller."""
    message = f"cwd: {cwd} cannot be reached by its path: a directory above it is closed to you"
    hint = "change to another directory, or leave it out with --no-cwd (show_cwd=False)"
    return PolicyError(message, field="cwd", value=cwd, hint=hint)


def _is_snap(name: str) -> PolicyError:
    message = f"args: {name} is a snap: snapd starts it, with rights that no capsule gives away"
    hint = "install the program in another way, for instance as a package of the distribution"
    return PolicyError(message, field="args", value=name, hint=hint)


def _is_inside(path: str, homes: list[str]) -> bool:
    """Return whether a directory that is not shown still has a namesake in every capsule."""
    places = ("/", "/tmp", "/var/tmp", "/etc", "/proc", "/dev", "/run", "/var")
    return path in places or any(is_below(home, path) for home in (homes[0], real_path(homes[0])))


def _needs(
    steps: tuple[str, ...], search: str, homes: list[str], *, host_root: bool
) -> Iterator[Shown]:
    """Yield what lies outside of the system's places but has to be seen for the program to start.

    The caller named the program and owns PATH: what is on it is shown, for the program may start it.
    Where a link leads and what a first line says, the program itself may have made up: of that, a whole
    prefix is shown only if its programs are on PATH.
    """
    others = _unusual(search)
    trusted = {*search.split(":"), os.path.dirname(steps[0])}
    hopped = [hop for program in steps for hop in hops(program) if not is_of_system(hop)]
    if others or hopped:
        from .toolchains import Around  # most programs are the system's

        around = Around(homes, host_root=host_root)
        for hop in hopped:
            yield from around.program(hop, whole=os.path.dirname(hop) in trusted)
            if is_below(steps[0], "/opt") or is_of_system(steps[0]):
                yield from around.opt(hop)
        for path in others:
            yield from around.on_path(path)


_unusual_of: tuple[str, list[str]] = ("", [])


def _unusual(search: str) -> list[str]:
    """The directories of PATH that are not there in any case; kept, as PATH seldom changes."""
    global _unusual_of  # noqa: PLW0603
    if _unusual_of[0] != search:
        folders = islice(dict.fromkeys(search.split(":")), _FOLDERS)
        _unusual_of = search, [path for path in folders if not _is_usual(path)]
    return _unusual_of[1]


def _is_usual(folder: str) -> bool:
    """Return whether a directory of PATH is there in any case, or of no use inside.

    What snapd has there starts nothing without it, and to look at a drive of Windows is slow.
    """
    is_drive = folder.startswith("/mnt/") and folder[6:7] in ("/", "")
    return not folder.startswith("/") or is_of_system(folder) or folder in _SNAPS or is_drive

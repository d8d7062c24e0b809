"""What is to be run: the argument vector, where its program lies, and what that needs to be seen.

This reads the host's files with the caller's rights, before the plan, so that the plan can be pure.
"""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.base.values import Value
from capsule.confine.seccomp.filters import read_document
from capsule.host.ids import NOBODY, own_names
from capsule.host.places import ROOT_OWN, SYSTEM, home_inside, known_homes, may_show
from capsule.policy.mounts import MountKind
from capsule.policy.policy import IdMap, System

from .scripts import candidates, first_line, hops, is_executable, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from capsule.policy.policy import Policy

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSED_ON = ("PATH", "LANG", "LANGUAGE", "TERM", "COLORTERM", "TZ")

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
        shown: (path, reason) of what else of the host the program needs, read-only.
        root_entries: (path inside, link target or None) of what ``Policy.root`` holds.
        needed: (path, link target or None, reason) of the host's programs that it needs, if only those
            are to be shown.
        filter_rules: content of the file that ``Policy.seccomp`` names, or None.
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
    shown: tuple[tuple[str, str], ...] = ()
    root_entries: tuple[tuple[str, str | None], ...] = ()
    needed: tuple[tuple[str, str | None, str], ...] = ()
    filter_rules: bytes | None = None


def resolve(args: Sequence[str | bytes | os.PathLike[str]], policy: Policy) -> Command:
    """Find out where the command lies and what it needs.

    Raises:
        PolicyError: there is no command, or a word of it cannot be passed on.
    """
    words = _words(args)
    homes = known_homes()
    last = _last
    if last is not None and last.holds(policy, words[0], homes):
        return last.command if words == last.command.args else last.command.replace(args=words)
    command = _resolve(words, policy, homes)
    _remember(policy, words[0], homes, command)
    return command


def _resolve(words: tuple[str, ...], policy: Policy, homes: list[str]) -> Command:
    home = home_inside(homes[0], whole_root=bool(policy.root))
    user, group = _names(policy)
    env = _environment(policy, home, user)
    cwd, working_directory = _working_directory(policy, homes)
    paths = candidates(words[0], env.get("PATH", os.defpath), _lookup_directory(policy, cwd))
    found = None if policy.root else next(filter(is_executable, paths), None)
    shown: dict[str, str] = {}
    if found is not None and policy.system is System.ALL:
        host_root = policy.id_map is IdMap.HOST_ROOT
        for path, reason in _needs(found, env.get("PATH", os.defpath), homes, host_root=host_root):
            shown.setdefault(path, reason)
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
        shown=tuple(shown.items()),
        root_entries=() if policy.root is None else _root_entries(policy.root),
        needed=_needed(policy, found, env.get("PATH", os.defpath)),
        filter_rules=read_document(policy.seccomp),
    )


class _Kept(Value):
    """A program of the system, with all that finding it depended on."""

    policy: Policy
    name: str
    homes: list[str]
    environment: dict[bytes, bytes]
    seen: tuple[object, ...]
    command: Command

    def holds(self, policy: Policy, name: str, homes: list[str]) -> bool:
        """Return whether the same would be found again. Homes are the same list as long as they are."""
        if policy is not self.policy or name != self.name or homes is not self.homes:
            return False
        if _raw_environment() != self.environment:
            return False
        found = next(filter(is_executable, self.command.paths), None)
        try:
            return found is not None and found == self.command.found and _seen(found) == self.seen
        except OSError:
            return False


_last: _Kept | None = None


def _remember(policy: Policy, name: str, homes: list[str], command: Command) -> None:
    """Keep what depends on nothing but what `_Kept` compares: no script, no link out of the system.

    Of another working directory than the caller's own, the links on the way may change.
    """
    global _last  # noqa: PLW0603
    plain = policy.cwd is None and policy.root is None and policy.system is System.ALL
    environment = _raw_environment()
    if not plain or environment is None or command.found is None or command.filter_rules is not None:
        return
    if command.shown or first_line(command.found):
        return
    try:
        _last = _Kept(policy, name, homes, dict(environment), _seen(command.found), command)
    except OSError:
        return


def _raw_environment() -> dict[bytes, bytes] | None:
    """Return what os.environ decodes anew at each look; None if it is no longer Python's own."""
    return getattr(os.environ, "_data", None)


def _seen(program: str) -> tuple[object, ...]:
    """Where the caller is, and which file the program is."""
    now = os.stat(program)
    return os.getcwd(), now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _lookup_directory(policy: Policy, cwd: str) -> str:
    """Where a command with a slash in its name is looked for: here, even if that is not shown."""
    if policy.cwd is not None or policy.show_cwd or policy.root is not None:
        return cwd
    try:
        return os.getcwd()
    except FileNotFoundError:
        return cwd


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
    if policy.env is None:
        env.setdefault("PATH", DEFAULT_PATH)
    for name, value in policy.extra_env:
        if value is not None:
            env[name] = value
        elif name in host:
            env[name] = host[name]
    return env


def _working_directory(policy: Policy, homes: list[str]) -> tuple[str, str | None]:
    """(Where the command starts, what to show there). Homes and system places are never shown."""
    try:
        base = os.getcwd()
    except FileNotFoundError:
        base = ""
    if policy.cwd is None and policy.root:
        return "/", None
    if not base and (policy.cwd is None or not policy.cwd.startswith("/")):
        hint = "change to a directory that exists, or name one with --chdir (cwd=)"
        raise PolicyError("cwd: the working directory is gone", field="cwd", hint=hint)
    cwd = os.path.normpath(os.path.join(base, policy.cwd or "."))
    cwd = "/" + cwd.lstrip("/")
    covering = [mount for mount in policy.mounts if mount.kind in HOLDING and is_below(cwd, mount.at)]
    # What is made up holds nothing: what lies below it is not there, unless it was asked for.
    empty = covering and all(mount.kind in EMPTY and mount.at != cwd for mount in covering)
    if policy.root or (covering and not empty):
        return cwd, None
    if policy.show_cwd and not empty and may_show(cwd, homes) and os.path.isdir(cwd):
        return cwd, cwd
    return (cwd, None) if policy.cwd is not None or _is_inside(cwd, homes) else ("/", None)


def _is_inside(path: str, homes: list[str]) -> bool:
    """Return whether a directory that is not shown still has a namesake in every capsule."""
    places = ("/", "/tmp", "/var/tmp", "/etc", "/proc", "/dev", "/run", "/var")
    return path in places or is_below(homes[0], path)


def _needs(found: str, search: str, homes: list[str], *, host_root: bool) -> Iterator[tuple[str, str]]:
    """Yield what lies outside of the system's places but has to be seen for the program to start.

    The caller named the program and owns PATH. Where a link leads and what a first line says, the
    program itself may have made up: of that, a whole prefix is shown only if its programs are on PATH.
    """
    trusted = set(search.split(":"))
    trusted.add(os.path.dirname(found))
    for program in programs(found, search):
        for hop in hops(program):
            if not any(is_below(hop, place) for place in SYSTEM):
                from .toolchains import Clear, around  # most programs are the system's

                clear = Clear(host_root=host_root)
                yield from around(hop, homes, clear, whole=os.path.dirname(hop) in trusted)

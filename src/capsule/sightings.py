"""What in a tree is protected by name: found before a capsule and after it, by the same rules."""

from __future__ import annotations

import os

from .guards import GUARD_DEPTH, GUARD_ENTRIES, IN_GIT, REPOSITORIES
from .values import Value
from .walk import kind_of, open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .guards import Guard


class Sight(Value):
    """Something that a guard names.

    Attributes:
        path: from the tree's top. A link in the place of a directory above it is meant itself.
        guard: the guard's name.
        identity: what stands there: "DEVICE:INODE", or of a link "link:" and its text.
        kind: as in `walk.Entry`.
    """

    path: str
    guard: str
    identity: str
    kind: str


class View(Value):
    """All of a tree that guards name.

    Attributes:
        found: each path once.
        depth: how many levels below the top were looked through completely; -1 if not even the top.
            The second look at a tree must go no deeper than the first: what is new could not be
            told from what was not seen.
        closed: directories that the caller cannot look into, the first few.
    """

    found: tuple[Sight, ...]
    depth: int
    closed: tuple[str, ...] = ()

    def notes(self, tree: str, depth: int = GUARD_DEPTH) -> tuple[str, ...]:
        """What was not looked at, in words."""
        notes = [f"cannot look for protected names in {_join(tree, path)}" for path in self.closed]
        if self.depth < depth:
            levels = f"{self.depth + 1} of {depth + 1} levels" if self.depth >= 0 else "its top"
            notes.append(
                f"{tree} has too many entries: only {levels} looked through for protected names"
            )
        return tuple(notes)


def look(
    top: int, guards: Iterable[Guard], *, depth: int = GUARD_DEPTH, most: int = GUARD_ENTRIES
) -> View:
    """Find what guards name in a tree that others may write to, following no link.

    Args:
        top: descriptor of its directory; O_PATH will do.
        guards: as `within` gives them.
        depth: how many levels below the top are looked through.
        most: after how many entries that ends.
    """
    search = _Search(top, tuple(guards), most)
    search.look_up("", search.guards)
    reached = search.descend(depth)
    return View(tuple(search.found.values()), reached, tuple(search.closed))


# Of these names git knows a repository.
_REPOSITORY = frozenset(("HEAD", "objects", "refs", "commondir"))


class _Full(Exception):
    """More entries than were to be looked at."""


_CLOSED_SHOWN = 8
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Search:
    """One look at a tree.

    Each directory is opened from the top anew, component by component: none lies deep.
    """

    def __init__(self, top: int, guards: tuple[Guard, ...], most: int) -> None:
        self.guards = guards
        self.found: dict[str, Sight] = {}
        self.closed: dict[str, None] = {}
        self._top = top
        self._left = most
        self._anywhere = tuple(guard for guard in guards if guard.anywhere)
        self._by_first: dict[str, list[Guard]] = {}
        for guard in self._anywhere:
            self._by_first.setdefault(_folded(guard.path.partition("/")[0]), []).append(guard)
        # Not looked into: the guard names all of it.
        self._whole = {guard.path for guard in self._anywhere if not guard.unless_directory}
        self._in_git = tuple(
            guard.replace(at=guard.path.removeprefix(".git/"))
            for guard in self._anywhere
            if guard.name in IN_GIT
        )

    def descend(self, depth: int) -> int:
        """Look through the levels one after the other, and say which was the last complete one."""
        level = [""]
        for number in range(depth + 1):
            try:
                level = [below for path in level for below in self._directory(path)]
            except _Full:
                return number - 1
        return depth

    def _directory(self, path: str) -> list[str]:
        """Look through one directory, and give those in it that are to be looked through."""
        listed = self._names(path, self._anywhere)
        if listed is None:
            return []
        names, directories = listed
        for name in names:
            self.look_up(path, self._by_first.get(_folded(name), ()))
        if _is_repository(names):
            self.look_up(path, self._in_git)
        if ".git" in directories and self._in_git:
            for name in REPOSITORIES:
                self._repositories(_join(path, f".git/{name}"), GUARD_DEPTH)
        return [_join(path, name) for name in directories if name not in self._whole and name != ".git"]

    def _repositories(self, path: str, depth: int) -> None:
        """Look through .git/modules or .git/worktrees: the names of submodules may have slashes."""
        listed = self._names(path, self._in_git)
        if listed is None:
            return
        names, directories = listed
        inner: Iterable[str] = directories
        if "HEAD" in names:
            self.look_up(path, self._in_git)
            # git takes no submodule whose repository lies elsewhere in that of another.
            inner = [name for name in REPOSITORIES if name in directories]
        if depth:
            for name in inner:
                self._repositories(_join(path, name), depth - 1)

    def _names(self, path: str, guards: tuple[Guard, ...]) -> tuple[set[str], list[str]] | None:
        """(Names in a directory that may count, those of directories); None if it is gone or closed.

        One that cannot be listed may still be searched: there the guards are looked up one by one.
        """
        names: set[str] = set()
        directories: list[str] = []
        try:
            fd = open_beneath(self._top, path, _LIST)
        except PermissionError:
            self._close(path)
            self.look_up(path, guards)
            return None
        except OSError:
            return None
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if not self._left:
                        self.look_up(path, guards)
                        raise _Full
                    self._left -= 1
                    if entry.name in _REPOSITORY or _folded(entry.name) in self._by_first:
                        names.add(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
        except OSError:
            self._close(path)
        finally:
            os.close(fd)
        return names, directories

    def look_up(self, directory: str, guards: Iterable[Guard]) -> None:
        """Look for each of the guards' paths in a directory, as its file system compares names."""
        if not guards:
            return
        try:
            fd = open_beneath(self._top, directory, _PASS)
        except OSError:
            return
        try:
            for guard in guards:
                self._look_up(fd, directory, guard)
        finally:
            os.close(fd)

    def _look_up(self, fd: int, directory: str, guard: Guard) -> None:
        try:
            path, identity, kind = _find(fd, guard.path)
        except OSError:
            return
        place = _join(directory, path)
        if kind == "closed":
            self._close(place)
        elif not (guard.unless_directory and kind == "directory"):
            self.found.setdefault(place, Sight(place, guard.name, identity, kind))

    def _close(self, path: str) -> None:
        if len(self.closed) < _CLOSED_SHOWN:
            self.closed[path] = None


def _find(top: int, path: str) -> tuple[str, str, str]:
    """(The path as far as the first link in it, what stands there, its kind).

    Of a path that leads through a directory that cannot be searched, that one and "closed".

    Raises:
        OSError: there is nothing.
    """
    fd = os.dup(top)
    try:
        names = path.split("/")
        for number, name in enumerate(names, 1):
            try:
                identity, kind = identify(fd, name)
            except PermissionError:
                return "/".join(names[: number - 1]), "", "closed"
            if kind == "symlink" or number == len(names):
                return "/".join(names[:number]), identity, kind
            below = os.open(name, _PASS, dir_fd=fd)
            os.close(fd)
            fd = below
        raise AssertionError("a path has a name")
    finally:
        os.close(fd)


def identify(directory: int, name: str) -> tuple[str, str]:
    """(What tells this from all else that could stand there, its kind).

    Raises:
        OSError: there is nothing.
    """
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = kind_of(found.st_mode)
    if kind == "symlink":
        return f"link:{os.readlink(name, dir_fd=directory)}", kind
    return f"{found.st_dev}:{found.st_ino}", kind


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory and name else directory or name


def _folded(name: str) -> str:
    """What names have in common that a file system that folds case may take for one.

    Only which names are looked up depends on it: whether they are one says the file system. ext4
    leaves out characters that have no width, so all that is not ASCII is left out here.
    """
    if name.isascii():
        return name.lower()
    return name.casefold().encode("ascii", "ignore").decode()


def _is_repository(names: set[str]) -> bool:
    """Whether git takes a directory with these names for a repository, whatever its own name is."""
    return "HEAD" in names and ({"objects", "refs"} <= names or "commondir" in names)

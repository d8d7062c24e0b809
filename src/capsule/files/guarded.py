"""What in a tree is protected by name: found before a capsule and after it, by the same rules."""

from __future__ import annotations

import os

from capsule.base.errors import HostError
from capsule.base.text import printable
from capsule.base.values import Value
from capsule.files.trees.cursor import LIST, Way
from capsule.files.trees.links import EXHAUSTED, Links, identify, is_nothing

from .guards import GUARD_DEPTH, GUARD_ENTRIES, IN_GIT, REPOSITORIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capsule.policy.protected import Guard


class Sight(Value):
    """Something that a guard names.

    Attributes:
        path: from the tree's top. A link in the place of a directory above it is meant itself.
        guard: the guard's name.
        identity: what stands there: "DEVICE:INODE"; of a link "link:" and its text, and if it leads to
            something a NUL and what that is.
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
        deeper: whether there are directories below those levels.
    """

    found: tuple[Sight, ...]
    depth: int
    closed: tuple[str, ...] = ()
    deeper: bool = False

    def notes(self, tree: str, depth: int = GUARD_DEPTH) -> tuple[str, ...]:
        """Return what was not looked at, in words, when so many levels were to be looked through."""
        notes = [f"cannot look for protected names in {_join(tree, path)}" for path in self.closed]
        levels = f"{self.depth + 1} of {depth + 1} levels" if self.depth >= 0 else "its top"
        if self.depth < depth:
            notes.append(
                f"{tree} has too many entries: only {levels} looked through for protected names"
            )
        elif self.deeper:
            levels = f"its first {self.depth + 1} levels" if self.depth > 0 else "its top"
            notes.append(f"{tree} is deeper: only {levels} looked through for protected names")
        return tuple(notes)


def look(
    top: int,
    guards: Iterable[Guard],
    *,
    depth: int = GUARD_DEPTH,
    most: int = GUARD_ENTRIES,
    again: tuple[str, Mapping[str, str]] | None = None,
) -> View:
    """Find what guards name in a tree that others may write to, following no link out of it.

    Args:
        top: descriptor of its directory; O_PATH will do.
        guards: as `within` gives them.
        depth: how many levels below the top are looked through.
        most: after how many entries that ends.
        again: for the second look (where the tree was, path to identity of what the first one found):
            directories of the caller's own that are closed to it are opened up meanwhile; and only of
            links that are still the same it is found out what they lead to.

    Raises:
        OSError: no more descriptors, or no memory. Nothing is known of the tree then.
    """
    tree, known = again or (os.readlink(f"/proc/self/fd/{top}"), None)
    search = _Search(top, tuple(guards), most, Links(top, tree, open_up=known is not None), known)
    search.look_up("", search.guards)
    reached, deeper = search.descend(depth)
    return View(tuple(search.found.values()), reached, tuple(search.closed), deeper)


def first_look(path: str, guards: Iterable[Guard]) -> tuple[View, tuple[int, int]] | None:
    """`look` at a tree by its path, before anything can happen in it; and its (device, inode).

    Returns:
        None if it cannot be opened: the step that opens it says why.

    Raises:
        HostError: no more descriptors, or no memory. What is not seen would not be protected.
    """
    try:
        top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise _cannot_look(path, error) from None
        return None
    try:
        status = os.fstat(top)
        return look(top, guards), (status.st_dev, status.st_ino)
    except OSError as error:
        raise _cannot_look(path, error) from None
    finally:
        os.close(top)


def _cannot_look(path: str, error: OSError) -> HostError:
    why = os.strerror(error.errno or 0)
    message = f"{printable(path)} could not be looked through for protected names: {why}"
    return HostError(message, hint="try again with fewer files open, or a higher limit (ulimit -n)")


# Of these names git knows a repository.
_REPOSITORY = frozenset(("HEAD", "objects", "refs", "commondir"))


class _Full(Exception):
    """More entries than were to be looked at."""


_CLOSED_SHOWN = 8
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Search:
    """One look at a tree.

    Each directory is opened from the top anew, component by component: none lies deep.
    """

    def __init__(
        self,
        top: int,
        guards: tuple[Guard, ...],
        most: int,
        links: Links,
        known: Mapping[str, str] | None,
    ) -> None:
        self.guards = guards
        self.found: dict[str, Sight] = {}
        self.closed: dict[str, None] = {}
        self._top = top
        self._left = most
        self._links = links
        self._known = known
        self._open_up = known is not None
        self._deeper = False
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

    def descend(self, depth: int) -> tuple[int, bool]:
        """Look through the levels one after the other.

        Returns:
            Which was the last complete one; whether there is more below these.
        """
        level = [""]
        for number in range(depth + 1):
            try:
                level = [below for path in level for below in self._directory(path)]
            except _Full:
                return number - 1, True
        return depth, bool(level) or self._deeper

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
        if not depth:
            self._deeper = self._deeper or bool(inner)
            return
        for name in inner:
            self._repositories(_join(path, name), depth - 1)

    def _names(self, path: str, guards: tuple[Guard, ...]) -> tuple[set[str], list[str]] | None:
        """(Names in a directory that may count, those of directories); None if it is not there.

        One that cannot be listed may still be searched: there the guards are looked up one by one.
        """
        names: set[str] = set()
        directories: list[str] = []
        try:
            with Way(self._top, path, LIST, open_up=self._open_up) as way:
                self._list(way, names, directories)
        except _Full:
            self.look_up(path, guards)
            raise
        except OSError as error:
            if is_nothing(error):
                return None
            self._close(path)
            self.look_up(path, guards)
        return names, directories

    def _list(self, way: Way, names: set[str], directories: list[str]) -> None:
        fd = os.open(".", _LIST, dir_fd=way.fd)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if not self._left:
                        raise _Full
                    self._left -= 1
                    if entry.name in _REPOSITORY or _folded(entry.name) in self._by_first:
                        names.add(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
        finally:
            os.close(fd)

    def look_up(self, directory: str, guards: Iterable[Guard]) -> None:
        """Look for each of the guards' paths in a directory, as its file system compares names."""
        if not guards:
            return
        try:
            with Way(self._top, directory, open_up=self._open_up) as way:
                for guard in guards:
                    self._look_up(way.fd, directory, guard)
        except OSError as error:
            if not is_nothing(error):
                self._close(directory)

    def _look_up(self, fd: int, directory: str, guard: Guard) -> None:
        try:
            with Way(fd, open_up=self._open_up) as way:
                path, identity, kind = _find(way, guard.path)
        except OSError as error:
            if not is_nothing(error):
                self._close(_join(directory, guard.path))
            return
        place = _join(directory, path)
        if kind == "closed":
            self._close(place)
        elif place not in self.found and not (guard.unless_directory and kind == "directory"):
            if kind == "symlink" and self._is_same(place, identity):
                identity += self._links.follow(place, identity.removeprefix("link:"))
            self.found[place] = Sight(place, guard.name, identity, kind)

    def _is_same(self, place: str, link: str) -> bool:
        """Return whether a link can be the one that was found first. If not, it is new."""
        return self._known is None or self._known.get(place, "").partition("\0")[0] == link

    def _close(self, path: str) -> None:
        if len(self.closed) < _CLOSED_SHOWN:
            self.closed[path] = None


def _find(way: Way, path: str) -> tuple[str, str, str]:
    """(The path as far as the first link in it, what stands there, its kind).

    Of a path that leads through a directory that cannot be searched, that one and "closed".

    Raises:
        OSError: there is nothing.
    """
    names = path.split("/")
    for number, name in enumerate(names, 1):
        try:
            identity, kind = identify(way.fd, name)
        except PermissionError:
            return "/".join(names[: number - 1]), "", "closed"
        if kind == "symlink" or number == len(names):
            return "/".join(names[:number]), identity, kind
        way.down(name)
    raise AssertionError("a path has a name")


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory and name else directory or name


def _folded(name: str) -> str:
    """Return what names have in common that a file system that folds case may take for one.

    Only which names are looked up depends on it: whether they are one says the file system. ext4
    leaves out characters that have no width, so all that is not ASCII is left out here.
    """
    if name.isascii():
        return name.lower()
    return name.casefold().encode("ascii", "ignore").decode()


def _is_repository(names: set[str]) -> bool:
    """Return whether git takes a directory with these names for a repository, whatever it is called."""
    return "HEAD" in names and ({"objects", "refs"} <= names or "commondir" in names)

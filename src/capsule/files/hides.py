"""What is to be hidden: the places that a policy's hides name, as they are when the capsule starts."""

from __future__ import annotations

import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import above, is_below
from capsule.files.trees.walk import TooMany, entries, open_beneath, stat_beneath
from capsule.host.places import DATA, MADE, ROOT_OWN, SYSTEM
from capsule.policy.mounts import FROM_HOST, Mount, MountKind

from .found import Found
from .patterns import Pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from capsule.files.trees.walk import Entry

# Of all trees together: about ten seconds.
MOST_ENTRIES = 2_000_000
# Each is a mount.
MOST_HIDDEN = 4096
LONGEST_PATH = 4095


class Tree:
    """A directory of the host that is shown.

    Attributes:
        at: its place inside.
        path: on the host, without a symbolic link in it.
        mount: its mount, or None if it is shown unasked or as the root.
        holds_programs: whether it is shown as what programs of the home are made of.
    """

    __slots__ = ("at", "holds_programs", "mount", "path")

    def __init__(
        self, at: str, path: str, mount: Mount | None = None, *, holds_programs: bool = False
    ) -> None:
        self.at = at
        self.path = path
        self.mount = mount
        self.holds_programs = holds_programs

    def place(self, path: str) -> str:
        """The place inside of a path below it."""
        return f"{self.at.rstrip('/')}/{path}"

    @property
    def is_changeable(self) -> bool:
        """Whether the command can change permissions in it."""
        return self.mount is not None and self.mount.kind is not MountKind.READ_ONLY


# --------------------------------------------------------------------------------- places by name


def find_place(mount: Mount, trees: Sequence[Tree], mounts: Sequence[Mount]) -> Found | str:
    """Return what a hide that names one place finds; or a note, if there is nothing.

    Raises:
        PolicyError: it is missing and not optional, or a symbolic link.
    """
    tree = _tree_of(mount.at, trees)
    made = max((m.at for m in mounts if _is_made(m) and is_below(mount.at, m.at)), key=len, default="")
    if tree is not None and len(tree.at) >= len(made):
        return _find_in_tree(mount, tree)
    if made:
        return _missing(mount)
    return _find_in_default(mount)


def _is_made(mount: Mount) -> bool:
    return mount.kind not in (*FROM_HOST, MountKind.HIDE) or mount.kind is MountKind.FILE


def _tree_of(place: str, trees: Iterable[Tree]) -> Tree | None:
    """The innermost tree in which a place lies."""
    holding = [tree for tree in trees if is_below(place, tree.at)]
    return max(holding, key=lambda tree: len(tree.at), default=None)


def _find_in_tree(mount: Mount, tree: Tree) -> Found | str:
    path = mount.at[len(tree.at.rstrip("/")) + 1 :]
    on_host = os.path.join(tree.path, path)
    found = None
    try:
        top = os.open(tree.path, os.O_PATH | os.O_CLOEXEC)
        try:
            found = stat_beneath(top, path)
        finally:
            os.close(top)
    except OSError as error:
        if isinstance(error, NotADirectoryError) and os.path.lexists(on_host):
            raise _through_link(mount, os.path.realpath(on_host)) from None
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            # The command may see no more than the caller does, unless it can change permissions.
            message = f"mounts: hide {mount.at}: cannot look at {on_host}: {error.strerror}"
            hint = "open the directories above it to the caller, or hide one of those"
            raise PolicyError(message, field="mounts", value=mount.at, hint=hint) from None
    if found is None:
        # An upper layer that is kept may have what the lower one has not.
        if tree.mount is not None and tree.mount.keep:
            return Found(mount.replace(optional=True), "", is_directory=False)
        return _missing(mount)
    if stat.S_ISLNK(found.st_mode):
        raise _through_link(mount, os.path.realpath(on_host))
    return Found(mount, on_host.rstrip("/"), stat.S_ISDIR(found.st_mode))


def _find_in_default(mount: Mount) -> Found | str:
    """In what is shown unasked there may be less than on the host: then there is nothing to cover."""
    maybe = mount.replace(optional=True)
    try:
        found = os.lstat(mount.at)
    except OSError:
        own = (*MADE, os.environ.get("HOME") or "/root", "/root")
        if any(is_below(mount.at, place) for place in own):
            return Found(maybe, "", is_directory=False)
        return _missing(mount)
    if stat.S_ISLNK(found.st_mode) and os.path.dirname(mount.at) not in ("/", "/etc", "/dev"):
        raise _through_link(mount, os.path.realpath(mount.at))
    return Found(maybe, os.path.realpath(mount.at), stat.S_ISDIR(found.st_mode))


def _missing(mount: Mount) -> str:
    if mount.optional:
        return f"hide {mount.at}: it is not there and need not be hidden"
    hint = "correct the path, or make it optional"
    raise PolicyError(
        f"mounts: hide {mount.at}: it is not there", field="mounts", value=mount.at, hint=hint
    )


def _through_link(mount: Mount, real: str) -> PolicyError:
    message = f"mounts: hide {mount.at}: a symbolic link leads from there to {real}"
    hint = "hide what it leads to: that can be reached under its own name"
    return PolicyError(message, field="mounts", value=mount.at, hint=hint)


# --------------------------------------------------------------------------------- places by pattern


class Matches:
    """What the patterns of a policy match in the trees that are shown.

    Attributes:
        found: place to (the number of the last mount whose pattern matches, whether a directory).
        notes: what could not be looked at.
        covers: places where a mount stands: what lies there on the host is not shown.
        uid: the caller.
        left: how many entries may still be looked at.
    """

    def __init__(self, patterns: Sequence[tuple[int, Mount]], covers: set[str], uid: int) -> None:
        self.found: dict[str, tuple[int, bool]] = {}
        self.notes: list[str] = []
        self.covers = covers
        self.uid = uid
        self.left = MOST_ENTRIES
        self._patterns = [(number, Pattern(mount.at)) for number, mount in patterns]
        self._matched: set[int] = set()
        self._optional = {number for number, mount in patterns if mount.optional}

    def look(self, trees: Sequence[Tree]) -> None:
        """Look through all trees.

        Raises:
            PolicyError: there is too much to look through, or something that cannot be; or a pattern
                can only match where none is looked for.
        """
        for number, pattern in self._patterns:
            if number not in self._optional and self._is_vain(pattern, trees):
                raise _vain(pattern)
        for tree in (*trees, *self._host_trees(trees)):
            patterns = [one for one in self._patterns if _is_near(one[1], tree.at)]
            if tree.holds_programs:
                # As the host's programs: only what an absolute pattern names of them.
                patterns = [one for one in patterns if one[1].prefix != "/"]
            if patterns:
                _Search(self, tree, patterns, trees).run()

    def sources(self, trees: Sequence[Tree]) -> list[tuple[int, str, bool]]:
        """(Number of the hide, path on the host, whether a directory) of what was found in trees.

        What is hidden because a mount stands at its place is not a file that the pattern means.
        """
        found = []
        for place, (number, is_directory) in self.found.items():
            tree = None if place in self.covers else _tree_of(place, trees)
            if tree is not None:
                path = tree.path.rstrip("/") + place[len(tree.at.rstrip("/")) :]
                found.append((number, path, is_directory))
        return found

    def match(self, place: str) -> int:
        """The number of the last mount whose pattern matches, or -1."""
        return self.last(place, self._patterns)

    def idle(self) -> list[str]:
        """A note on each pattern without a match: who wrote it meant something."""
        return [
            f"hide {pattern.text}: nothing matches, so nothing is hidden by it"
            for number, pattern in self._patterns
            if number not in self._matched
        ]

    def last(self, place: str, patterns: Sequence[tuple[int, Pattern]]) -> int:
        """As `match`, of some of the patterns."""
        name = place.rpartition("/")[2]
        for number, pattern in reversed(patterns):
            if pattern.may_match(name) and pattern.matches(place):
                self._matched.add(number)
                return number
        return -1

    def _host_trees(self, trees: Sequence[Tree]) -> Iterator[Tree]:
        """An absolute pattern may also mean the host's programs, and what they have elsewhere."""
        for _, pattern in self._patterns:
            start = pattern.prefix
            shown = any(is_below(start, place) for place in (*SYSTEM, *DATA))
            if shown and _tree_of(start, trees) is None and os.path.isdir(start):
                yield Tree(start, os.path.realpath(start))

    def _is_vain(self, pattern: Pattern, trees: Sequence[Tree]) -> bool:
        """Return whether it can match only what Capsule makes itself, or entries of the root."""
        start, depth = pattern.prefix, pattern.depth
        if start == "/" and depth is not None and any(map(pattern.matches, (*MADE, *SYSTEM))):
            return True
        # One that may match at any depth of any tree was not written for these places.
        if depth is None if start == "/" else not any(is_below(start, place) for place in MADE):
            return False
        # What lies in a directory of /etc is the host's; of that itself, what is shown is a mount each.
        held = (place for place in DATA if is_below(start, place))
        if any(depth is None or depth > place.count("/") + 1 for place in held):
            return False
        near = (tree.at for tree in trees if _is_near(pattern, tree.at))
        if any(depth is None or depth > at.rstrip("/").count("/") for at in near):
            return False
        return not any(map(pattern.matches, self.covers))

    def add(self, place: str, number: int, *, is_directory: bool) -> None:
        """Take in a place that is to be hidden."""
        self.found[place] = (max(number, self.found.get(place, (-1,))[0]), is_directory)
        if len(self.found) > MOST_HIDDEN:
            hint = "hide the directories in which these files lie, or show less"
            message = f"mounts: patterns match more than {MOST_HIDDEN} files"
            raise PolicyError(message, field="mounts", hint=hint)


def program_trees(places: set[str]) -> list[Tree]:
    """The host's programs, as far as no mount stands over them."""
    tops = [path for path in SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    return [Tree(path, path) for path in tops if not any(is_below(path, place) for place in places)]


def _vain(pattern: Pattern) -> PolicyError:
    message = f"mounts: hide {pattern.text}: it can only match in the root or in directories of"
    message += " Capsule's own, where no matches are looked for"
    hint = "name each path itself, or write a pattern for what is shown (--ro, --rw, --overlay)"
    return PolicyError(message, field="mounts", value=pattern.text, hint=hint)


class _Search:
    """One tree that is looked through."""

    def __init__(
        self,
        matches: Matches,
        tree: Tree,
        patterns: list[tuple[int, Pattern]],
        trees: Sequence[Tree],
    ) -> None:
        self._matches = matches
        self._tree = tree
        self._patterns = patterns
        self._trees = trees
        self._covers = matches.covers - set(above(tree.at))
        if tree.at == "/":
            self._covers.update(ROOT_OWN)
        # Where it begins: nearer to what can match, where that is known.
        starts = [pattern.prefix for _, pattern in patterns]
        common = os.path.commonpath(starts)
        self._at = common if is_below(common, tree.at) else tree.at
        self._base = self._at.rstrip("/")

    def run(self) -> None:
        """Add all that matches.

        Raises:
            PolicyError: there is too much to look through, or something that cannot be.
        """
        if any(place in self._covers for place in above(self._at)):
            return
        start = self._at[len(self._tree.at.rstrip("/")) + 1 :]
        try:
            top = os.open(self._tree.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fd = open_beneath(top, start, os.O_PATH | os.O_DIRECTORY)
            finally:
                os.close(top)
            try:
                self._search(fd)
            finally:
                os.close(fd)
        except TooMany:
            raise self._refusal(self._at, f"there are more than {MOST_ENTRIES} files") from None
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            note = f"{self._at} cannot be searched for what is to be hidden: {error.strerror}"
            self._matches.notes.append(note)

    def _search(self, top: int) -> None:
        left = self._matches.left
        for entry in entries(top, most=left, deepest=self._depth(), enter=self._enter):
            self._matches.left -= 1
            if entry.closed:
                self._judge_closed(entry, top)
            if any(pattern.may_match(entry.name) for _, pattern in self._patterns):
                self._record(entry)

    def _depth(self) -> int | None:
        """How many levels can match: none below the longest pattern, if all have a length."""
        depth = 0
        for _, pattern in self._patterns:
            if pattern.depth is None:
                return None
            depth = max(depth, pattern.depth)
        return depth - self._base.count("/")

    def _enter(self, path: str) -> bool:
        place = f"{self._base}/{path}"
        if len(place) > LONGEST_PATH:
            raise self._refusal(f"{place[:60]}...", "its path is too long")
        return place not in self._covers and self._matches.last(place, self._patterns) < 0

    def _record(self, entry: Entry) -> None:
        place = f"{self._base}/{entry.path}"
        number = self._matches.last(place, self._patterns)
        if number < 0:
            return
        if entry.kind != "symlink":
            self._matches.add(place, number, is_directory=entry.kind == "directory")
            return
        # It is only a name; what it leads to is covered, if that is shown.
        real = os.path.realpath(self._tree.path + place[len(self._tree.at.rstrip("/")) :])
        for tree in self._trees:
            if real != tree.path and is_below(real, tree.path) and os.path.lexists(real):
                target = tree.place(os.path.relpath(real, tree.path))
                self._matches.add(target, number, is_directory=os.path.isdir(real))
                self._matches.notes.append(f"{target} is hidden, because {place} is a link to it")

    def _judge_closed(self, entry: Entry, top: int) -> None:
        """Refuse or note what the caller cannot list: the command may be able to change that."""
        try:
            found = stat_beneath(top, entry.path)
        except OSError:
            return
        place = f"{self._base}/{entry.path}"
        if self._tree.is_changeable and found.st_uid == self._matches.uid:
            raise self._refusal(place, "it cannot be read")
        if found.st_mode & 0o111:
            self._matches.notes.append(f"{place} cannot be read: what lies in it is not hidden")

    def _refusal(self, place: str, why: str) -> PolicyError:
        text = self._patterns[0][1].text
        message = f"mounts: hide {text}: cannot look through {place}: {why}"
        hint = "hide or show a smaller directory by its name, or make it readable"
        return PolicyError(message, field="mounts", value=text, hint=hint)


def _is_near(pattern: Pattern, at: str) -> bool:
    return is_below(pattern.prefix, at) or is_below(at, pattern.prefix)

"""The part of the vocabulary of steps that builds the files: taken on the host, put together inside."""

from __future__ import annotations

from capsule.base.text import describe_size

from .step import Step, describe_attributes, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


# How `Tree` resolves its path.
NO_LINKS = 1
DIRECTORY = 2


class Tree(Step):
    """open_tree(2) a copy of a host tree. Arguments: the path, the attributes, how to resolve it."""

    __slots__ = ()
    word, signature, path_at = "tree", "pnn", 0

    def describe(self) -> str:
        """Name the source and its attributes."""
        return f"take {show(self[0])} from the host ({describe_attributes(self[1])})"


class MappedTree(Step):
    """As `Tree`, id-mapped where the file system can be. Arguments: those, the maps of uids and gids.

    mount_setattr(2) MOUNT_ATTR_IDMAP: what the capsule's ids do there, the mapped ids do on the host.
    """

    __slots__ = ()
    word, signature, path_at = "mapped-tree", "pnnss", 0

    def describe(self) -> str:
        """Name the source, its attributes and the maps (on disk, on the host, count)."""
        how = describe_attributes(self[1])
        maps = f"uid {show(self[3])}, gid {show(self[4])}"
        return f"take {show(self[0])} from the host ({how}), its ids mapped if it can be: {maps}"


class Device(Step):
    """Take a device node of the host. Arguments: the path, major, minor, the attributes."""

    __slots__ = ()
    word, signature, path_at = "device", "pnnn", 0
    text = "take the device {0} ({1}:{2}) from the host"


class Proc(Step):
    """Make a procfs of the new PID namespace."""

    __slots__ = ()
    word, text = "proc", "make a proc file system of the new PID namespace"


class PivotRoot(Step):
    """pivot_root(2) to a new tmpfs and detach the old root. Arguments: bytes, inodes."""

    __slots__ = ()
    word, signature = "pivot-root", "nn"

    def describe(self) -> str:
        """Name the size."""
        return f"make an empty {describe_size(self[0])} tmpfs the root and let the host's tree go"


class Directory(Step):
    """mkdir(2). Arguments: the path, the mode."""

    __slots__ = ()
    word, signature, path_at = "directory", "pn", 0

    def describe(self) -> str:
        """Name the mode in octal."""
        return f"make the directory {show(self[0])} ({self[1]:04o})"


class Symlink(Step):
    """symlink(2). Arguments: the target, the path."""

    __slots__ = ()
    word, signature, text, path_at = "symlink", "sp", "link {1} to {0}", 1


class File(Step):
    """Make a file. Arguments: the path, the mode, the content."""

    __slots__ = ()
    word, signature, path_at = "file", "pns", 0

    def describe(self) -> str:
        """Name the size, not the content."""
        size = len(self[2].encode("utf-8", "surrogateescape"))
        return f"write {show(self[0])} ({self[1]:04o}, {size} bytes)"


class Content(Step):
    """Make a file of any bytes. Arguments: the path, the mode, the bytes in hexadecimal."""

    __slots__ = ()
    word, signature, path_at = "content", "pns", 0

    def describe(self) -> str:
        """Name the size, not the content."""
        return f"write {show(self[0])} ({self[1]:04o}, {len(self[2]) // 2} bytes)"


class Tmpfs(Step):
    """Mount a tmpfs. Arguments: path, bytes, inodes, mode, attributes, uid and gid of its root."""

    __slots__ = ()
    word, signature, path_at = "tmpfs", "pnnnnnn", 0

    def describe(self) -> str:
        """Name the place, the size and the attributes."""
        how = describe_attributes(self[4])
        return f"mount a {describe_size(self[1])} tmpfs at {show(self[0])} ({self[3]:04o}, {how})"


class Devpts(Step):
    """Mount a devpts of its own. Arguments: the path."""

    __slots__ = ()
    word, signature, text, path_at = "devpts", "p", "mount a devpts of its own at {0}", 0


class Overlay(Step):
    """Mount an overlay. Arguments: path, lower layer, upper layer or NONE, bytes, inodes, attributes.

    The layers are numbers of what was taken. Without an upper one it is a new tmpfs of that size, and
    a descriptor of it goes to the supervisor.
    """

    __slots__ = ()
    word, signature, path_at = "overlay", "pnnnnn", 0
    NONE = 2**32 - 1

    def describe(self) -> str:
        """Name the place and where the upper layer is."""
        kept = "a directory of the host"
        upper = f"a {describe_size(self[3])} tmpfs" if self[2] == self.NONE else kept
        how = describe_attributes(self[5])
        return f"overlay at {show(self[0])}, its upper layer {upper} ({how})"


class Attach(Step):
    """move_mount(2) what was taken. Arguments: which, the path; and, for people, what it is."""

    __slots__ = ()
    word, signature, text, path_at = "attach", "np", "attach {2} at {1}", 1


class Remount(Step):
    """mount(2) MS_REMOUNT. Arguments: the path, attributes to add, whether also all below."""

    __slots__ = ()
    word, signature, path_at = "remount", "pnn", 0

    def describe(self) -> str:
        """Name the place and the attributes."""
        below = " and all mounts below it" if self[2] else ""
        return f"remount {show(self[0])}{below} ({describe_attributes(self[1])})"


class Covers(Step):
    """Make the empty file and the empty directory that cover what is to be hidden."""

    __slots__ = ()
    word, text = "covers", "make an empty file and an empty directory as covers"


class Hide(Step):
    """Cover a path with emptiness. Arguments: the path, attributes, whether it may be missing."""

    __slots__ = ()
    word, signature, text, path_at = "hide", "pnn", "cover {0} with emptiness", 0


class Mask(Step):
    """Cover paths with an empty file or directory. Arguments: attributes, a tuple of paths."""

    __slots__ = ()
    word, signature = "mask", "*"

    def words(self) -> Iterable[str]:
        """The attributes, then each path."""
        return (str(self[0]), *self[1])

    def describe(self) -> str:
        """Name every path."""
        return f"cover with emptiness: {', '.join(str(show(path)) for path in self[1])}"


class Protect(Step):
    """Bind a path over itself. Arguments: the path, attributes."""

    __slots__ = ()
    word, signature, path_at = "protect", "pn", 0

    def describe(self) -> str:
        """Name the place and the attributes."""
        return f"bind {show(self[0])} over itself ({describe_attributes(self[1])})"

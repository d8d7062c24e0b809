"""The vocabulary of steps: what the launcher can do, one class a thing.

A step is a tuple of its arguments. `encode` writes it for the launcher, `describe` for people. The
words, their order of arguments and the signatures are those of launcher/steps.def; a test compares.
"""

# ruff: noqa: PLC0414  (names that belong to the vocabulary, re-exported)

from __future__ import annotations

from .file_steps import DIRECTORY as DIRECTORY
from .file_steps import NO_LINKS as NO_LINKS
from .file_steps import Attach as Attach
from .file_steps import Content as Content
from .file_steps import Covers as Covers
from .file_steps import Device as Device
from .file_steps import Devpts as Devpts
from .file_steps import Directory as Directory
from .file_steps import File as File
from .file_steps import Hide as Hide
from .file_steps import MappedTree as MappedTree
from .file_steps import Mask as Mask
from .file_steps import Overlay as Overlay
from .file_steps import PivotRoot as PivotRoot
from .file_steps import Proc as Proc
from .file_steps import Protect as Protect
from .file_steps import Remount as Remount
from .file_steps import Symlink as Symlink
from .file_steps import Tmpfs as Tmpfs
from .file_steps import Tree as Tree
from .step import NAMESPACES as NAMESPACES
from .step import NO_DEV as NO_DEV
from .step import NO_EXEC as NO_EXEC
from .step import NO_SUID as NO_SUID
from .step import READ_ONLY as READ_ONLY
from .step import Step as Step
from .step import encode as encode
from .step import encode_more as encode_more
from .step import show as show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Features(Step):
    """Ask what the kernel offers."""

    __slots__ = ()
    word, text = "features", "ask the kernel what it offers"


class DropGroups(Step):
    """setgroups(2) with no groups."""

    __slots__ = ()
    word, text = "drop-groups", "drop the supplementary groups"


class Cgroup(Step):
    """The cgroup that was made for the capsule. For people only: where, its contents in words."""

    __slots__ = ()
    word, text = "cgroup", "make a cgroup in {0}: {1}"


class Namespaces(Step):
    """clone(2) init into new namespaces. Arguments: the CLONE_NEW* flags."""

    __slots__ = ()
    word, signature = "namespaces", "n"

    def names(self) -> tuple[str, ...]:
        """The kinds of namespace, in the order of the manual's names."""
        return tuple(name for name, flag in NAMESPACES.items() if self[0] & flag)

    def describe(self) -> str:
        """Name every namespace."""
        return f"enter new namespaces: {', '.join(self.names())}"


class DenySetgroups(Step):
    """Write "deny" to /proc/PID/setgroups; user_namespaces(7)."""

    __slots__ = ()
    word, text = "deny-setgroups", "deny setgroups in the user namespace"


class UidMap(Step):
    """Write /proc/PID/uid_map. Arguments: the map's text."""

    __slots__ = ()
    word, signature, text = "uid-map", "s", "map user ids (inside outside count): {0}"


class GidMap(Step):
    """Write /proc/PID/gid_map. Arguments: the map's text."""

    __slots__ = ()
    word, signature, text = "gid-map", "s", "map group ids (inside outside count): {0}"


class MapHelper(Step):
    """Have newuidmap(1) or newgidmap(1) write a map. Arguments: the program, the map's numbers."""

    __slots__ = ()
    word, signature, text, path_at = "map-helper", "ps", "map ids with {0}: {1}", 0


class Undumpable(Step):
    """prctl(2) PR_SET_DUMPABLE 0 for init: nobody inside may look into it."""

    __slots__ = ()
    word, text = "undumpable", "make init undumpable"


class Session(Step):
    """setsid(2)."""

    __slots__ = ()
    word, text = "session", "start a session of its own"


class Private(Step):
    """mount(2) MS_REC|MS_PRIVATE."""

    __slots__ = ()
    word, text = "private", "make the propagation of all mounts private"


class Identity(Step):
    """setresuid(2) and setresgid(2) of init. Arguments: uid, gid inside."""

    __slots__ = ()
    word, signature, text = "identity", "nn", "become uid {0}, gid {1}"


class Sysctl(Step):
    """Write a file of /proc/sys for a namespace of our own. Arguments: its name, the value."""

    __slots__ = ()
    word, signature, text = "sysctl", "ss", "set {0} to {1}"


class Loopback(Step):
    """Bring up the loopback interface."""

    __slots__ = ()
    word, text = "loopback", "bring up the loopback interface"


class Hostname(Step):
    """sethostname(2). Arguments: the name."""

    __slots__ = ()
    word, signature, text = "hostname", "s", "set the hostname to {0}"


class Terminal(Step):
    """Open a pty. Arguments: which of descriptors 0-2 become it, as bits; rows; columns."""

    __slots__ = ()
    word, signature = "terminal", "nnn"
    text = "open a terminal of its own ({1} rows, {2} columns)"


class Deadline(Step):
    """Kill everything after a time. Arguments: milliseconds from the command's start."""

    __slots__ = ()
    word, signature, text = "deadline", "n", "end everything after {0} ms"


class CpuTime(Step):
    """Kill everything after some CPU time. Arguments: microseconds; how many CPUs may use them up."""

    __slots__ = ()
    word, signature = "cpu-time", "nn"

    def describe(self) -> str:
        """In seconds."""
        return f"end everything after {self[0] / 1e6:g} s of CPU time"


class Idle(Step):
    """Kill everything once it has used no CPU for a time. Arguments: milliseconds."""

    __slots__ = ()
    word, signature, text = "idle", "n", "end everything that uses no CPU for {0} ms"


class WatchMemory(Step):
    """Kill everything that is seen to hold more memory. Arguments: bytes."""

    __slots__ = ()
    word, signature, text = (
        "watch-memory",
        "n",
        "end everything that holds more than {0} bytes of memory",
    )


class Stop(Step):
    """End a plan that runs no command."""

    __slots__ = ()
    word, text = "stop", "stop here"


class Descriptor(Step):
    """dup2(2). Arguments: ours, the command's."""

    __slots__ = ()
    word, signature, text = "descriptor", "nn", "pass on descriptor {1}"


class Chdir(Step):
    """chdir(2). Arguments: the path."""

    __slots__ = ()
    word, signature, text, path_at = "chdir", "p", "change to the directory {0}", 0


class Rlimit(Step):
    """setrlimit(2). Arguments: the resource's number, soft, hard; and, for people, its name."""

    __slots__ = ()
    word, signature, text = "rlimit", "nnn", "limit {3} to {1} at most"


class Affinity(Step):
    """sched_setaffinity(2). Arguments: how many of the CPUs."""

    __slots__ = ()
    word, signature, text = "affinity", "n", "run on {0} of the CPUs"


class BoundingSet(Step):
    """Cut the bounding set, empty the ambient set, lock the securebits; capabilities(7).

    Arguments: the capabilities to keep, as bits.
    """

    __slots__ = ()
    word, signature = "bounding-set", "n"

    def describe(self) -> str:
        """Name what is kept, by its bits."""
        if self[0]:
            return f"cut the bounding set to {self[0]:#x}, empty the ambient set, lock the securebits"
        return "empty the bounding and ambient sets, lock the securebits"


class Credentials(Step):
    """setgroups(2), setresgid(2), setresuid(2) of the command. Arguments: uid, gid inside."""

    __slots__ = ()
    word, signature, text = "credentials", "nn", "run as uid {0}, gid {1}, no other groups"


class Capabilities(Step):
    """capset(2). Arguments: the capabilities to keep, as bits."""

    __slots__ = ()
    word, signature = "capabilities", "n"

    def describe(self) -> str:
        """Name what is kept, by its bits."""
        return f"drop all capabilities but {self[0]:#x}" if self[0] else "drop all capabilities"


class NoNewPrivs(Step):
    """prctl(2) PR_SET_NO_NEW_PRIVS."""

    __slots__ = ()
    word, text = "no-new-privs", "set no_new_privs"


class Seccomp(Step):
    """seccomp(2) SECCOMP_SET_MODE_FILTER.

    Arguments: the program in hexadecimal digits; whether init listens to what it refuses; and, for
    people, what it allows.
    """

    __slots__ = ()
    word, signature, text = "seccomp", "sn", "filter system calls: {2}"


class Exec(Step):
    """execve(2). Arguments: tuples of the paths to try, of the arguments, of NAME=VALUE."""

    __slots__ = ()
    word, signature = "exec", "*"

    def words(self) -> Iterable[str]:
        """Each list with its length before it."""
        return [word for words in self for word in (str(len(words)), *words)]

    def describe(self) -> str:
        """The command's words; never its environment, which may hold secrets."""
        return "execute " + " ".join(str(show(word)) or "''" for word in self[1])

    @property
    def path(self) -> str | None:
        """What was to be executed, as the caller wrote it."""
        return str(self[1][0])

"""The vocabulary of steps: what the launcher can do, one class a thing.

The words, their order of arguments and the signatures are those of launcher/steps.def; a test compares.
"""

from __future__ import annotations

# ruff: noqa: PLC0414 - what is imported is a part of this vocabulary
from .step import Step as Step
from .step import encode as encode
from .step import encode_more as encode_more

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# mount_setattr(2) and fsmount(2)
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC = 0x1, 0x2, 0x4, 0x8

# How `Tree` resolves its path.
NO_LINKS, DIRECTORY = 1, 2

# clone(2)
NAMESPACES = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip


# --- on the host, then the files -----------------------------------------------------------------


class Features(Step, word="features", text="ask the kernel what it offers"):
    """Tell what the kernel offers."""


class Expect(Step, word="expect", signature="nnnnnn", text="find the kernel to be what was presumed"):
    """Fail with EOPNOTSUPP if it is not this. Arguments: the first six values of `Features`."""


class DropGroups(Step, word="drop-groups", text="drop the supplementary groups"):
    """setgroups(2) with no groups."""


class OomScoreAdj(Step, word="oom-score-adj", signature="n", text="be at oom_score_adj {0} or above"):
    """Write /proc/self/oom_score_adj; proc(5). Arguments: the least that is left."""


class Keyring(Step, word="keyring", text="join an empty session keyring that nobody can write to"):
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING of the user's capsules."""


class Cgroup(Step, word="cgroup", text="make a cgroup in {0}: {1}"):
    """The cgroup that was made for the capsule. For people only: where, its contents in words."""


class JoinUser(Step, word="join-user", text="join the user namespace of a base"):
    """setns(2) of CLONE_NEWUSER; see `planner.base`."""


class Apart(Step, word="apart", text="copy the host's mounts, to take trees of them"):
    """unshare(2) of CLONE_NEWNS, in a base's user namespace."""


class JoinMounts(Step, word="join-mounts", text="join the mount namespace of a base"):
    """setns(2) of CLONE_NEWNS."""


class Namespaces(Step, word="namespaces", signature="n"):
    """clone(2) init into new namespaces. Arguments: the CLONE_NEW* flags."""

    def names(self) -> tuple[str, ...]:
        """The kinds of namespace, in the order of the manual's names."""
        return tuple(name for name, flag in NAMESPACES.items() if self[0] & flag)

    @property
    def text(self) -> str:  # type: ignore[override]
        """Every namespace by its name."""
        return f"enter new namespaces: {', '.join(self.names())}"


class DenySetgroups(Step, word="deny-setgroups", text="deny setgroups in the user namespace"):
    """Write "deny" to /proc/PID/setgroups; user_namespaces(7)."""


class UidMap(Step, word="uid-map", signature="s", text="map user ids (inside outside count): {0}"):
    """Write /proc/PID/uid_map. Arguments: the map's text."""


class GidMap(Step, word="gid-map", signature="s", text="map group ids (inside outside count): {0}"):
    """Write /proc/PID/gid_map. Arguments: the map's text."""


class MapHelper(Step, word="map-helper", signature="ps", text="map ids with {0}: {1}"):
    """Have newuidmap(1) or newgidmap(1) write a map. Arguments: the program, the map's numbers."""


class Undumpable(Step, word="undumpable", text="make init undumpable"):
    """prctl(2) PR_SET_DUMPABLE 0 for init: nobody inside may look into it."""


class Session(Step, word="session", text="start a session of its own"):
    """setsid(2)."""


class Private(Step, word="private", text="make the propagation of all mounts private"):
    """mount(2) MS_REC|MS_PRIVATE."""


class Identity(Step, word="identity", signature="nn", text="become uid {0}, gid {1}"):
    """setresuid(2) and setresgid(2) of init. Arguments: uid, gid inside."""


class Tree(Step, word="tree", signature="pnn", text="take {0} from the host ({1:attributes})"):
    """open_tree(2) a copy of a host tree. Arguments: the path, the attributes, how to resolve it."""


class MappedTree(
    Step,
    word="mapped-tree",
    signature="pnnss",
    text="take {0} from the host ({1:attributes}), its ids mapped if it can be: uid {3}, gid {4}",
):
    """As `Tree`, MOUNT_ATTR_IDMAP if it can be. Arguments: those, maps: on disk, on the host, count."""


class Device(Step, word="device", signature="pnnn", text="take the device {0} ({1}:{2}) from the host"):
    """Take a device node of the host. Arguments: the path, major, minor, the attributes."""


class Proc(Step, word="proc", text="make a proc file system of the new PID namespace"):
    """Make a procfs of the new PID namespace."""


class Sysctl(Step, word="sysctl", signature="ss", text="set {0} to {1}"):
    """Write a file of /proc/sys for a namespace of our own. Arguments: its name, the value."""


class PivotRoot(
    Step,
    word="pivot-root",
    signature="nn",
    text="make an empty {0:size} tmpfs the root, let the host's go",
):
    """pivot_root(2) to a new tmpfs and detach the old root. Arguments: bytes, inodes."""


class Covers(Step, word="covers", signature="p", text="make an empty file and directory in {0}"):
    """Make the empty file and directory that cover what is to be hidden. Arguments: where."""


class FindCovers(Step, word="find-covers", signature="p", text="find the covers in {0}"):
    """Open what `Covers` has made in a base. Arguments: where."""


class Directory(Step, word="directory", signature="pn", text="make the directory {0} ({1:04o})"):
    """mkdir(2). Arguments: the path, the mode."""


class Symlink(Step, word="symlink", signature="sp", text="link {1} to {0}"):
    """symlink(2). Arguments: the target, the path."""


class File(Step, word="file", signature="pns", text="write {0} ({1:04o}, {2:length} bytes)"):
    """Make a file. Arguments: the path, the mode, the content."""


class Content(Step, word="content", signature="pns", text="write {0} ({1:04o}, {2:pairs} bytes)"):
    """Make a file of any bytes. Arguments: the path, the mode, the bytes in hexadecimal."""


class Tmpfs(
    Step,
    word="tmpfs",
    signature="pnnnnnn",
    text="mount a {1:size} tmpfs at {0} ({3:04o}, {4:attributes})",
):
    """Mount a tmpfs. Arguments: path, bytes, inodes, mode, attributes, uid and gid of its root."""


class Devpts(Step, word="devpts", signature="p", text="mount a devpts of its own at {0}"):
    """Mount a devpts of its own. Arguments: the path."""


class Overlay(Step, word="overlay", signature="pnnnnn"):
    """Mount an overlay. Arguments: path, lower layer, upper layer or NONE, bytes, inodes, attributes.

    The layers are numbers of what was taken. Without an upper one it is a new tmpfs of that size, and
    a descriptor of it goes to the supervisor.
    """

    NONE = 2**32 - 1

    @property
    def text(self) -> str:  # type: ignore[override]
        """Where the upper layer is."""
        upper = "a {3:size} tmpfs" if self[2] == self.NONE else "a directory of the host"
        return f"overlay at {{0}}, its upper layer {upper} ({{5:attributes}})"


class Attach(Step, word="attach", signature="np", text="attach {2} at {1}"):
    """move_mount(2) what was taken. Arguments: which, the path; and, for people, what it is."""


class Remount(Step, word="remount", signature="pnn"):
    """mount(2) MS_REMOUNT. Arguments: the path, attributes to add, whether also all below."""

    @property
    def text(self) -> str:  # type: ignore[override]
        """Whether the mounts below are meant as well."""
        below = " and all mounts below it" if self[2] else ""
        return f"remount {{0}}{below} ({{1:attributes}})"


class Hide(Step, word="hide", signature="pnn", text="cover {0} with emptiness"):
    """Cover a path with emptiness. Arguments: the path, attributes, whether it may be missing."""


class Mask(Step, word="mask", signature="*", text="cover with emptiness: {1:list}"):
    """Cover paths with an empty file or directory. Arguments: attributes, a tuple of paths."""

    def words(self) -> Sequence[str]:
        """The attributes, then each path."""
        return (str(self[0]), *self[1])


class Protect(Step, word="protect", signature="pn", text="bind {0} over itself ({1:attributes})"):
    """Bind a path over itself. Arguments: the path, attributes."""


# --- Landlock: what lies where, once it is there ----------------------------------------------


class LandlockRuleset(
    Step, word="landlock-ruleset", signature="nnn", text="make a Landlock ruleset: {3}"
):
    """landlock_create_ruleset(2). Arguments: handled rights to files, to ports; scopes; in words."""


class LandlockBeneath(Step, word="landlock-beneath", signature="pn", text="allow beneath {0}: {2}"):
    """landlock_add_rule(2) for a place. Arguments: the path, the rights; and, for people, in words."""


class LandlockPort(Step, word="landlock-port", signature="nn", text="allow {2} TCP port {0}"):
    """landlock_add_rule(2) for a port. Arguments: its number, the right; and, for people, what."""


# --- what runs inside ----------------------------------------------------------------------------


class Loopback(Step, word="loopback", text="bring up the loopback interface"):
    """Bring up the loopback interface."""


class Hostname(Step, word="hostname", signature="s", text="set the hostname to {0}"):
    """sethostname(2). Arguments: the name."""


class Terminal(
    Step, word="terminal", signature="nnn", text="open a terminal of its own ({1} rows, {2} columns)"
):
    """Open a pty. Arguments: which of descriptors 0-2 become it, as bits; rows; columns."""


class Deadline(Step, word="deadline", signature="n", text="end everything after {0} ms"):
    """Kill everything after a time. Arguments: milliseconds from the command's start."""


class CpuTime(
    Step, word="cpu-time", signature="nn", text="end everything after {0:seconds} s of CPU time"
):
    """Kill everything after some CPU time. Arguments: microseconds; how many CPUs may use them up."""


class Idle(Step, word="idle", signature="n", text="end everything that uses no CPU for {0} ms"):
    """Kill everything once it has used no CPU for a time. Arguments: milliseconds."""


class WatchMemory(
    Step,
    word="watch-memory",
    signature="n",
    text="end everything that holds more than {0} bytes of memory",
):
    """Kill everything that is seen to hold more memory. Arguments: bytes."""


class Hold(Step, word="hold", signature="p", text="hand out this base, by the proc file system at {0}"):
    """Send the user and the mount namespace to the supervisor. Arguments: where /proc is."""


class Filter(Step, word="filter", signature="sn", text="make the filter of system calls ready"):
    """Read a program for seccomp(2). Arguments: in hex digits; whether init is told of refusals."""


class Fork(Step, word="fork", text="fork the command"):
    """fork(2) the command, which takes the steps after this one. The last that init takes."""


class Stop(Step, word="stop", text="stop here"):
    """End a plan that runs no command."""


# --- the command ---------------------------------------------------------------------------------


class LandlockInherited(
    Step,
    word="landlock-inherited",
    signature="nnn",
    text="allow what the command's descriptors are open for to be opened anew",
):
    """landlock_add_rule(2) for each. Arguments: rights of readers, of writers, to a directory."""


class Descriptor(Step, word="descriptor", signature="nn", text="pass on descriptor {1}"):
    """dup2(2). Arguments: ours, the command's."""


class Chdir(Step, word="chdir", signature="p", text="change to the directory {0}"):
    """chdir(2). Arguments: the path."""


class Rlimit(Step, word="rlimit", signature="nnn", text="limit {3} to {1} at most"):
    """setrlimit(2). Arguments: the resource's number, soft, hard; and, for people, its name."""


class Setrlimit(Step, word="setrlimit", signature="nnn", text="set the limit of {3} to {4}, hard {5}"):
    """setrlimit(2), exactly. Arguments: the resource's number, soft, hard; for people, in words."""


class Ceilings(Step, word="ceilings", signature="*", text="lower to at most: {1}"):
    """setrlimit(2) of what is higher. Arguments: pairs (resource, most); and, for people, in words."""

    def words(self) -> Sequence[str]:
        """Each pair, one number after the other."""
        return [str(number) for pair in self[0] for number in pair]


class Affinity(Step, word="affinity", signature="n", text="run on {0} of the CPUs"):
    """sched_setaffinity(2). Arguments: how many of the CPUs."""


class BoundingSet(Step, word="bounding-set", signature="n"):
    """Cut the bounding set to these bits, empty the ambient one, lock securebits; capabilities(7)."""

    @property
    def text(self) -> str:  # type: ignore[override]
        """What is kept, by its bits."""
        if self[0]:
            return "cut the bounding set to {0:#x}, empty the ambient set, lock the securebits"
        return "empty the bounding and ambient sets, lock the securebits"


class Credentials(
    Step, word="credentials", signature="nn", text="run as uid {0}, gid {1}, no other groups"
):
    """setgroups(2), setresgid(2), setresuid(2) of the command. Arguments: uid, gid inside."""


class Capabilities(Step, word="capabilities", signature="n"):
    """capset(2). Arguments: the capabilities to keep, as bits."""

    @property
    def text(self) -> str:  # type: ignore[override]
        """What is kept, by its bits."""
        return "drop all capabilities but {0:#x}" if self[0] else "drop all capabilities"


class NoNewPrivs(Step, word="no-new-privs", text="set no_new_privs"):
    """prctl(2) PR_SET_NO_NEW_PRIVS."""


class LandlockRestrict(Step, word="landlock-restrict", text="restrict itself by the ruleset"):
    """landlock_restrict_self(2)."""


class Seccomp(Step, word="seccomp", text="filter system calls: {0}"):
    """Install the filter. No argument; and, for people, what it allows."""


class Rest(Step, word="rest", text="wait for the rest of the plan"):
    """Wait until the supervisor sends the steps after this one, and the command's descriptors."""


class Go(Step, word="go", text="wait for the word to go"):
    """Wait until the supervisor has seen that all is as it was when the capsule was made."""


class Exec(Step, word="exec", signature="*", text="execute {1:words}"):
    """execve(2). Arguments: tuples of paths to try, of arguments, of NAME=VALUE, which are secret."""

    def words(self) -> Sequence[str]:
        """Each list with its length before it."""
        return [word for words in self for word in (str(len(words)), *words)]

    @property
    def path(self) -> str | None:
        """What was to be executed, as the caller wrote it."""
        return str(self[1][0])

"""What the user wants: frozen values, and nothing but their validation."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import shown
from capsule.base.values import Choice, Value
from capsule.confine.seccomp.spec import Seccomp

from .mounts import CONTENT_SIZE, Mount, in_force
from .paths import absolute, check_path
from .units import parse_count, parse_cpus, parse_size, parse_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from typing import Any, Literal, Self, TypedDict, Unpack

    Size = int | str
    Time = float | str
    Variables = Mapping[str, str] | Mapping[bytes, bytes] | Sequence[tuple[str, str]]
    Maybe = Variables | Mapping[str, str | None] | Sequence[tuple[str, str | None]]

    class LimitFields(TypedDict, total=False):
        """What `Limits` takes."""

        timeout: Time | None
        output: Size | None
        cpu_time: Time | None
        idle: Time | None
        memory: Size | None
        swap: Size | None
        cpus: float | str | None
        cpu_weight: int | str | None
        pids: int | str | None
        file_size: Size | None
        open_files: int | str | None

    class PolicyFields(TypedDict, total=False):
        """What `Policy` takes."""

        mounts: Sequence[Mount]
        root: str | PathLike[str] | None
        system: System | Literal["all", "needed"]
        show_cwd: bool
        protect: Sequence[str]
        unprotect: Sequence[str]
        network: Network | Literal["none", "host"]
        hostname: str
        uid: int
        gid: int
        id_map: IdMap | Literal["caller", "auto", "host-root"]
        env: Variables | None
        extra_env: Maybe
        inherit_env: bool
        cwd: str | PathLike[str] | None
        limits: Limits
        allow_degraded: Sequence[str]
        seccomp: Seccomp | str
        pretend_chown: bool

    class Overrides(PolicyFields, LimitFields, total=False):
        """What `run`, `start` and `plan` take besides: fields of the policy, or of its limits."""


# Less does not even hold what sets a capsule up.
LEAST_MEMORY, LEAST_FILES = 1 << 20, 16
DEGRADABLE = ("cpu_time", "cpus", "memory", "pids")


class Network(Choice):
    """Which network the command is given."""

    NONE = "none"
    """A network namespace of its own with a loopback interface, and nothing else."""
    HOST = "host"
    """The host's: every service that listens on the host, abstract sockets included."""


class System(Choice):
    """How much of the host's programs is shown."""

    ALL = "all"
    """/usr and what goes with it, read-only."""
    NEEDED = "needed"
    """Only the program and the libraries that its file names."""


class IdMap(Choice):
    """What the ids inside are on the host; user_namespaces(7)."""

    CALLER = "caller"
    """The inside uid is the caller's, the inside gid the caller's group. For root: nobody's."""
    AUTO = "auto"
    """Besides that, the whole range that /etc/subuid and /etc/subgid give the caller."""
    HOST_ROOT = "host-root"
    """Root inside is root on the host. Only for root, and never by default."""


class Limits(Value):
    """How much a run may use. None is no limit.

    *memory*, *cpus*, *cpu_weight*, *pids* and *cpu_time* hold for all processes of the capsule
    together. They need a cgroup (docs/limits.md); where none can be made, `Policy.allow_degraded` says
    which of them may be enforced in a weaker way.

    Attributes:
        timeout: seconds (or text such as "1m30s") from the command's start until everything is
            killed, whatever it does with its signals. Kept by init with CLOCK_MONOTONIC.
        output: bytes that are captured of stdout and stderr together. One byte more and the
            capsule is killed. Only what Capsule captures counts. Kept by the supervisor.
        cpu_time: seconds of CPU time of the tree, user and system, until everything is killed. Kept by
            init, which looks at cpu.stat of the cgroup.
        idle: seconds without any use of a CPU, and hence without output, until everything is killed.
            Kept by init, which looks at the clocks of the processes; clock_getcpuclockid(3).
        memory: bytes, those of private file systems and of the kernel for the capsule included, from
            1 MiB. One page more and everything is killed. memory.max and memory.oom.group (4.19).
        swap: bytes of swap on top of *memory*; memory.swap.max.
        cpus: how many CPUs' worth of time in each tenth of a second; cpu.max.
        cpu_weight: share of the CPUs when they are contended, from 1 to 10000; others have 100;
            cpu.weight.
        pids: processes and threads at once. One more fails with EAGAIN; pids.max. Without this limit
            there may be 2048, counted by RLIMIT_NPROC, which counts by user namespace since 5.14.
        file_size: bytes of any one file that is written to; RLIMIT_FSIZE, setrlimit(2).
        open_files: descriptors that a process may have, from 16; RLIMIT_NOFILE.
    """

    timeout: float | None = None
    output: int | None = 16 << 20
    cpu_time: float | None = None
    idle: float | None = None
    memory: int | None = None
    swap: int | None = 0
    cpus: float | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    file_size: int | None = None
    open_files: int | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            timeout: float | str | None = None,
            output: int | str | None = 16 << 20,
            cpu_time: float | str | None = None,
            idle: float | str | None = None,
            memory: int | str | None = None,
            swap: int | str | None = 0,
            cpus: float | str | None = None,
            cpu_weight: int | str | None = None,
            pids: int | str | None = None,
            file_size: int | str | None = None,
            open_files: int | str | None = None,
        ) -> None: ...

        def replace(self, **changes: Unpack[LimitFields]) -> Self:  # type: ignore[override]
            """Return a copy with the named fields changed, validated anew."""

    def __post_init__(self) -> None:
        for field in ("timeout", "cpu_time", "idle"):
            self._parse(field, parse_time)
        for field in ("memory", "swap", "file_size", "output"):
            self._parse(field, parse_size)
        self._parse("cpus", parse_cpus)
        for field, most in (("cpu_weight", 10_000), ("pids", 1 << 22), ("open_files", 1 << 30)):
            if self.__dict__[field] is not None:
                self._set(field, parse_count(self.__dict__[field], field, most))
        if self.memory is not None and self.memory < LEAST_MEMORY:
            hint = "a capsule itself takes some hundred KiB: write 1M or more"
            raise _wrong("memory", self.memory, "at least 1 MiB", hint)
        if self.open_files is not None and self.open_files < LEAST_FILES:
            hint = "what sets the command up has some open itself: write 16 or more"
            raise _wrong("open_files", self.open_files, "at least 16", hint)

    def _parse(self, field: str, parse: Callable[[Any, str], object]) -> None:
        if self.__dict__[field] is not None:
            self._set(field, parse(self.__dict__[field], field))

    def of_tree(self) -> tuple[str, ...]:
        """Those that were set and need a cgroup."""
        names = ("memory", "cpus", "cpu_weight", "pids", "cpu_time")
        return tuple(name for name in names if self.__dict__[name] is not None)


class Policy(Value):
    """What a command may see and do. Frozen: `replace` derives another.

    Attributes:
        mounts: what to show, hide or make up besides the default view. The order counts: of two
            for one place the later one; one that would hide an earlier one is refused.
        root: a directory of the host to show as the whole root, read-only, instead of the host's
            programs.
        system: how much of the host's programs to show.
        show_cwd: whether the working directory is shown, read-only, unless a mount says otherwise.
        protect: what in a writable tree is read-only besides the built-in list: names of paths as
            in that list (docs/files.md).
        unprotect: names of that list to leave writable; "all" for the whole list.
        network: which network.
        hostname: the hostname inside.
        uid: user id inside.
        gid: group id inside.
        id_map: what the ids inside are outside.
        env: the whole environment, or None for the default one.
        extra_env: variables on top of that; a value of None passes the caller's on.
        inherit_env: start from the caller's whole environment instead of the default names.
        cwd: working directory inside, or None for the caller's.
        limits: how much it may use.
        allow_degraded: which limits may be enforced in the weaker way that docs/limits.md describes
            where no cgroup can be made: of "memory", "cpus", "pids", "cpu_time".
        seccomp: which system calls it may make: a `Seccomp`, or a profile's name.
        pretend_chown: chown(2) and its family answer success and do nothing, for programs that give
            files to users that do not exist inside. Kept by the seccomp filter.

    Raises:
        PolicyError: a field has a value that cannot be meant; it names the field and the value.
    """

    mounts: tuple[Mount, ...] = ()
    root: str | None = None
    system: System = System.ALL
    show_cwd: bool = True
    protect: tuple[str, ...] = ()
    unprotect: tuple[str, ...] = ()
    network: Network = Network.NONE
    hostname: str = "capsule"
    uid: int = 0
    gid: int = 0
    id_map: IdMap = IdMap.CALLER
    env: Any = None
    extra_env: Any = ()
    inherit_env: bool = False
    cwd: str | None = None
    limits: Limits = Limits()
    allow_degraded: tuple[str, ...] = ()
    seccomp: Seccomp = Seccomp()
    pretend_chown: bool = False

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[PolicyFields]) -> None: ...

        def replace(self, **changes: Unpack[PolicyFields]) -> Self:  # type: ignore[override]
            """Return a copy with the named fields changed, validated anew."""

    else:

        def __init__(self, *args, **kwargs):
            for name in kwargs:
                if name not in self.__value_fields__:
                    hint = f"the fields are {', '.join(self.__value_fields__)}"
                    raise PolicyError(f"unknown policy field {name!r}", field=name, hint=hint)
            super().__init__(*args, **kwargs)

    def __post_init__(self) -> None:
        self._set("mounts", _mounts(self.mounts))
        if self.root is not None:
            self._set("root", absolute(check_path(self.root, "root"), "root"))
        self._set("system", _choice(System, self.system, "system"))
        for field in ("protect", "unprotect"):
            self._set(field, _names(self.__dict__[field], field))
        self._set("network", _choice(Network, self.network, "network"))
        self._set("id_map", _choice(IdMap, self.id_map, "id_map"))
        self._set("hostname", _hostname(self.hostname))
        for field in ("uid", "gid"):
            _check_id(self.__dict__[field], field)
        if self.env is not None:
            self._set("env", _variables(self.env, "env", allow_none=False))
        self._set("extra_env", _variables(self.extra_env, "extra_env", allow_none=True))
        for field in ("inherit_env", "show_cwd", "pretend_chown"):
            if not isinstance(self.__dict__[field], bool):
                raise _wrong(field, self.__dict__[field], "a bool", "write true or false (True, False)")
        if self.cwd is not None:
            self._set("cwd", check_path(self.cwd, "cwd"))
        if not isinstance(self.limits, Limits):
            raise _wrong("limits", self.limits, "Limits", "write Limits(timeout=..., output=...)")
        self._set("allow_degraded", _degradable(self.allow_degraded))
        self._set("seccomp", _seccomp(self.seccomp))


def _wrong(field: str, value: object, wanted: str, hint: str) -> PolicyError:
    message = f"{field}: not {wanted}: {shown(value)}"
    return PolicyError(message, field=field, value=value, hint=hint)


def _mounts(value: Any) -> tuple[Mount, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(m, Mount) for m in value):
        hint = "pass a list of what Mount.read_only(...) and the like return"
        raise _wrong("mounts", value, "a sequence of Mount", hint)
    if sum(len(mount.data) for mount in value) > CONTENT_SIZE:
        hint = "write it to files and show those with read_only (--ro)"
        raise PolicyError("mounts: more than 8 MiB of content", field="mounts", hint=hint)
    return in_force(value)


def _names(value: Any, field: str) -> tuple[str, ...]:
    """Relative paths such as ``.git/hooks``, normal and sorted."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise _wrong(field, value, "a sequence of names", 'write a list, such as [".git/hooks"]')
    for name in value:
        parts = check_path(name, field).split("/")
        if not all(parts) or not {".", ".."}.isdisjoint(parts):
            hint = "write it from the top of the tree, without '.', '..' or a slash at either end"
            raise _wrong(field, name, "a path inside of a tree, such as .git/hooks", hint)
        if any(char < " " or "\x7f" <= char <= "\x9f" for char in name):
            # Nobody means one: it comes from a broken list, and the name that was meant is left open.
            hint = "write the name without control characters, each name by itself"
            raise _wrong(field, name, "a name without control characters", hint)
        if field == "protect" and not {"*", "?", "["}.isdisjoint(name):
            # It would protect only what is called so, and nothing would say that.
            hint = "names and paths, no patterns"
            raise PolicyError(f"protect: a pattern: {shown(name)}", field=field, value=name, hint=hint)
    return tuple(sorted(set(value)))


def _choice(kind: type[Choice], value: Any, field: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise _wrong(field, value, f"one of {choices}", f"write one of {choices}") from None


def _degradable(value: Any) -> tuple[str, ...]:
    choices, hint = ", ".join(DEGRADABLE), 'write a list, such as ["memory", "pids"]'
    if not isinstance(value, (list, tuple)):
        raise _wrong("allow_degraded", value, f"a list of {choices}", hint)
    for name in value:
        if not isinstance(name, str) or name.replace("-", "_") not in DEGRADABLE:
            hint = "cpu_weight is nothing without a cgroup, and the other limits need none"
            raise _wrong("allow_degraded", name, f"one of {choices}", hint)
    return tuple(sorted({name.replace("-", "_") for name in value}))


def _seccomp(value: object) -> Seccomp:
    if isinstance(value, str):
        return Seccomp(value)
    if not isinstance(value, Seccomp):
        hint = 'write "strict", or Seccomp(profile=..., allow=..., deny=...)'
        raise _wrong("seccomp", value, "Seccomp or a profile's name", hint)
    return value


def _hostname(value: object) -> str:
    """hostname(7), and what sethostname(2) takes: 64 bytes."""
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."
    fits = isinstance(value, str) and 0 < len(value) <= 64 and value[0] not in "-."
    if not isinstance(value, str) or not fits or value.strip(allowed):
        hint = "begin with a letter or a digit, for instance build-1"
        wanted = "a hostname of 1 to 64 letters, digits, '-' and '.'"
        raise _wrong("hostname", value, wanted, hint)
    return value


def _check_id(value: object, field: str) -> None:
    """The last id means "none" to the kernel."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32 - 1:
        hint = "write a number, for instance 1000"
        raise _wrong(field, value, "an id from 0 to 4294967294", hint)


def _variables(
    value: Mapping[str, str | None] | tuple[tuple[str, str | None], ...],
    field: str,
    *,
    allow_none: bool,
) -> tuple[tuple[str, str | None], ...]:
    """Environment variables as sorted pairs, which compare and hash; the last of a name wins."""
    try:
        given = dict(value)
    except (TypeError, ValueError):
        hint = 'write {"NAME": "value"}'
        raise _wrong(field, value, "a mapping of names to values", hint) from None
    pairs = {}
    for name, content in given.items():
        key = _variable_text(name, field, name)
        if not key or "=" in key:
            hint = "a name is text without '=', and not empty"
            raise _wrong(field, name, "a variable's name", hint)
        if content is None and not allow_none:
            hint = "give it a value; the caller's own is passed on by extra_env"
            raise _wrong(field, name, "a name with a value", hint)
        pairs[key] = None if content is None else _variable_text(content, field, name)
    return tuple(sorted(pairs.items()))


def _variable_text(text: object, field: str, name: object) -> str:
    """Text or bytes as execve(2) takes it. The value is not shown: it may be a secret."""
    try:
        word = os.fsdecode(text)  # type: ignore[arg-type]
        os.fsencode(word)
    except (TypeError, UnicodeError):
        word = "\0"
    if "\0" in word:
        hint = "name and value are text, or bytes; write a number in quotes"
        raise _wrong(field, name, "a variable of text without NUL bytes", hint)
    return word

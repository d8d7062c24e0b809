"""What the user wants: frozen values, and nothing but their validation."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import shown
from capsule.base.values import Choice, Value
from capsule.confine import landlock
from capsule.confine.seccomp.spec import Seccomp

from .limits import Limits
from .mounts import CONTENT_SIZE, Mount, in_force
from .paths import absolute, check_path
from .units import check_ports, wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Any, Literal, Self, TypedDict, Unpack

    from .limits import LimitFields
    from .network import Only

    Variables = Mapping[str, str] | Mapping[bytes, bytes] | Sequence[tuple[str, str]]
    Maybe = Variables | Mapping[str, str | None] | Sequence[tuple[str, str | None]]

    class PolicyFields(TypedDict, total=False):
        """What `Policy` takes."""

        mounts: Sequence[Mount]
        root: str | PathLike[str] | None
        system: System | Literal["all", "needed"]
        show_cwd: bool
        git: Git | Literal["read", "write"]
        protect: Sequence[str]
        unprotect: Sequence[str]
        show_secrets: Sequence[str]
        network: Network | Only | Literal["none", "host"] | list[str] | tuple[str, ...]
        publish: Sequence[str]
        hostname: str
        uid: int
        gid: int
        keep_id: bool
        id_map: IdMap | Literal["caller", "auto", "host-root"]
        env: Variables | None
        extra_env: Maybe
        inherit_env: bool
        cwd: str | PathLike[str] | None
        limits: Limits
        allow_degraded: Sequence[str]
        seccomp: Seccomp | str
        pretend_chown: bool
        landlock: int | Literal["auto", "off"]
        tcp_connect: Sequence[int] | None
        tcp_bind: Sequence[int] | None

    class Overrides(PolicyFields, LimitFields, total=False):
        """What `run`, `start` and `plan` take besides: fields of the policy, or of its limits."""


DEGRADABLE = ("cpu_time", "cpus", "memory", "pids")
LANDLOCK_AUTO, LANDLOCK_OFF = "auto", "off"


class Network(Choice):
    """Which network the command is given."""

    NONE = "none"
    """A network namespace of its own with a loopback interface, and nothing else."""
    HOST = "host"
    """The host's: every service that listens on the host, abstract sockets included."""

    @staticmethod
    def only(*rules: str) -> Only:
        """A network namespace of its own, from which some hosts can be reached: docs/network.md.

        Args:
            rules: ``HOST[:PORT[,PORT]...]``, ports 80 and 443 unless given: a name, ``*.example.org``
                for all below it, ``*`` for all, an address, a network (CIDR); ``localhost:PORT`` is
                this host.

        Raises:
            PolicyError: a rule is none.
        """
        from .network import only

        return only(rules)


class System(Choice):
    """How much of the host's programs is shown."""

    ALL = "all"
    """/usr and what goes with it, read-only."""
    NEEDED = "needed"
    """Only the program and the libraries that its file names."""


class Git(Choice):
    """What the command may do with a git repository that lies outside of its working tree."""

    READ = "read"
    """Read it: log, diff and blame work there."""
    WRITE = "write"
    """Write to it, as to a repository in a writable tree; also to one in a tree that is read-only."""


class IdMap(Choice):
    """What the ids inside are on the host; user_namespaces(7)."""

    CALLER = "caller"
    """The inside uid is the caller's, the inside gid the caller's group. For root: nobody's."""
    AUTO = "auto"
    """Besides that, the whole range that /etc/subuid and /etc/subgid give the caller."""
    HOST_ROOT = "host-root"
    """Root inside is root on the host. Only for root, and never by default."""


class Policy(Value):
    """What a command may see and do. Frozen: `replace` derives another.

    Attributes:
        mounts: what to show, hide or make up besides the default view. The order counts: of two
            for one place the later one; one that would hide an earlier one is refused.
        root: a directory of the host to show as the whole root, read-only, instead of the host's
            programs.
        system: how much of the host's programs to show.
        show_cwd: whether the working directory is shown, read-only, unless a mount says otherwise.
        git: whether the git repository of what is shown, of a linked working tree or a submodule
            for instance, is shown read-only or can be written to; docs/files.md.
        protect: what in a writable tree is read-only besides the built-in list: names of paths as
            in that list (docs/files.md).
        unprotect: names of that list to leave writable; "all" for the whole list.
        show_secrets: names of the table of secrets in a home (docs/files.md) that are not hidden
            where a mount shows a whole home; "all" for the whole table.
        network: which network: none, the host's, or a list of hosts that can be reached, which
            `Network.only` makes.
        publish: ``HOSTPORT:PORT`` for each port inside that can be reached by a port of the host's, on
            127.0.0.1 unless ``ADDRESS:HOSTPORT:PORT`` says another; with HOSTPORT 0 a free one.
        hostname: the hostname inside.
        uid: user id inside.
        gid: group id inside.
        keep_id: the caller's own uid, gid and names inside, instead of root's; where root calls,
            nobody's, which the command is on the host. For programs that refuse to be root, or that
            as root give files away.
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
        landlock: the second wall, behind the mounts; landlock(7). "auto" takes the newest version (ABI)
            that the kernel has, if it has one (5.13); a number requires at least that one; "off" does
            without.
        tcp_connect: with the host's network, the ports that TCP connections may go to. Given this or
            *tcp_bind*, all others are refused. UDP is not limited. Landlock of ABI 4 (6.7).
        tcp_bind: likewise, the ports that TCP sockets may be bound to.

    Raises:
        PolicyError: a field has a value that cannot be meant; it names the field and the value.
    """

    mounts: tuple[Mount, ...] = ()
    root: str | None = None
    system: System = System.ALL
    show_cwd: bool = True
    git: Git = Git.READ
    protect: tuple[str, ...] = ()
    unprotect: tuple[str, ...] = ()
    show_secrets: tuple[str, ...] = ()
    network: Network | Only = Network.NONE
    publish: tuple[str, ...] = ()
    hostname: str = "capsule"
    uid: int = 0
    gid: int = 0
    keep_id: bool = False
    id_map: IdMap = IdMap.CALLER
    env: Any = None
    extra_env: Any = ()
    inherit_env: bool = False
    cwd: str | None = None
    limits: Limits = Limits()
    allow_degraded: tuple[str, ...] = ()
    seccomp: Seccomp = Seccomp()
    pretend_chown: bool = False
    landlock: str = LANDLOCK_AUTO
    tcp_connect: tuple[int, ...] | None = None
    tcp_bind: tuple[int, ...] | None = None

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
        self._set("git", _choice(Git, self.git, "git"))
        for field in ("protect", "unprotect", "show_secrets"):
            self._set(field, _names(self.__dict__[field], field))
        self._set("network", _network(self.network))
        if self.publish != ():
            from .network import published

            self._set("publish", published(self.publish, on_host=self.network is Network.HOST))
        self._set("id_map", _choice(IdMap, self.id_map, "id_map"))
        self._set("hostname", _hostname(self.hostname))
        for field in ("uid", "gid"):
            _check_id(self.__dict__[field], field)
        self._check_keep_id()
        if self.env is not None:
            self._set("env", _variables(self.env, "env", allow_none=False))
        self._set("extra_env", _variables(self.extra_env, "extra_env", allow_none=True))
        for field in ("inherit_env", "show_cwd", "pretend_chown", "keep_id"):
            if not isinstance(self.__dict__[field], bool):
                raise wrong(field, self.__dict__[field], "a bool", "write true or false (True, False)")
        if self.cwd is not None:
            self._set("cwd", check_path(self.cwd, "cwd"))
        if not isinstance(self.limits, Limits):
            raise wrong("limits", self.limits, "Limits", "write Limits(timeout=..., output=...)")
        self._set("allow_degraded", _degradable(self.allow_degraded))
        self._set("seccomp", _seccomp(self.seccomp))
        self._set("landlock", _landlock(self.landlock))
        for field in ("tcp_connect", "tcp_bind"):
            if self.__dict__[field] is not None:
                self._set(field, check_ports(self.__dict__[field], field))

    def _check_keep_id(self) -> None:
        for field, other in (("uid", 0), ("gid", 0), ("id_map", IdMap.CALLER)):
            if self.keep_id and self.__dict__[field] != other:
                hint = "leave one of the two out"
                message = f"keep_id: the ids are the caller's, and {field} says otherwise"
                raise PolicyError(message, field="keep_id", value=self.keep_id, hint=hint)

    @property
    def limits_tcp(self) -> bool:
        """Whether it says which ports TCP may use."""
        return self.tcp_connect is not None or self.tcp_bind is not None


def _mounts(value: Any) -> tuple[Mount, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(m, Mount) for m in value):
        hint = "pass a list of what Mount.read_only(...) and the like return"
        raise wrong("mounts", value, "a sequence of Mount", hint)
    if sum(len(mount.data) for mount in value) > CONTENT_SIZE:
        hint = "write it to files and show those with read_only (--ro)"
        raise PolicyError("mounts: more than 8 MiB of content", field="mounts", hint=hint)
    return in_force(value)


def _names(value: Any, field: str) -> tuple[str, ...]:
    """Relative paths such as ``.git/hooks``, normal and sorted."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise wrong(field, value, "a sequence of names", 'write a list, such as [".git/hooks"]')
    for name in value:
        parts = check_path(name, field).split("/")
        if not all(parts) or not {".", ".."}.isdisjoint(parts):
            hint = "write it from the top of the tree, without '.', '..' or a slash at either end"
            raise wrong(field, name, "a path inside of a tree, such as .git/hooks", hint)
        if any(char < " " or "\x7f" <= char <= "\x9f" for char in name):
            # Nobody means one: it comes from a broken list, and the name that was meant is left open.
            hint = "write the name without control characters, each name by itself"
            raise wrong(field, name, "a name without control characters", hint)
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
        raise wrong(field, value, f"one of {choices}", f"write one of {choices}") from None


def _network(value: Any) -> Network | Only:
    """An empty list allows nothing."""
    if isinstance(value, (Network, str)):
        return _choice(Network, value, "network")  # type: ignore[return-value]
    if not value and isinstance(value, (list, tuple)):
        return Network.NONE
    from .network import only  # only where there is a list

    return only(value)


def _degradable(value: Any) -> tuple[str, ...]:
    choices, hint = ", ".join(DEGRADABLE), 'write a list, such as ["memory", "pids"]'
    if not isinstance(value, (list, tuple)):
        raise wrong("allow_degraded", value, f"a list of {choices}", hint)
    for name in value:
        if not isinstance(name, str) or name.replace("-", "_") not in DEGRADABLE:
            hint = "cpu_weight is nothing without a cgroup, and the other limits need none"
            raise wrong("allow_degraded", name, f"one of {choices}", hint)
    return tuple(sorted({name.replace("-", "_") for name in value}))


def _seccomp(value: object) -> Seccomp:
    if isinstance(value, str):
        return Seccomp(value)
    if not isinstance(value, Seccomp):
        hint = 'write "strict", or Seccomp(profile=..., allow=..., deny=...)'
        raise wrong("seccomp", value, "Seccomp or a profile's name", hint)
    return value


def _landlock(value: object) -> str:
    if value in (LANDLOCK_AUTO, LANDLOCK_OFF):
        return str(value)
    word = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    if word not in map(str, range(1, landlock.NEWEST + 1)):
        hint = f"write auto, off, or a version from 1 to {landlock.NEWEST}"
        raise wrong("landlock", value, "auto, off or a version of Landlock", hint)
    return word


def _hostname(value: object) -> str:
    """hostname(7), and what sethostname(2) takes: 64 bytes."""
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."
    fits = isinstance(value, str) and 0 < len(value) <= 64 and value[0] not in "-."
    if not isinstance(value, str) or not fits or value.strip(allowed):
        hint = "begin with a letter or a digit, for instance build-1"
        wanted = "a hostname of 1 to 64 letters, digits, '-' and '.'"
        raise wrong("hostname", value, wanted, hint)
    return value


def _check_id(value: object, field: str) -> None:
    """The last id means "none" to the kernel."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32 - 1:
        hint = "write a number, for instance 1000"
        raise wrong(field, value, "an id from 0 to 4294967294", hint)


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
        raise wrong(field, value, "a mapping of names to values", hint) from None
    pairs = {}
    for name, content in given.items():
        key = _variable_text(name, field, name)
        if not key or "=" in key:
            hint = "a name is text without '=', and not empty"
            raise wrong(field, name, "a variable's name", hint)
        if content is None and not allow_none:
            hint = "give it a value; the caller's own is passed on by extra_env"
            raise wrong(field, name, "a name with a value", hint)
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
        raise wrong(field, name, "a variable of text without NUL bytes", hint)
    return word

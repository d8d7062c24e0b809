"""What the user wants: frozen values, and nothing but their validation."""

from __future__ import annotations

import os

from .choice import Choice
from .errors import PolicyError
from .values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    **{f"{u}{s}": 1024 ** (n + 1) for n, u in enumerate("KMGT") for s in ("", "I", "IB")},
    **{f"{u}B": 1000 ** (n + 1) for n, u in enumerate("KMGT")},
}
_INFINITE = float("inf")
_TIME_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_LARGEST_SIZE = 2**63 - 1
_LONGEST_WORD = 40
# What poll(2) and the launcher count in: more is no limit that anyone means.
_LONGEST_TIME = 10.0 * 365 * 86400


def parse_size(value: int | str, field: str) -> int:
    """Return a number of bytes: K, M, G, T are 1024-based (also KiB), KB, MB, GB 1000-based.

    Raises:
        PolicyError: it is not a size, is negative, not a whole number of bytes, or too large.
    """
    size = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and len(value) < _LONGEST_WORD:
        digits, letters = _split_number(value.strip())
        size = _whole(digits, _SIZE_UNITS.get(letters.strip().upper(), 0))
    if not 0 <= size <= _LARGEST_SIZE:
        hint = "write bytes or a number with K, M, G, T (1024-based) or KB, MB, GB (1000-based)"
        raise PolicyError(f"{field}: not a size: {_shown(value)}", field=field, value=value, hint=hint)
    return size


def _whole(digits: str, unit: int) -> int:
    """A decimal number of units in bytes, exactly; -1 if it is no number or no whole one."""
    before, _, after = digits.partition(".")
    if not unit or not (before + after).isdigit():
        return -1
    bytes_, rest = divmod(int(before + after) * unit, 10 ** len(after))
    return -1 if rest else bytes_


def _shown(value: object) -> str:
    """A value for a message, not longer than it needs to be recognised."""
    try:
        text = repr(value)
    except ValueError:
        text = "a very large number"
    return text if len(text) <= _LONGEST_WORD else f"{text[:_LONGEST_WORD]}..."


def parse_time(value: float | str, field: str) -> float:
    """Return seconds: a number, or text such as ``10ms``, ``2.5s``, ``1m30s``, ``1h``.

    Raises:
        PolicyError: it is not a time, not above zero, or longer than ten years.
    """
    seconds = -1.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if value <= _LONGEST_TIME else -1.0
    elif isinstance(value, str) and 0 < len(value) < _LONGEST_WORD:
        seconds = _sum_times(value.strip())
    if not 0 < seconds <= _LONGEST_TIME:
        hint = "write seconds above zero or a time such as 10ms, 2.5s, 1m30s"
        raise PolicyError(f"{field}: not a time: {_shown(value)}", field=field, value=value, hint=hint)
    return seconds


def _sum_times(text: str) -> float:
    """Seconds of parts in falling order of unit, or -1: 1m30s is a time, 30s1m and 1m30 are not."""
    total, last = 0.0, _INFINITE
    parts = 0
    while text:
        digits, text = _split_number(text)
        letters = text[: len(text) - len(text.lstrip("mshMSH"))]
        text = text[len(letters) :]
        unit = _TIME_UNITS.get(letters.lower(), 0.0)
        number = _to_float(digits)
        if number < 0 or not unit or unit >= last or (not letters and parts):
            return -1.0
        total, last, parts = total + number * unit, unit, parts + 1
    return total


def _split_number(text: str) -> tuple[str, str]:
    rest = text.lstrip("0123456789.")
    return text[: len(text) - len(rest)], rest


def _to_float(digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        return -1.0


def check_path(value: object, field: str, *, absolute: bool = False) -> str:
    """Return a path as text.

    Raises:
        PolicyError: it is no path, is empty, holds a NUL byte, or is relative where it must not be.
    """
    try:
        path = os.fsdecode(value)  # type: ignore[arg-type]
        os.fsencode(path)
    except (TypeError, UnicodeError):
        path = ""
    if not path or "\0" in path:
        raise PolicyError(f"{field}: not a path: {value!r}", field=field, value=value)
    if absolute and not path.startswith("/"):
        hint = "write the path from the root, beginning with /"
        raise PolicyError(f"{field}: not absolute: {path}", field=field, value=value, hint=hint)
    return path


def absolute(path: str, field: str) -> str:
    """Return the path from the root; a relative one counts from the working directory.

    Raises:
        PolicyError: there is no working directory any more.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        hint = "change to a directory that exists, or write the path from the root"
        message = f"{field}: the working directory is gone, from which {path} counts"
        raise PolicyError(message, field=field, value=path, hint=hint) from None


def inside_path(value: object, field: str) -> str:
    """Return a normal absolute path inside the capsule: no ``.``, ``..`` or double slash."""
    path = check_path(value, field, absolute=True)
    if ".." in path.split("/"):
        raise PolicyError(f"{field}: contains '..': {path}", field=field, value=value)
    return "/" + os.path.normpath(path).lstrip("/")


class Network(Choice):
    """Which network the command is given."""

    NONE = "none"
    """A network namespace of its own with a loopback interface, and nothing else."""
    HOST = "host"
    """The host's: every service that listens on the host, abstract sockets included."""


class IdMap(Choice):
    """What the ids inside are on the host; user_namespaces(7)."""

    CALLER = "caller"
    """The inside uid is the caller's, the inside gid the caller's group. For root: nobody's."""
    AUTO = "auto"
    """Besides that, the whole range that /etc/subuid and /etc/subgid give the caller."""
    HOST_ROOT = "host-root"
    """Root inside is root on the host. Only for root, and never by default."""


class MountKind(Choice):
    """What a `Mount` does."""

    READ_ONLY = "read-only"
    READ_WRITE = "read-write"
    TMPFS = "tmpfs"


class Mount(Value):
    """One thing to show in the capsule. Made by `read_only`, `read_write` and `tmpfs`.

    Attributes:
        kind: what is mounted.
        at: the place inside the capsule, an absolute path.
        source: the path on the host, absolute; "" for a tmpfs.
        size: bytes of a tmpfs.
    """

    kind: MountKind
    at: str
    source: str = ""
    size: int = 0

    def __post_init__(self) -> None:
        self._set("at", inside_path(self.at, "mounts"))
        if self.at == "/":
            hint = "a whole root directory is Policy(root=...) or --root"
            raise PolicyError("mounts: cannot replace /", field="mounts", value="/", hint=hint)
        if self.at in ("/proc", "/dev") or self.at.startswith("/proc/"):
            hint = "Capsule makes its own; choose another place, for instance below /dev/shm"
            message = f"mounts: cannot replace {self.at}"
            raise PolicyError(message, field="mounts", value=self.at, hint=hint)

    @classmethod
    def read_only(cls, source: str | os.PathLike[str], at: str | None = None) -> Mount:
        """Show a file or directory of the host, with all mounts below it, read-only.

        A relative *source* counts from the working directory at the time of this call. Without
        *at* it is shown at its own path. Enforced by mount_setattr(2) (5.12) or a remount of each
        mount (before), always nosuid and nodev.

        Raises:
            PolicyError: a path is empty, or *at* is relative.
        """
        return cls(MountKind.READ_ONLY, *_bind(source, at))

    @classmethod
    def read_write(cls, source: str | os.PathLike[str], at: str | None = None) -> Mount:
        """Show a file or directory of the host, writable with the rights of the caller.

        What is written there is written on the host. Otherwise as `read_only`.
        """
        return cls(MountKind.READ_WRITE, *_bind(source, at))

    @classmethod
    def tmpfs(cls, at: str, size: int | str = "64M") -> Mount:
        """Show an empty, writable, private directory in memory of at most *size* bytes.

        Enforced by tmpfs(5): a write beyond the size fails with ENOSPC.
        """
        number = parse_size(size, "size")
        if number < 4096:
            raise PolicyError(f"size: less than a page: {size!r}", field="size", value=size)
        return cls(MountKind.TMPFS, at, "", number)


def _bind(source: str | os.PathLike[str], at: str | None) -> tuple[str, str]:
    path = absolute(check_path(source, "mounts"), "mounts")
    return (path if at is None else at), path


class Limits(Value):
    """How much a run may use. None is no limit.

    Attributes:
        timeout: seconds (or text such as "1m30s") from the command's start until everything is
            killed, whatever it does with its signals. Kept by init with CLOCK_MONOTONIC.
        output: bytes that are captured of stdout and stderr together. One byte more and the
            capsule is killed. Only what Capsule captures counts. Kept by the supervisor.
    """

    timeout: float | None = None
    output: int | None = 16 << 20

    if TYPE_CHECKING:

        def __init__(
            self, timeout: float | str | None = None, output: int | str | None = 16 << 20
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.timeout is not None:
            self._set("timeout", parse_time(self.timeout, "timeout"))
        if self.output is not None:
            self._set("output", parse_size(self.output, "output"))


class Policy(Value):
    """What a command may see and do. Frozen: `replace` derives another.

    Attributes:
        mounts: what to show besides the default view.
        root: a directory of the host to show as the whole root, read-only, instead of the host's
            programs.
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

    Raises:
        PolicyError: a field has a value that cannot be meant; it names the field and the value.
    """

    mounts: tuple[Mount, ...] = ()
    root: str | None = None
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in self.__value_fields__:
                hint = f"the fields are {', '.join(self.__value_fields__)}"
                raise PolicyError(f"unknown policy field {name!r}", field=name, hint=hint)
        super().__init__(*args, **kwargs)

    def __post_init__(self) -> None:
        self._set("mounts", _mounts(self.mounts))
        if self.root is not None:
            self._set("root", absolute(check_path(self.root, "root"), "root"))
        self._set("network", _choice(Network, self.network, "network"))
        self._set("id_map", _choice(IdMap, self.id_map, "id_map"))
        self._set("hostname", _hostname(self.hostname))
        for field in ("uid", "gid"):
            _check_id(self.__dict__[field], field)
        if self.env is not None:
            self._set("env", _variables(self.env, "env", allow_none=False))
        self._set("extra_env", _variables(self.extra_env, "extra_env", allow_none=True))
        if not isinstance(self.inherit_env, bool):
            raise _wrong("inherit_env", self.inherit_env, "a bool")
        if self.cwd is not None:
            self._set("cwd", check_path(self.cwd, "cwd"))
        if not isinstance(self.limits, Limits):
            raise _wrong("limits", self.limits, "Limits")


def _wrong(field: str, value: object, wanted: str) -> PolicyError:
    return PolicyError(f"{field}: not {wanted}: {_shown(value)}", field=field, value=value)


def _mounts(value: Any) -> tuple[Mount, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(m, Mount) for m in value):
        raise _wrong("mounts", value, "a sequence of Mount")
    return tuple(value)


def _choice(kind: type[Choice], value: Any, field: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise _wrong(field, value, f"one of {choices}") from None


def _hostname(value: object) -> str:
    """hostname(7), and what sethostname(2) takes: 64 bytes."""
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."
    if not isinstance(value, str) or not 0 < len(value) <= 64 or value[0] in "-.":
        raise _wrong("hostname", value, "a hostname of 1 to 64 letters, digits, '-' and '.'")
    if value.strip(allowed):
        raise _wrong("hostname", value, "a hostname of 1 to 64 letters, digits, '-' and '.'")
    return value


def _check_id(value: object, field: str) -> None:
    """The last id means "none" to the kernel."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32 - 1:
        raise _wrong(field, value, "an id from 0 to 4294967294")


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
        raise _wrong(field, value, "a mapping of names to values") from None
    pairs = {}
    for name, content in given.items():
        key = _variable_text(name, field, name)
        if not key or "=" in key:
            raise _wrong(field, name, "a variable's name")
        if content is None and not allow_none:
            raise _wrong(field, name, "a name with a value")
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
        raise _wrong(field, name, "a variable of text without NUL bytes")
    return word

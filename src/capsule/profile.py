"""TOML → Policy. Every key is a name of the Python interface; what is not known is an error.

Imported only where a profile is read or written.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import stat

from . import shapes, toml_text
from .errors import PolicyError
from .mounts import Mount, MountKind
from .paths import absolute, is_below
from .policy import Limits, Policy
from .profile_text import ENCODED_NAME, NO_LIMIT, dump, written_name
from .quantities import shown
from .toml_text import Document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .shapes import Shape
    from .toml_text import Path

__all__ = ["dump", "guarded", "load", "loads", "read"]


def load(path: str | os.PathLike[str]) -> Policy:
    """Read a policy from a TOML file; relative paths in it count from the directory that holds it.

    Raises:
        PolicyError: it cannot be read, or a key or value in it cannot be meant: with file, line, key.
    """
    return read(os.fspath(path))[0]


def loads(text: str, directory: str | None = None, *, name: str = "profile") -> Policy:
    """The same of text. Relative paths count from *directory*, else from the working directory."""
    return policy_of(Document(text, name, directory or ""))


def read(name: str) -> tuple[Policy, bool]:
    """(The policy of a file, whether the file says itself how much output there may be)."""
    document = open_document(name)
    limits = document.data.get("limits")
    return policy_of(document), isinstance(limits, dict) and "output" in limits


def open_document(name: str, *, found: bool = False) -> Document:
    """Read a file that the caller named, or one that was found and that anyone may have put there."""
    # What is found must neither lead elsewhere nor keep us waiting.
    flags = os.O_NOFOLLOW | os.O_NONBLOCK if found else 0
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | flags)
    except OSError as error:
        is_link = found and error.errno == errno.ELOOP
        raise _unreadable(name, "a symbolic link" if is_link else error.strerror) from None
    except ValueError:
        raise _unreadable(name, "a NUL byte in its name") from None
    try:
        text = _content(name, fd, pipe=not found)
    finally:
        os.close(fd)
    return Document(text, name, os.path.dirname(absolute(name, "profile")))


def _unreadable(name: str, why: str | None) -> PolicyError:
    return PolicyError(f"{name}: cannot be read: {why}", field="profile", value=name)


def _content(name: str, fd: int, *, pipe: bool) -> str:
    """All that it holds. A pipe is what a shell makes of ``<(...)``."""
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind) and not (pipe and stat.S_ISFIFO(kind)):
        raise _unreadable(name, "not a regular file")
    data = b""
    try:
        while len(data) <= toml_text.LARGEST_FILE and (more := os.read(fd, 1 << 16)):
            data += more
    except OSError as error:
        raise _unreadable(name, error.strerror) from None
    if len(data) > toml_text.LARGEST_FILE:
        raise _unreadable(name, "larger than 1 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{name}:{line}: not TOML: not UTF-8", field="profile", value=name) from None


def guarded(policy: Policy, name: str) -> Policy:
    """The policy with the profile *name* itself protected in every writable tree that holds it.

    As a protected name, and not as a mount of its own: the directories above it must stay where they
    are, too, and what takes its place is found at the end.
    """
    writable = (MountKind.READ_WRITE, MountKind.OVERLAY)
    names = set()
    for path in {absolute(name, "profile"), os.path.realpath(name)}:
        for mount in policy.mounts:
            top = os.path.realpath(mount.source) if mount.kind in writable else path
            if path != top and is_below(path, top):
                names.add(os.path.relpath(path, top))
    return policy.replace(protect=(*policy.protect, *names)) if names else policy


# --- reading ------------------------------------------------------------------------------------


def policy_of(document: Document) -> Policy:
    """What a document asks for. Each key is checked by itself, so that an error has its line."""
    known = shapes.of_policy()
    fields: dict[str, Any] = {}
    for name, value in document.data.items():
        _check_key(document, (name,), known)
        fields[name] = value_of(document, (name,), known[name].shape, value)
        _located(document, (name,), fields[name], Policy, {name: fields[name]})
    return Policy(**fields)


def _check_key(document: Document, path: Path, known: dict[str, Shape], *more: str) -> None:
    if path[-1] not in known:
        hint = f"the keys are {', '.join((*more, *known))}"
        raise document.error(path, "unknown key", hint=hint)


def value_of(document: Document, path: Path, shape: str, value: object) -> Any:
    """A value as Python takes it. What only the types themselves can judge is passed on to them."""
    reader = _READERS.get(shape)
    return value if reader is None else reader(document, path, value)


def _located(
    document: Document, path: Path, given: Any, make: Callable[..., Any], fields: dict[str, Any]
) -> Any:
    """What *make* returns; its error with the place of what was given."""
    try:
        return make(**fields)
    except PolicyError as error:
        message = error.message.removeprefix(f"{error.field}: ").removeprefix("mounts: ")
        raise document.error(_guilty(path, given, error), message, hint=error.hint) from None


def _guilty(path: Path, given: Any, error: PolicyError) -> Path:
    """The path of the part of a value that an error is about."""
    if isinstance(given, dict):
        if error.field in given:
            return (*path, error.field)
        # Of variables the error has the name, of a mount's parameters the value.
        for name, value in given.items():
            if error.value in (name, value):
                return (*path, written_name(name))
    if isinstance(given, list):
        for number in range(len(given) - 1, -1, -1):
            if error.value in (given[number], getattr(given[number], "at", None)):
                return (*path, number)
    return path


def _flag(document: Document, path: Path, value: object) -> bool:
    if not isinstance(value, bool):
        raise document.error(path, f"not true or false: {shown(value)}")
    return value


def _text(document: Document, path: Path, value: object) -> str:
    """A string, or any bytes as ``{ base64 = "…" }``."""
    return value if isinstance(value, str) else os.fsdecode(_bytes(document, path, value))


def _bytes(document: Document, path: Path, value: object) -> bytes:
    word = value.get("base64") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(word, str):
        # Of a variable the value may be a secret.
        said = "" if path[0] in ("env", "extra_env") else f": {shown(value)}"
        raise document.error(path, f"not text{said}", hint='write "…" or { base64 = "…" }')
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        raise document.error(path, f"not base64: {shown(word)}") from None


def _data(document: Document, path: Path, value: object) -> bytes:
    return value.encode() if isinstance(value, str) else _bytes(document, path, value)


def _texts(document: Document, path: Path, value: object) -> list[str]:
    if not isinstance(value, list):
        raise document.error(path, f"not an array of text: {shown(value)}")
    return [_text(document, (*path, number), one) for number, one in enumerate(value)]


def _path(document: Document, path: Path, value: object) -> str:
    """A path of the host: from the caller's home, or from the directory of the file."""
    text = _text(document, path, value)
    if isinstance(value, str) and (text == "~" or text.startswith("~/")):
        return _home(document, path) + text[1:]
    # An empty one would become that directory: it is left for the error that it is.
    return os.path.join(document.directory, text) if text else text


def _home(document: Document, path: Path) -> str:
    home = os.path.expanduser("~")
    if not home.startswith("/"):
        raise document.error(path, "the caller has no home directory", hint="write the whole path")
    return home


def _pattern(document: Document, path: Path, value: object) -> str:
    """Of what is to be hidden: a path as above, but a name or a pattern stays what it is."""
    text = _text(document, path, value)
    in_home = isinstance(value, str) and (text == "~" or text.startswith("~/"))
    if in_home or ("/" in text and not re.search(r"[*?[]", text)):
        return _path(document, path, value)
    return text


def _mode(document: Document, path: Path, value: object) -> int:
    if isinstance(value, str) and re.fullmatch("0o[0-7]{1,4}", value):
        return int(value, 8)
    if not isinstance(value, int) or isinstance(value, bool):
        raise document.error(path, f"not permission bits: {shown(value)}", hint="write 0o644")
    return value


def _variables(document: Document, path: Path, value: object) -> dict[str, str | None]:
    """A table of variables; false passes the caller's on."""
    if not isinstance(value, dict):
        raise document.error(path, "not a table of variables")
    found: dict[str, str | None] = {}
    for word, content in value.items():
        name = word
        if word.startswith(ENCODED_NAME):
            encoded = {"base64": word.removeprefix(ENCODED_NAME)}
            name = _text(document, (*path, word), encoded)
        passed_on = content is False and path == ("extra_env",)
        found[name] = None if passed_on else _text(document, (*path, word), content)
    return found


def _limits(document: Document, path: Path, value: object) -> Limits:
    if not isinstance(value, dict):
        raise document.error(path, f"not a table: {shown(value)}")
    known = shapes.of_limits()
    fields: dict[str, Any] = {}
    for name, limit in value.items():
        _check_key(document, (*path, name), known)
        fields[name] = None if limit == NO_LIMIT else limit
        _located(document, (*path, name), None, Limits, {name: fields[name]})
    return Limits(**fields)


def _mounts(document: Document, path: Path, value: object) -> list[Mount]:
    if not isinstance(value, list):
        hint = "begin each mount with a line [[mounts]]"
        raise document.error(path, f"not an array of tables: {shown(value)}", hint=hint)
    return [mount_of(document, (*path, number), one) for number, one in enumerate(value)]


def mount_of(document: Document, path: Path, table: object) -> Mount:
    """One mount: its kind and the parameters of the function of that name."""
    kinds = ", ".join(kind.value for kind in MountKind)
    if not isinstance(table, dict) or "kind" not in table:
        raise document.error(path, "a mount needs a kind", hint=f"the kinds are {kinds}")
    try:
        kind = MountKind(table["kind"])
    except ValueError:
        message = f"not one of {kinds}: {shown(table['kind'])}"
        raise document.error((*path, "kind"), message) from None
    known = shapes.of_mount(kind)
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name != "kind":
            _check_key(document, (*path, name), known, "kind")
            given[name] = value_of(document, (*path, name), known[name].shape, value)
    missing = [name for name, shape in known.items() if shape.required and name not in given]
    if missing:
        raise document.error(path, f"a mount of kind {kind.value} needs {' and '.join(missing)}")
    mount: Mount = _located(document, path, given, getattr(Mount, kind.value), given)
    return mount


_READERS: dict[str, Callable[[Document, Path, object], Any]] = {
    "mounts": _mounts, "limits": _limits, "variables": _variables, "texts": _texts, "text": _text,
    "path": _path, "pattern": _pattern, "mode": _mode, "data": _data, "flag": _flag,
}  # fmt: skip

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

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.base.text import shown as shown_in_python
from capsule.confine.seccomp.spec import Seccomp
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount, MountKind
from capsule.policy.paths import absolute
from capsule.policy.policy import Policy

from . import document as toml_text
from . import keys
from .document import Document, shown
from .write import ENCODED_NAME, NO_LIMIT, dump, written_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from capsule.base.errors import CapsuleError

    from .document import Path
    from .keys import Shape

__all__ = ["dump", "guarded", "load", "loads", "open_document", "place_error", "policy_of"]


def load(path: str | os.PathLike[str]) -> Policy:
    """Read a policy from a TOML file; relative paths in it count from the directory that holds it.

    Raises:
        PolicyError: it cannot be read, or a key or value in it cannot be meant: with file, line, key.
    """
    return policy_of(open_document(os.fspath(path)))


def loads(text: str, directory: str | None = None, *, name: str = "profile") -> Policy:
    """The same of text. Relative paths count from *directory*, else from the working directory."""
    return policy_of(Document(text, name, directory or ""))


def open_document(name: str, *, found: bool = False) -> Document:
    """Read a file that the caller named, or one that was found and that anyone may have put there."""
    # Neither must keep us waiting, as a pipe that nobody writes to would; what is found must not lead
    # elsewhere either.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(name, flags | (os.O_NOFOLLOW if found else 0))
    except OSError as error:
        is_link = found and error.errno == errno.ELOOP
        raise _unreadable(name, "a symbolic link" if is_link else error.strerror) from None
    except ValueError:
        raise _unreadable(name, "a NUL byte in its name") from None
    try:
        text = _content(name, fd, pipe=not found and name.startswith(_DESCRIPTORS))
    finally:
        os.close(fd)
    return Document(text, name, os.path.dirname(absolute(name, "profile")))


def _unreadable(name: str, why: str | None) -> PolicyError:
    hint = (
        "name a regular file of TOML that you may read; `capsule policy list` names the built-in ones"
    )
    return PolicyError(f"{name}: cannot be read: {why}", field="profile", value=name, hint=hint)


# A pipe under such a name is what a shell makes of ``<(...)``: somebody writes to it.
_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")


def _content(name: str, fd: int, *, pipe: bool) -> str:
    """All that it holds."""
    kind = os.fstat(fd).st_mode
    if pipe and stat.S_ISFIFO(kind):
        # It was opened anew through /proc: nobody else has this description.
        os.set_blocking(fd, True)
    elif not stat.S_ISREG(kind):
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
        hint = 'write bytes that are no text as { base64 = "…" }'
        message = f"{name}:{line}: not TOML: not UTF-8"
        raise PolicyError(message, field="profile", value=name, hint=hint) from None


def guarded(policy: Policy, name: str) -> Policy:
    """The policy with the file *name* itself protected in every writable tree that holds it.

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
    try:
        return policy.replace(protect=(*policy.protect, *names)) if names else policy
    except PolicyError:
        message = f"{name}: cannot be protected under this name in the writable tree that holds it"
        hint = "rename it: without control characters, '*', '?' and '['"
        raise PolicyError(message, field="profile", value=name, hint=hint) from None


# --- reading ------------------------------------------------------------------------------------


def policy_of(document: Document) -> Policy:
    """Return what a document asks for. Each key is checked by itself, so that an error has its line."""
    known = keys.of_policy()
    fields: dict[str, Any] = {}
    for name, value in document.data.items():
        _check_key(document, (name,), known)
        fields[name] = value_of(document, (name,), known[name].shape, value)
        _located(document, (name,), fields[name], Policy, {name: fields[name]})
        if name == "unprotect":
            _check_names(document, fields[name])
    return Policy(**fields)


def _check_names(document: Document, names: list[str]) -> None:
    """The table of protected names, which would refuse them at the start, does so with their line."""
    from capsule.policy.protected import in_force  # only where it is asked for

    _located(document, ("unprotect",), names, in_force, {"protect": (), "unprotect": names})


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
    """Return what *make* returns; its error with the place of what was given."""
    try:
        return make(**fields)
    except PolicyError as error:
        message = error.message.removeprefix(f"{error.field}: ").removeprefix("mounts: ")
        written = shown_in_python(error.value)
        if message.endswith(f": {written}"):
            message = message.removesuffix(written) + shown(error.value)
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
        hint = "write true or false, without quotes"
        raise document.error(path, f"not true or false: {shown(value)}", hint=hint)
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
        hint = "base64 is letters, digits, + and /, padded with ="
        raise document.error(path, f"not base64: {shown(word)}", hint=hint) from None


def _data(document: Document, path: Path, value: object) -> bytes:
    return value.encode() if isinstance(value, str) else _bytes(document, path, value)


def _texts(document: Document, path: Path, value: object) -> list[str]:
    if not isinstance(value, list):
        hint = f'write {path[-1]} = ["…", "…"]'
        raise document.error(path, f"not an array of text: {shown(value)}", hint=hint)
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
        hint = f'begin it with a line [{path[-1]}], then a line NAME = "…" for each'
        raise document.error(path, "not a table of variables", hint=hint)
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
        hint = 'begin it with a line [limits], then a line such as timeout = "10s"'
        raise document.error(path, f"not a table: {shown(value)}", hint=hint)
    known = keys.of_limits()
    fields: dict[str, Any] = {}
    for name, limit in value.items():
        _check_key(document, (*path, name), known)
        fields[name] = None if limit == NO_LIMIT else limit
        _located(document, (*path, name), None, Limits, {name: fields[name]})
    return Limits(**fields)


def _seccomp(document: Document, path: Path, value: object) -> Seccomp:
    """A profile's name, or a table; the path of a file counts from this file's directory."""
    table = value if isinstance(value, dict) and "base64" not in value else {"profile": value}
    known = keys.of_seccomp()
    fields: dict[str, Any] = {}
    for name, given in table.items():
        _check_key(document, (*path, name), known)
        at = path if table is not value else (*path, name)
        fields[name] = value_of(document, at, known[name].shape, given)
    if "profile" in fields and _located(document, path, table, Seccomp, fields).path is not None:
        fields["profile"] = _path(document, path, fields["profile"])
    seccomp: Seccomp = _located(document, path, table, Seccomp, fields)
    return seccomp


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
        raise document.error((*path, "kind"), message, hint=f"write one of {kinds}") from None
    known = keys.of_mount(kind)
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name != "kind":
            _check_key(document, (*path, name), known, "kind")
            given[name] = value_of(document, (*path, name), known[name].shape, value)
    missing = [name for name, shape in known.items() if shape.required and name not in given]
    if missing:
        message = f"a mount of kind {kind.value} needs {' and '.join(missing)}"
        hint = f"add {' and '.join(f'a line {name} = …' for name in missing)}"
        raise document.error(path, message, hint=hint)
    mount: Mount = _located(document, path, given, getattr(Mount, kind.value), given)
    return mount


_READERS: dict[str, Callable[[Document, Path, object], Any]] = {
    "mounts": _mounts, "limits": _limits, "variables": _variables, "texts": _texts, "text": _text,
    "path": _path, "pattern": _pattern, "mode": _mode, "data": _data, "flag": _flag,
    "seccomp": _seccomp,
}  # fmt: skip


# --- errors that come later -----------------------------------------------------------------------

# The field that a step carries out, where it has a value of its own.
_OF_STEP = {"chdir": "cwd", "identity": "uid", "hostname": "hostname"}


def place_error(
    error: CapsuleError, documents: Iterable[Document], overridden: Collection[str] = ()
) -> None:
    """Begin the message of an error with the place of the value of a file that it is about, if any.

    What only the host can tell, that a source is missing, say, turns up when the file has long been
    read.

    Args:
        error: the error.
        documents: the files that the policy is of.
        overridden: fields that have their value from elsewhere.
    """
    for document in documents:
        if error.message.startswith(f"{document.name}:"):
            return
        path = _place_of(error, document, overridden)
        if path:
            error.place(document.where(path))
            return


def _place_of(error: CapsuleError, document: Document, overridden: Collection[str]) -> Path:
    step = getattr(error, "step", None)
    field = getattr(error, "field", "") if step is None else _OF_STEP.get(step.word, "")
    if field in document.data and field != "mounts":
        return () if field in overridden else (field,)
    about = (getattr(error, "value", None), getattr(error, "filename", None))
    for number, table in enumerate(document.data.get("mounts", ())):
        name = _parameter(mount_of(document, ("mounts", number), table), about)
        if name is not None:
            return ("mounts", number, name) if name in table else ("mounts", number)
    return ()


def _parameter(mount: Mount, about: tuple[object, ...]) -> str | None:
    """The parameter of a mount that is, or leads to, one of these paths."""
    for name in keys.of_mount(mount.kind):
        value = getattr(mount, keys.ATTRIBUTES.get(name, name))
        if isinstance(value, str) and value:
            real = os.path.realpath(value) if value.startswith("/") else value
            if value in about or real in about:
                return name
    return None

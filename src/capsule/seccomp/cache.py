"""Compiled filters, kept in the user's cache: a run that finds its own imports nothing else of this.

What is found is used only if nobody but the caller can have written it, and if it is whole and was made
for the same question. Anything else is made anew and replaced; where it cannot be kept, it is made at
every start.
"""

from __future__ import annotations

import os
import stat

from capsule.errors import HostError, PolicyError
from capsule.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .compile import Answer
    from .rules import Rules
    from .spec import Spec

_MAGIC = b"capsule-filter 1\n"
_DIGEST = 32
_HEAD = len(_MAGIC) + _DIGEST
_LENGTHS = 12
_INSTRUCTION = 8
_MOST = 4096 * _INSTRUCTION
_ANSWER = 16
_LARGEST = _HEAD + _LENGTHS + 2 * _MOST + 1024 * _ANSWER
_LARGEST_DOCUMENT = 1 << 20
_KEPT = 32
_NONE = 0xFFFFFFFF

_LIBRARY = "libseccomp.so.2"
_LIBRARIES = ("/usr/lib/{}-linux-gnu", "/usr/lib64", "/usr/lib", "/lib/{}-linux-gnu", "/lib64", "/lib")


_known: dict[str, Compiled] = {}


class Compiled(Value):
    """What the launcher and PID 1 are given.

    Attributes:
        program: the filter.
        tail: the one to install after it, when the launcher has nothing more to send; or None.
        answers: (architecture's token, number, errno, index of the argument that matters or -1) of each
            call that PID 1 may be asked about.
        note: why the next process has to make it anew; empty if it is kept.
    """

    program: bytes
    tail: bytes | None = None
    answers: tuple[Answer, ...] = ()
    note: str = ""


def load(spec: Spec, *, notify: bool, arch: str | None = None) -> Compiled | None:
    """The compiled filter that a specification means, or None for the profile "off".

    Raises:
        PolicyError: the specification or the file that it names is wrong.
        HostError: it must be compiled and libseccomp is missing, or the architecture is unknown.
    """
    if spec.profile == "off":
        if spec.allow or spec.deny:
            message = "seccomp: off: without a filter no system call can be allowed or denied"
            raise PolicyError(message, field="seccomp", value="off")
        return None
    arch = arch or os.uname().machine
    document = None if spec.path is None else read_document(spec.path)
    name = key(spec, arch, document, notify=notify)
    if name not in _known:
        with _Folder() as folder:
            found = folder.read(name)
            if found is None:
                made = _make(rules(spec, arch, document), arch, notify=notify)
                found = made.replace(note=folder.write(name, made))
            _known[name] = found
    return _known[name]


def rules(spec: Spec, arch: str | None = None, document: bytes | None = None) -> Rules:
    """The rules that a specification means.

    Raises:
        PolicyError: the specification or the file that it names is wrong.
        HostError: the architecture is unknown.
    """
    from . import numbers, resolve

    arch = arch or os.uname().machine
    if arch not in numbers.ARCHITECTURES:
        hint = "there it runs with --seccomp off"
        raise HostError(f"seccomp: there is no table of system calls for {arch}", hint=hint)
    if document is None and spec.path is not None:
        document = read_document(spec.path)
    return resolve.resolve(spec, arch, document)


def _make(wanted: Rules, arch: str, *, notify: bool) -> Compiled:
    from .compile import answers, compile, tail

    asked = answers(wanted, arch) if notify else ()
    return Compiled(compile(wanted, arch, notify), tail(wanted, arch), asked)


def read_document(path: str) -> bytes:
    """The content of a file of rules.

    Raises:
        PolicyError: it cannot be read, is no file, or too large.
    """
    try:
        content = _read_regular(path)
    except OSError as error:
        why = str(error.strerror)
    else:
        if content is not None:
            return content
        why = "is not a regular file of at most 1M"
    raise PolicyError(f"seccomp: {path}: {why}", field="seccomp", value=path)


def _read_regular(path: str) -> bytes | None:
    """The content, or None if it is no regular file or too large. Nothing makes this wait."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        content = os.read(fd, _LARGEST_DOCUMENT + 1)
    finally:
        os.close(fd)
    return content if len(content) <= _LARGEST_DOCUMENT else None


# --- the question ---------------------------------------------------------------------------


def key(spec: Spec, arch: str, document: bytes | None, *, notify: bool) -> str:
    """A name for all that decides how the program comes out."""
    kernel = "" if document is None else os.uname().release  # files have rules for some kernels
    asked = (spec.profile, tuple(spec.allow), tuple(spec.deny), document, kernel, arch, notify)
    return _digest(repr((asked, _sources(), _library(arch))).encode("utf-8", "surrogatepass")).hex()


def _digest(data: bytes) -> bytes:
    # hashlib loads OpenSSL, which costs more than all the rest here.
    try:
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b
    return blake2b(data, digest_size=_DIGEST).digest()


def _sources() -> list[tuple[str, int, int]]:
    """This package as it is on disk: what it makes changes with it."""
    with os.scandir(os.path.dirname(os.path.abspath(__file__))) as entries:
        found = [(e.name, e.stat()) for e in entries if e.name.endswith(".py")]
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in found)


def _library(arch: str) -> str:
    """The file behind libseccomp's name, which has its version; asking the library means loading it."""
    for folder in _LIBRARIES:
        try:
            return os.readlink(f"{folder.format(arch)}/{_LIBRARY}")
        except OSError:
            continue
    return ""


# --- the answer -----------------------------------------------------------------------------


def encode(name: str, made: Compiled) -> bytes:
    """The content of a cache file: what it is, its hash, three lengths, three parts."""
    values = [value & _NONE for answer in made.answers for value in answer]
    parts = (made.program, made.tail or b"", b"".join(v.to_bytes(4, "little") for v in values))
    body = b"".join(len(part).to_bytes(4, "little") for part in parts) + b"".join(parts)
    return _MAGIC + _digest(name.encode() + body) + body


def decode(name: str, data: bytes) -> Compiled | None:
    """What a cache file says, or None if it is not what `encode` wrote for this name."""
    body = data[_HEAD:]
    if not data.startswith(_MAGIC) or data[len(_MAGIC) : _HEAD] != _digest(name.encode() + body):
        return None
    lengths = [int.from_bytes(body[n : n + 4], "little") for n in range(0, _LENGTHS, 4)]
    parts, at = [], _LENGTHS
    for length in lengths:
        parts.append(body[at : at + length])
        at += length
    program, tail, answers = parts
    if at != len(body) or not program or len(answers) % _ANSWER:
        return None
    if any(len(part) % _INSTRUCTION or len(part) > _MOST for part in (program, tail)):
        return None
    return Compiled(program, tail or None, _answers(answers))


def _answers(data: bytes) -> tuple[Answer, ...]:
    values = [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 4)]
    rows = zip(values[::4], values[1::4], values[2::4], values[3::4], strict=True)
    return tuple((arch, nr, error, -1 if arg == _NONE else arg) for arch, nr, error, arg in rows)


# --- the place ------------------------------------------------------------------------------


def place() -> str | None:
    """The folder of compiled filters, or None where the environment names no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not cache.startswith("/"):
        home = os.environ.get("HOME", "")
        cache = f"{home}/.cache" if home.startswith("/") else ""
    return f"{cache}/capsule" if cache else None


def _is_ours(fd: int) -> bool:
    """Whether nobody but the caller can have written it."""
    status = os.fstat(fd)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


class _Folder:
    """The folder in the cache, or nothing if it is not the caller's alone."""

    def __init__(self) -> None:
        self.fd = -1
        self.why = "no home is known to keep it in"

    def __enter__(self) -> _Folder:
        path = place()
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                self.why = f"{path}: {error.strerror}"
        return self

    def __exit__(self, *_exception: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _open(self, path: str) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            _make_folder(path)
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not _is_ours(self.fd):
            self._close()
            self.why = f"{path} is not the caller's alone"

    def read(self, name: str) -> Compiled | None:
        """What is kept under this name, if it can be trusted."""
        if self.fd < 0:
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self.fd)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode) or not _is_ours(fd):
                return None
            return decode(name, os.read(fd, _LARGEST + 1))
        except OSError:
            return None
        finally:
            os.close(fd)

    def write(self, name: str, made: Compiled) -> str:
        """Keep it, at once or not at all. The answer is why it was not kept, or empty."""
        if self.fd >= 0:
            try:
                _replace(self.fd, name, encode(name, made))
                _prune(self.fd)
            except OSError as error:
                self.why = f"{place()}: {error.strerror}"
            else:
                return ""
        return f"the seccomp filter is compiled at every start, some 40 ms: {self.why}"


def _make_folder(path: str) -> None:
    """Make the folder, and the cache's own if need be; in a place of the caller's alone.

    Root with another user's home would leave folders there that are not the user's to remove.
    """
    cache = os.path.dirname(path)
    home = os.path.dirname(cache)
    for parent, folder in ((home, cache), (cache, path)):
        if not os.path.isdir(folder):
            if os.stat(parent).st_uid != os.geteuid():
                raise PermissionError(1, "the folder above is another user's")
            os.mkdir(folder, 0o700)


def _replace(folder: int, name: str, data: bytes) -> None:
    temporary = f".{os.urandom(12).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise


def _prune(folder: int) -> None:
    """Remove the oldest beyond a number: each change of a policy or of Capsule leaves one behind."""
    entries = []
    for name in os.listdir(folder):
        try:
            entries.append((os.lstat(name, dir_fd=folder).st_mtime_ns, name))
        except FileNotFoundError:
            continue
    for _, name in sorted(entries)[:-_KEPT]:
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue

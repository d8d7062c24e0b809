"""What the dynamic loader reads, as ld.so(8) reads it: ELF files, ld.so.cache, ld.so.conf.

Nothing is executed. Every file may come from whoever wrote the untrusted program, so each offset, size
and count in it is bounded, and a file that is not as it should be is as good as none.
"""

from __future__ import annotations

import os
import stat
import struct
import sys

from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]
    """The bytes of a file: (offset, at most how many)."""

CACHE = "/etc/ld.so.cache"
CONF = "/etc/ld.so.conf"

MOST_SEGMENTS = 512
MOST_DYNAMIC = 4096
MOST_NEEDED = 512
LONGEST = 4096
CACHE_SIZE = 16 << 20
MOST_CACHED = 1 << 16

# elf.h; the numbers of what is looked for in each part
_EXECUTABLE, _SHARED = 2, 3
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _RUNPATH = 1, 5, 10, 14, 15, 29
_AUXILIARY, _FILTER = 0x7FFFFFFD, 0x7FFFFFFF

# For 32 and 64 bits: the file header from e_type on, the program header, its p_offset, p_vaddr and
# p_filesz, an entry of the dynamic section.
_FORMS = {
    32: ("HHIIIIIHHH", "IIIIIIII", (1, 2, 4), "iI"),
    64: ("HHIQQQIHHH", "IIQQQQQQ", (2, 3, 5), "qQ"),
}


class Elf(Value):
    """What of an executable or a library the loader goes by.

    Attributes:
        bits: 32 or 64.
        order: "<" for little-endian, ">" for big-endian.
        machine: e_machine.
        interpreter: the loader that the kernel starts, or "".
        soname: the library's own name, or "".
        needed: the libraries it names.
        rpath: DT_RPATH, or None. None as well beside DT_RUNPATH, where it does not count.
        runpath: DT_RUNPATH, or None.
    """

    bits: int
    order: str
    machine: int
    interpreter: str = ""
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: str | None = None
    runpath: str | None = None

    def fits(self, other: Elf) -> bool:
        """Return whether both can be in one process."""
        return (self.bits, self.order, self.machine) == (other.bits, other.order, other.machine)


# --- files ----------------------------------------------------------------------------------

# By device, inode, time of the last change, which no program can set, and size.
_parsed: dict[tuple[int, int, int, int], Elf | None] = {}
_PARSED_AT_MOST = 8192


def read(path: str) -> Elf | None:
    """Parse an ELF file, or return None: it is none, is not readable, is not there."""
    try:
        # Not opened before it is known to be a file: that could block, or make a device act.
        if (key := _key(os.stat(path))) is None:
            return None
        if key not in _parsed:
            image = _read(path, key)
            if len(_parsed) >= _PARSED_AT_MOST:
                _parsed.clear()
            _parsed[key] = image
        return _parsed[key]
    except (OSError, ValueError):
        return None


def _key(status: os.stat_result) -> tuple[int, int, int, int] | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size


def _read(path: str, key: tuple[int, int, int, int]) -> Elf | None:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if _key(os.fstat(fd)) != key:  # it was exchanged meanwhile
            return None
        return parse(lambda offset, size: os.pread(fd, size, offset))
    finally:
        os.close(fd)


def parse(read: Read) -> Elf | None:
    """Parse an ELF file from its bytes, or return None for what is none."""
    try:
        return _parse(read)
    except (struct.error, ValueError, OverflowError, OSError):
        return None


def _parse(read: Read) -> Elf:
    ident = read(0, 64)
    if ident[:4] != b"\x7fELF" or len(ident) < 52 or {ident[4], ident[5]} - {1, 2}:
        raise ValueError("no ELF file")
    bits, order = 32 * ident[4], "<>"[ident[5] - 1]
    header = struct.unpack_from(order + _FORMS[bits][0], ident, 16)
    kind, machine = header[0], header[1]
    if kind not in (_EXECUTABLE, _SHARED):
        raise ValueError("neither an executable nor a library")
    segments = _segments(read, bits, order, header)
    image = Elf(bits, order, machine, _interpreter(read, segments))
    return _with_dynamic(image, read, segments)


def _segments(
    read: Read, bits: int, order: str, header: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    """(type, offset in the file, address, size in the file) of each program header."""
    _, form, wanted, _ = _FORMS[bits]
    start, size, count = header[4], header[8], header[9]
    if size != struct.calcsize(order + form) or count > MOST_SEGMENTS:
        raise ValueError("program headers")
    rows = struct.iter_unpack(order + form, read(start, size * count))
    return [(row[0], *(row[column] for column in wanted)) for row in rows]


def _interpreter(read: Read, segments: list[tuple[int, int, int, int]]) -> str:
    for kind, offset, _, size in segments:
        if kind == _INTERPRETER:
            return _text(read, offset, size)
    return ""


def _text(read: Read, offset: int, size: int) -> str:
    """A string that a NUL byte ends; "" if it is longer than anything that is meant."""
    data, end, _ = read(offset, max(0, min(size, LONGEST))).partition(b"\0")
    return os.fsdecode(data) if end else ""


def _with_dynamic(image: Elf, read: Read, segments: list[tuple[int, int, int, int]]) -> Elf:
    entries = list(_dynamic(image, read, segments))
    numbers = dict(entries)
    if _STRTAB not in numbers:
        return image
    table, size = _in_file(segments, numbers[_STRTAB]), numbers.get(_STRSZ, 0)

    def texts(*tags: int) -> Iterator[str]:
        for tag, offset in entries:
            if tag in tags and offset < size:
                yield _text(read, table + offset, size - offset)

    needed = [name for name in texts(_NEEDED, _AUXILIARY, _FILTER) if name]
    runpath = next(texts(_RUNPATH), None)
    return image.replace(
        soname=next(texts(_SONAME), ""),
        needed=tuple(dict.fromkeys(needed[:MOST_NEEDED])),
        rpath=next(texts(_RPATH), None) if runpath is None else None,
        runpath=runpath,
    )


def _dynamic(
    image: Elf, read: Read, segments: list[tuple[int, int, int, int]]
) -> Iterator[tuple[int, int]]:
    """The (tag, value) pairs of the dynamic section, which the tag 0 ends."""
    form = image.order + _FORMS[image.bits][3]
    width = struct.calcsize(form)
    for kind, offset, _, size in segments:
        if kind == _DYNAMIC:
            data = read(offset, min(size // width, MOST_DYNAMIC) * width)
            for tag, value in struct.iter_unpack(form, data[: len(data) // width * width]):
                if tag == 0:
                    return
                yield tag, value
            return


def _in_file(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, size in segments:
        if kind == _LOAD and start <= address < start + size:
            return offset + address - start
    raise ValueError("an address outside of the file")


# --- ld.so.cache ----------------------------------------------------------------------------

# Both formats may be in one file, the older one first; sysdeps/generic/dl-cache.h of glibc
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER, _CACHE_ENTRY = "II B 3x I 12x", "iIIIQ"

Cache = dict[str, tuple[tuple[str, bool], ...]]
"""For each library's name: (path, whether only some processors take that one), in order."""

_caches: dict[tuple[int, int, int, int], Cache] = {}


def read_cache(path: str = CACHE) -> Cache | None:
    """The loader's cache, or None: there is none that could be read."""
    try:
        if (key := _key(os.stat(path))) is None:
            return None
        if key not in _caches:
            with open(path, "rb") as file:
                cache = parse_cache(file.read(CACHE_SIZE))
            _caches.clear()
            if cache is None:
                return None
            _caches[key] = cache
        return _caches[key]
    except (OSError, ValueError):
        return None


def parse_cache(data: bytes) -> Cache | None:
    """Parse the loader's cache from its bytes, or return None for what is none."""
    start = data.find(_CACHE_MAGIC)
    if start < 0:
        return None
    table = memoryview(data)[start:]
    try:
        return _parse_cache(table, data[start:])
    except (struct.error, ValueError, OverflowError):
        return None


def _parse_cache(table: memoryview, data: bytes) -> Cache:
    order = _order(data[28] if len(data) > 28 else 0)
    header = len(_CACHE_MAGIC)
    (count,) = struct.unpack_from(order + "I", table, header)
    first, width = (
        header + struct.calcsize(order + _CACHE_HEADER),
        struct.calcsize(order + _CACHE_ENTRY),
    )
    if count > MOST_CACHED:
        raise ValueError("too many entries")
    found: dict[str, list[tuple[str, bool]]] = {}
    for row in struct.iter_unpack(order + _CACHE_ENTRY, table[first : first + count * width]):
        name, path = _cached_text(data, row[1]), _cached_text(data, row[2])
        if name and path.startswith("/"):
            found.setdefault(name, []).append((path, row[4] != 0))
    return {name: tuple(paths) for name, paths in found.items()}


def _order(flags: int) -> str:
    """Caches of old do not tell: they were written by the machine itself."""
    return {2: "<", 3: ">"}.get(flags & 3, "<" if sys.byteorder == "little" else ">")


def _cached_text(data: bytes, offset: int) -> str:
    end = data.find(b"\0", offset, offset + LONGEST)
    return os.fsdecode(data[offset:end]) if end > 0 else ""


# --- ld.so.conf -----------------------------------------------------------------------------

_CONF_SIZE, _CONF_DEPTH, _CONF_FILES, _CONF_LINES = 64 << 10, 4, 256, 1024


def configured(path: str = CONF) -> tuple[str, ...]:
    """The directories that ldconfig(8) looks through; for where it left no cache."""
    found: dict[str, None] = {}
    files = [(path, 0)]
    for name, depth in files:
        for words in _conf_lines(name):
            if words[0] == "include" and depth < _CONF_DEPTH:
                included = [match for word in words[1:] for match in _matches(word, name)]
                files += [(match, depth + 1) for match in included[: _CONF_FILES - len(files)]]
            elif words[0].startswith("/"):
                found.setdefault(words[0].partition("=")[0])
    return tuple(found)[:_CONF_LINES]


def _conf_lines(path: str) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(_CONF_SIZE).split("\n", _CONF_LINES)[:_CONF_LINES]
    except OSError:
        return
    for line in lines:
        if words := line.partition("#")[0].split():
            yield words


def _matches(pattern: str, of: str) -> list[str]:
    """The files that an include line names; a pattern in the last component only."""
    import fnmatch

    folder, name = os.path.split(os.path.join(os.path.dirname(of), pattern))
    try:
        return [
            f"{folder}/{found}"
            for found in sorted(os.listdir(folder))
            if fnmatch.fnmatchcase(found, name)
        ]
    except OSError:
        return []

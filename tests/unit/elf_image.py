"""ELF files and loader caches made by hand: of any kind of machine, with whatever in them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

X86_64, AARCH64, I386, PPC64, S390 = 62, 183, 3, 21, 22
BASE = 0x10000
TAGS = {"needed": 1, "strtab": 5, "strsz": 10, "soname": 14, "rpath": 15, "runpath": 29}


def image(
    *,
    bits: int = 64,
    order: str = "<",
    machine: int = X86_64,
    kind: int = 3,
    interpreter: str = "",
    needed: Sequence[str] = (),
    soname: str = "",
    rpath: str | None = None,
    runpath: str | None = None,
    numbers: Mapping[int, int] | None = None,
) -> bytes:
    """The parts of an ELF file that the loader goes by.

    Args:
        numbers: entries of the dynamic section that replace or follow the right ones.
    """
    word = "Q" if bits == 64 else "I"
    header_size, row_size = (64, 56) if bits == 64 else (52, 32)
    strings = bytearray(b"\0")

    def add(text: str) -> int:
        strings.extend(text.encode("utf-8", "surrogateescape") + b"\0")
        return len(strings) - len(text.encode("utf-8", "surrogateescape")) - 1

    dynamic = [(TAGS["needed"], add(name)) for name in needed]
    named = {"soname": soname or None, "rpath": rpath, "runpath": runpath}
    dynamic += [(TAGS[tag], add(text)) for tag, text in named.items() if text is not None]
    start = header_size + 3 * row_size
    asked = interpreter.encode() + b"\0"
    table = start + len(asked)
    right = {TAGS["strtab"]: BASE + table, TAGS["strsz"]: len(strings)}
    dynamic += list({**right, **(numbers or {})}.items())
    packed = b"".join(struct.pack(order + 2 * word, *pair) for pair in (*dynamic, (0, 0)))
    section = table + len(strings)
    end = section + len(packed)
    rows = [(1, 0, BASE, end), (2, section, BASE + section, len(packed))]
    rows.append((3, start, BASE + start, len(asked)) if interpreter else (0, 0, 0, 0))
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    header = struct.pack(
        order + "HHI" + 3 * word + "IHHHHHH",
        *(kind, machine, 1, 0, header_size, 0, 0, header_size, row_size, len(rows), 0, 0, 0),
    )
    headers = b"".join(_row(bits, order, *row) for row in rows)
    return ident + header + headers + asked + bytes(strings) + packed


def _row(bits: int, order: str, kind: int, offset: int, address: int, size: int) -> bytes:
    if bits == 64:
        return struct.pack(order + "IIQQQQQQ", kind, 4, offset, address, address, size, size, 1)
    return struct.pack(order + "IIIIIIII", kind, offset, address, address, size, size, 4, 1)


def write(path: Path, data: bytes, mode: int = 0o755) -> Path:
    """Put a file where it is needed, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def cache(entries: Sequence[tuple[str, str, int]], *, order: str = "<", told: bool = True) -> bytes:
    """A cache of the loader's with (name, path, hwcap) in it; *told*: it says its byte order."""
    header_size, row_size = 48, 24
    strings = bytearray()
    base = header_size + row_size * len(entries)
    rows = b""
    for name, path, hwcap in entries:
        places = []
        for text in (name, path):
            places.append(base + len(strings))
            strings.extend(text.encode() + b"\0")
        rows += struct.pack(order + "iIIIQ", 0x0303, *places, 0, hwcap)
    flags = (2 if order == "<" else 3) if told else 0
    header = struct.pack(order + "II B 3x I 12x", len(entries), len(strings), flags, 0)
    return b"glibc-ld.so.cache1.1" + header + rows + bytes(strings)

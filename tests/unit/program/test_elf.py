"""What is read from ELF files and from the loader's own, real, made by hand and damaged."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.program import elf
from capsule.program.elf import Elf
from tests.unit.elf_image import AARCH64, BASE, I386, PPC64, S390, TAGS, X86_64, cache, image, write

# The most that any one reading of a file may ask for
MOST_READ = 64 << 10
FULL = image(
    interpreter="/lib/ld.so", needed=["liba.so.1", "libb.so"], soname="me.so", runpath="$ORIGIN/lib"
)


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """The bytes as a file has them: where there are none it gives fewer."""

    def read(offset: int, size: int) -> bytes:
        assert 0 <= size <= MOST_READ
        if offset >= 1 << 63:
            raise OverflowError("off_t")
        return data[offset : offset + size]

    return read


def parse(data: bytes) -> Elf | None:
    """Parse a file of these bytes."""
    return elf.parse(reader(data))


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("machine", [X86_64, AARCH64, I386, PPC64, S390])
def test_every_class_and_byte_order_is_read(bits: int, order: str, machine: int) -> None:
    """Interpreter, names and search paths are found in files of 32 and 64 bits of both byte orders."""
    data = image(
        bits=bits,
        order=order,
        machine=machine,
        interpreter="/lib/ld.so.1",
        needed=["libc.so.6", "libm.so.6", "libc.so.6"],
        soname="libx.so.1",
        rpath="$ORIGIN/../lib:/opt/lib",
    )
    assert parse(data) == Elf(
        bits,
        order,
        machine,
        "/lib/ld.so.1",
        "libx.so.1",
        ("libc.so.6", "libm.so.6"),
        "$ORIGIN/../lib:/opt/lib",
    )


def test_rpath_does_not_count_beside_runpath() -> None:
    """DT_RUNPATH replaces DT_RPATH, even an empty one."""
    for runpath in ("/b", ""):
        found = parse(image(rpath="/a", runpath=runpath))
        assert found is not None
        assert (found.rpath, found.runpath) == (None, runpath)


def test_a_static_program_needs_nothing() -> None:
    """A file with neither interpreter nor libraries is an ELF file all the same."""
    assert parse(image(kind=2)) == Elf(64, "<", X86_64)


def test_names_of_any_bytes_are_kept() -> None:
    """A library's name that is no UTF-8 reads as os.fsdecode gives it."""
    found = parse(image(needed=[os.fsdecode(b"lib\xff.so")]))
    assert found is not None
    assert found.needed == (os.fsdecode(b"lib\xff.so"),)


@pytest.mark.parametrize("kind", [0, 1, 4, 0xFFFF])
def test_other_kinds_of_elf_files_are_none(kind: int) -> None:
    """Object files and core dumps are not loaded."""
    assert parse(image(kind=kind)) is None


@pytest.mark.parametrize(
    "numbers",
    [
        {TAGS["strtab"]: 0},
        {TAGS["strtab"]: BASE - 1},
        {TAGS["strtab"]: (1 << 64) - 1},
        {TAGS["strtab"]: BASE + (1 << 32)},
    ],
)
def test_a_table_outside_of_the_file_is_no_table(numbers: dict[int, int]) -> None:
    """Strings that no loaded part of the file holds make it as good as none."""
    assert parse(image(needed=["liba.so"], numbers=numbers)) is None


def test_a_name_that_nothing_ends_is_no_name() -> None:
    """A string that runs over the end of its table, or is longer than a path, is left out."""
    found = parse(image(needed=["liba.so"], numbers={TAGS["strsz"]: 4}))
    assert found is not None
    assert found.needed == ()
    found = parse(image(needed=["a" * 5000, "libb.so"], numbers={TAGS["strsz"]: 1 << 62}))
    assert found is not None
    assert found.needed == ("libb.so",)


def test_the_number_of_names_is_bounded() -> None:
    """Of thousands of names, so many count as a program may have."""
    found = parse(image(needed=[f"lib{n}.so" for n in range(3000)]))
    assert found is not None
    assert len(found.needed) == elf.MOST_NEEDED


@pytest.mark.parametrize("data", [image(bits=32), FULL])
def test_every_beginning_of_a_file_is_read_without_an_exception(data: bytes) -> None:
    """A file that ends anywhere is either read or none."""
    for end in range(len(data)):
        assert isinstance(parse(data[:end]), Elf | None)


@given(
    st.sampled_from([FULL, image(bits=32, order=">", interpreter="/a", needed=["b"], rpath="c")]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
)
def test_damaged_files_are_read_within_bounds(data: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes of a file are changed: no exception, no large read, few and short names."""
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    found = parse(bytes(damaged))
    if found is not None:
        assert len(found.needed) <= elf.MOST_NEEDED
        assert all(0 < len(name) < elf.LONGEST for name in found.needed)


@given(
    st.sampled_from([0x20, 0x28, 0x36, 0x38, 64, 72, 80, 96, 120, 128, 136, 152]),
    st.integers(0, 2**64 - 1),
)
def test_extreme_offsets_and_sizes_are_harmless(place: int, value: int) -> None:
    """Any number where the file has an offset, a size or a count gives no exception."""
    damaged = bytearray(FULL)
    damaged[place : place + 8] = value.to_bytes(8, "little")
    assert isinstance(parse(bytes(damaged)), Elf | None)


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_harmless(data: bytes) -> None:
    """Noise with the right first bytes gives no exception."""
    for ident in (b"", b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x02\x01"):
        assert isinstance(parse(ident + data), Elf | None)


# --- reading them -----------------------------------------------------------------------------


def test_a_real_program_is_read() -> None:
    """The Python that runs this names a loader that is there, and is of this machine."""
    found = elf.read(os.path.realpath(sys.executable))
    assert found is not None
    assert found.bits == 64 if sys.maxsize > 2**32 else 32
    assert found.order == ("<" if sys.byteorder == "little" else ">")
    assert not found.interpreter or os.path.exists(found.interpreter)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A FIFO does not block, and directories, devices, missing and impossible paths are none."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    impossible = ["\0", "/" + "a" * 5000, str(tmp_path / "none"), ""]
    for path in (
        str(tmp_path / "fifo"),
        str(tmp_path / "loop"),
        str(tmp_path),
        "/dev/zero",
        *impossible,
    ):
        assert elf.read(path) is None


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    """What was read before counts for the same content only, even where size and time are the same."""
    path = write(tmp_path / "lib", image(needed=["liba.so"]))
    before = path.stat()
    first = elf.read(str(path))
    assert first is elf.read(str(path))
    write(tmp_path / "new", image(needed=["libb.so"])).replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = elf.read(str(path))
    assert first is not None
    assert second is not None
    assert (first.needed, second.needed) == (("liba.so",), ("libb.so",))


# --- ld.so.cache ------------------------------------------------------------------------------

ENTRIES = [
    ("libz.so.1", "/lib/v3/libz.so.1", 1 << 62),
    ("libz.so.1", "/lib/libz.so.1", 0),
    ("liba.so", "/lib/liba.so", 0),
]
PARSED = {
    "libz.so.1": (("/lib/v3/libz.so.1", True), ("/lib/libz.so.1", False)),
    "liba.so": (("/lib/liba.so", False),),
}


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_cache_is_read_in_both_byte_orders(order: str) -> None:
    """Names, paths and for whom they are; in the order of the cache."""
    assert elf.parse_cache(cache(ENTRIES, order=order)) == PARSED


def test_a_cache_that_does_not_tell_its_byte_order_is_of_this_machine() -> None:
    """glibc before 2.32 wrote no byte order."""
    order = "<" if sys.byteorder == "little" else ">"
    assert elf.parse_cache(cache(ENTRIES, order=order, told=False)) == PARSED


def test_the_new_format_is_found_behind_the_old_one() -> None:
    """Up to glibc 2.31 a cache held both; offsets count from the new one."""
    old = b"ld.so-1.7.0\0" + (1).to_bytes(4, "little") + bytes(12) + bytes(4)
    assert elf.parse_cache(old + cache(ENTRIES)) == PARSED


def test_a_relative_path_in_the_cache_does_not_count() -> None:
    """The loader's cache holds absolute paths; another one is nothing."""
    assert elf.parse_cache(cache([("liba.so", "lib/liba.so", 0)])) == {}


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8),
    st.integers(0, 400),
)
def test_damaged_caches_are_harmless(changes: list[tuple[int, int]], end: int) -> None:
    """Whatever is changed or cut off: a table of names, or none, and no exception."""
    damaged = bytearray(cache(ENTRIES))
    for place, value in changes:
        damaged[place % len(damaged)] = value
    found = elf.parse_cache(bytes(damaged[:end]))
    for paths in (found or {}).values():
        assert all(path.startswith("/") for path, _ in paths)


def test_the_cache_is_read_from_its_file(tmp_path: Path) -> None:
    """A cache that was written anew is read anew; no file, and noise, are no cache."""
    path = tmp_path / "ld.so.cache"
    assert elf.read_cache(str(path)) is None
    write(path, cache(ENTRIES))
    assert elf.read_cache(str(path)) == PARSED
    assert elf.read_cache(str(path)) is elf.read_cache(str(path))
    write(tmp_path / "new", cache(ENTRIES[2:])).replace(path)
    assert elf.read_cache(str(path)) == {"liba.so": PARSED["liba.so"]}
    write(path, b"noise")
    assert elf.read_cache(str(path)) is None


@pytest.mark.skipif(not os.path.exists(elf.CACHE), reason="the host has no ld.so.cache")
def test_the_cache_of_this_host_is_read() -> None:
    """It names libraries that are there."""
    found = elf.read_cache()
    assert found
    paths = [path for known in found.values() for path, _ in known]
    assert any(elf.read(path) is not None for path in paths)


# --- ld.so.conf -------------------------------------------------------------------------------


def test_configured_directories_are_read(tmp_path: Path) -> None:
    """Directories, comments, included files by pattern, and files that include one another."""
    main = tmp_path / "ld.so.conf"
    main.write_text("# all\ninclude conf.d/*.conf\n/opt/lib # mine\nhwcap 0 x\nrelative\n/a=libc6\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/b.conf").write_text(f"/usr/b\ninclude {main}\n")
    (tmp_path / "conf.d/a.conf").write_text("/usr/a\n/opt/lib\n")
    (tmp_path / "conf.d/c.txt").write_text("/usr/c\n")
    assert elf.configured(str(main)) == ("/opt/lib", "/a", "/usr/a", "/usr/b")


def test_no_configuration_is_no_directory(tmp_path: Path) -> None:
    """A missing file, and one that includes a missing directory, name nothing."""
    assert elf.configured(str(tmp_path / "none")) == ()
    (tmp_path / "conf").write_text("include none/*.conf\n")
    assert elf.configured(str(tmp_path / "conf")) == ()

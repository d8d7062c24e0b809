"""The launcher's sources: what compilers and their analysers have to say about them."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from capsule.launcher import spawn
from tests.launcher.build import ALL, FUZZ, HERE, SHIPPED, SOURCES, WARNINGS, build

# -fno-builtin: `execve` is a function of the launcher's own.
MORE_WARNINGS = (
    "-fno-builtin",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Wmissing-prototypes",
    "-Wvla",
    "-Wformat=2",
)


@pytest.mark.parametrize(
    ("cc", "options"),
    [
        ("gcc", ("-O2", *SHIPPED)),
        ("gcc", ("-O0",)),
        ("clang", ("-O2", *SHIPPED)),
    ],
)
def test_no_warning(tmp_path: Path, cc: str, options: tuple[str, ...]) -> None:
    """Both compilers accept every file without a warning, of conversions either."""
    build(tmp_path / "launcher", ALL, *WARNINGS, *MORE_WARNINGS, *options, cc=cc)


def test_the_analyser_finds_nothing(tmp_path: Path) -> None:
    """gcc's static analyser has no complaint, but that nothing is freed or closed before exec or exit.

    A descriptor that dup2(2) makes for the command is lost to it (since gcc 13): it is meant to stay.
    What a system call writes it does not see either: that is an instruction (since gcc 14).
    """
    options = ("-std=gnu11", "-O0", "-fanalyzer", "-Werror")
    names = ("malloc-leak", "fd-leak", "use-of-uninitialized-value")
    known = [f"-Wno-analyzer-{name}" for name in names]
    build(tmp_path / "launcher", ALL, *options, *known, cc="gcc")


def test_the_fuzzers_have_no_warning_either(tmp_path: Path) -> None:
    """The tests' own programs are held to the same."""
    build(
        tmp_path / "fuzz",
        FUZZ,
        *WARNINGS,
        *MORE_WARNINGS,
        "-DSTANDALONE",
    )


def test_the_launcher_is_static_and_needs_nothing() -> None:
    """The shipped launcher names no interpreter: no library and no loader can be put before it."""
    image = Path(spawn.LAUNCHER).read_bytes()
    assert image[:4] == b"\x7fELF"
    assert b"/ld-linux" not in image
    assert b"/ld-musl" not in image


def test_there_is_no_c_library_in_it() -> None:
    """The launcher's symbols are its own: none is missing, and none is of a C library's start."""
    symbols = subprocess.run(["nm", spawn.LAUNCHER], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].split("@")[0]: line.split()[-2] for line in symbols.splitlines()}
    assert names["_start"] == "T"
    assert not [name for name, kind in names.items() if kind in "UwWvV"]
    assert not {
        "__libc_start_main",
        "_IO_stdout_",
        "malloc",
        "printf",
        "_dl_relocate_static_pie",
    } & set(names)


def relocations(program: str | Path) -> set[str]:
    """The kinds of relocation that a program needs at its start."""
    command = ["readelf", "-rW", program]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[2] for line in table.splitlines() if re.match(r"[0-9a-f]{8,} ", line)}


def test_the_start_knows_each_relocation() -> None:
    """start.c adds where it lies to each pointer; another kind would be a trap at each start."""
    assert relocations(spawn.LAUNCHER) == {RELATIVE[platform.machine()]}


RELATIVE = {"x86_64": "R_X86_64_RELATIVE", "aarch64": "R_AARCH64_RELATIVE"}
FREE = [HERE / "check_sys.c", *(SOURCES / f"{name}.c" for name in ("start", "text"))]


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_what_stands_in_for_a_c_library(tmp_path: Path, cc: str, level: str) -> None:
    """Start, system calls, memory and text do what their man pages say, by either compiler."""
    options = (*SHIPPED, *WARNINGS, *MORE_WARNINGS, level)
    program = build(tmp_path / "check", FREE, *options, cc=cc)
    assert subprocess.run([program], timeout=20).returncode == 0


def test_the_other_cpu(tmp_path: Path) -> None:
    """Launcher and checks compile for the other CPU, with relocations that the start knows alone."""
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    options = (*SHIPPED, *WARNINGS, *MORE_WARNINGS, "-O2")
    cc = f"{other}-linux-gnu-gcc"
    assert relocations(build(tmp_path / "launcher", ALL, *options, cc=cc)) == {RELATIVE[other]}
    build(tmp_path / "check", FREE, *options, cc=cc)


def test_the_launcher_alone_does_nothing() -> None:
    """Started by hand, without its descriptors, it ends at once with the status of a failed set-up."""
    done = subprocess.run([spawn.LAUNCHER, "--help"], capture_output=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (125, b"", b"")

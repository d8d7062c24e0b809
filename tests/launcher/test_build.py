"""The launcher's sources: what compilers and their analysers have to say about them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from capsule.launcher import spawn
from tests.launcher.build import ALL, HERE, SOURCES, WARNINGS, build

MORE_WARNINGS = ("-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wvla", "-Wformat=2")


@pytest.mark.parametrize(
    ("cc", "options"),
    [
        ("gcc", ("-O2",)),
        ("gcc", ("-O0",)),
        # To clang a resource limit's number is an enumeration, which no standard header names.
        ("clang", ("-O2", "-Wno-sign-conversion")),
    ],
)
def test_no_warning(tmp_path: Path, cc: str, options: tuple[str, ...]) -> None:
    """Both compilers accept every file without a warning, of conversions either."""
    build(tmp_path / "launcher", ALL, *WARNINGS, *MORE_WARNINGS, *options, cc=cc)


def test_the_analyser_finds_nothing(tmp_path: Path) -> None:
    """gcc's static analyser has no complaint, but that nothing is freed or closed before exec or exit.

    A descriptor that dup2(2) makes for the command is lost to it (since gcc 13): it is meant to stay.
    """
    options = ("-std=gnu11", "-O0", "-fanalyzer", "-Werror")
    known = ("-Wno-analyzer-malloc-leak", "-Wno-analyzer-fd-leak")
    build(tmp_path / "launcher", ALL, *options, *known, cc="gcc")


def test_the_fuzzers_have_no_warning_either(tmp_path: Path) -> None:
    """The tests' own programs are held to the same."""
    build(
        tmp_path / "fuzz",
        [HERE / "fuzz_plan.c", SOURCES / "plan.c"],
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


def test_the_launcher_alone_does_nothing() -> None:
    """Started by hand, without its descriptors, it ends at once with the status of a failed set-up."""
    done = subprocess.run([spawn.LAUNCHER, "--help"], capture_output=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (125, b"", b"")

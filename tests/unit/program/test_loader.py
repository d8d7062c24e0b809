"""Which libraries are found, beside what the loader itself says and in trees made for the purpose."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capsule.program import elf, loader
from capsule.program.loader import Loader
from tests.support import HANG
from tests.unit.elf_image import AARCH64, image, write


class Tree:
    """A program, its loader and its libraries, in a directory of their own."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.loader = str(write(top / "ld" / "ld-test.so.1", image(soname="ld-test.so.1")))

    def file(self, name: str, **parts: Any) -> str:
        """Write a library, or a program, into the tree."""
        return str(write(self.top / name, image(**parts)))

    def program(self, **parts: Any) -> Loader:
        """The loader of a program at bin/program."""
        return self.of(self.file("bin/program", **{"interpreter": self.loader, **parts}))

    def of(self, path: str) -> Loader:
        """The loader of some file."""
        found = elf.read(path)
        assert found is not None
        return Loader(path, found)

    def names(self, paths: Sequence[str]) -> list[str]:
        """The paths, from the tree's top."""
        return [os.path.relpath(path, self.top) for path in paths if path.startswith(str(self.top))]

    def loaded(self, **parts: Any) -> list[str]:
        """The libraries that a program is loaded with, from the tree's top."""
        return self.names(list(self.program(**parts).libraries()))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty tree with a loader."""
    return Tree(tmp_path.resolve())


# --- beside the loader itself -----------------------------------------------------------------


def programs() -> list[str]:
    """Some of the host's own programs that this machine can load."""
    mine = elf.read("/bin/sh")
    found = []
    for path in sorted(f"/usr/bin/{name}" for name in os.listdir("/usr/bin")):
        image = elf.read(path)
        if mine and image and image.interpreter == mine.interpreter and image.needed:
            found.append(path)
    return found[:: max(1, len(found) // 40)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the host's loader is not glibc's")
def test_the_loader_finds_the_same() -> None:
    """For programs of this host, every library is found, at the path at which the loader finds it."""
    asked = programs()
    assert asked
    for program in asked:
        image = elf.read(program)
        assert image is not None
        done = subprocess.run(
            [image.interpreter, "--list", os.path.realpath(program)],
            capture_output=True,
            timeout=HANG,
            env={},
        )
        lines = [os.fsdecode(line).split() for line in done.stdout.splitlines()]
        paths = {line[line.index("=>") + 1] if "=>" in line else line[0] for line in lines}
        wanted = {path for path in paths if path.startswith("/")} - {image.interpreter}
        found = {*Loader(os.path.realpath(program), image).libraries()}
        later = {path for path in found if os.path.basename(path) == loader._LATER}
        assert wanted <= found <= wanted | later, program


# --- search paths -----------------------------------------------------------------------------


def test_libraries_of_libraries_are_found(tree: Tree) -> None:
    """Breadth first, each once, and circles end."""
    tree.file("lib/liba.so", needed=["libc.so", "libb.so"])
    tree.file("lib/libb.so", needed=["liba.so"])
    tree.file("lib/libc.so", needed=["libnone.so", "ld-test.so.1"])
    found = tree.loaded(needed=["liba.so", "libb.so"], rpath=str(tree.top / "lib"))
    assert found == ["lib/liba.so", "lib/libb.so", "lib/libc.so"]


def test_rpath_holds_for_what_a_library_names(tree: Tree) -> None:
    """DT_RPATH of the program is searched for its libraries' libraries as well; DT_RUNPATH is not."""
    tree.file("lib/liba.so", needed=["libb.so"])
    tree.file("lib/libb.so")
    path = str(tree.top / "lib")
    assert tree.loaded(needed=["liba.so"], rpath=path) == ["lib/liba.so", "lib/libb.so"]
    assert tree.loaded(needed=["liba.so"], runpath=path) == ["lib/liba.so"]


def test_a_library_with_runpath_goes_by_no_rpath(tree: Tree) -> None:
    """DT_RUNPATH of a library replaces what it would inherit."""
    tree.file("lib/liba.so", needed=["libb.so"], runpath="$ORIGIN/own")
    tree.file("lib/libb.so")
    assert tree.loaded(needed=["liba.so"], rpath="$ORIGIN/../lib") == ["lib/liba.so"]
    tree.file("lib/own/libb.so")
    assert tree.loaded(needed=["liba.so"], rpath="$ORIGIN/../lib") == ["lib/liba.so", "lib/own/libb.so"]


def test_tokens_are_replaced(tree: Tree) -> None:
    """$ORIGIN is the place of the file that names it, $LIB the system's name for that of libraries."""
    lib = os.path.relpath(tree.top / "ld", "/")
    tree.file(f"bin/{lib}/liba.so")
    tree.file(f"bin/{os.uname().machine}/libb.so")
    tree.file("bin/libc.so")
    text = "$ORIGIN/$LIB:${ORIGIN}/${PLATFORM}:$ORIGINAL:relative::$ORIGIN"
    found = tree.loaded(needed=["liba.so", "libb.so", "libc.so"], runpath=text)
    assert [os.path.basename(name) for name in found] == ["liba.so", "libb.so", "libc.so"]


def test_the_first_that_fits_is_taken(tree: Tree) -> None:
    """A file for another machine, or none at all, is passed over, as the loader does."""
    tree.file("a/liba.so", machine=AARCH64)
    tree.file("b/liba.so", bits=32)
    write(tree.top / "c/liba.so", b"text")
    tree.file("d/liba.so")
    tree.file("e/liba.so")
    path = ":".join(f"$ORIGIN/../{name}" for name in "abcde")
    assert tree.loaded(needed=["liba.so"], runpath=path) == ["d/liba.so"]


def test_a_library_is_known_by_its_own_name(tree: Tree) -> None:
    """What was loaded under one name is not looked for under its DT_SONAME again."""
    tree.file("a/liba.so", soname="liba.so.1")
    tree.file("a/liba.so.1")
    assert tree.loaded(needed=["liba.so", "liba.so.1"], runpath="$ORIGIN/../a") == ["a/liba.so"]


def test_a_name_with_a_slash_is_a_path(tree: Tree) -> None:
    """An absolute one is taken as it is; a relative one, which no place is known for, is left out."""
    path = tree.file("x/liba.so")
    tree.file("bin/libb.so")
    tree.file("bin/libc.so")
    found = tree.loaded(needed=[path, "./libb.so", "$ORIGIN/libc.so"])
    assert found == ["x/liba.so"]


def test_variants_for_some_processors_are_all_found(tree: Tree) -> None:
    """Which one the loader takes depends on the processor: all of them and the plain one are found."""
    for name in ("liba.so", "glibc-hwcaps/v2/liba.so", "glibc-hwcaps/v3/liba.so"):
        tree.file(f"lib/{name}")
    found = tree.loaded(needed=["liba.so"], runpath="$ORIGIN/../lib")
    assert sorted(found) == [
        "lib/glibc-hwcaps/v2/liba.so",
        "lib/glibc-hwcaps/v3/liba.so",
        "lib/liba.so",
    ]


def test_the_loader_s_own_place_comes_last(tree: Tree) -> None:
    """Where nothing else is named, libraries lie beside the loader."""
    tree.file("ld/liba.so")
    assert tree.loaded(needed=["liba.so"]) == ["ld/liba.so"]


def test_the_cache_comes_before_the_usual_places(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first plain path counts, with those for some processors before that."""
    fast, plain, other = (tree.file(f"{name}/liba.so") for name in ("fast", "plain", "other"))
    tree.file("ld/liba.so")
    known = {"liba.so": ((fast, True), (plain, False), (other, False))}
    monkeypatch.setattr(elf, "read_cache", lambda: known)
    assert tree.loaded(needed=["liba.so"]) == ["fast/liba.so", "plain/liba.so"]


def test_without_a_cache_its_configuration_is_searched(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories that ldconfig would look through, where there is no cache that can be read."""
    tree.file("conf/liba.so")
    monkeypatch.setattr(elf, "read_cache", lambda: None)
    monkeypatch.setattr(elf, "configured", lambda: (str(tree.top / "conf"),))
    assert tree.loaded(needed=["liba.so"]) == ["conf/liba.so"]


def test_the_loader_of_musl_inherits_every_path_and_is_libc(tree: Tree) -> None:
    """Its libc is itself, no cache counts, and DT_RUNPATH is inherited."""
    musl = tree.file("lib/ld-musl-x86_64.so.1", soname="libc.so")
    tree.file("a/liba.so", needed=["libb.so", "libc.musl-x86_64.so.1"])
    tree.file("a/libb.so")
    tree.file("a/libc.musl-x86_64.so.1")
    one = tree.program(interpreter=musl, needed=["liba.so", "libc.so"], runpath="$ORIGIN/../a")
    assert elf.CACHE not in one.files
    assert one.files[0] == musl
    assert tree.names(list(one.libraries())) == ["a/liba.so", "a/libb.so"]


# --- modules ----------------------------------------------------------------------------------


def test_modules_are_loaded_each_on_its_own(tree: Tree) -> None:
    """Two modules may bring different libraries of one name; what the program has is not repeated."""
    for name in ("one", "two"):
        tree.file(f"{name}/module.so", needed=["libx.so", "liba.so"], runpath="$ORIGIN/libs")
        tree.file(f"{name}/libs/libx.so")
    tree.file("lib/liba.so")
    one = tree.program(needed=["liba.so"], runpath="$ORIGIN/../lib")
    assert tree.names(list(one.libraries())) == ["lib/liba.so"]
    for name in ("one", "two"):
        found = list(one.of_module(str(tree.top / name / "module.so")))
        assert tree.names(found) == [f"{name}/libs/libx.so"]


def test_a_module_for_another_machine_brings_nothing(tree: Tree) -> None:
    """It could not be loaded."""
    tree.file("lib/liba.so")
    path = tree.file("lib/module.so", machine=AARCH64, needed=["liba.so"], runpath="$ORIGIN")
    assert list(tree.program().of_module(path)) == []


# --- hostile programs -------------------------------------------------------------------------


def test_without_a_fitting_loader_nothing_is_loaded(tree: Tree) -> None:
    """An interpreter that is missing, no ELF file or for another machine starts nothing."""
    tree.file("bin/liba.so")
    text = str(write(tree.top / "secret", b"text"))
    other = tree.file("ld/other", machine=AARCH64)
    for interpreter in (str(tree.top / "none"), text, other, "relative"):
        one = tree.program(interpreter=interpreter, needed=["liba.so"], runpath="$ORIGIN")
        assert one.files == ()
        assert list(one.libraries()) == []
        assert list(one.of_module(str(tree.top / "bin/liba.so"))) == []


def test_only_elf_files_are_found(tree: Tree) -> None:
    """A name cannot make any other file of the host seen."""
    secret = str(write(tree.top / "home/secret", b"text"))
    assert tree.loaded(needed=[secret, "secret"], rpath=str(tree.top / "home")) == []


def test_look_ups_are_bounded(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names and directories a program has, so many files are looked for, and no more."""
    looked: list[str] = []
    real = elf.read
    monkeypatch.setattr(loader, "_LOOK_UPS", 900)
    path = ":".join(f"$ORIGIN/{n}" for n in range(100))
    one = tree.program(needed=[f"lib{n}.so" for n in range(500)], rpath=path)

    def read(path: str) -> elf.Elf | None:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(elf, "read", read)
    assert list(one.libraries()) == []
    assert 300 < len(looked) < 900


def test_the_number_of_libraries_is_bounded(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of libraries that goes on and on ends somewhere."""
    monkeypatch.setattr(loader, "_LIBRARIES", 10)
    for n in range(30):
        tree.file(f"ld/lib{n}.so", needed=[f"lib{n + 1}.so"])
    found = tree.loaded(needed=["lib0.so"])
    assert "ld/lib1.so" in found
    assert "ld/lib12.so" not in found

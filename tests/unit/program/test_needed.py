"""What of the host a command is found to need: real programs, and trees made for the purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capsule.program import elf, toolchains
from capsule.program.needed import needed
from tests.support import HANG
from tests.support import needs as host_needs
from tests.unit.elf_image import image, write

PATH = "/usr/local/bin:/usr/bin:/bin"
PROGRAMS = ("sh", "true", "env", "awk", "perl", "bash", "git", "python3")
INSTALLED = [name for name in PROGRAMS if shutil.which(name, path=PATH)]
Needed = tuple[tuple[str, str | None, str], ...]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory without a link on the way to it, with a loader in it."""
    write(tmp_path.resolve() / "ld.so", image(soname="ld.so"))
    return tmp_path.resolve()


def below(top: Path, found: Needed) -> dict[str, str | None]:
    """What lies in a directory, from there, and where links lead."""
    return {path[len(str(top)) + 1 :]: to for path, to, _ in found if path.startswith(f"{top}/")}


def resolved(path: str, found: Needed) -> str | None:
    """Where a path leads in a root that holds what was found and nothing else, or None if nowhere."""
    links = {place: target for place, target, _ in found if target is not None}
    real = {place for place, target, _ in found if target is None}
    way = path.split("/")[::-1]
    here = ""
    for _ in range(400):
        if not way:
            break
        part = way.pop()
        if part == "..":
            here = os.path.dirname(here).rstrip("/")
        elif part not in ("", "."):
            step = f"{here}/{part}"
            if step in links:
                way += links[step].split("/")[::-1]
                here = "" if links[step].startswith("/") else here
            else:
                here = step
    return here if any(here == place or here.startswith(f"{place}/") for place in real) else None


# --- programs of this host --------------------------------------------------------------------


@pytest.mark.parametrize("name", INSTALLED)
def test_names_lead_where_they_lead_on_the_host(name: str) -> None:
    """The program, its loader and all its libraries, by each name that is used for them."""
    program = shutil.which(name, path=PATH) or ""
    found = needed(program, PATH)
    assert resolved(program, found) == os.path.realpath(program)
    one = elf.read(program)
    if one is not None and one.interpreter:
        assert resolved(one.interpreter, found) == os.path.realpath(one.interpreter)
    for path, target, _ in found:
        assert os.path.realpath(path) == resolved(path, found) or target is not None


@pytest.mark.parametrize("name", INSTALLED)
def test_what_is_found_is_free_of_links_and_of_overlaps(name: str) -> None:
    """What is to be attached has no link in its path, and nothing lies in something attached."""
    program = shutil.which(name, path=PATH) or ""
    found = needed(program, PATH)
    attached = [path for path, target, _ in found if target is None]
    assert all(os.path.realpath(path) == path for path in attached)
    assert all(os.readlink(path) == target for path, target, _ in found if target is not None)
    assert len({path for path, _, _ in found}) == len(found)
    for path, _, _ in found:
        assert not any(path.startswith(f"{place}/") for place in attached)


def test_other_programs_are_not_found() -> None:
    """Of the directory of programs there is the one alone, with the links that lead to it."""
    found = needed("/bin/sh", PATH)
    real = os.path.realpath("/bin/sh")
    folders = {os.path.dirname(real), "/bin", "/usr/bin"}
    there = [path for path, target, _ in found if os.path.dirname(path) in folders and target is None]
    assert there == [real]


def test_nothing_lies_in_what_capsule_makes_itself() -> None:
    """A path below /proc is the host's own, and means nothing inside."""
    found = needed("/proc/self/exe", PATH)
    assert not [path for path, _, _ in found if path.startswith(("/proc", "/dev", "/sys"))]


def test_nothing_is_no_program() -> None:
    """A path that is missing, is no program or cannot be one has no needs beyond itself."""
    for path in ("/none/such", "/etc/passwd", "/" + "a" * 5000):
        assert [place for place, _, _ in needed(path, PATH)] == [path]


# --- links ------------------------------------------------------------------------------------


def test_each_link_on_the_way_is_found(top: Path) -> None:
    """Links of directories and of files, relative and absolute, are links again."""
    write(top / "real/bin/program", image(kind=2))
    (top / "bin").symlink_to("real/bin")
    (top / "one").symlink_to(top / "bin/two")
    (top / "real/bin/two").symlink_to("../bin/./program")
    found = needed(str(top / "one"), PATH)
    assert below(top, found) == {
        "one": str(top / "bin/two"),
        "bin": "real/bin",
        "real/bin/two": "../bin/./program",
        "real/bin/program": None,
    }
    assert resolved(str(top / "one"), found) == str(top / "real/bin/program")


def test_links_without_end_are_given_up(top: Path) -> None:
    """A circle of links is as good as nothing: no file is found at its end."""
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    assert None not in below(top, needed(str(top / "a"), PATH)).values()


def test_a_static_program_needs_itself(top: Path) -> None:
    """No loader, no cache, no library."""
    write(top / "program", image(kind=2))
    assert needed(str(top / "program"), PATH) == ((str(top / "program"), None, "the command"),)


# --- scripts ----------------------------------------------------------------------------------


def script(path: Path, first: str) -> Path:
    """An executable file with this first line."""
    return write(path, first.encode() + b"\necho\n")


def test_interpreters_of_scripts_are_found(top: Path) -> None:
    """The interpreter, and the interpreter of one that is a script itself."""
    write(top / "program", image(kind=2))
    script(top / "inner", f"#!{top}/program")
    script(top / "outer", f"#! \t{top}/inner  -x y")
    assert set(below(top, needed(str(top / "outer"), PATH))) == {"program", "inner", "outer"}


@pytest.mark.parametrize("words", ["tool", "-S tool -x", "-i A=B tool"])
def test_an_interpreter_is_found_through_env(top: Path, words: str) -> None:
    """env itself, and what it looks for in PATH; what cannot be executed there is passed over."""
    write(top / "env", image(kind=2))
    write(top / "a/tool", image(kind=2), mode=0o644)
    write(top / "b/tool", image(kind=2))
    script(top / "script", f"#!{top}/env {words}")
    found = needed(str(top / "script"), f"relative:{top}/a:{top}/b")
    assert set(below(top, found)) == {"env", "b/tool", "script"}


def test_env_without_a_program_is_all_there_is(top: Path) -> None:
    """A first line that names nothing that can be found shows env."""
    write(top / "env", image(kind=2))
    for words in ("", " none", " -i", " ./relative/tool"):
        script(top / "script", f"#!{top}/env{words}")
        assert set(below(top, needed(str(top / "script"), str(top)))) == {"env", "script"}


def test_a_script_of_itself_ends(top: Path) -> None:
    """A circle of first lines ends, as it does for the kernel."""
    script(top / "script", f"#!{top}/script")
    assert set(below(top, needed(str(top / "script"), PATH))) == {"script"}


@pytest.mark.parametrize("first", ["#!", "#! ", "#!relative", "#!/none/such", "# !/bin/sh", ""])
def test_other_first_lines_name_nothing(top: Path, first: str) -> None:
    """What the kernel would not start is not found."""
    script(top / "script", first)
    assert [path for path, _, _ in needed(str(top / "script"), PATH)] == [str(top / "script")]


# --- trees of modules -------------------------------------------------------------------------


def python(top: Path, prefix: str = "opt") -> Path:
    """A Python of this name and no other sort, with a module that brings a library."""
    write(top / f"{prefix}/bin/python3.12", image(interpreter=str(top / "ld.so")))
    (top / f"{prefix}/bin/python3").symlink_to("python3.12")
    modules = top / f"{prefix}/lib/python3.12"
    write(modules / "os.py", b"")
    write(modules / "lib-dynload/_x.so", image(needed=["libx.so"], runpath=str(top / "libs")))
    write(modules / "test/_y.so", image(needed=["liby.so"], runpath=str(top / "libs")))
    for name in "xyz":
        write(top / f"libs/lib{name}.so", image())
    return top / f"{prefix}/bin/python3"


def test_modules_and_their_libraries_are_found(top: Path) -> None:
    """The tree of the version, and the library that an extension module in it names."""
    (top / "opt/lib/python3.11").mkdir(parents=True)
    found = below(top, needed(str(python(top)), PATH))
    assert set(found) == {
        "ld.so", "opt/bin/python3", "opt/bin/python3.12", "opt/lib/python3.12", "libs/libx.so",
    }  # fmt: skip


def test_a_virtual_environment_is_found(top: Path) -> None:
    """Its configuration and modules, besides those of the Python that it was made from."""
    base = python(top)
    (top / "venv/bin").mkdir(parents=True)
    (top / "venv/bin/python").symlink_to(base)
    write(top / "venv/pyvenv.cfg", f"home = {base.parent}\n".encode(), 0o644)
    module = top / "venv/lib/python3.12/site-packages/_z.so"
    write(module, image(needed=["libz.so"], runpath=str(top / "libs")))
    (top / "venv/lib64").symlink_to("lib")
    script(top / "venv/bin/tool", f"#!{top}/venv/bin/python")
    found = needed(str(top / "venv/bin/tool"), PATH)
    assert {
        "venv/bin/tool": None,
        "venv/bin/python": str(base),
        "venv/pyvenv.cfg": None,
        "venv/lib/python3.12": None,
        "libs/libz.so": None,
        "opt/lib/python3.12": None,
        "libs/libx.so": None,
    }.items() <= below(top, found).items()
    assert resolved(str(top / "venv/lib64/python3.12"), found) == str(top / "venv/lib/python3.12")


def test_links_out_of_a_prefix_show_nothing(top: Path) -> None:
    """A hostile tree cannot make directories or files of the host seen by links in it."""
    write(top / "home/secret", b"text", 0o600)
    write(top / "proj/bin/python3.12", image(interpreter=str(top / "ld.so")))
    write(top / "proj/lib/x", b"")
    (top / "proj/lib/python3.12").symlink_to(top / "home")
    (top / "proj/pyvenv.cfg").symlink_to(top / "home/secret")
    (top / "proj/lib64").symlink_to(top)
    (top / "proj/lib32").symlink_to(".")
    (top / "python3.12").mkdir()
    found = below(top, needed(str(top / "proj/bin/python3.12"), PATH))
    assert set(found) == {"ld.so", "proj/bin/python3.12"}


def test_an_interpreter_that_is_no_program_is_not_shown(top: Path) -> None:
    """A first line cannot make any file of the host seen, not even an executable one."""
    write(top / "home/secret", b"text")
    write(top / "home/closed", image(kind=2), 0o600)
    for name in ("secret", "closed", "none", "."):
        script(top / "script", f"#!{top}/home/{name}")
        assert set(below(top, needed(str(top / "script"), PATH))) == {"script"}


def test_trees_are_looked_through_within_bounds(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is near a tree's top is looked at first; what is beyond the bound is not."""
    monkeypatch.setattr(toolchains, "_ENTRIES", 20)
    for n in range(30):
        write(top / f"opt/lib/python3.12/zz/{n}", b"")
    found = below(top, needed(str(python(top)), PATH))
    assert "libs/libx.so" in found
    monkeypatch.setattr(toolchains, "_ENTRIES", 2)
    assert "libs/libx.so" not in below(top, needed(str(top / "opt/bin/python3"), PATH))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("python3", "lib*/python3*"), ("python3.14t", "lib*/python3.14t*"),
        ("pypy3.10", "lib*/pypy3.10*"), ("perl", "share/perl"), ("perl5.36.0", "lib*/perl5"),
        ("perl5.36-x86_64-linux-gnu", "share/perl"),
        ("ruby3.1", "lib*/ruby"), ("node", "lib/node_modules"), ("nodejs", "share/nodejs"),
        ("php8.2", "lib*/php*"), ("tclsh8.6", "share/tcltk"), ("guile-3.0", "share/guile"),
        ("lua5.4", "share/lua"), ("luajit", "share/luajit-*"),
    ],
)  # fmt: skip
def test_interpreters_are_known_by_their_names(name: str, pattern: str) -> None:
    """Each language's interpreters, with and without a version."""
    assert pattern in toolchains._patterns(name)


@pytest.mark.parametrize(
    "name", ["sh", "bash", "python3-config", "pythonic", "git", "perlbug", "phpize"]
)
def test_other_programs_have_no_modules(name: str) -> None:
    """A name that only begins like an interpreter's is another program."""
    assert toolchains._patterns(name) == ()


def test_this_python_finds_its_modules() -> None:
    """The tree in which the standard library of the running Python lies is found."""
    found = needed(sys.executable, PATH)
    assert resolved(os.__file__, found) == os.path.realpath(os.__file__)


@host_needs("gcc")
def test_a_compiled_program_finds_its_libraries(top: Path) -> None:
    """With DT_RPATH and DT_RUNPATH as the linker writes them, and a static one, which has neither."""
    for name, inner in (("b", ""), ("a", "int b(void);")):
        (top / f"{name}.c").write_text(
            f"{inner}\nint {name}(void) {{ return {'b()' if inner else '0'}; }}\n"
        )
    (top / "main.c").write_text("int a(void);\nint main(void) { return a(); }\n")
    (top / "one.c").write_text("int main(void) { return 0; }\n")
    (top / "lib").mkdir()
    build = f"""
        gcc -shared -fPIC -o lib/libb.so b.c
        gcc -shared -fPIC -o lib/liba.so a.c -Llib -lb
        gcc -o rpath main.c -Llib -la -Wl,--disable-new-dtags,-rpath,{top}/lib -Wl,-rpath-link,lib
        gcc -o runpath main.c -Llib -la -Wl,--enable-new-dtags,-rpath,'$ORIGIN/lib' -Wl,-rpath-link,lib
    """
    subprocess.run(["sh", "-ec", build], cwd=top, check=True, timeout=HANG)
    assert set(below(top, needed(f"{top}/rpath", PATH))) == {"rpath", "lib/liba.so", "lib/libb.so"}
    assert set(below(top, needed(f"{top}/runpath", PATH))) == {"runpath", "lib/liba.so"}

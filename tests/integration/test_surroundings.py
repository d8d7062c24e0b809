"""Where the command starts, its environment, and that a program finds what it needs to run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule import Mount
from tests.integration.command_line import script
from tests.support import PYTHON, ask, shared_directory

# --- working directory --------------------------------------------------------------------------

_WHERE = """
def make(folder):
    try:
        open(f"{folder}/made", "x").close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
here = os.getcwd()
tell([here, sorted(os.listdir(here)), make(here)])
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a secret and two projects, which lies in a directory with one more file."""
    with shared_directory() as path:
        own = path / "homes/me"
        for name in ("project/below", "other"):
            (own / name).mkdir(parents=True)
        for name in ("secret", "project/source", "other/source"):
            (own / name).touch()
        (path / "homes/neighbour").mkdir()
        monkeypatch.setenv("HOME", str(own))
        yield own


def where(monkeypatch: pytest.MonkeyPatch, directory: Path | str, **options: object) -> list[object]:
    """[Working directory inside, what is in it, what comes of making a file] when started there."""
    monkeypatch.chdir(directory)
    told: list[object] = ask(_WHERE, **options)  # type: ignore[arg-type]
    return told


def test_a_project_is_shown_read_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is there at its own path, read-only; its neighbours are not."""
    project = home / "project"
    assert where(monkeypatch, project) == [str(project), ["below", "source"], "EROFS"]
    code = "tell([os.listdir(given['home']), os.access(given['home'], os.W_OK)])"
    assert ask(code, given={"home": str(home)}) == [["project"], True]


def test_only_the_directory_itself_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in a directory below the project, the project around it is not shown."""
    assert where(monkeypatch, home / "project/below") == [str(home / "project/below"), [], "EROFS"]
    assert ask("tell(os.listdir('..'))") == ["below"]


def test_the_home_is_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in the home, the command is in an empty, private one."""
    assert where(monkeypatch, home) == [str(home), [], "done"]
    assert not (home / "made").exists()


def test_what_the_home_lies_in_is_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in an ancestor of the home, the command sees the way to the home and nothing else."""
    assert where(monkeypatch, home.parent)[:2] == [str(home.parent), ["me"]]


def test_a_link_to_the_home_is_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home under another name is a home all the same."""
    with shared_directory() as other:
        (other / "link").symlink_to(home)
        monkeypatch.setenv("HOME", str(other / "link"))
        assert "secret" not in str(where(monkeypatch, other / "link"))
        assert "secret" not in str(where(monkeypatch, home))


@pytest.mark.parametrize("place", ["/", "/tmp", "/var", "/etc", "/run", "/dev"])
def test_places_of_the_system_are_the_capsules_own(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in such a place, the command is in the capsule's place of that name."""
    here, names, outcome = where(monkeypatch, place)
    assert here == place
    assert names == ask("tell(sorted(os.listdir(given['place'])))", given={"place": place}, cwd="/")
    assert outcome == ("done" if place == "/tmp" else "EROFS")


@pytest.mark.parametrize("place", ["/sys", "/home", "/mnt"])
def test_places_that_are_not_shown_become_the_root(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in a place that has no namesake inside, the command is in it, empty, or in /."""
    if os.path.isdir(place):
        here, names, _ = where(monkeypatch, place)
        assert here == "/" or set(names) <= {"lib"} | set(os.environ["HOME"].split("/"))  # type: ignore[call-overload]


def test_a_usr_directory_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started in a directory of the host's programs, the command is there."""
    here, names, outcome = where(monkeypatch, "/usr/share")
    assert (here, names, outcome) == ("/usr/share", sorted(os.listdir("/usr/share")), "EROFS")


def test_cwd_names_another_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cwd` is shown like the caller's own; a relative one counts from there."""
    expected = [str(home / "project"), ["below", "source"], "EROFS"]
    assert where(monkeypatch, "/", cwd=str(home / "project")) == expected
    assert where(monkeypatch, home, cwd="project") == expected
    assert where(monkeypatch, home / "other", cwd="../project") == expected


def test_cwd_in_a_mount(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of a mount is as the mount is."""
    policy = capsule.Policy(mounts=(Mount.read_only(home, at="/data"),))
    assert where(monkeypatch, "/", policy=policy, cwd="/data/project")[:2] == [
        "/data/project",
        ["below", "source"],
    ]


def test_cwd_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that the view lacks fails the step that enters it, and says what to do."""
    monkeypatch.chdir("/")
    with pytest.raises(capsule.SetupError, match="change to the directory /no/such") as caught:
        capsule.run(["true"], cwd="/no/such")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such")
    assert "show it with --ro or --rw" in str(caught.value)


@pytest.mark.parametrize("cwd", ["/proc/self/fd/0", "/proc/self/fd/1", "/proc/1/root", "/proc/1/cwd"])
def test_cwd_cannot_lead_outside(cwd: str) -> None:
    """A working directory behind a link of /proc is no way out: the start fails."""
    with pytest.raises(capsule.SetupError, match="change to the directory") as caught:
        capsule.run(["true"], cwd=cwd)
    assert caught.value.errno in (errno.EACCES, errno.ENOTDIR)


def test_a_directory_as_standard_input_is_no_way_out() -> None:
    """Even a directory that the caller hands over by descriptor cannot become the start."""
    with shared_directory() as path:
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(capsule.SetupError) as caught:
                capsule.run(["true"], cwd="/proc/self/fd/0", stdin=fd)
            # The C library, or else the launcher, refuses a path that does not begin at the root.
            assert caught.value.errno in (errno.ENOENT, errno.EXDEV)
        finally:
            os.close(fd)


def test_a_working_directory_that_is_gone_is_a_policy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a directory to start in there is nothing to fall back to; one that is named does."""
    with shared_directory() as path:
        (path / "gone").mkdir()
        monkeypatch.chdir(path / "gone")
        # What was found for a run before does not count any more.
        assert capsule.run(["true"]).ok
        (path / "gone").rmdir()
        for _ in range(2):
            with pytest.raises(capsule.PolicyError, match="the working directory is gone") as caught:
                capsule.run(["true"])
            assert caught.value.field == "cwd"
        assert capsule.run(["pwd"], cwd="/usr").stdout == b"/usr\n"


# --- environment --------------------------------------------------------------------------------

_ENV = "tell(dict(os.environ))"
PASSED_ON = ("LANG", "LANGUAGE", "TERM", "COLORTERM", "TZ")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The caller's environment, small and known."""
    given = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ["HOME"],
        "USER": "someone",
        "LOGNAME": "someone",
        "LANG": "C.UTF-8",
        "LC_TIME": "C",
        "TERM": "dumb",
        "TZ": "UTC",
        "API_TOKEN": "secret",
        "LD_LIBRARY_PATH": "/tmp/evil",
        "PYTHONPATH": "/tmp/evil",
    }
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


@pytest.mark.row("B-03")
def test_the_default_environment(environment: dict[str, str]) -> None:
    """PATH, locale, terminal and time zone are the caller's, HOME and USER the capsule's: no more."""
    kept = {name: environment[name] for name in ("PATH", "HOME", "LANG", "LC_TIME", "TERM", "TZ")}
    assert ask(_ENV) == {**kept, "USER": "root"}
    assert ask(_ENV, uid=1000) == {**kept, "USER": "user"}


def test_extra_env_adds_and_passes_on(environment: dict[str, str]) -> None:
    """A value sets a variable, None passes the caller's on, if the caller has one."""
    extra = {"NEW": "1", "TERM": "xterm", "API_TOKEN": None, "MISSING": None}
    told = ask(_ENV, extra_env=extra)
    assert (told["NEW"], told["TERM"], told["API_TOKEN"]) == ("1", "xterm", environment["API_TOKEN"])
    assert "MISSING" not in told


@pytest.mark.usefixtures("environment")
def test_inherit_env_passes_on_everything() -> None:
    """The whole environment of the caller, as it is."""
    assert ask(_ENV, inherit_env=True) == dict(os.environ)


def test_env_is_exact() -> None:
    """`env` is the whole environment: nothing is added but what Python itself adds."""
    assert ask(_ENV, env={"A": "1", "B": ""}) == {"A": "1", "B": "", "LC_CTYPE": "C.UTF-8"}
    assert capsule.run(["/usr/bin/env"], env={}).stdout == b""
    assert capsule.run(["env"], env={"PATH": "/usr/bin", "X": "=y z\n"}).stdout == (
        b"PATH=/usr/bin\nX==y z\n\n"
    )


def test_an_environment_of_any_bytes() -> None:
    """Values that are no UTF-8 arrive byte by byte."""
    value = os.fsdecode(bytes(range(1, 256)))
    result = capsule.run(["/usr/bin/env", "-0"], env={"X": value})
    assert result.stdout == b"X=" + bytes(range(1, 256)) + b"\0"


# --- the way to the program ---------------------------------------------------------------------


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place outside of the view for programs of one's own. The working directory is elsewhere."""
    with shared_directory() as path:
        monkeypatch.chdir("/")
        yield path


def test_this_python_runs() -> None:
    """sys.executable works inside, with its standard library, also when it is a virtual one."""
    code = "import json, sqlite3, ssl, sys; print(sys.prefix); print(sys.base_prefix)"
    inside = capsule.run([PYTHON, "-I", "-c", code]).check().stdout
    assert inside == subprocess.run([PYTHON, "-I", "-c", code], capture_output=True).stdout


def test_a_virtual_environment_runs(prefix: Path) -> None:
    """Another venv's python finds its packages and the installation that it was made from."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", prefix / "venv"], check=True)
    (site,) = (prefix / "venv/lib").glob("python*/site-packages")
    (site / "extra.py").write_text("name = 'found'\n")
    python = str(prefix / "venv/bin/python")
    result = capsule.run([python, "-c", "import extra, sys; print(extra.name, sys.prefix)"], text=True)
    assert (result.stdout.split(), result.stderr) == (["found", str(prefix / "venv")], "")
    # What pip writes for a command: a script that names that python.
    tool = script(prefix / "venv/bin/tool", f"#!{python}", "import extra", "print(extra.name)")
    assert capsule.run([str(tool)]).stdout == b"found\n"


def test_an_executable_outside_of_the_view_runs(prefix: Path) -> None:
    """A single program is shown where it lies, read-only, and nothing beside it."""
    shutil.copy(shutil.which("ls") or "/bin/ls", prefix / "mine")
    (prefix / "secret").touch()
    result = capsule.run([str(prefix / "mine"), str(prefix)])
    assert result.stdout == b"mine\n"
    assert capsule.plan([str(prefix / "mine")]).notes == (
        f"{prefix}/mine is shown read-only: the command",
    )


def test_a_program_of_a_prefix_runs_with_its_libraries(prefix: Path) -> None:
    """A program in PREFIX/bin sees PREFIX, if that looks like one."""
    (prefix / "opt/lib").mkdir(parents=True)
    (prefix / "opt/lib/data").write_text("needed")
    (prefix / "beside").touch()
    tool = script(prefix / "opt/bin/tool", "#!/bin/sh", 'cat "${0%/*}/../lib/data"', f"ls {prefix}")
    assert capsule.run([str(tool)]).stdout == b"neededopt\n"


def test_a_script_through_env_of_a_private_prefix_runs(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`#!/usr/bin/env NAME` finds NAME on PATH, in a prefix that is shown for it."""
    (prefix / "tools/lib").mkdir(parents=True)
    shutil.copy(shutil.which("sh") or "/bin/sh", prefix / "tools/lib/shell")
    (prefix / "tools/bin").mkdir()
    (prefix / "tools/bin/privatesh").symlink_to("../lib/shell")
    tool = script(prefix / "tool", "#!/usr/bin/env privatesh", "echo ran")
    monkeypatch.setenv("PATH", f"{prefix}/tools/bin:{os.environ['PATH']}")
    assert capsule.run([str(tool)]).stdout == b"ran\n"


def test_a_chain_of_interpreters_runs(prefix: Path) -> None:
    """A script whose interpreter is a script whose interpreter is a program of one's own."""
    shutil.copy(shutil.which("sh") or "/bin/sh", prefix / "shell")
    middle = script(prefix / "a/middle", f"#!{prefix}/shell", 'echo through; . "$1"')
    tool = script(prefix / "b/tool", f"#!{middle}", "echo ran")
    assert capsule.run([str(tool)]).stdout == b"through\nran\n"


def test_a_chain_of_links_is_followed(prefix: Path) -> None:
    """Each link on the way to the program is there, absolute or relative."""
    shutil.copy(shutil.which("echo") or "/bin/echo", prefix / "program")
    (prefix / "one").mkdir()
    (prefix / "one/link").symlink_to("../two/link")
    (prefix / "two").mkdir()
    (prefix / "two/link").symlink_to(prefix / "three")
    (prefix / "three").symlink_to("program")
    assert capsule.run([str(prefix / "one/link"), "hi"]).stdout == b"hi\n"


def test_a_program_in_the_home_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of one's own home is shown; the rest of the home stays out of sight."""
    monkeypatch.chdir("/")
    for place in ("bin", ".local/bin"):
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        tool = script(home / place / "tool", "#!/bin/sh", 'ls -A "$HOME" "$HOME/.local" 2>/dev/null')
        shown = capsule.run([str(tool)], text=True).stdout
        assert place.split("/")[0] in shown
        assert "secret" not in shown
        monkeypatch.setenv("PATH", f"{home / place}:/usr/bin:/bin")
        assert capsule.run(["tool"], text=True).stdout == shown


def test_the_first_of_path_counts(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As execvp(3): the first directory of PATH that has the program, and no relative one."""
    for name in ("one", "two"):
        script(prefix / name / "tool", "#!/bin/sh", f"echo {name}")
    monkeypatch.chdir(prefix)
    monkeypatch.setenv("PATH", f"one:{prefix}/none:{prefix}/two:{prefix}/one:/usr/bin:/bin")
    assert capsule.run(["tool"]).stdout == b"two\n"
    assert capsule.run(["one/tool"]).stdout == b"one\n"
    assert capsule.run(["./one/tool"]).stdout == b"one\n"


# --- what a hostile program cannot have shown -------------------------------------------------------


@pytest.fixture
def victim(home: Path) -> Path:
    """A directory in the home that looks like a prefix: programs, libraries, and a secret."""
    (home / "mine/lib").mkdir(parents=True)
    (home / "mine/lib/secret").touch()
    (home / "mine/secret").touch()
    script(home / "mine/bin/tool", "#!/bin/sh", f"find {home} -name '*secret*'; echo ran")
    return home / "mine"


def test_a_link_shows_no_more_than_its_target(prefix: Path, victim: Path) -> None:
    """A program that is a link into a private directory shows one file of that."""
    (prefix / "tool").symlink_to(victim / "bin/tool")
    assert capsule.run([str(prefix / "tool")]).stdout == b"ran\n"


def test_a_link_to_what_is_no_program_shows_nothing(prefix: Path, victim: Path) -> None:
    """A secret that is not executable does not become visible by a link, nor by a first line."""
    (prefix / "link").symlink_to(victim / "secret")
    tool = script(prefix / "tool", f"#!{victim}/secret")
    for program in (prefix / "link", tool):
        with pytest.raises(capsule.SetupError):
            capsule.run([str(program)])
        assert "secret" not in str(capsule.plan([str(program)]).notes)


def test_a_first_line_shows_no_more_than_it_names(prefix: Path, victim: Path) -> None:
    """A script whose interpreter lies in a private directory shows one file of that."""
    shutil.copy(shutil.which("sh") or "/bin/sh", victim / "bin/shell")
    tool = script(prefix / "tool", f"#!{victim}/bin/shell", f"ls {victim} {victim}/bin")
    shown = capsule.run([str(tool)], text=True).check().stdout
    assert shown.split() == [f"{victim}:", "bin", f"{victim}/bin:", "shell"]


def test_a_pyvenv_cfg_shows_nothing_of_a_home(prefix: Path, victim: Path) -> None:
    """A program that comes with a pyvenv.cfg cannot have its choice of directories shown."""
    for base in (victim, victim.parent, victim.parent.parent):
        tool = script(
            prefix / "it/bin/tool", "#!/bin/sh", f"find {victim.parent.parent} -name '*secret*'"
        )
        (prefix / "it/pyvenv.cfg").write_text(f"home = {base}/bin\n")
        assert capsule.run([str(tool)]).check().stdout == b""

"""Programs that managers of versions and packages keep in the home: each starts, in each usual way.

The layouts are those that the managers make, with scripts for programs. A tool prints what lies beside
it, so that it is whole only where that is shown as well.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import capsule
from capsule import PolicyError
from capsule.launcher import steps as s
from capsule.program import command, managers, toolchains
from tests.integration.command_line import script
from tests.support import HANG, PYTHON, assert_denied, give, needs, shared_directory

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a secret, and nothing of it on PATH."""
    with shared_directory() as path:
        own = path / "me"
        (own / "private").mkdir(parents=True)
        (own / "private/secret").touch()
        monkeypatch.setenv("HOME", str(own))
        monkeypatch.setenv("PATH", SYSTEM_PATH)
        monkeypatch.chdir("/")
        yield own


def shell(path: Path, *lines: str) -> Path:
    """A shell's script."""
    return script(path, "#!/bin/sh", *lines)


def tool(prefix: Path) -> Path:
    """PREFIX/bin/t, which needs PREFIX/lib."""
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib/data").write_text("whole\n")
    return shell(prefix / "bin/t", f"cat {prefix}/lib/data")


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _pyenv(home: Path) -> Path:
    tool(home / ".pyenv/versions/3.11.7")
    shell(home / ".pyenv/libexec/pyenv", f'exec {home}/.pyenv/versions/3.11.7/bin/"$2"')
    shell(home / ".pyenv/shims/t", f"exec {home}/.pyenv/libexec/pyenv exec t")
    return home / ".pyenv/shims"


def _nvm(home: Path) -> Path:
    return tool(home / ".nvm/versions/node/v20.1.0").parent


def _fnm(home: Path) -> Path:
    """PATH leads through a directory of the session, which no capsule has, and an alias."""
    tool(home / ".local/share/fnm/node-versions/v20/installation")
    link(
        home / ".local/share/fnm/aliases/default",
        home / ".local/share/fnm/node-versions/v20/installation",
    )
    link(home / ".local/state/fnm_multishells/1_2", home / ".local/share/fnm/aliases/default")
    return home / ".local/state/fnm_multishells/1_2/bin"


def _rustup(home: Path) -> Path:
    tool(home / ".rustup/toolchains/stable")
    shell(home / ".cargo/bin/t", f"exec {home}/.rustup/toolchains/stable/bin/t")
    (home / ".cargo/credentials.toml").write_text("secret")
    return home / ".cargo/bin"


def _conda(home: Path) -> Path:
    return tool(home / "miniconda3/envs/x").parent


def _sdkman(home: Path) -> Path:
    """Where an alias is a version."""
    candidate = home / ".sdkman/candidates/java"
    tool(candidate / "17")
    shell(candidate / "17/bin/t", 'cat "${0%/*}/../lib/data"')
    link(candidate / "current", "17")
    return candidate / "current/bin"


def _asdf(home: Path) -> Path:
    tool(home / ".asdf/installs/t/1")
    shell(home / ".local/bin/asdf", f"exec {home}/.asdf/installs/t/1/bin/t")
    shell(home / ".asdf/shims/t", f"exec {home}/.local/bin/asdf exec t")
    return home / ".asdf/shims"


def _mise(home: Path) -> Path:
    tool(home / ".local/share/mise/installs/t/1")
    link(home / ".local/share/mise/installs/t/latest", "./1")
    shell(home / ".local/bin/mise", f'exec {home}/.local/share/mise/installs/t/latest/bin/"${{0##*/}}"')
    link(home / ".local/share/mise/shims/t", home / ".local/bin/mise")
    return home / ".local/share/mise/shims"


def _volta(home: Path) -> Path:
    tool(home / ".volta/tools/image/node/20")
    shell(home / ".volta/bin/volta-shim", f'exec {home}/.volta/tools/image/node/20/bin/"${{0##*/}}"')
    link(home / ".volta/bin/t", "volta-shim")
    return home / ".volta/bin"


def _pnpm(home: Path) -> Path:
    (home / ".local/share/pnpm/global/5/node_modules/t").mkdir(parents=True)
    (home / ".local/share/pnpm/global/5/node_modules/t/cli").write_text("whole\n")
    shell(home / ".local/share/pnpm/t", 'cat "${0%/*}/global/5/node_modules/t/cli"')
    return home / ".local/share/pnpm"


def _brew(home: Path) -> Path:
    tool(home / ".linuxbrew/Cellar/t/1")
    link(home / ".linuxbrew/bin/t", "../Cellar/t/1/bin/t")
    return home / ".linuxbrew/bin"


def _pipx(home: Path) -> Path:
    return _in_venv(home, ".local/share/pipx/venvs/t")


def _uv_tool(home: Path) -> Path:
    return _in_venv(home, ".local/share/uv/tools/t")


def _in_venv(home: Path, place: str) -> Path:
    """A link to a script whose Python is that of a virtual environment."""
    prefix = home / place
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", prefix], check=True, timeout=HANG)
    (site,) = (prefix / "lib").glob("python*/site-packages")
    (site / "mine.py").write_text("print('whole')\n")
    (prefix / "bin/t").write_text(f"#!{prefix}/bin/python\nimport mine\n")
    (prefix / "bin/t").chmod(0o755)
    link(home / ".local/bin/t", os.path.relpath(prefix / "bin/t", home / ".local/bin"))
    return home / ".local/bin"


def _go(home: Path) -> Path:
    shell(home / "go/bin/t", "echo whole")
    return home / "go/bin"


MANAGERS: dict[str, Callable[[Path], Path]] = {
    "pyenv": _pyenv,
    "nvm": _nvm,
    "fnm": _fnm,
    "rustup": _rustup,
    "conda": _conda,
    "sdkman": _sdkman,
    "asdf": _asdf,
    "mise": _mise,
    "volta": _volta,
    "pnpm": _pnpm,
    "brew": _brew,
    "pipx": _pipx,
    "uv tool": _uv_tool,
    "go": _go,
}


@pytest.mark.parametrize("name", MANAGERS)
def test_a_tool_starts(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, by its name, and when a program of the system starts it; the control is outside."""
    folder = MANAGERS[name](home)
    direct = [str(folder / "t")]
    assert subprocess.run(direct, capture_output=True, timeout=HANG).stdout == b"whole\n"
    assert capsule.run(direct).stdout == b"whole\n"
    monkeypatch.setenv("PATH", f"{folder}:{SYSTEM_PATH}")
    for words in (["t"], ["sh", "-c", "t"], ["env", "t"]):
        result = capsule.run(words, text=True)
        assert (result.stdout, result.stderr) == ("whole\n", "")
    # The rest of the home stays out of sight.
    found = capsule.run(["find", str(home), "-name", "*secret*", "-o", "-name", "credentials*"])
    assert found.stdout == b""


@pytest.mark.parametrize("name", MANAGERS)
def test_a_tool_is_not_there_where_only_what_is_needed_is(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PATH shows nothing to a program of the strict view."""
    folder = MANAGERS[name](home)
    monkeypatch.setenv("PATH", f"{folder}:{SYSTEM_PATH}")
    result = capsule.run(["sh", "-c", "t"], system="needed")
    assert result.returncode == 127


@pytest.mark.usefixtures("home")
def test_a_shell_finds_what_is_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment that is entered, in a project on another file system than the home."""
    with shared_directory("/var/tmp") as project:
        subprocess.run(
            [PYTHON, "-m", "venv", "--without-pip", project / ".venv"], check=True, timeout=HANG
        )
        monkeypatch.setenv("PATH", f"{project}/.venv/bin:{SYSTEM_PATH}")
        monkeypatch.chdir(project)
        shell(project / "build", 'python -c "import sys; print(sys.prefix)"')
        assert capsule.run(["sh", "-c", "./build"], text=True).stdout == f"{project}/.venv\n"


def test_an_alias_of_a_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As uv makes it: a virtual environment names its Python by it."""
    store = home / ".local/share/uv/python"
    tool(store / "cpython-3.11.7-linux")
    shell(store / "cpython-3.11.7-linux/bin/python3", f"cat {store}/cpython-3.11-linux/lib/data")
    link(store / "cpython-3.11-linux", "cpython-3.11.7-linux")
    project = home / "project"
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/pyvenv.cfg").write_text(f"home = {store}/cpython-3.11-linux/bin\n")
    link(project / ".venv/bin/python", store / "cpython-3.11-linux/bin/python3")
    monkeypatch.chdir(project)
    assert capsule.run([".venv/bin/python"]).stdout == b"whole\n"
    # What is opened has no link in its path: none that comes into it later is followed.
    taken = [step for step in capsule.plan([".venv/bin/python"]).steps if isinstance(step, s.Tree)]
    assert all(
        os.path.realpath(step[0]) == step[0] and step[2] & s.NO_LINKS
        for step in taken
        if step[0].startswith(str(home))
    )
    # Elsewhere in the home an alias is followed as well, where it leads to its neighbour.
    other = home / "pythons"
    tool(other / "3.11.7")
    shell(other / "3.11.7/bin/python3", f"cat {other}/3.11/lib/data")
    link(other / "3.11", "3.11.7")
    (project / ".venv/bin/python").unlink()
    link(project / ".venv/bin/python", other / "3.11/bin/python3")
    (project / ".venv/pyvenv.cfg").write_text(f"home = {other}/3.11/bin\n")
    assert capsule.run([".venv/bin/python"]).stdout == b"whole\n"


def test_of_a_project_on_path_only_parts_are_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its programs run, and find their libraries, and what else it holds stays out of sight."""
    project = home / "project"
    tool(project)
    (project / ".git").mkdir()
    (project / "secret").touch()
    monkeypatch.setenv("PATH", f"{project}/bin:{SYSTEM_PATH}")
    assert capsule.run(["sh", "-c", "t"]).stdout == b"whole\n"
    assert capsule.run(["find", str(home), "-name", "secret"]).stdout == b""


@pytest.mark.parametrize("target", ["../private", "{home}/private", "..", "."])
def test_a_link_that_is_no_alias_shows_nothing(
    target: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have made it, in a store too: what it leads to is not shown."""
    for name in ("bin", "lib"):
        (home / "private" / name).mkdir()
    (home / "private/lib/secret").touch()
    link(home / "tools/x", target.format(home=home))
    link(home / ".pyenv", target.format(home=home))
    for path in (home, home / "tools"):
        give(path)  # links of root's own would be trusted
    for folder in ("tools/x/bin", ".pyenv/bin", ".pyenv/shims"):
        monkeypatch.setenv("PATH", f"{home}/{folder}:{SYSTEM_PATH}")
        assert capsule.run(["find", str(home), "-name", "secret"]).stdout == b""
        secret = {"path": f"{home}/private/lib/secret"}
        assert_denied("open(given['path']).close()", errno.ENOENT, outside=secret)


# --- stores ----------------------------------------------------------------------------------------


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store as of Nix or Guix."""
    place = home.parent / "nix/store"
    place.mkdir(parents=True)
    for module in (managers, toolchains):
        monkeypatch.setattr(module, "STORES", (str(place),))
    return place


def test_a_program_of_a_store(store: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of links leads from a profile into the store, of which each part may need all others."""
    tool(store / "2-lib")
    shell(store / "1-hello/bin/t", f"exec {store}/2-lib/bin/t")
    link(store / "3-profile/bin/t", store / "1-hello/bin/t")
    link(home / ".local/state/nix/profiles/profile-1-link", store / "3-profile")
    link(home / ".local/state/nix/profiles/profile", "profile-1-link")
    link(home / ".nix-profile", home / ".local/state/nix/profiles/profile")
    assert capsule.run([str(home / ".nix-profile/bin/t")]).stdout == b"whole\n"
    monkeypatch.setenv("PATH", f"{home}/.nix-profile/bin:{SYSTEM_PATH}")
    for words in (["t"], ["sh", "-c", "t"]):
        assert capsule.run(words).stdout == b"whole\n"


@needs("gcc")
def test_a_loader_in_a_store(store: Path, home: Path) -> None:
    """A program that was built there runs elsewhere, too: its loader is another part of the store."""
    loader = store / "9-glibc/lib/ld.so"
    loader.parent.mkdir(parents=True)
    (home / "x.c").write_text('#include <stdio.h>\nint main(void) { return puts("whole") < 0; }\n')
    build = ["gcc", "-o", f"{home}/hello", f"{home}/x.c", f"-Wl,--dynamic-linker={loader}"]
    subprocess.run(build, check=True, timeout=HANG)
    with open("/proc/self/maps", encoding="ascii") as maps:
        real = next(line.split()[-1] for line in maps if "/ld-linux" in line or "/ld-musl" in line)
    shutil.copy(real, loader)
    assert capsule.run([str(home / "hello")]).stdout == b"whole\n"


# --- Python's user site --------------------------------------------------------------------------


def test_the_user_site(home: Path) -> None:
    """What pip installs for one user is imported, with a note; not where Python is told to leave it."""
    python = shutil.which("python3") or "/usr/bin/python3"
    version = subprocess.check_output(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True, timeout=HANG
    ).strip()
    site = home / f".local/lib/python{version}/site-packages"
    site.mkdir(parents=True)
    (site / "of_mine.py").write_text("print('found')\n")
    words = [python, "-c", "import of_mine"]
    assert subprocess.check_output(words, timeout=HANG) == b"found\n"
    assert capsule.run(words).stdout == b"found\n"
    assert capsule.plan(words).notes == (f"{site} is shown read-only: its user site",)
    (home / "x").write_text(f"#!{python}\nimport of_mine\n")
    (home / "x").chmod(0o755)
    assert capsule.run([str(home / "x")]).stdout == b"found\n"
    for without in (["-s"], ["-I"], ["-Bs"], ["-BsI"]):
        assert capsule.plan([python, *without, "-c", "import of_mine"]).notes == ()
    for with_it in (["-B"], ["-X", "dev"], ["-Ws"], ["-cs"], ["--", "-s"], ["-W", "-s"], ["-BWI"]):
        assert capsule.plan([python, *with_it]).notes != ()
    assert capsule.plan([python, "-W", "ignore", "-Xdev", "-Bs"]).notes == ()
    assert capsule.plan(words, extra_env={"PYTHONNOUSERSITE": "1"}).notes == ()
    assert capsule.run(words, extra_env={"PYTHONNOUSERSITE": "1"}).returncode == 1


def test_it_is_noticed_between_two_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finding a program came to is kept: not beyond what changes it."""
    folder = home / "go/bin"
    monkeypatch.setenv("PATH", f"{folder}:{SYSTEM_PATH}")
    assert capsule.run(["sh", "-c", "t"]).returncode == 127
    _go(home)
    assert capsule.run(["sh", "-c", "t"]).stdout == b"whole\n"
    shutil.rmtree(folder)
    (home / "private/t").touch()
    for path in (home, home / "go"):
        give(path)
    link(folder, home / "private")
    assert capsule.run(["find", str(home), "-name", "t"]).stdout == b""


# --- what is refused, or told ------------------------------------------------------------------------


def test_a_snap_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """snapd starts it, which no capsule can: that is said before anything starts."""
    shell(home / "snap/bin/t", "echo outside")
    monkeypatch.setattr(command, "_SNAPS", (str(home / "snap/bin"),))
    monkeypatch.setenv("PATH", f"{home}/snap/bin:{SYSTEM_PATH}")
    assert subprocess.check_output(["t"], timeout=HANG) == b"outside\n"
    for name in ("t", f"{home}/snap/bin/t"):
        with pytest.raises(PolicyError, match="is a snap") as caught:
            capsule.run([name])
        assert (caught.value.field, caught.value.exit_code) == ("args", 2)


def test_a_drive_of_windows_is_not_looked_at() -> None:
    """Each look costs milliseconds there, and PATH has dozens."""
    search = "/mnt/c/Windows/system32:/mnt/c:/mnt/data/bin:/usr/bin:relative:/snap/bin"
    assert command._unusual(search) == ["/mnt/data/bin"]


def test_a_home_behind_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its names lead to what is shown, read-only and writable, and tools start."""
    with shared_directory() as place:
        (place / "data/u/project").mkdir(parents=True)
        (place / "data/u/project/f").write_text("x\n")
        (place / "data/u/other").touch()
        link(place / "h", "data")
        home = place / "h/u"
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("PATH", f"{_go(home)}:{SYSTEM_PATH}")
        monkeypatch.chdir(home / "project")
        read = ["sh", "-c", f"cat $HOME/project/f {place}/data/u/project/f; t; pwd; ls $HOME"]
        shown = f"x\nx\nwhole\n{home}/project\ngo\nproject\n"
        assert capsule.run(read, text=True).stdout == shown
        (place / "data/u/project").chmod(0o777)
        mounts = [capsule.Mount.read_write(".")]
        assert capsule.run(["sh", "-c", "echo y >$HOME/project/made"], mounts=mounts).returncode == 0
        assert (place / "data/u/project/made").read_text() == "y\n"
        hints = capsule.run(["cat", str(home / "project/nothing")]).hints
        assert hints == ()
        monkeypatch.chdir(home)
        assert capsule.run(["pwd"], text=True).stdout == f"{home}\n"
        assert capsule.run(["cat", "other"]).hints == (
            "not shown inside: other; show it with --ro other",
        )


def test_the_home_as_working_directory_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not shown, nor is what homes lie in: a note says so, and one option ends it."""
    monkeypatch.chdir(home)
    (note,) = capsule.plan(["true"]).notes
    assert note.startswith(f"{home} is not shown: it is a home")
    assert capsule.plan(["true"], mounts=[capsule.Mount.read_only(".")]).notes == ()
    assert capsule.plan(["true"], show_cwd=False).notes == ()


@needs("unprivileged")
def test_a_directory_that_cannot_be_reached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in it may stay there, but no path leads to it: an error instead of another directory."""
    (home / "shut/open").mkdir(parents=True)
    (home / "shut/open/f").write_text("x")
    monkeypatch.chdir(home / "shut/open")
    (home / "shut").chmod(0)
    try:
        assert Path("f").read_text() == "x"
        with pytest.raises(PolicyError, match="cannot be reached by its path") as caught:
            capsule.run(["pwd"])
        assert caught.value.field == "cwd"
        assert capsule.run(["pwd"], show_cwd=False).stdout == b"/\n"
    finally:
        (home / "shut").chmod(0o755)

"""The command before the capsule: no variable of Python's makes it run what the program brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capsule.base import bundle
from tests.support import HANG, PYTHON, shared_directory

ROOT = Path(__file__).parents[2]
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
BASE = os.path.realpath(PYTHON)
VERBS = {
    "run": ["run", "--", "echo", "worked"],
    "plan": ["plan", "--", "true"],
    "doctor": ["doctor"],
    "policy": ["policy", "list"],
}
INSTALLS = ("venv", "user", "link")

# What is imported leaves a mark beside itself, even so early that there is no open() yet.
_HOSTILE = 'import posix; posix.open(__file__ + ".ran", posix.O_CREAT)\n'


def _hostile(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(_HOSTILE)


def _ran(top: Path) -> list[str]:
    found = sorted(str(path.relative_to(top)) for path in top.rglob("*.ran"))
    for name in found:
        (top / name).unlink()
    return found


@pytest.fixture
def top() -> Iterator[Path]:
    """A working directory with what each of the variables would have imported."""
    with shared_directory() as path:
        _hostile(path, "sitecustomize.py", "category.py")
        _hostile(path, f"home/lib/{VERSION}/os.py", f"home/lib/{VERSION}/encodings/__init__.py")
        _hostile(path, f"platlib/{VERSION}/os.py", f"platlib/{VERSION}/encodings/__init__.py")
        _hostile(path, f"lib/{VERSION}/site-packages/usercustomize.py")
        yield path


def _variables(top: Path) -> dict[str, dict[str, str]]:
    return {
        "a relative entry": {"PYTHONPATH": "."},
        "an empty entry": {"PYTHONPATH": ":/nowhere"},
        "home": {"PYTHONHOME": "home"},
        "platlibdir": {"PYTHONPLATLIBDIR": os.path.relpath(top / "platlib", sys.base_prefix)},
        "user base": {"PYTHONUSERBASE": "."},
        "a category of warnings": {"PYTHONPATH": ".", "PYTHONWARNINGS": "error::category.X"},
    }


VARIABLES = tuple(_variables(Path("/")))


@pytest.fixture(scope="module")
def installed() -> Iterator[dict[str, tuple[str, dict[str, str]]]]:
    """The command as different installers leave it, and the environment that goes with it."""
    with shared_directory() as place:
        # pip as the checks have it; the build needs no registry.
        pip = [PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wheels = place / "wheels"
        build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
        _do([*pip, *build])
        (wheel,) = map(str, wheels.iterdir())
        # With a space in its name, as a directory of a user's may have.
        venv, home = place / "a venv", place / "home"
        _do([BASE, "-m", "venv", "--without-pip", str(venv)])
        install = ["install", "--no-index", "--no-deps", wheel]
        _do([*pip, "--python", str(venv / "bin/python"), *install])
        home.mkdir()
        user = {"HOME": str(home), "PIP_BREAK_SYSTEM_PACKAGES": "1"}
        _do([*pip, "--python", BASE, *install, "--user"], user)
        links = place / "links"
        links.mkdir()
        (links / "first").symlink_to("second")
        (links / "second").symlink_to(venv / "bin/capsule")
        yield {
            "venv": (str(venv / "bin/capsule"), {}),
            "user": (str(home / ".local/bin/capsule"), user),
            "link": (str(links / "first"), {}),
        }


def _do(command: list[str], more: dict[str, str] | None = None) -> None:
    unwanted = ("PYTHON", "PIP_")
    usual = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    done = subprocess.run(command, env={**usual, **(more or {})}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("variable", VARIABLES)
def test_control_an_interpreter_obeys_it(top: Path, variable: str) -> None:
    """The control: each of the variables has a bare interpreter import what lies there."""
    env = {"PATH": os.environ["PATH"], **_variables(top)[variable]}
    subprocess.run([BASE, "-c", ""], env=env, cwd=top, capture_output=True, timeout=HANG)
    assert _ran(top)


@pytest.mark.parametrize("install", INSTALLS)
@pytest.mark.parametrize("variable", VARIABLES)
def test_no_file_of_the_working_directory_runs(
    top: Path, installed: dict[str, tuple[str, dict[str, str]]], install: str, variable: str
) -> None:
    """Nothing of it is imported, by no verb, and the command does what it is there for."""
    command, more = installed[install]
    env = {"PATH": os.environ["PATH"], **more, **_variables(top)[variable]}
    for verb, words in VERBS.items():
        done = subprocess.run(
            [command, *words], env=env, cwd=top, capture_output=True, text=True, timeout=HANG
        )
        assert _ran(top) == [], verb
        assert (done.returncode, done.stderr) == (0, ""), (verb, done)
        assert done.stdout.startswith({"run": "worked"}.get(verb, "")), (verb, done.stdout)
        assert done.stdout


def test_nothing_that_others_installed_runs(installed: dict[str, tuple[str, dict[str, str]]]) -> None:
    """What each start of the environment's Python runs, no start of the command does: *.pth."""
    command, _ = installed["venv"]
    venv = Path(command).parents[1]
    (packages,) = venv.glob("lib/python*/site-packages")
    _hostile(packages, "imported_by_pth.py")
    (packages / "hostile.pth").write_text("import imported_by_pth\n")
    for _ in "before", "after":
        subprocess.run([venv / "bin/python", "-E", "-P", "-c", ""], check=True)
        assert _ran(packages) == ["imported_by_pth.py.ran"]
        done = subprocess.run([command, "echo", "worked"], capture_output=True, text=True, timeout=HANG)
        assert (done.returncode, done.stdout, done.stderr) == (0, "worked\n", "")
        assert _ran(packages) == []


def _found(top: Path) -> list[str]:
    """What the command in a directory's bin finds: the package, the prefix; and whether site did it."""
    what = "import capsule, sys; print(capsule.__file__, sys.prefix, 'site' in sys.modules)"
    for name in ("capsule", "capsule-python"):
        text = (ROOT / "packaging" / name).read_text().replace("#!python", f"#!{top}/bin/python", 1)
        text = text.replace("from capsule.cli.main import entry", what).replace("\nentry()\n", "\n")
        (top / "bin" / name).write_text(text)
        (top / "bin" / name).chmod(0o755)
    done = subprocess.run([top / "bin/capsule"], capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    "place", ["lib/{}/site-packages", "lib64/{}/site-packages", "lib/{}/dist-packages"]
)
def test_the_command_finds_the_package_beside_it(tmp_path: Path, place: str) -> None:
    """Where pip, Fedora's and Debian's, puts it below the directory of the command."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(BASE)
    package = tmp_path / place.format(VERSION) / "capsule"
    shutil.copytree(Path(bundle.PACKAGE), package, copy_function=shutil.copy2)
    assert _found(tmp_path) == [f"{package}/__init__.py", sys.base_prefix, "False"]


@pytest.mark.parametrize("editable", [False, True])
def test_the_command_of_a_virtual_environment(tmp_path: Path, *, editable: bool) -> None:
    """It has that for its prefix, which is guarded; where the package lies elsewhere, site knows."""
    _do([BASE, "-m", "venv", "--without-pip", str(tmp_path)])
    packages, package = tmp_path / f"lib/{VERSION}/site-packages", Path(bundle.PACKAGE)
    if editable:
        (packages / "editable.pth").write_text(f"{package.parent}\n")
    else:
        package = Path(shutil.copytree(package, packages / "capsule", copy_function=shutil.copy2))
    assert _found(tmp_path) == [f"{package}/__init__.py", str(tmp_path), str(editable)]


@pytest.mark.parametrize("place", ["bin", "with space", "with -dash"])
@pytest.mark.parametrize(
    "line",
    [
        "#!{}",
        "#!{} -E",
        "#!/bin/sh\n'''exec' {} \"$0\" \"$@\"\n' '''",
        "#!/bin/sh\n'''exec' '{}' \"$0\" \"$@\"\n' '''",
    ],
    ids=["pip", "pipx", "distlib", "uv"],
)
def test_what_installers_write_into_the_first_line(tmp_path: Path, place: str, line: str) -> None:
    """pip, pipx and uv each have their own way to name the interpreter, with a space in it or not."""
    (tmp_path / place).mkdir()
    python = tmp_path / place / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "packaging/capsule", tmp_path)
    (tmp_path / "capsule-python").write_text(line.format(python) + "\nbody\n")
    words = ["run", "a b", "--", "-E"]
    done = subprocess.run([tmp_path / "capsule", *words], capture_output=True, text=True)
    if line == "#!{} -E" and place == "with -dash":
        assert done.returncode == 125  # nobody can tell where the path ends
    else:
        assert done.stdout.splitlines() == ["-E", "-P", "-S", f"{tmp_path}/capsule-python", *words], (
            done
        )


def test_an_interpreter_that_is_gone_is_named(tmp_path: Path) -> None:
    """A command whose Python was removed says so, and ends with 125."""
    for name in ("capsule", "capsule-python"):
        text = (ROOT / "packaging" / name).read_text()
        (tmp_path / name).write_text(text.replace("#!python", "#!/nowhere/bin/python", 1))
    (tmp_path / "capsule").chmod(0o755)
    done = subprocess.run([tmp_path / "capsule", "run", "true"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("capsule: cannot start: /nowhere/bin/python,")

"""The file of bytecode that a run imports from: it is used, and never in place of what is newer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capsule.base import bundle
from tests.support import shared_directory

LISTED = Path(__file__).parents[3] / "packaging" / "bundled"
# Says where each module came from, in place of the end of the process.
WHERE = """
import os, sys
sys.argv = ["capsule", "run", "--", "true"]
def leave(status):
    for name, module in sorted(sys.modules.items()):
        if name.startswith("capsule."):
            print(name, type(module.__loader__).__name__, file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), 9)
os._exit = leave
from capsule.cli.main import entry
entry()
"""
# Imported before the bundle can be.
BEFORE = {"capsule.base", "capsule.base.bundle", "capsule.base.descriptors"}


def loaders(folder: Path | None = None) -> dict[str, str]:
    """What loaded each module of a run, of the package in a folder or of the installed one."""
    environment = {**os.environ, **({} if folder is None else {"PYTHONPATH": str(folder)})}
    command = [sys.executable, "-c", WHERE]
    with shared_directory() as cwd:
        (cwd / ".git").mkdir()
        done = subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == -9, done.stderr
    return dict(line.split() for line in done.stderr.splitlines())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the installed package, for a test to change."""
    shutil.copytree(bundle.PACKAGE, tmp_path / "capsule", copy_function=shutil.copy2)
    return tmp_path


def test_a_run_imports_from_it_and_nothing_else() -> None:
    """packaging/bundled lists what `capsule run` imports with git, and the file has all of that."""
    found = loaders()
    assert set(found) >= BEFORE
    assert sorted(set(found) - BEFORE) == sorted(LISTED.read_text(encoding="ascii").split())
    assert {found[name] for name in set(found) - BEFORE} == {"Bundle"}


# What a start does without: a millisecond or more each.
COSTLY = {
    "collections", "contextlib", "dataclasses", "enum", "functools", "inspect", "json", "re", "socket",
    "subprocess", "tempfile", "typing",
}  # fmt: skip


def test_a_run_imports_nothing_that_is_costly() -> None:
    """As the command is started, without the module site."""
    place = str(Path(bundle.PACKAGE).parent)
    code = WHERE.replace('if name.startswith("capsule."):', "if True:")
    code = f"import sys; sys.path.insert(0, {place!r})\n{code}"
    with shared_directory() as cwd:
        command = [sys.executable, "-I", "-S", "-c", code]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    found = {line.split()[0] for line in done.stderr.splitlines()}
    assert "capsule.process.launch" in found
    assert not found & COSTLY


def test_a_changed_source_counts(copy: Path) -> None:
    """A module is taken from its source once that has another size, or is younger."""
    api, result = copy / "capsule" / "api.py", copy / "capsule" / "process" / "result.py"
    api.write_text(api.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    later = result.stat().st_mtime + bundle.INSTALLING + 10
    os.utime(result, (later, later))
    found = loaders(copy)
    ours = {name for name in found if found[name] != "Bundle"} - BEFORE
    assert ours == {"capsule.api", "capsule.process.result"}


@pytest.mark.parametrize("damage", ["gone", "cut off", "another Python's", "empty"])
def test_without_it_all_works(copy: Path, damage: str) -> None:
    """A file that is not there or not for this Python is no file."""
    file = copy / "capsule" / "bundle.bin"
    data = file.read_bytes()
    file.unlink()
    if damage != "gone":
        changed = {"cut off": data[: len(data) // 2], "another Python's": b"x" + data, "empty": b""}
        file.write_bytes(changed[damage])
    assert "Bundle" not in loaders(copy).values()


def test_tracebacks_show_the_source() -> None:
    """An error in a module of the bundle shows the line that it is in."""
    code = "import capsule; capsule.Policy(uid='x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f'File "{bundle.PACKAGE}/policy/policy.py", line ' in done.stderr
    assert "raise " in done.stderr

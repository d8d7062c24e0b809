"""With nothing of the host but what the command needs: what runs, and what is not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from typing import Any

import pytest

import capsule
from tests.support import HANG, PYTHON, ask, assert_denied, give, shared_directory

STRICT = capsule.Policy(system=capsule.System.NEEDED, show_cwd=False)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from /, with the search path and the locale that every system has."""
    monkeypatch.chdir("/")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("PATH", PLACES)


def strict(*args: str, **options: Any) -> capsule.Result:
    """Run a command with only what it needs; the same command works outside."""
    done = subprocess.run(args, capture_output=True, timeout=HANG)
    assert done.returncode == 0, f"the control outside failed: {done.stderr!r}"
    result = capsule.run(args, STRICT, **options)
    assert (result.returncode, result.stderr) == (0, b""), (result.describe(), result.stderr)
    assert result.stdout == done.stdout
    return result


PLACES = "/usr/bin:/bin"
INTERPRETERS = [
    ["sh", "-c", "echo $((1+1))"],
    ["bash", "-c", "echo ${BASH_VERSION}"],
    ["perl", "-MPOSIX", "-e", "print POSIX::floor(2.5)"],
    ["perl", "-MSocket", "-MData::Dumper", "-e", "print Dumper(1)"],
    ["awk", "BEGIN { print 1 + 1 }"],
    ["git", "--version"],
    ["python3", "-I", "-c", "import ssl, sqlite3, json, ctypes; print(ssl.OPENSSL_VERSION)"],
]
INSTALLED = [args for args in INTERPRETERS if shutil.which(args[0], path=PLACES)]
UNNEEDED = ["/usr/bin/env", "/usr/bin/id", "/usr/share", "/usr/include", "/etc/ssl"]
THERE = [path for path in UNNEEDED if os.path.exists(path)]


# --- what runs --------------------------------------------------------------------------------


def test_a_program_runs() -> None:
    """A program of the host with its loader and its libraries."""
    strict("/bin/true")


@pytest.mark.parametrize("args", INSTALLED, ids=lambda args: " ".join(args[:2]))
def test_interpreters_run_with_their_modules(args: list[str]) -> None:
    """Modules in the language's own trees are found, and the libraries that those are loaded with."""
    strict(*args)


def test_this_python_runs_with_its_modules() -> None:
    """The Python that runs this, wherever it lies, in a virtual environment or not."""
    code = "import json, pytest, threading; tell([sys.prefix, len(pytest.__version__) > 0])"
    policy = STRICT.replace(extra_env={"PYTHONDONTWRITEBYTECODE": "1"})
    result = capsule.run([PYTHON, "-I", "-c", f"import json, os, sys\ntell = print\n{code}"], policy)
    assert result.ok, (result.describe(), result.stderr)


def test_threads_can_end_themselves() -> None:
    """What glibc loads for that alone is there."""
    ask("import _thread, threading\nthread = threading.Thread(target=_thread.exit)\nthread.start()\n"
        "thread.join()\ntell(1)", STRICT)  # fmt: skip


def test_scripts_run() -> None:
    """A script outside of the system's places, with its interpreter, and through env."""
    with shared_directory() as folder:
        for first in ("#!/bin/sh", "#!/usr/bin/env sh", "#!/usr/bin/env -S sh -e"):
            script = folder / "script"
            script.write_text(f'{first}\necho "$0" "$@"\n')
            script.chmod(0o755)
            assert strict(str(script), "a b").stdout == f"{script} a b\n".encode()


def test_a_program_runs_through_links() -> None:
    """Links of files and of directories lead where they lead on the host."""
    with shared_directory() as folder:
        (folder / "real").mkdir()
        (folder / "real/sh").symlink_to("/bin/sh")
        (folder / "bin").symlink_to("real")
        strict(str(folder / "bin/sh"), "-c", "echo $((1+1))")


def test_a_program_runs_from_a_working_directory_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command needs of a directory that is shown as a whole is there with the rest of it."""
    with shared_directory() as folder:
        (folder / "real").mkdir()
        (folder / "real/sh").symlink_to("/bin/sh")
        (folder / "file").write_text("text")
        monkeypatch.chdir(folder)
        for policy in (STRICT.replace(show_cwd=True), STRICT, STRICT.replace(cwd=str(folder))):
            there = policy.show_cwd
            result = capsule.run(["./real/sh", "-c", f"test -e {folder}/file"], policy)
            assert (result.returncode == 0, result.stderr) == (there, b""), result.describe()


# --- what is there ----------------------------------------------------------------------------

LIST = """
found = []
for folder, folders, files in os.walk(given["top"]):
    found += [os.path.join(folder, name) for name in files + folders]
tell(found)
"""


def test_of_the_programs_there_is_the_one_alone() -> None:
    """In all directories for programs there is the program and what leads to it, and no other."""
    real = os.path.realpath(PYTHON)
    places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/libexec"]
    for place in places:
        names = ask(LIST, STRICT, {"top": place})
        assert all(os.path.realpath(path) == real for path in names), names
    outside = set(os.listdir("/usr/bin"))
    assert len(outside) > 10


def test_of_the_libraries_there_are_those_that_it_needs() -> None:
    """A shell is given a handful of files, none of which the host has at another place."""
    result = capsule.run(["sh", "-c", 'cd /usr/lib; for x in * */*; do echo "$x"; done'], STRICT)
    assert result.ok
    names = result.stdout.decode().split()
    assert 2 <= len(names) < 20
    assert all(os.path.lexists(f"/usr/lib/{name}") for name in names)


@pytest.mark.parametrize("path", THERE)
def test_what_is_not_needed_does_not_exist(path: str) -> None:
    """A program, and data, that the command does not name: ENOENT, while outside it is there."""
    assert_denied("os.stat(given['path'])", errno.ENOENT, outside={"path": path}, policy=STRICT)


WRITE = """
import errno, os, sys
for path in sys.argv[:2]:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_what_is_needed_is_read_only() -> None:
    """A program that the command's ids may write to cannot be written to inside: EROFS."""
    with shared_directory() as folder:
        script = folder / "script"
        script.write_text(f"#!{PYTHON} -IS\n{WRITE}")
        script.chmod(0o755)
        give(script)
        args = [str(script), f"{folder}/harmless"]
        done = subprocess.run(args, capture_output=True, timeout=HANG)
        assert done.stdout.split()[0] == b"done", "the control outside failed"
        result = capsule.run([str(script), "/tmp/harmless"], STRICT)
        assert (result.stdout.split(), result.stderr) == ([b"EROFS", b"done"], b"")


def test_a_program_cannot_name_what_it_wants_to_see() -> None:
    """A first line and links beside it that name a secret of the host do not show it: ENOENT."""
    with shared_directory() as folder:
        secret = folder / "home/secret"
        secret.parent.mkdir()
        secret.write_text("secret")
        secret.chmod(0o755)
        tree = folder / "proj"
        (tree / "bin").mkdir(parents=True)
        (tree / "lib").mkdir()
        (tree / "lib" / os.path.basename(os.path.dirname(os.__file__))).symlink_to(secret.parent)
        (tree / "bin/python3").symlink_to(os.path.realpath(PYTHON))
        (tree / "pyvenv.cfg").symlink_to(secret)
        code = f"import os, json; print(json.dumps([os.path.exists({str(secret)!r}), os.getpid() > 1]))"
        words = [str(tree / "bin/python3"), "-I", "-S", "-c", code]
        result = capsule.run(words, STRICT)
        assert result.ok, (result.describe(), result.stderr)
        assert json.loads(result.stdout) == [False, True]
        assert secret.read_text() == "secret"

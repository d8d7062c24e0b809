"""The shipped examples, run as a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# What comes of each attempt: (outside, inside). Only root could write to /usr.
ATTEMPTS = {
    "read the private key in ~/.ssh": ("DONE", "failed: ENOENT"),
    "find secrets in the environment": ("DONE", "failed: nothing there"),
    "read its parent's environment": ("DONE", "failed: EACCES"),
    "list the other processes": ("DONE", "failed: nothing there"),
    "send all that to a server": ("DONE", "failed: ECONNREFUSED"),
    "write to /usr": ("DONE" if os.geteuid() == 0 else "failed: EACCES", "failed: EROFS"),
    "write into the project": ("DONE", "failed: EROFS"),
    "make a user namespace": ("DONE", "failed: EPERM"),
}


class Demo:
    """One run of the demo in surroundings of its own."""

    def __init__(self, place: Path, script: Path = EXAMPLES / "demo.py") -> None:
        self.home = place / "home"
        self.temporary = place / "tmp"
        for folder in (self.home, self.temporary):
            folder.mkdir()
        environment = {**os.environ, "HOME": str(self.home), "TMPDIR": str(self.temporary)}
        self.done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
        )

    def row(self, name: str) -> list[str]:
        """The cells (outside, inside) of one attempt."""
        line = next(line for line in self.done.stdout.splitlines() if line.startswith(name))
        return re.split(r" {2,}", line[len(name) :].strip())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def test_the_demo_succeeds(demo: Demo) -> None:
    """The demo ends with status 0 and says nothing on standard error."""
    assert (demo.done.returncode, demo.done.stderr) == (0, "")


def test_the_real_work_is_done_inside(demo: Demo) -> None:
    """The report of the table is made in the capsule."""
    assert "total      2,544    94,805.80   from 96 sales" in demo.done.stdout
    assert demo.row("read the table, make the report") == ["done", "done"]
    assert "outcome      exited, status 0" in demo.done.stdout


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_succeeds_outside_and_fails_inside(demo: Demo, name: str) -> None:
    """Each attempt does its harm outside and fails inside, with the errno that is promised."""
    outside, inside = ATTEMPTS[name]
    shown = demo.row(name)
    assert (shown[0].split(": ")[0] if outside == "DONE" else shown[0]) == outside
    assert shown[1] == inside


def test_the_server_hears_of_the_outside_run_alone(demo: Demo) -> None:
    """What the server received is counted by the server, not told by the program."""
    outside, inside = demo.row("bytes that the server received")
    assert int(outside) > 0
    assert inside == "0"


def test_what_was_refused_is_shown(demo: Demo) -> None:
    """The one system call that the filter refused stands in the account, with its remedy."""
    line = "refused      unshare(CLONE_NEWUSER) 1 time; --allow-syscall unshare or --seccomp nest"
    assert demo.done.stdout.count("refused      ") == 1
    assert line in demo.done.stdout


def test_the_demo_leaves_nothing_behind(demo: Demo) -> None:
    """Neither the caller's home nor the temporary directory holds anything afterwards."""
    assert (os.listdir(demo.home), os.listdir(demo.temporary)) == ([], [])


def test_the_demo_notices_a_capsule_that_leaks(tmp_path: Path) -> None:
    """With the capsule taken out of it, the demo fails and names what the program could do."""
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / "untrusted").symlink_to(EXAMPLES / "untrusted")
    text = (EXAMPLES / "demo.py").read_text()
    leaky = 'cwd=str(scene.project), network="host", env=dict(os.environ), mounts=[HOME], text=True'
    changed = text.replace("cwd=str(scene.project), text=True", leaky)
    assert changed != text
    home = "capsule.Mount.read_only(scene.home), capsule.Mount.read_only(scene.home / '.ssh')"
    (folder / "demo.py").write_text(changed.replace("HOME]", f"{home}]"))

    done = Demo(tmp_path, folder / "demo.py").done

    assert done.returncode == 1
    assert "FAILED: it could read the private key in ~/.ssh" in done.stdout
    assert "FAILED: it could send all that to a server" in done.stdout
    assert "FAILED: the key or the token got out" in done.stdout
    assert "FAILED: bytes sent:" in done.stdout


VERDICTS = {
    *("a result: int", "a result: float", "ZeroDivisionError", "FileNotFoundError", "timed out"),
    *("exited", "ValueError", "PermissionError", "OSError"),
}


def test_the_judge_on_a_cluster(tmp_path: Path) -> None:
    """dask.distributed spreads snippets over two processes; each has the verdict that it deserves."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "judge.py", "60"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert os.listdir(tmp_path) == []
    lines = dict(line.split(None, 1)[::-1] for line in done.stdout.splitlines())
    assert (set(lines), done.returncode) == (VERDICTS, 0), done.stderr
    assert sum(map(int, lines.values())) == 60
    # Two of the ten are FileNotFoundError: the home and the password file are not there.
    assert {name: int(times) for name, times in lines.items() if int(times) != 6} == {
        "FileNotFoundError": 12
    }

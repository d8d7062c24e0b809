"""What is told of a command that failed: the host's paths that it names and that are not shown."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount
from tests.integration.user_terminal import running, script
from tests.support import CAPSULE, HANG, needs, shared_directory

FAIL = ("sh", "-c", "exit 3", "sh")


@pytest.fixture
def tool(tmp_path: Path) -> str:
    """A file of the host in a directory that no capsule shows unasked."""
    path = tmp_path / "kept" / "tool.py"
    path.parent.mkdir()
    path.write_text("print('here')\n")
    return str(path)


def told(*words: str, **overrides: Any) -> tuple[str, ...]:
    """The hints of a command that fails with these words, seen from the root directory."""
    result = capsule.run([*FAIL, *words], **{"cwd": "/", **overrides})
    assert result.returncode == 3
    return result.hints


def hint(path: str) -> str:
    return f"not shown inside: {path}; show it with --ro {path}"


@pytest.mark.parametrize("form", ["{}", "--config={}", "if={}", "cat <{} | wc", "open('{}')  # all"])
def test_a_path_that_is_not_shown_is_told(form: str, tool: str) -> None:
    """A word, what is behind its =, a part of a script; and with the option it is there."""
    word = form.format(tool)
    assert told(word) == (hint(tool),)
    assert told(word, mounts=[Mount.read_only(tool)]) == ()


def test_the_option_that_it_names_helps(tool: str) -> None:
    """The control outside, the refusal inside, and the way of the hint."""
    command = ["python3", tool]
    assert subprocess.run(command, capture_output=True, timeout=HANG).stdout == b"here\n"
    failed = capsule.run(command, cwd="/")
    assert (failed.returncode, failed.hints) == (2, (hint(tool),))
    option = failed.hints[0].split("; show it with ")[1].split()
    done = subprocess.run([CAPSULE, "run", *option, "--", *command], capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr, done.returncode) == (b"here\n", b"", 0)


def test_what_is_there_is_not_told(tool: str) -> None:
    """The system, what Capsule makes, what is nowhere, what is hidden, and whatever a success names."""
    there = [
        "/usr",
        "/bin/sh",
        "/usr/bin/env",
        "/etc/passwd",
        "/tmp",
        "/dev/null",
        "/",
        "/proc/self",
        ".",
    ]
    there += ["/nowhere/x", "", "-", "--", "x" * 5000, "/etc/../usr", "/var", "=", "a=", "/proc/1/exe"]
    assert told(*there) == ()
    folder = os.path.dirname(tool)
    mounts = [Mount.read_only(folder)]
    assert told(tool, folder, mounts=mounts) == ()
    assert told(tool, mounts=[*mounts, Mount.hide(tool)]) == ()
    assert capsule.run(["true", tool], cwd="/").hints == ()


def test_a_link_is_followed_as_inside(tool: str, tmp_path: Path) -> None:
    """A link in what is shown leads nowhere if its target is not; one that stays within is there."""
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "out").symlink_to(tool)
    (shown / "up").symlink_to("../kept")
    (shown / "loop").symlink_to("loop")
    (shown / "file").write_text("x")
    (shown / "in").symlink_to("file")
    mounts = [Mount.read_only(shown)]
    names = [f"{shown}/out", f"{shown}/up/tool.py", f"{shown}/in", f"{shown}/file"]
    assert told(*names, mounts=mounts) == tuple(map(hint, names[:2]))
    both = [*mounts, Mount.read_only(os.path.dirname(tool))]
    assert told(*names, mounts=both) == ()
    assert told(f"{shown}/loop", mounts=mounts) == (hint(f"{shown}/loop"),)


def test_relative_words_are_about_the_directory(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a home, which is not shown, a file's bare name is told; in a directory that is, not."""
    home = os.path.dirname(tool)
    monkeypatch.chdir(home)
    assert told("tool.py", cwd=None) == ()
    monkeypatch.setenv("HOME", home)
    assert told("tool.py", "other.py", cwd=None) == (hint("tool.py"),)


def test_names_that_say_something_to_a_terminal(tool: str) -> None:
    """One line, which a shell takes for one word; and no more than three."""
    names = [f"{tool}\x1b[31m\n", f"{tool}'s own", f"{tool}-3", f"{tool}-4", f"{tool}-5"]
    for name in names:
        Path(name).write_text("")
    found = told(*names)
    assert len(found) == 4
    assert all(line.isprintable() for line in found)
    assert found[1].endswith(f"--ro '{tool}'\\''s own'")
    assert found[3] == "not shown inside: 2 more of the paths that the command names"


def test_a_device_has_an_option_of_its_own() -> None:
    """Nothing but --dev shows a device."""
    present = [
        path for path in ("/dev/kmsg", "/dev/ptmx", "/dev/fuse", "/dev/kvm") if os.path.exists(path)
    ]
    missing = [path for path in present if path != "/dev/ptmx"]
    assert told(*present) == tuple(
        f"not shown inside: {p}; show it with --dev {p}" for p in missing[:3]
    )


def test_a_read_only_directory_is_told_to_who_was_refused(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told where the command said EROFS; not where the directory is writable, or it said nothing."""
    folder = os.path.dirname(tool)
    monkeypatch.chdir(folder)
    refused = capsule.run(["touch", "x"])
    assert refused.returncode == 1
    assert refused.hints == (
        f"{folder} is shown read-only; --rw . or --overlay . lets the program write",
    )
    assert capsule.run(["touch", "x"], text=True).hints == refused.hints
    assert capsule.run(["sh", "-c", "exit 1"]).hints == ()
    assert capsule.run(["touch", "/usr/x"], mounts=[Mount.read_write(folder)]).hints == ()


def test_at_a_terminal_it_is_told_too(tool: str) -> None:
    """What the command writes to one comes past: what it says in the end is seen."""
    folder = os.path.dirname(tool)
    told = f"capsule: {folder} is shown read-only; --rw . or --overlay . lets the program write\r\n"
    for words, expected in ((script("touch x"), True), (script("exit 1"), False)):
        with running("--chdir", folder, *words) as user:
            assert user.wait() == 1
            assert (told.encode() in user.screen) is expected
    filler = script("yes x | head -c 100000; touch x; yes x | head -c 100")
    with running("--chdir", folder, "--", *filler[:2], f"{filler[2]}; exit 1") as user:
        assert user.wait() == 1
        assert told.encode() in user.screen


def test_behind_a_limit_of_output_it_is_told_too(tool: str) -> None:
    """There as well."""
    folder = os.path.dirname(tool)
    command = [CAPSULE, "run", "--output", "1M", "--chdir", folder, "--", "touch", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert done.stderr.endswith("--rw . or --overlay . lets the program write\n")


def test_a_root_has_what_belongs_to_its_programs() -> None:
    """With --root, what the host keeps for a program of that name is not told of."""
    with shared_directory() as place:
        parts = [name for name in ("bin", "lib", "lib64") if os.path.isdir(f"/usr/{name}")]
        for name in parts:
            (place / "usr" / name).mkdir(parents=True)
            (place / name).symlink_to(f"usr/{name}")
        mounts = [Mount.read_only(f"/usr/{name}", f"/usr/{name}") for name in parts]
        for root in (None, place):
            result = capsule.run(["apt-get", "--nonsense"], root=root, mounts=mounts, cwd="/")
            assert not result.ok
            told = [hint for hint in result.hints if "/etc/apt" in hint]
            assert bool(told) == (root is None)


@needs("overlay")
def test_what_an_overlay_shows_is_there(tool: str) -> None:
    """What lies below it is shown, and its directory is writable."""
    folder = os.path.dirname(tool)
    assert told(tool, mounts=[Mount.overlay(folder)]) == ()
    assert capsule.run(["touch", "x"], cwd=folder, mounts=[Mount.overlay(folder)]).ok


def test_the_command_line_says_it(tool: str, tmp_path: Path) -> None:
    """In one line, which --quiet leaves out, and as JSON."""
    report = tmp_path / "report"
    command = [CAPSULE, "run", "--json", str(report), "--chdir", "/", "--", *FAIL, tool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert (done.stderr, done.returncode) == (f"capsule: {hint(tool)}\n", 3)
    assert json.loads(report.read_text())["hints"] == [hint(tool)]
    quiet = [CAPSULE, "run", "-q", *command[2:]]
    done = subprocess.run(quiet, capture_output=True, text=True, timeout=HANG)
    assert (done.stderr, done.returncode) == ("", 3)

"""Jobs of a shell, and pipelines of which a capsule is a part."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.integration.user_terminal import (
    COLUMNS,
    CTRL_C,
    CTRL_D,
    CTRL_Z,
    READY,
    ROWS,
    User,
    at_terminal,
    in_bash,
    probe,
    running,
    script,
)
from tests.support import (
    CAPSULE,
    HANG,
    descendants,
    needs,
    shared_directory,
)

# --- job control outside ------------------------------------------------------------------------


def test_ctrl_c_and_the_shell() -> None:
    """After Ctrl-C the shell has the status 130, and a loop of it ends."""
    with in_bash() as user:
        user.command("$capsule sh -c 'echo rea''dy; exec sleep 1000'")
        user.see(READY)
        user.type(CTRL_C)
        user.command("echo status=$?")
        user.see(b"\r\nstatus=130\r\n")
        user.command(
            "for i in 1 2 3; do $capsule sh -c 'echo rea''dy; exec sleep 1000'; echo aft''er; done"
        )
        user.see(READY)
        user.type(CTRL_C)
        user.command("echo status=$?")
        assert b"after" not in user.see(b"\r\nstatus=130\r\n")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_ctrl_c_and_a_script(shell: str) -> None:
    """A script that runs a capsule ends with it on Ctrl-C, as it does with any program."""
    line = f"{CAPSULE} --chdir / sh -c 'echo ready; exec sleep 1000'; echo after"
    with at_terminal(shell, "-c", line) as user:
        user.see(READY)
        user.type(CTRL_C)
        assert user.wait() == -signal.SIGINT
        assert b"after" not in user.screen


@pytest.mark.parametrize(
    "around", ["{}", "{} | cat", "true | {}", "true | {} 2>&1 | cat", "sh -c '{}; :'"]
)
def test_ctrl_z_fg_and_bg(around: str) -> None:
    """Ctrl-Z stops the job, with what is inside; fg and bg continue it, and it ends as it would."""
    with shared_directory() as place, in_bash() as user:
        gate = place / "gate"
        os.mkfifo(gate)
        gate.chmod(0o644)
        user.command(around.format(f'$capsule --ro {gate}:/gate sh -c "echo ready; exec cat /gate"'))
        user.see(READY)
        cat = await_process(user.pid, "cat", "/gate")
        user.type(CTRL_Z)
        user.see(b"Stopped")
        assert not user.is_raw()
        await_state(cat, "T")
        user.command("fg")
        user.see(b"fg\r\n")
        await_state(cat, "S")
        if around == "{}":
            await_raw(user)
        user.type(CTRL_Z)
        user.see(b"Stopped")
        await_state(cat, "T")
        user.command("bg")
        user.see(b"outer> ")
        await_state(cat, "S")
        gate.write_text("through\n")
        user.see(b"through")
        user.type(b"wait; echo status=$?\n")
        user.see(b"\r\nstatus=0\r\n")


def await_process(top: int, *words: str) -> int:
    """Wait for a process below another to have executed these words; nobody tells of it."""
    until = time.monotonic() + HANG
    while True:
        for found in descendants(top):
            if words_of(found.pid)[:-1] == [*words]:
                return found.pid
        assert time.monotonic() < until
        time.sleep(0.001)


def words_of(pid: int) -> list[str]:
    """The argument vector of a process, with an empty word at its end."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def await_state(pid: int, *states: str) -> None:
    """Wait for a process to be in a state: the kernel tells of it only to the parent."""
    until = time.monotonic() + HANG
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in states:
        assert time.monotonic() < until
        time.sleep(0.001)


def await_raw(user: User) -> None:
    """Wait for the keyboard to be taken: a mode that changes tells nobody."""
    until = time.monotonic() + HANG
    while not user.is_raw():
        assert time.monotonic() < until
        time.sleep(0.001)


@needs("unprivileged")
def test_keys_where_no_process_is_to_be_had() -> None:
    """Without a fork that would survive a SIGKILL the keyboard works all the same."""
    with in_bash() as user:
        user.command("$capsule sh -c 'echo re''ady; read x; read y; echo got $y'")
        user.see(READY)
        (line,) = (s.pid for s in descendants(user.pid) if s.parent == user.pid)
        hard = resource.prlimit(line, resource.RLIMIT_NPROC)[1]
        resource.prlimit(line, resource.RLIMIT_NPROC, (1, hard))
        user.type(CTRL_Z)
        user.see(b"Stopped")
        user.command("fg")
        await_raw(user)
        user.type(b"\nkeys\n")
        user.see(b"got keys\r\n")


@pytest.mark.row("F-12")
def test_ctrl_z_where_nobody_could_continue() -> None:
    """Without a shell above, Ctrl-Z stops nothing: as any program, the command goes on."""
    with running(*script("exec cat")) as user:
        user.type(CTRL_Z)
        user.type(b"still here\n")
        user.see(b"\nstill here\r\n")
        user.type(CTRL_D)
        assert user.wait() == 0


def test_stopped_from_elsewhere() -> None:
    """After SIGSTOP of the command line, `fg` takes the keyboard again."""
    with in_bash() as user:
        user.command("$capsule sh -c 'echo rea''dy; exec cat'")
        user.see(READY)
        (child,) = (s.pid for s in descendants(user.pid) if s.parent == user.pid)
        os.kill(child, signal.SIGSTOP)
        user.see(b"Stopped")
        user.command("fg")
        user.see(b"exec cat'\r\n")
        await_raw(user)
        user.type(b"hello\n")
        user.see(b"hello\r\nhello\r\n")
        user.type(CTRL_D)


@pytest.mark.row("F-12")
def test_in_the_background() -> None:
    """A job that is started with & runs to its end, and its output is shown: nothing stops it."""
    with in_bash() as user:
        user.command("$capsule sh -c 'test -t 0 && test -t 1 && echo do''ne' & wait; echo status=$?")
        user.see(b"done")
        user.see(b"status=0")


def test_from_the_background_to_the_foreground() -> None:
    """A job that waits for input in the background gets it after `fg`."""
    with in_bash() as user:
        user.command("$capsule sh -c 'echo rea''dy; read x; echo got $x; exit 6' &")
        user.see(b"ready")
        user.type(b"fg\n")
        (child,) = (s for s in descendants(user.pid) if s.parent == user.pid)
        await_foreground(user, child.group)
        user.type(b"text\n")
        user.see(b"got text")
        user.command("echo status=$?")
        user.see(b"\r\nstatus=6\r\n")


def await_foreground(user: User, group: int) -> None:
    """Wait for the shell to give a job the terminal; it tells nobody."""
    until = time.monotonic() + HANG
    while os.tcgetpgrp(user.master) != group:
        assert time.monotonic() < until
        time.sleep(0.001)


# --- job control inside -------------------------------------------------------------------------


def test_a_shell_inside() -> None:
    """An interactive shell inside has jobs of its own, stops and continues them, and knows the size."""
    shell = ("bash", "--norc", "--noprofile", "--noediting", "-i")
    with at_terminal(CAPSULE, "--chdir", "/", "-e", "PS1=outer> ", *shell) as user:
        user.command("sleep 1000")
        user.see(b"sleep 1000\r\n")
        sleep = await_process(user.pid, "sleep", "1000")
        user.type(CTRL_Z)
        user.see(b"Stopped")
        user.command("jobs; stty size")
        assert b"Stopped" in user.see(b"%d %d\r\n" % (ROWS, COLUMNS))
        user.command("fg")
        user.see(b"\nsleep 1000\r\n")
        await_state(sleep, "S")
        user.type(CTRL_C)
        user.command("echo status=$?")
        user.see(b"\r\nstatus=130\r\n")
        user.command("cat | cat")
        user.type(b"text\n")
        user.see(b"text\r\ntext\r\n")
        user.type(CTRL_D)
        user.command("exit 7")
        assert user.wait() == 7


# --- pipes beside the terminal ------------------------------------------------------------------


def test_a_pipe_keeps_every_byte(tmp_path: Path) -> None:
    """Output that goes to a file or pipe beside a terminal is not a terminal's: no byte is changed."""
    code = "import os; os.write(1, bytes(range(256)) * 4); os.write(2, b'ready\\n')"
    to_file = [(os.POSIX_SPAWN_OPEN, 1, str(tmp_path / "out"), os.O_WRONLY | os.O_CREAT, 0o600)]
    with running(*probe(code), actions=to_file) as user:
        assert user.wait() == 0
    assert (tmp_path / "out").read_bytes() == bytes(range(256)) * 4


def test_the_rest_of_a_pipeline_is_shown_as_ever() -> None:
    """While the keyboard is the capsule's, what others write to the terminal has whole line ends."""
    with in_bash() as user:
        user.command("$capsule sh -c 'read x; echo rea''dy; read x' | cat")
        await_raw(user)
        user.type(b"\n")
        user.see(READY)
        user.type(b"\n")


def test_input_from_a_pipe(tmp_path: Path) -> None:
    """Input that is no terminal's reaches the command unchanged, beside a terminal for the output."""
    (tmp_path / "in").write_bytes(bytes(range(256)))
    from_file = [(os.POSIX_SPAWN_OPEN, 0, str(tmp_path / "in"), os.O_RDONLY, 0)]
    code = "import sys; d = sys.stdin.buffer.read(); print(len(d), d == bytes(range(256)))"
    with at_terminal(CAPSULE, "--chdir", "/", *probe(code), actions=from_file) as user:
        before = user.mode()
        user.see(b"256 True")
        assert user.wait() == 0
        assert user.mode() == before


def test_a_terminal_to_read_from_only(tmp_path: Path) -> None:
    """`</dev/tty >file 2>&1`: the only terminal is open for reading, and keys are echoed there."""
    words = shlex.join([CAPSULE, "--chdir", "/", "sh", "-c", "read x; echo got $x"])
    with at_terminal("sh", "-c", f"exec {words} </dev/tty >{tmp_path}/out 2>&1") as user:
        await_raw(user)
        user.type(b"text\n")
        assert user.wait() == 0
        assert user.screen == b"text\r\n"
    assert (tmp_path / "out").read_bytes() == b"got text\n"


def test_a_report_beside_the_terminal(tmp_path: Path) -> None:
    """--json - keeps the output, and the keyboard is still a terminal."""
    to_file = [(os.POSIX_SPAWN_OPEN, 1, str(tmp_path / "out"), os.O_WRONLY | os.O_CREAT, 0o600)]
    inner = ("sh", "-c", "test -t 0 && read x && echo got $x")
    with at_terminal(CAPSULE, "--chdir", "/", "--json", "-", *inner, actions=to_file) as user:
        await_raw(user)
        user.type(b"text\n")
        assert user.wait() == 0
    assert '"stdout": "got text\\n"' in (tmp_path / "out").read_text()


def test_verbose_shows_the_terminal() -> None:
    """With a terminal -vv lists the step that makes it: the numbers are those of an error."""
    with at_terminal(CAPSULE, "--chdir", "/nowhere", "-vv", "true") as user:
        assert user.wait() == 125
        told = re.search(rb"step (\d+) of (\d+)", user.screen)
        assert told is not None
        lines = user.screen.replace(b"\r", b"").splitlines()
        assert lines[int(told[1]) - 1].endswith(b"change to the directory /nowhere")
        assert any(b"terminal" in line for line in lines[: int(told[2])])

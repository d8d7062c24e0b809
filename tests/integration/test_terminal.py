"""A capsule at a terminal: keys, job control, sizes, modes, and what of it stays outside."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import re
import select
import shlex
import signal
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import (
    CAPSULE,
    HANG,
    PYTHON,
    await_end,
    descendants,
    shared_directory,
)

ROWS, COLUMNS = 33, 77
CTRL_C, CTRL_D, CTRL_Z, CTRL_QUIT = b"\x03", b"\x04", b"\x1a", b"\x1c"
LOCAL = 3  # index of the local modes in what tcgetattr returns

# Said by a command that has come so far. On the screen it shows that the keyboard is the capsule's:
# nothing is shown before.
READY = b"ready\r\n"


class User:
    """Somebody at a terminal of their own: types, looks at the screen, resizes the window."""

    def __init__(self, master: int, slave: int) -> None:
        self.master = master
        self.slave = slave
        self.name = os.ttyname(slave)
        self.pid = 0
        self.pidfd = -1
        self.screen = b""
        os.set_blocking(master, False)

    def start(self, words: Sequence[str], actions: Sequence[tuple[Any, ...]], **env: str) -> None:
        """Start a program in a session of its own whose terminal this is."""
        # The child's first open after setsid(2) makes the terminal its controlling one.
        on: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, self.name, os.O_RDWR, 0)]
        on += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        variables = {**os.environ, "TERM": "xterm", "PS1": "outer> ", **env}
        self.pid = os.posix_spawnp(
            words[0], list(words), variables, setsid=True, file_actions=[*on, *actions]
        )
        self.pidfd = os.pidfd_open(self.pid)

    def _look(self, *, writing: bool = False) -> bool:
        """Wait for something to happen, and take what is shown. True if a key can be typed."""
        waits = [self.master, self.pidfd]
        readable, writable, _ = select.select(waits, [self.master] if writing else [], [], HANG)
        assert readable or writable, f"nothing happens after {self.screen[-400:]!r}"
        if self.master in readable:
            with contextlib.suppress(BlockingIOError):
                self.screen += os.read(self.master, 1 << 16)
        return bool(writable)

    def type(self, keys: bytes) -> None:
        """Type, looking at the screen meanwhile: a terminal that nobody reads stops."""
        while keys:
            if self._look(writing=True):
                keys = keys[os.write(self.master, keys[:1024]) :]

    def see(self, text: bytes) -> bytes:
        """Look at the screen until a text is there; return all up to its end and forget it."""
        while text not in self.screen:
            assert not self.ended(), f"ended, and showed only {self.screen[-400:]!r}"
            self._look()
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def ended(self) -> bool:
        """Whether the program has ended and all that it showed was seen."""
        readable, _, _ = select.select([self.master, self.pidfd], [], [], 0)
        return readable == [self.pidfd]

    def wait(self) -> int:
        """Status of the program, or -N for signal N; the screen holds what it showed last."""
        while not self.ended():
            self._look()
        assert b"Traceback" not in self.screen
        return self._reap()

    def _reap(self) -> int:
        pid, self.pid = self.pid, 0
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def command(self, line: str) -> None:
        """Type a line at the prompt of an interactive shell."""
        self.see(b"outer> ")
        self.type(line.encode() + b"\n")

    def mode(self) -> list[Any]:
        """The terminal's mode."""
        return termios.tcgetattr(self.slave)

    def is_raw(self) -> bool:
        """Whether keys are passed on one by one: somebody has taken the keyboard."""
        return not self.mode()[LOCAL] & termios.ICANON

    def hang_up(self) -> int:
        """Close the window, and return the status of the program, which that ends."""
        for fd in (self.slave, self.master):
            os.close(fd)
        self.master = self.slave = -1
        assert await_end(self.pid)
        return self._reap()

    def leave(self) -> None:
        """End what still runs, and close."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()
        for fd in (self.slave, self.master):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def at_terminal(*words: str, actions: Sequence[tuple[Any, ...]] = (), **env: str) -> Iterator[User]:
    """Somebody who has started a program at their terminal."""
    user = User(*os.openpty())
    try:
        termios.tcsetwinsize(user.slave, (ROWS, COLUMNS))
        user.start(words, actions, **env)
        yield user
    finally:
        user.leave()


@contextlib.contextmanager
def running(*words: str, **settings: Any) -> Iterator[User]:
    """Somebody who runs a capsule that has said `ready`."""
    with at_terminal(CAPSULE, "--chdir", "/", *words, **settings) as user:
        user.see(READY)
        yield user


def script(text: str) -> tuple[str, str, str]:
    """A shell that is ready and goes on with a script."""
    return "sh", "-c", f"echo ready; {text}"


@contextlib.contextmanager
def in_bash(**settings: Any) -> Iterator[User]:
    """Somebody at an interactive shell with job control; at the end they leave it."""
    with shared_directory() as home:
        settings = {"HOME": str(home), "HISTFILE": "", "capsule": f"{CAPSULE} --chdir /", **settings}
        with at_terminal("bash", "--norc", "--noprofile", "--noediting", "-i", **settings) as user:
            yield user
            user.command("exit 0")
            assert user.wait() == 0


def probe(code: str) -> tuple[str, ...]:
    """A Python program, as words."""
    return PYTHON, "-I", "-S", "-c", code


# --- what is a terminal inside ----------------------------------------------------------------

_MASK = "n=0; for fd in 0 1 2; do test -t $fd && n=$((n + (1 << fd))); done; exit $n"


@pytest.mark.parametrize("mask", range(8))
def test_which_streams_are_terminals(mask: int) -> None:
    """Exactly those of the standard streams are terminals inside that are outside."""
    other = [
        (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3) if not mask & 1 << fd
    ]
    with at_terminal(CAPSULE, "--chdir", "/", "sh", "-c", _MASK, actions=other) as user:
        assert user.wait() == mask
        assert user.screen == b""


def test_name_and_size() -> None:
    """The terminal inside has a name there and the size of the one outside."""
    with at_terminal(CAPSULE, "--chdir", "/", "sh", "-c", "tty; stty size") as user:
        assert user.wait() == 0
        assert user.screen == b"/dev/pts/0\r\n%d %d\r\n" % (ROWS, COLUMNS)


def test_a_terminal_without_a_size() -> None:
    """One that does not know its size, such as a serial line, is taken for 24 by 80."""
    with at_terminal("sh", "-c", f"stty rows 0 cols 0; exec {CAPSULE} sh -c 'stty size'") as user:
        assert user.wait() == 0
        assert user.screen == b"24 80\r\n"


_TELL_SIZES = r"""
import os, signal
def tell(*_):
    size = os.get_terminal_size()
    os.write(1, b"%d by %d\n" % (size.lines, size.columns))
signal.signal(signal.SIGWINCH, tell)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.write(1, b"ready\n")
while True:
    signal.pause()
"""


def test_a_resized_window() -> None:
    """The command gets SIGWINCH, and the new size, at each change."""
    with running(*probe(_TELL_SIZES)) as user:
        for rows, columns in ((20, 50), (60, 200), (1, 1)):
            termios.tcsetwinsize(user.slave, (rows, columns))
            user.see(b"%d by %d\r\n" % (rows, columns))
        user.type(CTRL_C)
        assert user.wait() == -signal.SIGINT


# --- keys -------------------------------------------------------------------------------------


def test_echo_and_line_editing() -> None:
    """What is typed is shown once, can be corrected, and is read line by line until Ctrl-D."""
    with running(*script("cat")) as user:
        user.type(b"helXX\x7f\x7flo \xc3\xbc\x7fx\n")
        assert user.see(b"\nhello x\r\n") == b"helXX\b \b\b \blo \xc3\xbc\b \bx\r\nhello x\r\n"
        user.type(b"wrong\x15right\n")
        user.see(b"\nright\r\n")
        user.type(CTRL_D)
        assert user.wait() == 0


def test_an_end_without_a_newline() -> None:
    """Ctrl-D after some text gives that text to the command, as on any terminal."""
    with running(*script("cat; echo over")) as user:
        user.type(b"text" + CTRL_D)
        user.see(b"texttext")
        user.type(CTRL_D)
        user.see(b"over\r\n")
        assert user.wait() == 0


def test_a_large_paste() -> None:
    """100 KB typed at once reach a command that reads them, while all is echoed."""
    lines = b"".join(b"%079d\n" % number for number in range(1280))
    with running(*script("sha256sum")) as user:
        user.type(lines + CTRL_D)
        user.see(b"%079d\r\n" % 1279)
        user.see(f"{hashlib.sha256(lines).hexdigest()}  -\r\n".encode())
        assert user.wait() == 0


def test_a_large_output() -> None:
    """Nothing of what a command wrote just before its end is lost."""
    with running(*script("seq 1 20000; echo over")) as user:
        assert user.wait() == 0
        numbers = b"".join(b"%d\r\n" % number for number in range(1, 20001))
        assert user.screen == numbers + b"over\r\n"


@pytest.mark.parametrize(("key", "number"), [(CTRL_C, signal.SIGINT), (CTRL_QUIT, signal.SIGQUIT)])
def test_a_key_that_ends_the_command(key: bytes, number: int) -> None:
    """Ctrl-C and Ctrl-\\ end the command, and then the command line by the same signal."""
    with running(*script("exec sleep 1000")) as user:
        user.type(key)
        assert user.wait() == -number


def test_a_key_that_the_command_takes() -> None:
    """A command that handles SIGINT goes on, and its own status counts."""
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"caught\\n"))
os.write(1, b"ready\\n")
sys.exit(int(sys.stdin.readline()))
"""
    with running(*probe(code)) as user:
        for _ in range(2):
            user.type(CTRL_C)
            user.see(b"caught\r\n")
        user.type(b"7\n")
        assert user.wait() == 7


def test_a_signal_that_no_key_sent() -> None:
    """A command that interrupts itself does not interrupt its caller: 130 is only a status."""
    with running(*script("kill -INT $$")) as user:
        assert user.wait() == 128 + signal.SIGINT


def test_raw_mode_inside() -> None:
    """A program that takes single keys gets them, control characters too, and echoes nothing."""
    code = """
import os, tty
tty.setraw(0)
os.write(1, b"ready\\r\\n")
os.write(1, b"<%s>" % os.read(0, 10).hex().encode())
"""
    with running(*probe(code)) as user:
        user.type(CTRL_C)
        assert user.see(b">") == b"<03>"
        assert user.wait() == 0


# --- the user's terminal, afterwards ----------------------------------------------------------

ENDS: dict[str, tuple[tuple[str, ...], bytes, int, int]] = {
    "a normal end": (script("read x; exit 3"), b"\n", 0, 3),
    "Ctrl-C": (script("exec sleep 1000"), CTRL_C, 0, -signal.SIGINT),
    "a signal inside": (script("read x; kill -KILL $$"), b"\n", 0, 137),
    "a timeout": (("--timeout", "100ms", *script("exec sleep 1000")), b"", 0, 124),
    "the output limit": (("--output", "100", *script("read x; exec yes")), b"\n", 0, 137),
    "SIGTERM": (script("exec sleep 1000"), b"", signal.SIGTERM, -signal.SIGTERM),
    "SIGINT": (script("exec sleep 1000"), b"", signal.SIGINT, -signal.SIGINT),
    "SIGHUP": (script("exec sleep 1000"), b"", signal.SIGHUP, -signal.SIGHUP),
    "SIGTERM that is taken": (
        ("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do read x; done"),
        b"",
        15,
        9,
    ),
    "a mode of its own inside": (script("stty raw -echo; read x; exit 4"), b"\r\n", 0, 4),
    "a closed terminal": (script("read x; exec <&- >&- 2>&-; exit 5"), b"\n", 0, 5),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_mode_is_restored(end: str) -> None:
    """However a run ends, the user's terminal is in the mode in which it was."""
    words, keys, number, status = ENDS[end]
    user = User(*os.openpty())
    try:
        # Not the usual mode, which a mere reset would give as well.
        mode = user.mode()
        mode[LOCAL] &= ~termios.ECHOE
        termios.tcsetattr(user.slave, termios.TCSANOW, mode)
        user.start([CAPSULE, "--chdir", "/", *words], [])
        user.see(READY)
        assert end == "a timeout" or user.is_raw()
        user.type(keys)
        if number:
            os.kill(user.pid, number)
        assert user.wait() == status
        assert user.mode() == mode
    finally:
        user.leave()


@pytest.mark.parametrize(
    ("words", "status"),
    [(["nosuch"], 127), (["/usr"], 126), (["--ro", "/nowhere", "true"], 125), (["--nope"], 2)],
)
def test_an_error_at_the_start_leaves_the_terminal_alone(words: list[str], status: int) -> None:
    """A run that does not start changes no mode, and its message is on lines of its own."""
    with at_terminal(CAPSULE, "--chdir", "/", *words) as user:
        before = user.mode()
        assert user.wait() == status
        assert user.mode() == before
        assert user.screen.startswith(b"capsule: ")
        assert user.screen.count(b"\r\n  ") in (1, 2)


def test_messages_come_when_the_terminal_is_itself_again() -> None:
    """What Capsule says at the end is not in the stair-steps of raw mode."""
    with running("--timeout", "100ms", *script("exec sleep 1000")) as user:
        assert user.wait() == 124
        assert user.screen.endswith(b"capsule: timed out: after 0.1 s; raise it with --timeout\r\n")


def test_a_signal_at_any_moment_leaves_the_mode() -> None:
    """SIGTERM at random moments around the start: the mode is what it was."""
    moments = random.Random(3)
    for _ in range(15):
        with at_terminal(CAPSULE, "--chdir", "/", "sleep", "1000") as user:
            before = user.mode()
            time.sleep(moments.uniform(0.015, 0.06))
            os.kill(user.pid, signal.SIGTERM)
            assert user.wait() == -signal.SIGTERM
            assert user.mode() == before


def test_kill_ends_everything() -> None:
    """SIGKILL of the command line, which no mode survives, leaves nobody of the capsule."""
    with running(*script("setsid sleep 1000 & trap '' HUP TERM; exec sleep 1000")) as user:
        inside = [s.pid for s in descendants(user.pid)]
        assert inside
        os.kill(user.pid, signal.SIGKILL)
        assert user.wait() == -signal.SIGKILL
        assert all(await_end(pid) for pid in inside)


# --- a window that is closed ------------------------------------------------------------------


@pytest.mark.parametrize("text", ["exec cat", "exec sleep 1000", "while :; do echo x; done"])
def test_a_closed_window_ends_the_capsule(text: str) -> None:
    """The hang-up comes as SIGHUP and ends the command and the command line."""
    with running(*script(text)) as user:
        inside = [s.pid for s in descendants(user.pid)]
        assert user.hang_up() == -signal.SIGHUP
        assert all(await_end(found) for found in inside)


def test_a_closed_window_where_sighup_is_ignored(tmp_path: Path) -> None:
    """A command line that ignores SIGHUP still tells the command, whose terminal is gone, too."""
    said = tmp_path / "said"
    to_file = [(os.POSIX_SPAWN_OPEN, 2, str(said), os.O_WRONLY | os.O_CREAT, 0o600)]
    words = shlex.join([CAPSULE, "--chdir", "/", *script("exec cat")])
    with at_terminal("sh", "-c", f"trap '' HUP; exec {words}", actions=to_file) as user:
        user.see(READY)
        assert user.hang_up() == 128 + signal.SIGHUP
    assert said.read_bytes() == b""


# --- job control outside ----------------------------------------------------------------------


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


# --- job control inside -----------------------------------------------------------------------


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


# --- pipes beside the terminal ----------------------------------------------------------------


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
    """With a terminal -v lists the step that makes it: the numbers are those of an error."""
    with at_terminal(CAPSULE, "--chdir", "/nowhere", "-v", "true") as user:
        assert user.wait() == 125
        told = re.search(rb"step (\d+) of (\d+)", user.screen)
        assert told is not None
        lines = user.screen.replace(b"\r", b"").splitlines()
        assert lines[int(told[1]) - 1].endswith(b"change to the directory /nowhere")
        assert any(b"terminal" in line for line in lines[: int(told[2])])


# --- what stays outside -----------------------------------------------------------------------

_OPEN = """
import os, sys
try:
    os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
except OSError as error:
    os._exit(error.errno)
os.ttyname(0)
"""


def test_the_users_terminal_cannot_be_opened() -> None:
    """ENOENT for its name inside, where the capsule's own is at hand; outside it opens."""
    # The second of two: /dev/pts/0 is a name that is taken inside.
    with at_terminal("sleep", "1000"), at_terminal(*probe(_OPEN), "/dev/tty") as control:
        assert control.wait() == 0
        name = control.name
        assert name != "/dev/pts/0"
        for before, status in (((), 0), ((CAPSULE, "--chdir", "/"), errno.ENOENT)):
            control.start([*before, *probe(_OPEN), name], [])
            assert control.wait() == status
        # In a capsule of the same kind the terminal there is opens.
        control.start([CAPSULE, "--chdir", "/", *probe(_OPEN), "/dev/pts/0"], [])
        assert control.wait() == 0


def test_dev_tty_is_the_capsules_own() -> None:
    """/dev/tty works inside, even with all streams redirected, and is not the user's: sizes differ."""
    code = """
import os, sys, termios
fd = os.open("/dev/tty", os.O_RDWR)
termios.tcsetwinsize(fd, (11, 22))
os.write(fd, b"ready\\n")
os.write(fd, b"%r %r\\n" % (termios.tcgetwinsize(0), os.tcgetpgrp(fd) == os.getpgrp()))
os.read(fd, 10)
"""
    with running(*probe(code)) as user:
        user.see(b"(11, 22) True\r\n")
        assert termios.tcgetwinsize(user.slave) == (ROWS, COLUMNS)
        user.type(b"x\n")
        assert user.wait() == 0


def test_no_terminal_no_dev_tty() -> None:
    """ENXIO if no stream is a terminal: the caller's controlling terminal is not inherited."""
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    code = _OPEN.replace("os.ttyname(0)", "open('/dev/null', 'w').close()")
    for before, status in (((), 0), ((CAPSULE, "--chdir", "/"), errno.ENXIO)):
        with at_terminal(*before, *probe(code), "/dev/tty", actions=quiet) as user:
            assert user.wait() == status
    with at_terminal(CAPSULE, "--chdir", "/", *probe(code), "/dev/null", actions=quiet) as user:
        assert user.wait() == 0


_PUSH = """
import fcntl, sys, termios
for byte in b"pushed ":
    try:
        fcntl.ioctl(int(sys.argv[1]), termios.TIOCSTI, bytes([byte]))
    except OSError as error:
        sys.exit(error.errno)
"""


def _read_after(*words: str) -> tuple[int, bytes]:
    """(Status of a program, what is read from the terminal after it where `typed` was typed)."""
    line = f"{shlex.join(words)}; echo status=$?; head -n 1 | tr a-z A-Z"
    with at_terminal("sh", "-c", line) as user:
        told = re.search(rb"status=(\d+)", user.see(b"status=") + user.see(b"\r\n"))
        assert told is not None
        status = int(told[1])
        user.type(b"typed\n")
        assert user.wait() == 0
        return status, user.screen.splitlines()[-1]


def _may_push() -> bool:
    """Whether the kernel lets any process push input into its terminal, as it always did before 6.2."""
    switch = Path("/proc/sys/dev/tty/legacy_tiocsti")
    return not switch.exists() or switch.read_text().strip() == "1" or os.geteuid() == 0


@pytest.mark.parametrize("fd", ["0", "1", "2"])
def test_nothing_is_pushed_into_the_users_terminal(fd: str) -> None:
    """TIOCSTI inside is refused; with no filter it fills the capsule's terminal only."""
    expected = (0, b"PUSHED TYPED") if _may_push() else (errno.EIO, b"TYPED")
    assert _read_after(*probe(_PUSH), fd) == expected
    inside = [CAPSULE, "--chdir", "/"]
    assert _read_after(*inside, *probe(_PUSH), fd) == (errno.EPERM, b"TYPED")
    status, read = _read_after(*inside, "--seccomp", "off", *probe(_PUSH), fd)
    assert (status in (0, errno.EIO), read) == (True, b"TYPED")


def test_the_users_mode_cannot_be_changed() -> None:
    """tcsetattr(3) inside changes the capsule's terminal and not the user's."""
    change = "stty -opost -isig; stty rows 5; stty -a | grep -o -e -isig; read x"
    with running(*script(change)) as user:
        user.see(b"-isig")
        during = user.mode()
        user.type(b"\n")
        assert user.wait() == 0
        assert termios.tcgetwinsize(user.slave) == (ROWS, COLUMNS)
        # While it ran, the user's terminal was raw for Capsule's sake.
        assert not during[1] & termios.OPOST
        assert user.mode()[1] & termios.OPOST
        assert user.mode()[LOCAL] & termios.ISIG

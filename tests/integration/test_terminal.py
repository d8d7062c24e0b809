"""A capsule at a terminal: keys, job control, sizes, modes, and what of it stays outside."""

from __future__ import annotations

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
from pathlib import Path

import pytest

from tests.integration.user_terminal import (
    COLUMNS,
    CTRL_C,
    CTRL_D,
    CTRL_QUIT,
    LOCAL,
    READY,
    ROWS,
    User,
    at_terminal,
    probe,
    running,
    script,
)
from tests.support import (
    CAPSULE,
    await_end,
    descendants,
)

# --- what is a terminal inside ------------------------------------------------------------------

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


# --- keys ---------------------------------------------------------------------------------------


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
import os, select, signal, sys
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"caught\\n"))
# A signal that comes right before a read(2) would be noticed after it only.
woken, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
os.write(1, b"ready\\n")
while 0 not in select.select([0, woken], [], [])[0]:
    os.read(woken, 1)
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


# --- the user's terminal, afterwards ------------------------------------------------------------

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
    """SIGKILL of the command line leaves nobody of the capsule."""
    with running(*script("setsid sleep 1000 & trap '' HUP TERM; exec sleep 1000")) as user:
        inside = [s.pid for s in descendants(user.pid)]
        assert inside
        os.kill(user.pid, signal.SIGKILL)
        assert user.wait() == -signal.SIGKILL
        assert all(await_end(pid) for pid in inside)


# A hidden cursor, another screen, a colour; and what ends them.
_DRAWN = r"\033[?25l\033[?1049h\033[31m"
_UNDONE = b"\x1b[?25h\x1b[?1049l\x1b[m"


@pytest.mark.parametrize("side", ["the command line", "init", "the command"])
def test_a_kill_leaves_the_terminal_as_it_was(side: str) -> None:
    """SIGKILL of either side: mode, foreground, cursor and screen are as before, and nobody is left."""
    words = shlex.join(
        [CAPSULE, "--chdir", "/", "sh", "-c", f"printf '{_DRAWN}ready\\n'; exec sleep 1000"]
    )
    with at_terminal("sh", "-c", f"read x; {words}; echo back; read x") as user:
        mode, group = user.mode(), os.tcgetpgrp(user.master)
        user.type(b"\n")
        user.see(READY)
        assert user.is_raw()
        below = {s.name: s.pid for s in descendants(user.pid) if s.parent != user.pid}
        (line,) = (s.pid for s in descendants(user.pid) if s.parent == user.pid)
        sides = {
            "the command line": line,
            "init": below["capsule-launch"],
            "the command": below["sleep"],
        }
        os.kill(sides[side], signal.SIGKILL)
        # The shell may be quicker than who undoes it when the command line was killed.
        while _UNDONE not in user.screen or b"back" not in user.screen:
            user.look()
        assert all(await_end(pid) for pid in below.values())
        assert user.mode() == mode
        assert os.tcgetpgrp(user.master) == group
        user.type(b"\n")
        assert user.wait() == 0


def test_a_kill_before_anything_was_drawn_writes_nothing() -> None:
    """Only the mode is restored; of a terminal whose mode somebody else has set by then, nothing is."""
    for other in (False, True):
        with running(*script("exec sleep 1000")) as user:
            below = [s.pid for s in descendants(user.pid)]
            if other:
                mode = user.mode()
                mode[LOCAL] |= termios.ISIG
                termios.tcsetattr(user.slave, termios.TCSANOW, mode)
            os.kill(user.pid, signal.SIGKILL)
            assert user.wait() == -signal.SIGKILL
            assert all(await_end(pid) for pid in below)
            assert user.is_raw() is other
            assert user.screen == b""


def test_what_a_program_left_is_undone() -> None:
    """A program that ends without a word about its cursor: it is there again, the mode too."""
    with running("sh", "-c", f"echo ready; printf '{_DRAWN}'; exit 3") as user:
        assert user.wait() == 3
        assert user.screen.endswith(b"\x1b[31m" + _UNDONE)
        assert not user.is_raw()


def test_keys_that_were_typed_ahead() -> None:
    """What was typed before there was a capsule reaches the command, the end of the input too."""
    user = User(*os.openpty())
    try:
        user.type(b"one\ntwo\n" + CTRL_D)
        user.start([CAPSULE, "--chdir", "/", "sh", "-c", "cat; echo over"], [])
        assert user.wait() == 0
        assert user.screen.endswith(b"over\r\n")
        assert user.screen.count(b"two") == 3, user.screen
    finally:
        user.leave()


# --- a window that is closed --------------------------------------------------------------------


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


def test_a_command_outlasts_its_window() -> None:
    """Who ignores SIGHUP goes on, and so do we, whatever we are still told of a window that is gone."""
    text = "trap '' HUP; echo ready; sleep 1; exit 7"
    command = shlex.join([CAPSULE, "--chdir", "/", "sh", "-c", text])
    with at_terminal("sh", "-c", f"trap '' HUP; exec {command}") as user:
        user.see(READY)
        user.close_window()
        while not select.select([user.pidfd], [], [], 0.01)[0]:
            os.kill(user.pid, signal.SIGWINCH)
        assert user.wait_unseen() == 7


# --- what stays outside -------------------------------------------------------------------------

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
import fcntl, os, sys, termios
where = sys.argv[1]
fd = int(where) if where.isdigit() else os.open(where, os.O_RDWR)
for byte in b"pushed ":
    try:
        fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte]))
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


@pytest.mark.row("C-01")
@pytest.mark.parametrize("fd", ["0", "1", "2", "/dev/tty"])
def test_nothing_is_pushed_into_the_users_terminal(fd: str) -> None:
    """TIOCSTI inside is refused; with no filter it fills the capsule's terminal only."""
    expected = (0, b"PUSHED TYPED") if _may_push() else (errno.EIO, b"TYPED")
    assert _read_after(*probe(_PUSH), fd) == expected
    inside = [CAPSULE, "--chdir", "/"]
    assert _read_after(*inside, *probe(_PUSH), fd) == (errno.EPERM, b"TYPED")
    status, read = _read_after(*inside, "--seccomp", "off", *probe(_PUSH), fd)
    assert (status in (0, errno.EIO), read) == (True, b"TYPED")


@pytest.mark.row("C-01")
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

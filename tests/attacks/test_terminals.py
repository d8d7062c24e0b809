"""Rows C: the user's terminal is not typed into, not changed, and not spoken to."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.attacks.calls import BAD_FD, HIGH, refused
from tests.integration.user_terminal import READY, User, at_terminal
from tests.support import CAPSULE

TIOCSTI, TIOCSETD, TIOCLINUX, TIOCCONS = 0x5412, 0x5423, 0x541C, 0x541D

# --- control sequences --------------------------------------------------------------------------

# The clipboard, a title, questions that the terminal answers as if they were typed, another screen.
_CLIPBOARD, _TITLE = rb"\033]52;c;ZXZpbA==\007", rb"\033]0;title\033\\"
_ASKED = rb"\033P$qm\033\\\033[>c\033[6n\033[21t\302\2336n"
HOSTILE = _CLIPBOARD + _TITLE + _ASKED + rb"\033[?1049h"
SENT = HOSTILE.decode("unicode_escape").encode("latin-1")
COLOUR = b"\x1b[1;31mred\x1b[0m\tx"
_PRINT = ("printf", f"{HOSTILE.decode()}\\033[1;31mred\\033[0m\\tx\\n")
NO_KEYBOARD = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]


@pytest.mark.row("C-06")
def test_c06_nobody_speaks_to_a_terminal_that_nobody_types_at() -> None:
    """Without a keyboard nothing but colours and tabs is obeyed; the control: with --raw all is."""
    with at_terminal(CAPSULE, "--chdir", "/", *_PRINT, actions=NO_KEYBOARD) as user:
        assert user.wait() == 0
        shown = user.screen
    with at_terminal(CAPSULE, "--raw", "--chdir", "/", *_PRINT, actions=NO_KEYBOARD) as user:
        assert user.wait() == 0
        assert user.screen == SENT + COLOUR + b"\r\n"
    assert shown.endswith(COLOUR + b"\r\n")
    rest = shown.removesuffix(COLOUR + b"\r\n")
    assert all(0x20 <= byte < 0x7F for byte in rest)
    assert b"^[]52;c;ZXZpbA==^G" in rest


@pytest.mark.row("C-06")
def test_c06_standard_error_is_shown_alike() -> None:
    """Also where standard error is the only stream that is a terminal."""
    to_null = [*NO_KEYBOARD, (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    words = [CAPSULE, "--chdir", "/", "sh", "-c", "printf '\\033]0;x\\007' >&2"]
    with at_terminal(*words, actions=to_null) as user:
        assert user.wait() == 0
        assert user.screen == b"^[]0;x^G"


@pytest.mark.row("C-06")
def test_c06_files_and_pipes_get_every_byte(tmp_path: Path) -> None:
    """What is no terminal gets the bytes as they are."""
    to_file = [
        *NO_KEYBOARD,
        (os.POSIX_SPAWN_OPEN, 1, str(tmp_path / "out"), os.O_WRONLY | os.O_CREAT, 0o600),
    ]
    with at_terminal(CAPSULE, "--chdir", "/", *_PRINT, actions=to_file) as user:
        assert user.wait() == 0
    assert (tmp_path / "out").read_bytes() == SENT + COLOUR + b"\n"
    done = subprocess.run([CAPSULE, "--chdir", "/", *_PRINT], capture_output=True)
    assert done.stdout == SENT + COLOUR + b"\n"


# --- keys and modes -----------------------------------------------------------------------------


@pytest.mark.row("C-02", "C-03", "C-04")
@pytest.mark.parametrize("command", [TIOCSTI, TIOCSETD, TIOCLINUX, TIOCCONS], ids=hex)
@pytest.mark.parametrize("upper", [0, HIGH, 0xFFFFFFFF << 32], ids=hex)
def test_c02_c03_c04_no_ioctl_that_types_or_loads(command: int, upper: int) -> None:
    """Neither typing, pasting, line disciplines nor the console: by the lower half of the word."""
    refused("ioctl", (BAD_FD, upper | command), errno.EPERM, errno.EBADF)


def test_the_control_a_terminal_obeys() -> None:
    """The bytes that the rows above look for do arrive where nothing is in between."""
    user = User(*os.openpty())
    try:
        user.start(["sh", "-c", f"echo ready; printf '{HOSTILE.decode()}'"], [])
        user.see(READY)
        assert user.wait() == 0
        assert user.screen == SENT
    finally:
        user.leave()

"""Somebody at a terminal of their own, for tests of what runs there."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
from collections.abc import Iterator, Sequence
from typing import Any

from tests.support import (
    CAPSULE,
    HANG,
    PYTHON,
    await_end,
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

    def look(self, *, writing: bool = False) -> bool:
        """Wait for something to happen, and take what is shown. True if a key can be typed."""
        waits = [fd for fd in (self.master, self.pidfd) if fd >= 0]
        readable, writable, _ = select.select(waits, [self.master] if writing else [], [], HANG)
        assert readable or writable, f"nothing happens after {self.screen[-400:]!r}"
        if self.master in readable:
            with contextlib.suppress(BlockingIOError):
                self.screen += os.read(self.master, 1 << 16)
        return bool(writable)

    def type(self, keys: bytes) -> None:
        """Type, looking at the screen meanwhile: a terminal that nobody reads stops."""
        while keys:
            if self.look(writing=True):
                keys = keys[os.write(self.master, keys[:1024]) :]

    def see(self, text: bytes) -> bytes:
        """Look at the screen until a text is there; return all up to its end and forget it."""
        while text not in self.screen:
            assert not self.ended(), f"ended, and showed only {self.screen[-400:]!r}"
            self.look()
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def ended(self) -> bool:
        """Whether the program has ended and all that it showed was seen."""
        readable, _, _ = select.select([self.master, self.pidfd], [], [], 0)
        return readable == [self.pidfd]

    def wait(self) -> int:
        """Status of the program, or -N for signal N; the screen holds what it showed last."""
        while not self.ended():
            self.look()
        assert b"Traceback" not in self.screen
        return self._reap()

    def _reap(self) -> int:
        pid, self.pid = self.pid, 0
        os.close(self.pidfd)
        self.pidfd = -1
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

    def close_window(self) -> None:
        """Close the window: the program has no terminal any more."""
        for fd in (self.slave, self.master):
            os.close(fd)
        self.master = self.slave = -1

    def hang_up(self) -> int:
        """Close the window, and return the status of the program, which that ends."""
        self.close_window()
        return self.wait_unseen()

    def wait_unseen(self) -> int:
        """Status of the program, whose window is closed."""
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

"""The user's terminal while the capsule has its keys: taken, and given back however we end.

A mode that is set on a terminal outlives who set it. So while the keyboard is taken, a fork of ours
waits, in a session of its own, for the end of a pipe that only we hold: if we are killed (SIGKILL), it
gives back what we cannot.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import termios

from capsule.base import signals
from capsule.process.loop import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_DISMISSED = 0xFF  # in place of a length


class Keyboard:
    """A terminal that is read from, as job control has it: ours in the foreground only.

    Attributes:
        fd: its descriptor.
        held: whether it is taken: in raw mode, and watched over.
    """

    def __init__(self, fd: int, screen: int, *, shared: bool) -> None:
        """Take nothing yet.

        Args:
            fd: the terminal's descriptor to read from.
            screen: the one to write to.
            shared: whether others of a pipeline write to the terminal meanwhile.
        """
        self.fd = fd
        self.held = False
        self._screen = screen
        self._shared = shared
        self._mode: list[Any] = []
        self._guard: _Guard | None = None
        self._ahead = False
        self._undo = b""

    def is_ours(self) -> bool:
        """Return whether we are in its foreground process group.

        Raises:
            OSError: there is no such terminal any more.
        """
        return os.tcgetpgrp(self.fd) == os.getpgrp()

    def take(self) -> None:
        """Put it into raw mode, also where it was ours before: who continues us has set another one.

        Keys that were typed before stay and are read.

        Raises:
            OSError, termios.error: there is no such terminal any more.
        """
        if not self.held:
            self._mode = termios.tcgetattr(self.fd)
            self._ahead = bool(self._mode[3] & termios.ICANON)
        raw = _raw(self._mode, keep_output=self._shared)
        if self._guard is None:
            # Before there is anything to give back. Where no process is to be had, the keys are
            # worth more than what a SIGKILL would leave.
            with contextlib.suppress(OSError):
                self._guard = _Guard(self.fd, self._screen, self._mode, raw)
                self._guard.undo(self._undo)
        self.held = True
        termios.tcsetattr(self.fd, termios.TCSADRAIN, raw)

    def read(self, size: int) -> bytes:
        """Read keys; none at the end of the terminal."""
        try:
            data = os.read(self.fd, size)
        except OSError:
            return b""
        if self._ahead:
            # In canonical mode an end of file that was typed ahead lies there as a NUL.
            data = data.replace(b"\0", self.key(termios.VEOF))
            self._ahead = False
        return data

    def key(self, which: int) -> bytes:
        """Return the key for what a mode calls VINTR and so on; nothing where there is none."""
        key = self._mode[6][which] if self._mode else b"\0"
        return b"" if key == b"\0" or not isinstance(key, bytes) else key

    def note(self, undo: bytes) -> None:
        """Note what has to be written for the screen to be as it was, before it is changed."""
        self._undo = undo
        if self._guard is not None:
            self._guard.undo(undo)

    def give_back(self) -> None:
        """Restore the mode and the screen, if they are taken."""
        if not self.held:
            return
        self.held = False
        undo, self._undo = self._undo, b""
        with contextlib.suppress(termios.error, OSError):
            if undo:
                write_all(self._screen, undo)
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._mode)
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None


def _raw(mode: list[Any], *, keep_output: bool) -> list[Any]:
    """Return a mode as cfmakeraw(3) changes it; what others write may keep its whole line ends."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, keys = mode
    iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
    iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
    oflag = oflag | termios.OPOST if keep_output else oflag & ~termios.OPOST
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    keys = list(keys)
    keys[termios.VMIN], keys[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, keys]


class _Guard:
    """A fork that gives a terminal back when we are killed."""

    def __init__(self, terminal: int, screen: int, mode: list[Any], raw: list[Any]) -> None:
        # A length and the sequences to write. Memory, not messages: whoever is killed leaves it behind.
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        end, self._end = os.pipe()
        try:
            with signals.Held():
                self._pid = os.fork()
                if self._pid == 0:
                    _watch(end, self._page, (terminal, screen), mode, raw)
        except OSError:
            os.close(self._end)
            raise
        finally:
            os.close(end)

    def undo(self, data: bytes) -> None:
        """Have these sequences written. While they change none are, rather than half of them."""
        self._page[0] = 0
        if len(data) < _DISMISSED:
            self._page[1 : 1 + len(data)] = data
            self._page[0] = len(data)

    def dismiss(self) -> None:
        """Tell it that nothing is left to do, and wait for its end."""
        self._page[0] = _DISMISSED
        os.close(self._end)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _watch(
    end: int, page: mmap.mmap, terminals: tuple[int, int], mode: list[Any], raw: list[Any]
) -> NoReturn:
    """Wait, in the fork, for the end of who forked, with every signal blocked."""
    try:
        # Who kills our process group does not mean this; a session of its own has no terminal, so
        # there is none whose background it could be in.
        os.setsid()
        os.chdir("/")
        # The pipe's other end, which is ours alone then, and the lifeline's among them.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in (end, *terminals):
                with contextlib.suppress(OSError):
                    os.close(fd)
        os.read(end, 1)
        if page[0] != _DISMISSED:
            # A shell that was quicker has set a mode of its own.
            if termios.tcgetattr(terminals[0])[:4] == raw[:4]:
                termios.tcsetattr(terminals[0], termios.TCSANOW, mode)
            os.write(terminals[1], page[1 : 1 + page[0]])
    finally:
        os._exit(0)

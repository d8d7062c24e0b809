"""A terminal for interactive runs: a pty of the capsule's own, relayed by the supervisor.

The user's terminal never enters the capsule, so nothing inside can push input into it (TIOCSTI) or
change its line discipline. What the user types goes to the pty, whose line discipline makes the
signals of Ctrl-C and Ctrl-Z inside; what the command writes comes back the same way.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios

from capsule.base import signals
from capsule.planner.plan import Terminal
from capsule.process.handle import loop_of
from capsule.process.loop import write_all

from .keyboard import Keyboard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capsule.process.handle import Process

    from .stats import Live
    from .visible import Left, Visible

_CHUNK = 1 << 14
BACKGROUND_LOOK = 0.2  # seconds


def describe(fds: Sequence[int]) -> Terminal:
    """A terminal to stand for those of our descriptors that are terminals, in the same size."""
    try:
        rows, columns = termios.tcgetwinsize(fds[0])
    except termios.error:
        rows, columns = 24, 80
    return Terminal(tuple(fds), rows or 24, columns or 80)


class Relay:
    """Between the user's terminal and the capsule's, for as long as the command runs.

    With a keyboard the run is interactive: the terminal obeys what the command writes, and it is undone
    at the end. Without, control sequences are shown, as bytes that nobody asked for.

    Args:
        process: a process that was started with a terminal.
        keyboard: our descriptor to read keys from, or None if standard input is no terminal.
        screen: our descriptor to write to.
        live: the line of --stats, which is to be gone when anything else is written.
        raw: whether control sequences are obeyed in any case.
    """

    def __init__(
        self,
        process: Process,
        master: int,
        keyboard: int | None,
        screen: int,
        live: Live | None = None,
        *,
        raw: bool = False,
    ) -> None:
        self._process = process
        self._loop = loop_of(process)
        self._master = master
        self._screen = screen
        self._shared = keyboard is not None and not os.isatty(1)
        self._keyboard = (
            keyboard if keyboard is None else Keyboard(keyboard, screen, shared=self._shared)
        )
        self._typed = b""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.typed_signals: set[int] = set()
        self._live = live
        self._left: Left | None = None
        self._visible: Visible | None = None
        if keyboard is None and not raw:
            from .visible import Visible

            self._visible = Visible()

    def __enter__(self) -> None:
        """Begin. When the block ends, the terminal's mode is restored, whatever happened."""
        os.set_blocking(self._master, False)
        self._loop.watch(self._master, select.POLLIN, self._show)
        self._loop.watch(self._wake, select.POLLIN, lambda: os.eventfd_read(self._wake))
        self._loop.on_stop(self.stopped)
        self._loop.on_end = self._show_rest
        self.resume()

    def __exit__(self, *_exception: object) -> None:
        self._release_keyboard()
        self._loop.unwatch(self._wake)
        os.close(self._wake)

    # --- the two directions

    def _show(self) -> None:
        """From the pty to the screen. EIO: nobody inside holds it any more."""
        try:
            data = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.unwatch(self._master)
            return
        self._write(self._filtered(self._loop.count_output(data)))

    def _filtered(self, data: bytes) -> bytes:
        """Return what goes to the screen, having noted what of it has to be undone."""
        if self._visible is not None:
            return self._visible.feed(data)
        if self._keyboard is None:
            return data
        if self._left is None and (b"\x1b" in data or b"\x0e" in data):
            from .visible import Left

            self._left = Left()
        # Before it is written: we may be killed in between.
        if self._left is not None and self._left.feed(data):
            self._keyboard.note(self._left.undo)
        return data

    def _write(self, data: bytes) -> None:
        """To the screen, for as long as there is one: a window may be closed."""
        if self._screen < 0 or not data:
            return
        if self._shared:
            # Both terminals make whole line ends.
            data = data.replace(b"\r\n", b"\n")
        if self._live is not None:
            self._live.clear()
            self._live.wrote(data)
        try:
            write_all(self._screen, data)
        except OSError:
            self._screen = -1

    def _show_rest(self) -> None:
        """Show what was written last: it is still in the pty when the command has ended."""
        with contextlib.suppress(OSError):
            while data := os.read(self._master, _CHUNK):
                self._write(self._filtered(self._loop.count_output(data)))
        if self._visible is not None:
            self._write(self._visible.end())

    def _type(self) -> None:
        """From the keyboard to the pty. While the pty is full, no more is read."""
        if self._keyboard is None:
            return
        if not self._typed:
            self._typed = self._keyboard.read(_CHUNK)
            if not self._typed:
                self._hang_up()
                return
            self._note_keys(self._keyboard, self._typed)
        with contextlib.suppress(BlockingIOError):
            self._typed = self._typed[os.write(self._master, self._typed) :]
        if self._typed:
            self._loop.unwatch(self._keyboard.fd)
            self._loop.watch(self._master, select.POLLIN | select.POLLOUT, self._both)

    def _note_keys(self, keyboard: Keyboard, data: bytes) -> None:
        """Remember which signals keys have made: a shell that waits for us would have got them too."""
        for which, number in ((termios.VINTR, signals.SIGINT), (termios.VQUIT, signals.SIGQUIT)):
            key = keyboard.key(which)
            if key and key in data:
                self.typed_signals.add(number)

    def _hang_up(self) -> None:
        """The user's terminal is gone: so is the capsule's, whose kernel side tells all that use it."""
        if self._keyboard is not None:
            self._loop.unwatch(self._keyboard.fd)
            self._keyboard.give_back()
            self._keyboard = None
        self._loop.unwatch(self._master)
        # First the signal: who has its end of file before that ends of its own accord.
        self._loop.signal_group(signals.SIGHUP)
        os.close(self._master)
        self._master = self._screen = -1
        self._process.terminal = None

    def _both(self) -> None:
        """The pty was full: write what is left, then go back to reading keys."""
        self._show()
        with contextlib.suppress(BlockingIOError, OSError):
            self._typed = self._typed[os.write(self._master, self._typed) :]
        if not self._typed and self._keyboard is not None:
            self._loop.watch(self._master, select.POLLIN, self._show)
            self._loop.watch(self._keyboard.fd, select.POLLIN, self._type)

    # --- job control: docs/architecture.md has it as a table

    def resize(self) -> None:
        """Give the pty the size of the user's terminal; the kernel tells the command (SIGWINCH)."""
        if self._screen < 0:
            return
        with contextlib.suppress(termios.error, OSError):
            rows, columns = termios.tcgetwinsize(self._screen)
            if rows and columns:
                termios.tcsetwinsize(self._master, (rows, columns))

    def resume(self) -> None:
        """Take the keyboard, if we are in the foreground: in the background it is not ours."""
        self.resize()
        if self._keyboard is None:
            return
        try:
            if not self._keyboard.is_ours():
                # A shell says nothing when it puts a job that runs in the foreground.
                signals.set_timer(BACKGROUND_LOOK)
                return
            self._keyboard.take()
        except (OSError, termios.error):
            return
        if not self._typed:
            self._loop.watch(self._keyboard.fd, select.POLLIN, self._type)
            # From a signal's handler this changes a poll(2) that goes on: it has to begin anew.
            os.eventfd_write(self._wake, 1)

    def _release_keyboard(self) -> None:
        if self._live is not None:
            self._live.clear()
        if self._keyboard is not None and self._keyboard.held:
            self._loop.unwatch(self._keyboard.fd)
            self._keyboard.give_back()
            self._left = None

    def stopped(self, _number: int) -> None:
        """The command was stopped from the keyboard: stop our whole job, for the shell has its turn.

        The key would have reached all of a pipeline. Where nobody could continue us, nothing stops.
        """
        self._release_keyboard()
        handler = signals.get_handler(signals.SIGTSTP)
        signals.set_handler(signals.SIGTSTP, signals.SIG_DFL)
        os.kill(0, signals.SIGTSTP)
        # Continued, by fg or bg.
        signals.set_handler(signals.SIGTSTP, handler)
        self.resume()
        self._process.send_signal(signals.SIGCONT, group=True)

    def suspend(self) -> None:
        """We are to stop, and so is the command."""
        self._release_keyboard()
        self._loop.signal_group(signals.SIGTSTP)
        os.kill(os.getpid(), signals.SIGSTOP)
        self.resume()
        self._process.send_signal(signals.SIGCONT, group=True)

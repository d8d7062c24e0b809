"""Signals by number.

The standard `signal` turns each number into a member of an enumeration, which costs 5 ms to
import; this is the C module below it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import os
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handler = Callable[[int, FrameType | None], object] | int | None

SIGHUP: int = _signal.SIGHUP
SIGINT: int = _signal.SIGINT
SIGQUIT: int = _signal.SIGQUIT
SIGKILL: int = _signal.SIGKILL
SIGSYS: int = _signal.SIGSYS
SIGXFSZ: int = _signal.SIGXFSZ
SIGSEGV: int = _signal.SIGSEGV
SIGUSR1: int = _signal.SIGUSR1
SIGUSR2: int = _signal.SIGUSR2
SIGPIPE: int = _signal.SIGPIPE
SIGALRM: int = _signal.SIGALRM
SIGTERM: int = _signal.SIGTERM
SIGCONT: int = _signal.SIGCONT
SIGSTOP: int = _signal.SIGSTOP
SIGTSTP: int = _signal.SIGTSTP
SIGCHLD: int = _signal.SIGCHLD
SIGWINCH: int = _signal.SIGWINCH

SIG_DFL: int = _signal.SIG_DFL
SIG_IGN: int = _signal.SIG_IGN


def get_handler(number: int) -> Handler:
    """Return what is done on a signal: signal(2)."""
    handler: Handler = _signal.getsignal(number)
    return handler


def set_handler(number: int, handler: Handler) -> None:
    """Change what is done on a signal. Only in the main thread."""
    _signal.signal(number, handler)


def set_wakeup(fd: int) -> None:
    """Have a byte written to a descriptor for each signal, -1 for none; signal.set_wakeup_fd."""
    _signal.set_wakeup_fd(fd, warn_on_full_buffer=False)


def set_timer(seconds: float) -> None:
    """Have SIGALRM sent in that time; 0 for not at all. setitimer(2)."""
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def send_by_pidfd(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2). A process that is gone gets none (EBADF: it was gone at its start)."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EBADF):
            raise


def name(number: int) -> str:
    """SIGTERM for 15."""
    import signal  # only for a message

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# Made once: a set of 64, of which each call would make another.
_ALL: set[int] = _signal.valid_signals()

# Of threads in a block that lets signals through now and then: the mask outside of it.
_outside: dict[int, set[int]] = {}


class Held:
    """A block that no signal handler cuts off: what is half made would have no owner.

    Handlers run in the main thread; in a process of several threads another one may still take the
    signal, and the handler then runs all the same.

    Args:
        breathing: whether `breathe` has an effect in it.
    """

    def __init__(self, *, breathing: bool = False) -> None:
        self._breathing = breathing

    def __enter__(self) -> Held:
        self._before: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        try:
            # A handler of a signal that came before this runs in this very call, or soon after it where
            # another thread, just born, took the signal.
            _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL)
            # A block within a breathing one that does not breathe itself holds its breath.
            self._around = _outside.pop(get_ident(), None)
            if self._breathing:
                _outside[get_ident()] = self._before
        except BaseException:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self.stop_breathing()
            if self._around is not None:
                _outside[get_ident()] = self._around
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)

    def stop_breathing(self) -> None:
        """From here on `breathe` has no effect: there is something half made."""
        _outside.pop(get_ident(), None)

    def read(self, fd: int, size: int) -> bytes:
        """Read from a descriptor, while handlers may raise as they may outside of the block."""
        try:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)
            return os.read(fd, size)
        finally:
            _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL)


def breathe() -> None:
    """Let the handlers of signals run that came meanwhile, which may raise.

    To be called where something may take long and nothing is half made: all that is open is closed on
    the way out. It has an effect in a breathing block of `Held` only.
    """
    before = _outside.get(get_ident()) if _outside else None
    if before is not None:
        try:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        finally:
            _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL)

"""Signals by number.

The standard `signal` turns each number into a member of an enumeration, which costs 5 ms to
import; this is the C module below it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import os

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
    """What is done on a signal: signal(2)."""
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


class Held:
    """A block that no signal handler cuts off: what is half made would have no owner.

    Handlers run in the main thread; in a process of several threads another one may still take the
    signal, and the handler then runs all the same.
    """

    def __enter__(self) -> Held:
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        return self

    def __exit__(self, *_exception: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)

    def read(self, fd: int, size: int) -> bytes:
        """Read from a descriptor, while handlers may raise as they may outside of the block."""
        now = _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)
        try:
            return os.read(fd, size)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, now)

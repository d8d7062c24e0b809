"""Signals that come to the command line are the command's: they are passed on to it."""

from __future__ import annotations

import os

from capsule.base import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from capsule.process.handle import Process

# Passed on to the command, as a terminal or a service manager would send them to it.
FORWARDED = (signals.SIGTERM, signals.SIGUSR1, signals.SIGUSR2)
# What a terminal sends to the whole foreground process group.
FORWARDED_TO_GROUP = (signals.SIGINT, signals.SIGQUIT, signals.SIGHUP)
# Seconds that a set-up may still take after a signal that would end a command.
PATIENCE = 1.0


class Interrupted(BaseException):
    """A signal that ends us came before there was a command to pass it on to."""

    def __init__(self, number: int) -> None:
        self.number = number


class Forwarding:
    """Pass signals on within the block. One that was ignored before stays ignored (nohup).

    Attributes:
        passed_on: signals that came to us as well: the shell that sent them wants to see us die of one.
    """

    def __init__(self) -> None:
        self.passed_on: set[int] = set()
        self._process: Process | None = None
        self._early: list[int] = []
        self._wake: tuple[int, ...] = ()
        self._before: dict[int, signals.Handler] = {}

    def __enter__(self) -> Forwarding:
        for number in (*FORWARDED, *FORWARDED_TO_GROUP):
            self._handle(number, self._forward)
        self._handle(signals.SIGTSTP, lambda number, _: self._early.append(number))
        return self

    def begin(self, process: Process, suspend: Callable[[], None], resume: Callable[[], None]) -> None:
        """There is a command now."""
        from capsule.process.handle import loop_of

        self._process = process
        # A signal between the last line of Python and poll(2) would be noticed after it only.
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop_of(process).watch(self._wake[0], 1, lambda: os.read(self._wake[0], 4096))  # POLLIN
        signals.set_wakeup(self._wake[1])
        signals.set_timer(0)
        self._handle(signals.SIGTSTP, lambda *_: suspend())
        for number in self._early:
            if number == signals.SIGTSTP:
                suspend()
            else:
                self._forward(number, None)
        self._handle(signals.SIGWINCH, lambda *_: resume())
        self._handle(signals.SIGCONT, lambda *_: resume())
        self._handle(signals.SIGALRM, lambda *_: resume())
        resume()

    def _handle(self, number: int, handler: signals.Handler) -> None:
        before = signals.get_handler(number)
        if before != signals.SIG_IGN:
            self._before.setdefault(number, before)
            signals.set_handler(number, handler)

    def _forward(self, number: int, _frame: object) -> None:
        if self._process is not None:
            self.passed_on.add(number)
            self._process.send_signal(number, group=number in FORWARDED_TO_GROUP)
            return
        # The command may be running by now, or about to: what it does with the signal counts. But a
        # set-up that hangs, on a file system that does not answer, must not outlast it for long.
        self._early.append(number)
        self._handle(signals.SIGALRM, self._give_up)
        signals.set_timer(PATIENCE)

    def _give_up(self, _number: int, _frame: object) -> None:
        other = (signals.SIGUSR1, signals.SIGUSR2, signals.SIGTSTP)
        ends = [number for number in self._early if number not in other]
        if self._process is None and ends:
            raise Interrupted(ends[0])

    def __exit__(self, *_exception: object) -> None:
        signals.set_timer(0)
        for number, before in self._before.items():
            signals.set_handler(number, before)
        if self._wake:
            signals.set_wakeup(-1)
            for fd in self._wake:
                os.close(fd)


def die_of(number: int, *, group: bool = False) -> NoReturn:
    """End by a signal, so that a shell that waits sees why, and without a core file of ours."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # 1 and not 0: that stops a handler that core dumps are piped to as well.
    resource.setrlimit(resource.RLIMIT_CORE, (min(1, hard) if hard >= 0 else 1, hard))
    signals.set_handler(number, signals.SIG_DFL)
    os.kill(0 if group else os.getpid(), number)
    os._exit(128 + number)

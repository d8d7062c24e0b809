"""What init says on the status pipe while a command runs, and what it is told."""

from __future__ import annotations

import os
import select

from capsule.base.errors import InternalError
from capsule.launcher import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .launch import Running

    Record = tuple[int, ...]

# Beside the number of a signal on the lifeline: it is for the foreground process group.
TO_GROUP = 0x80


class Records:
    """The records of one capsule. To be used until its descriptors are closed.

    Attributes:
        ended: init's last record, () if it was killed before it could write one, None before.
        refused: a record for each kind of refusal by the filter.
        on_stop: called with the signal that stopped the command.
        on_kill: called when init kills what is left.
    """

    def __init__(self, running: Running, *, filtered: bool) -> None:
        self.ended: Record | None = None
        self.refused: list[Record] = []
        self.on_stop: Callable[[int], None] | None = None
        self.on_kill: Callable[[], None] | None = None
        self._filtered = filtered
        self._answers: list[Record] = []
        self._status, self._pidfd = running.status, running.pidfd
        self._lifeline = running.lifeline

    def has_ended(self) -> bool:
        """Return whether all inside is dead, or about to be."""
        return self.ended is not None

    def read(self) -> None:
        """Take one record. The end is one of them, or init's end without one.

        After it nothing is read: who takes it in a turn of the loop is not the last to be called in
        that turn, and the end of file behind it says nothing.
        """
        if self.ended is not None:
            return
        record = spawn.read_record(self._status)
        if record is None:
            self.ended = ()
        elif record[0] == spawn.ENDED:
            self.ended = record
        elif record[0] == spawn.REFUSED and self._filtered:
            self.refused.append(record)
        elif record[0] == spawn.USAGE:
            self._answers.append(record)
        elif record[0] == spawn.ENDING:
            if self.on_kill is not None:
                self.on_kill()
        elif record[0] != spawn.STOPPED:
            raise InternalError(f"a record of unknown kind {record[0]}")
        elif self.on_stop is not None:
            self.on_stop(record[1])

    def read_stop(self, seconds: float) -> None:
        """Take one record if one comes in that time. Of a stop nobody is told: it was asked for."""
        on_stop, self.on_stop = self.on_stop, None
        if select.select([self._status], [], [], seconds)[0]:
            self.read()
        self.on_stop = on_stop

    def notice_end(self) -> None:
        """Init is gone. Its last record is in the pipe, or there is none.

        The pipe's end of file would say the same, but not while somebody who forked this process holds
        a copy of its other end.
        """
        os.set_blocking(self._status, False)
        try:
            while self.ended is None:
                self.read()
        except BlockingIOError:
            self.ended = ()

    def tell(self, word: int) -> None:
        """Send init a byte: a signal's number, or a question."""
        if self.ended is None:
            try:
                os.write(self._lifeline, bytes([word]))
            except BrokenPipeError:
                pass  # it ended this moment

    def ask_usage(self) -> Record | None:
        """Return what init says was used so far; None if it ended instead."""
        self._answers.clear()
        self.tell(spawn.ASK_USAGE)
        waiting = select.poll()
        for fd in (self._status, self._pidfd):
            waiting.register(fd, select.POLLIN)
        while not (self._answers or self.has_ended()):
            if waiting.poll()[0][0] == self._status:
                self.read()
            else:
                self.notice_end()
        return self._answers[0] if self._answers else None

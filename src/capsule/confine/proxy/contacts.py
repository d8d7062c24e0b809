"""What was reached and what was refused: a table of bounded size, and lines of a log."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Rows of the table, and lines of the log; what is beyond is counted. A program can make up any number.
MOST_ROWS, MOST_LINES, MOST_TEXT = 512, 100_000, 300


class Contact:
    """One row: all connections to one port of one host that ended alike."""

    __slots__ = ("allow", "count", "host", "port", "protocol", "received", "refused", "rule", "sent")

    def __init__(
        self, protocol: str, host: str, port: int, rule: str, refused: str, allow: str
    ) -> None:
        self.protocol, self.host, self.port = protocol, host[:MOST_TEXT], port
        self.rule, self.refused, self.allow = rule, refused[:MOST_TEXT], allow[:MOST_TEXT]
        self.count = self.sent = self.received = 0

    def row(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {name: getattr(self, name) for name in self.__slots__}


class Contacts:
    """The table.

    Args:
        log: a descriptor to write lines to, or -1.
    """

    def __init__(self, log: int = -1) -> None:
        self._rows: dict[tuple[str, str, int, str, str], Contact] = {}
        self._others = 0
        self._log, self._lines = log, 0

    def reached(self, protocol: str, host: str, port: int, rule: str) -> Contact | None:
        """Count a connection, and return its row, unless there are too many."""
        return self._count(protocol, host, port, rule, "", "")

    def refused(self, protocol: str, host: str, port: int, why: str, allow: str = "") -> None:
        """Count something that was refused, why, and what would have it allowed."""
        first = (protocol, host, port, "", why) not in self._rows
        self._count(protocol, host, port, "", why, allow)
        if first:  # each once: a program that tries again and again fills nothing
            self.note("refused", protocol=protocol, host=host, port=port, why=why, allow=allow)

    def _count(
        self, protocol: str, host: str, port: int, rule: str, why: str, allow: str
    ) -> Contact | None:
        key = (protocol, host, port, rule, why)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MOST_ROWS:
                self._others += 1
                return None
            row = self._rows[key] = Contact(protocol, host, port, rule, why, allow)
        row.count += 1
        return row

    def note(self, event: str, **more: Any) -> None:
        """Write a line to the log."""
        if self._log < 0 or self._lines > MOST_LINES:
            return
        self._lines += 1
        if self._lines > MOST_LINES:
            event, more = "omitted", {}
        import json  # takes as long as all else here

        line = json.dumps({"time": round(time.time(), 6), "event": event, **more}) + "\n"
        try:
            os.write(self._log, line.encode())
        except OSError:
            self._log = -1  # a full disk is no reason to end connections

    def report(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {"contacts": [row.row() for row in self._rows.values()], "others": self._others}

"""Names: which address inside stands for each, and what it leads to outside."""

from __future__ import annotations

import _thread
from _queue import SimpleQueue
from _socket import AF_INET, AF_INET6, EAI_NODATA, EAI_NONAME, SOCK_STREAM, gaierror, getaddrinfo

from .addresses import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Addresses, and why there are none: "", NO_NAME or another reason.
    Found = tuple[list[bytes], str]

# Of the name server inside, and the first that stands for a name: RFC 2544's block, where nobody is.
SERVER, FIRST = b"\xc6\x12\x00\x01", 0xC6120100
NO_NAME = "there is no such name"
# Seconds for which what was found is taken, and what was not found.
FRESH, MISSING = 30.0, 5.0
# Names that are looked up at once, and those that wait for it.
_THREADS, _WAITING = 8, 256


class Name:
    """A name that may be reached.

    Attributes:
        name: the name.
        inside: the address that stands for it.
        outside: those that it leads to, as last found.
        missing: why there are none, or "".
        until: when that is to be looked up again.
        ports: those at which something listens for it.
    """

    __slots__ = ("inside", "missing", "name", "outside", "ports", "until", "waiting")

    def __init__(self, name: str, inside: bytes) -> None:
        self.name, self.inside = name, inside
        self.outside: list[bytes] = []
        self.missing = ""
        self.until = 0.0
        self.ports: set[int] = set()
        self.waiting: list[Callable[[], None]] = []


class Names:
    """All of them. Each keeps its address for as long as the capsule lives.

    Args:
        most: how many there may be.
        notify: what may be called from any thread, so that `take` is called soon.
    """

    def __init__(self, most: int, notify: Callable[[], None]) -> None:
        self._most, self._notify = most, notify
        self._names: dict[str, Name] = {}
        self._by_address: dict[bytes, Name] = {}
        self._asked: SimpleQueue[str] = SimpleQueue()
        self._found: SimpleQueue[tuple[str, Found]] = SimpleQueue()
        self._threads = self._open = 0

    def get(self, name: str) -> Name | None:
        """Return what there is of a name; None if there are too many."""
        found = self._names.get(name)
        if found is None and len(self._names) < self._most:
            inside = (FIRST + len(self._names)).to_bytes(4, "big")
            found = self._names[name] = self._by_address[inside] = Name(name, inside)
        return found

    def behind(self, address: bytes) -> str:
        """Return the name that an address inside stands for, or ""."""
        found = self._by_address.get(address)
        return "" if found is None else found.name

    def look_up(self, name: Name, now: float, then: Callable[[], None]) -> bool:
        """Call it when it is known what a name leads to; False if too many wait for that."""
        if now < name.until:
            then()
            return True
        if len(name.waiting) >= _WAITING or (not name.waiting and self._open >= _WAITING):
            return False
        name.waiting.append(then)
        if len(name.waiting) == 1:
            self._open += 1
            self._asked.put(name.name)
            if self._threads < min(self._open, _THREADS):
                self._threads += 1
                _thread.start_new_thread(self._work, ())
        return True

    def take(self, now: float) -> None:
        """Take what the threads have found."""
        while not self._found.empty():
            text, (found, missing) = self._found.get()
            name = self._names[text]
            name.outside, name.missing = found, missing
            name.until = now + (FRESH if found else MISSING)
            waiting, name.waiting = name.waiting, []
            self._open -= 1
            for then in waiting:
                then()

    def _work(self) -> None:
        while True:
            name = self._asked.get()
            self._found.put((name, find(name)))
            self._notify()


def find(name: str) -> Found:
    """Look a name up as this host does; getaddrinfo(3)."""
    try:
        # With a dot at its end no domain of this host's is tried behind it.
        told = getaddrinfo(f"{name}." if "." in name else name, None, 0, SOCK_STREAM)
    except gaierror as error:
        if error.errno in (EAI_NONAME, EAI_NODATA):
            return [], NO_NAME
        return [], f"its name cannot be looked up: {error.strerror}"
    except (OSError, UnicodeError) as error:
        return [], f"its name cannot be looked up: {error}"
    texts = [str(where[0]) for family, *_, where in told if family in (AF_INET, AF_INET6)]
    found = [parse(text) for text in texts if "%" not in text]
    return list(dict.fromkeys(found)), "" if found else NO_NAME

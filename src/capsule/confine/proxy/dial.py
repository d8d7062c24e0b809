"""Connections: accepted on one side, dialled on the other, and moved between both until they end."""

from __future__ import annotations

import errno
import os
import struct
from _socket import (
    CMSG_LEN,
    MSG_CMSG_CLOEXEC,
    MSG_PEEK,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    socket,
)

from . import opening
from .addresses import LOOPBACK, describe, family, parse, with_ports
from .relay import EDGES, Loop, Pair, Pipes, error_of, reset
from .rules import LOCALHOST, Rules, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .contacts import Contact, Contacts
    from .names import Name, Names

# Seconds: to connect, to say whom it is for once something was said, with nothing moved, with one side
# ended.
CONNECTING, OPENING, IDLE, HALF = 10.0, 10.0, 3600.0, 300.0
AT_ONCE = 64
_REQUEST = struct.Struct("=II16s")


class Channel:
    """Asks init for sockets of the capsule's; launcher/network.c.

    Args:
        fd: the other end of init's.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket(fileno=fd)
        # It answers at once, unless the capsule is about to end.
        self._socket.settimeout(5.0)

    def ask(self, address: bytes, port: int = 0) -> socket:
        """Have init make a socket that listens, or with port 0 one to be connected.

        Raises:
            OSError: it cannot.
        """
        try:
            self._socket.sendall(_REQUEST.pack(len(address), port, address))
            told, passed, _, _ = self._socket.recvmsg(1, CMSG_LEN(4), MSG_CMSG_CLOEXEC)
        except OSError:
            # What comes late would be taken for the answer to another question.
            self._socket.close()
            raise
        fds = [fd for _, _, found in passed for fd in memoryview(found).cast("i")]
        if not fds:
            code = told[0] if told else errno.ENOTCONN
            raise OSError(code, os.strerror(code))
        return socket(fileno=fds[0])


class Connection:
    """One connection, from when it is accepted to its end."""

    __slots__ = (
        "accepted", "asked", "comes_in", "contact", "dialled", "host", "left", "name",
        "pair", "port", "rule", "since",
    )  # fmt: skip

    def __init__(self, accepted: socket, host: str, port: int, rule: str, name: Name | None) -> None:
        self.accepted, self.host, self.port, self.rule, self.name = accepted, host, port, rule, name
        self.left: list[bytes] = []  # addresses that were not tried yet
        self.dialled: socket | None = None
        self.pair: Pair | None = None
        self.contact: Contact | None = None
        self.since = 0.0
        self.asked = False  # whether it has said a part of whom it is for
        self.comes_in = False

    @property
    def protocol(self) -> str:
        """What it is in the table."""
        return "published" if self.comes_in else "tcp"


class Dialer:
    """All connections.

    Args:
        rules: what may be reached.
        names: what names lead to.
        contacts: are told what comes of each.
        loop: waits for them.
        channel: makes sockets inside.
        most: how many connections there may be at once.
    """

    def __init__(
        self,
        rules: Rules,
        names: Names,
        contacts: Contacts,
        loop: Loop,
        channel: Channel,
        most: int,
    ) -> None:
        self._rules, self._names, self._contacts, self._loop = rules, names, contacts, loop
        self._channel, self._most = channel, most
        self._pipes = Pipes()
        self._open: dict[Connection, None] = {}  # who has moved something last is the last
        self._tidied = 0.0

    def is_done(self) -> bool:
        """Return whether all that has come from inside has arrived."""
        return all(one.pair is not None and one.pair.out.done for one in self._open)

    def tidy(self) -> None:
        """Look now and then at those that have not moved for too long."""
        now = self._loop.now
        if now < self._tidied + 1:
            return
        self._tidied = now
        for one in [one for one in self._open if now - one.since >= _patience(one)]:
            if one.pair is None and one.dialled is not None and one.left:
                one.since = now
                self._give_up(one)
                self._next(one, os.strerror(errno.ETIMEDOUT))
            else:
                self._end(one, os.strerror(errno.ETIMEDOUT) if one.pair is None else "it was idle")

    # --- connections out ------------------------------------------------------------------------------

    def accept(self, listener: socket, accepted: Callable[[socket], None]) -> None:
        """Take what has come to a listener."""
        for _ in range(AT_ONCE):
            while len(self._open) >= self._most:
                self._end_oldest()
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                full = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
                if not full or not self._open:
                    return
                self._end_oldest()
                continue
            got = socket(fileno=fd)
            got.setblocking(False)
            accepted(got)

    def _end_oldest(self) -> None:
        self._end(next(iter(self._open)), "too many connections at once")

    def by_name(self, got: socket, name: Name, port: int, rule: str) -> None:
        """Take a connection to a name: to where that leads."""
        one = Connection(got, name.name, port, rule, name)
        self._begin(one)

        def then() -> None:
            if one in self._open:
                if name.outside:
                    self._dial(one, name.outside)
                else:
                    self._refuse(one, name.missing)

        if not self._names.look_up(name, self._loop.now, then):
            self._refuse(one, "too many names are asked for")

    def by_address(self, got: socket, host: str, port: int) -> None:
        """Of a listener for an address, for all of them, or for this host."""
        where = got.getsockname()[0]
        address = parse(where)
        if host == LOCALHOST:
            one = Connection(got, LOCALHOST, port, f"{LOCALHOST}:{port}", None)
            self._begin(one)
            self._dial(one, list(LOOPBACK))
            return
        rule = self._rules.covering(address, port)
        one = Connection(got, describe(address), port, "" if rule is None else str(rule), None)
        self._begin(one)
        if rule is None:
            self._refuse(one, "no rule names it", f"--allow-net {with_ports(describe(address), port)}")
        else:
            self._dial(one, [address])

    def _begin(self, one: Connection) -> None:
        one.since = self._loop.now
        self._open[one] = None

    def _dial(self, one: Connection, found: list[bytes]) -> None:
        one.left = found[:8]
        self._dial_next(one, "")

    def _dial_next(self, one: Connection, why: str) -> None:
        """Try the next address: what is looked at here is what is connected to."""
        while one.left:
            address = one.left.pop(0)
            allow = ""
            if one.name is not None:
                refusal = self._rules.refusal(address, one.port) or self._own(address, one.port)
                if refusal:
                    why, allow = (
                        f"it leads to a {refusal}",
                        f"--allow-net {with_ports(describe(address), one.port)}",
                    )
                    self._contacts.refused("tcp", one.host, one.port, why, allow)
                    continue
            why = self._try(one, address, _outside)
            if not why:
                return
        self._refuse(one, why or "it has no address")

    def _try(self, one: Connection, address: bytes, make: Callable[[bytes], socket]) -> str:
        """Begin to connect to an address, and return why that failed at once, or ""."""
        try:
            dialled = make(address)
            code = dialled.connect_ex((describe(address), one.port))
        except OSError as error:
            return error.strerror or str(error)
        if code not in (0, errno.EINPROGRESS):
            dialled.close()
            return os.strerror(code)
        one.dialled = dialled
        self._loop.add(dialled.fileno(), lambda _events: self._dialled(one), EDGES)
        return ""

    def _own(self, address: bytes, port: int) -> str:
        """Say so if an address is this host's: only by itself may that be reached."""
        if self._rules.covering(address, port) is not None:
            return ""
        try:
            one = socket(family(address), SOCK_DGRAM)
            one.connect((describe(address), port))  # sends nothing
            own = parse(one.getsockname()[0]) == address
        except OSError:
            return ""  # then nothing can be connected to it either
        return f"host's own address {describe(address)}" if own else ""

    def _next(self, one: Connection, why: str) -> None:
        """Try the next address, after another one failed."""
        (self._go_in if one.comes_in else self._dial_next)(one, why)

    def _dialled(self, one: Connection) -> None:
        dialled = one.dialled
        if dialled is None:
            return
        code = error_of(dialled)
        if code:
            self._give_up(one)
            self._next(one, os.strerror(code))
            return
        self._loop.remove(dialled.fileno())
        pair = (dialled, one.accepted) if one.comes_in else (one.accepted, dialled)
        self._connect(one, *pair)

    def _give_up(self, one: Connection) -> None:
        """Close what was to be connected."""
        if one.dialled is not None:
            self._loop.remove(one.dialled.fileno())
            one.dialled.close()
            one.dialled = None

    def _connect(self, one: Connection, inside: socket, outside: socket) -> None:
        one.contact = self._contacts.reached(one.protocol, one.host, one.port, one.rule)
        self._contacts.note("connected", protocol=one.protocol, host=one.host, port=one.port)
        one.since = self._loop.now

        def moved() -> None:
            one.since = self._loop.now
            self._open[one] = self._open.pop(one)

        pair = one.pair = Pair(
            self._loop, self._pipes, inside, outside, moved, lambda code: self._ended(one, code)
        )
        if one.name is not None:
            pair.on_read = lambda: self._check(one)
        pair.move()

    def _check(self, one: Connection) -> None:
        """Look at whom a connection says it is for before anything of that goes out."""
        pair = one.pair
        assert pair is not None
        try:
            data = one.accepted.recv(opening.MOST, MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            pair.end(error.errno or errno.EIO)
            return
        verdict, text = opening.look(data, ended=not data)
        if verdict == opening.MORE and data:
            one.asked = True
            return
        if verdict == opening.GARBLED:
            self._refuse(one, text)
            return
        if verdict == opening.NAMED and text != one.host and one.port not in self._rules.ports(text):
            allow = f"--allow-net {text}:{one.port}" if is_name(text) else ""
            self._refuse(one, f"it asks {one.host} for {text}", allow)
            return
        one.asked, pair.on_read = False, None

    # --- connections in ------------------------------------------------------------------------------

    def come_in(self, got: socket, at: str, port: int) -> None:
        """Of a published port: to what listens inside, on IPv4 or on IPv6."""
        one = Connection(got, at, port, "", None)
        one.comes_in = True
        self._begin(one)
        one.left = list(LOOPBACK)
        self._go_in(one, "")

    def _go_in(self, one: Connection, why: str) -> None:
        while one.left:
            why = self._try(one, one.left.pop(0), self._channel.ask)
            if not why:
                return
        self._refuse(one, f"nothing takes it inside: {why}")

    # --- ends -----------------------------------------------------------------------------------------

    def _refuse(self, one: Connection, why: str, allow: str = "") -> None:
        self._contacts.refused(one.protocol, one.host, one.port, why, allow)
        self._end(one, "")

    def _end(self, one: Connection, why: str) -> None:
        """End one by a reset."""
        if why:
            self._contacts.refused(one.protocol, one.host, one.port, why)
        if one.pair is not None:
            one.pair.end(errno.ECONNRESET)
            return
        self._open.pop(one, None)
        self._give_up(one)
        reset(one.accepted)

    def _ended(self, one: Connection, code: int) -> None:
        self._open.pop(one, None)
        self._account(one)
        sent, received = (0, 0) if one.pair is None else (one.pair.out.moved, one.pair.back.moved)
        self._contacts.note(
            "closed", protocol=one.protocol, host=one.host, port=one.port, sent=sent,
            received=received, **({"error": os.strerror(code)} if code else {}),
        )  # fmt: skip

    def _account(self, one: Connection) -> None:
        if one.contact is not None and one.pair is not None:
            one.contact.sent += one.pair.out.moved
            one.contact.received += one.pair.back.moved
            one.contact = None

    def account_all(self) -> None:
        """Account for what is still open: it ends with this."""
        for one in [one for one in self._open if one.pair is not None]:
            self._ended(one, 0)


def _patience(one: Connection) -> float:
    if one.pair is None:
        return CONNECTING
    if one.asked:
        return OPENING
    return HALF if one.pair.out.done or one.pair.back.done else IDLE


def _outside(address: bytes) -> socket:
    return socket(family(address), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)

"""The program that dials: it answers for names inside, and connects what may be connected.

It has sockets of the capsule's network namespace, made by its init, and its own ones in the caller's.
What comes from inside is hostile; so is what comes from outside. Standard input is open as long as the
capsule lives; then what was reached and refused goes to standard output, as JSON.
"""

from __future__ import annotations

import errno
import os
import resource
from _socket import socket
from functools import partial

from . import dns
from .addresses import LOOPBACK, describe, parse, plain, with_ports
from .contacts import Contacts
from .dial import AT_ONCE, Channel, Dialer
from .names import NO_NAME, Names
from .relay import Loop
from .rules import Rules, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .names import Name
    from .rules import Rule

    # Protocol, address, port
    Refused = tuple[str, bytes, int]
    # From the packet and where it came from.
    Read = Callable[[bytes, bytes], Refused | None]

FLUSH = 1.0  # seconds at the end for what was sent to arrive
MOST_CONNECTIONS, MOST_NAMES = 4096, 512


class Proxy:
    """All of it.

    Args:
        setup: what the supervisor says: "rules"; descriptors: "dns", "refusals" (four, or none),
            "channel", "log", "listeners" of (descriptor, host or "", port), "published" likewise.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._rules = Rules(setup["rules"])
        self._loop = Loop()
        self.contacts = Contacts(setup["log"])
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._names = Names(min(MOST_NAMES, files // 8), self._notify)
        self._channel = Channel(setup["channel"])
        most = max(16, min(MOST_CONNECTIONS, files // 4))
        about = self._rules, self._names, self.contacts, self._loop, self._channel
        self._dialer = Dialer(*about, most)
        self._ends: float | None = None
        self._loop.add(self._wake, self._hear_threads)
        self._loop.add(0, self._hear_supervisor)
        self._listeners: list[Callable[[int], None]] = []
        if setup["dns"] >= 0:
            self._add(socket(fileno=setup["dns"]), self._hear_question)
        for fd, read in zip(setup["refusals"], REFUSED_BY, strict=False):
            self._add(socket(fileno=fd), partial(self._hear_refusal, read=read))
        for fd, host, port in setup["listeners"]:
            self._listen(socket(fileno=fd), partial(self._dialer.by_address, host=host, port=port))
        for fd, address, port in setup["published"]:
            self._listen(socket(fileno=fd), partial(self._dialer.come_in, at=address, port=port))

    def _add(self, one: socket, hear: Callable[[socket], None]) -> None:
        def handler(_events: int) -> None:
            hear(one)

        one.setblocking(False)
        self._loop.add(one.fileno(), handler)
        self._listeners.append(handler)

    def _listen(self, listener: socket, accepted: Callable[[socket], None]) -> None:
        self._add(listener, partial(self._dialer.accept, accepted=accepted))

    # --- the life of it ---------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the capsule has ended and what it sent has arrived, as far as it is quick."""
        while not self._is_over():
            self._loop.turn(0.02 if self._ends is not None else 1.0)
            self._dialer.tidy()

    def _is_over(self) -> bool:
        if self._ends is None:
            return False
        return self._dialer.is_done() or self._loop.now >= self._ends

    def _hear_supervisor(self, _events: int) -> None:
        self._loop.remove(0)
        self._ends = self._loop.now + FLUSH
        for hear in self._listeners:  # what came before the end counts
            hear(0)

    def _notify(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _hear_threads(self, _events: int) -> None:
        os.eventfd_read(self._wake)
        self._names.take(self._loop.now)

    # --- names --------------------------------------------------------------------------------------

    def _hear_question(self, server: socket) -> None:
        for _ in range(AT_ONCE):
            try:
                data, client = server.recvfrom(dns.MOST + 1)
            except OSError:
                return
            question = dns.parse(data)
            if question is not None:
                self._answer(question, partial(_send, server, client))

    def _answer(self, question: dns.Question, send: Callable[[bytes], None]) -> None:
        if question.error != dns.OK:
            send(question.answer(question.error))
            return
        ports = self._rules.ports(question.name)
        if not ports:
            self._refuse_name(question.name)
            send(question.answer(dns.NO_SUCH_NAME))
            return
        name = self._names.get(question.name)

        def then() -> None:
            assert name is not None
            if not name.outside:
                why = dns.NO_SUCH_NAME if name.missing == NO_NAME else dns.SERVER_FAILURE
                self.contacts.refused("dns", name.name, 0, name.missing)
                send(question.answer(why))
            elif question.kind != dns.A:
                send(question.answer(dns.OK))
            elif self._listen_for(name, ports):
                send(question.answer(dns.OK, name.inside))
            else:
                send(question.answer(dns.SERVER_FAILURE))

        if name is None or not self._names.look_up(name, self._loop.now, then):
            self.contacts.refused("dns", question.name, 0, "too many names are asked for")
            send(question.answer(dns.SERVER_FAILURE))

    def _refuse_name(self, name: str) -> None:
        # Of who it is and where it is, programs ask by themselves.
        if name and not name.endswith(".arpa"):
            allow = f"--allow-net {name}" if is_name(name) else ""
            self.contacts.refused("dns", name, 0, "no rule names it", allow)

    def _listen_for(self, name: Name, ports: dict[int, Rule]) -> bool:
        """Have something listen for a name, and return whether it does at any of its ports."""
        for port, rule in ports.items():
            if port in name.ports:
                continue
            try:
                listener = self._channel.ask(name.inside, port)
            except OSError as error:
                why = f"port {port} is in use inside" if error.errno == errno.EADDRINUSE else str(error)
                self.contacts.refused("tcp", name.name, port, why)
                continue
            name.ports.add(port)
            self._listen(listener, partial(self._dialer.by_name, name=name, port=port, rule=str(rule)))
        return bool(name.ports)

    def report(self) -> dict[str, Any]:
        """Return all that was reached and refused."""
        self._dialer.account_all()
        return {**self.contacts.report(), "trouble": self._loop.trouble}

    # --- what the kernel refused ------------------------------------------------------------------

    def _hear_refusal(self, told: socket, read: Read) -> None:
        for _ in range(AT_ONCE):
            try:
                packet, (source, *_) = told.recvfrom(128)
            except OSError:
                return
            found = read(packet, parse(source.partition("%")[0]))
            if found is None or found[1] in LOOPBACK:
                continue
            protocol, address, port = found
            host = self._names.behind(address) or describe(address)
            if protocol == "udp":
                self.contacts.refused(protocol, host, port, "only TCP is passed on")
            else:
                allow = f"--allow-net {with_ports(host, port)}"
                self.contacts.refused(protocol, host, port, "no rule names it", allow)


# Of each of the sockets that tell, what its packets refuse; launcher/network.c.


def _reset(packet: bytes, source: bytes) -> Refused | None:
    size = (packet[0] & 15) * 4 if packet else 0
    return _refused("tcp", source, packet[size : size + 2])


def _unreachable(packet: bytes, _source: bytes) -> Refused | None:
    size = (packet[0] & 15) * 4 if packet else 0
    inner = packet[size + 8 :]
    at = (inner[0] & 15) * 4 if inner else 0
    return _refused("udp", inner[16:20], inner[at + 2 : at + 4]) if inner[9:10] == _UDP else None


def _reset6(packet: bytes, source: bytes) -> Refused | None:
    return _refused("tcp", source, packet[:2])


def _unreachable6(packet: bytes, _source: bytes) -> Refused | None:
    inner = packet[8:]
    return _refused("udp", inner[24:40], inner[42:44]) if inner[6:7] == _UDP else None


def _refused(protocol: str, address: bytes, port: bytes) -> Refused | None:
    whole = len(address) in (4, 16) and len(port) == 2
    return (protocol, plain(address), int.from_bytes(port, "big")) if whole else None


_UDP = b"\x11"
REFUSED_BY: tuple[Read, ...] = (_reset, _unreachable, _reset6, _unreachable6)


def _send(server: socket, client: Any, text: bytes) -> None:
    try:
        server.sendto(text, client)
    except OSError:
        pass  # who asked is gone, or does not read


def main(setup: dict[str, Any]) -> None:
    """Serve as the supervisor says."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    proxy = Proxy(setup)
    proxy.run()
    import json  # at the end: it takes as long as all else here

    text = json.dumps(proxy.report()).encode()
    while text:
        text = text[os.write(1, text) :]
    os._exit(0)  # threads may still wait for a name

"""What may be reached: a list of rules, each a host with ports."""

from __future__ import annotations

from . import addresses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .addresses import Network

# A host without a port is reached as the web is.
WEB = (80, 443)
LOCALHOST = "localhost"
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class Rule:
    """A host and ports that may be reached.

    Attributes:
        host: a name, ``*.`` and a name for all below it, ``*`` for all names, or an address or network.
        ports: the ports.
        network: the addresses, where it is not about names.
    """

    __slots__ = ("host", "network", "ports")

    def __init__(self, host: str, ports: Iterable[int], network: Network | None) -> None:
        self.host, self.ports, self.network = host, tuple(sorted(set(ports))), network

    @property
    def is_exact(self) -> bool:
        """Whether it is about one host."""
        if self.network is not None:
            return self.network[1] == 8 * len(self.network[0])
        return not self.host.startswith("*")

    @property
    def needs_sockets(self) -> bool:
        """Whether something has to listen for it from the start: no name leads to it."""
        return self.network is not None or self.host == LOCALHOST

    def matches(self, name: str) -> bool:
        """Return whether it is about a name."""
        if self.network is not None or self.host == LOCALHOST:
            return False
        if self.host.startswith("*"):
            return name.endswith(self.host[1:]) and len(name) >= len(self.host)
        return name == self.host

    def __str__(self) -> str:
        return addresses.with_ports(self.host, ",".join(map(str, self.ports)))


def parse(text: str) -> Rule:
    """Return the rule that HOST[:PORT[,PORT]...] is.

    Raises:
        ValueError: it is none; the text says why.
    """
    host, ports = _split(text)
    if "/" in host or ":" in host or _is_numeric(host):
        network = addresses.parse_network(host)
        rule = Rule(addresses.describe_network(network), _ports(ports), network)
        if ports is None and addresses.special(network[0]) is not None:
            raise ValueError("say which ports: this is no address of the internet")
        return rule
    name = host.lower().removesuffix(".")
    if name == LOCALHOST:
        if ports is None:
            raise ValueError("say which ports of this host, such as localhost:5432")
        return Rule(LOCALHOST, _ports(ports), None)
    if host != "*" and not is_name(name.removeprefix("*.")):
        if not name.isascii():
            raise ValueError("write a name that has other letters as it is in the DNS (xn--...)")
        raise ValueError("not a host's name, an address or a network")
    return Rule(name, _ports(ports), None)


def _split(text: str) -> tuple[str, str | None]:
    """(Host, ports or None). An address of IPv6 is in brackets where ports follow."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise ValueError("not an address of IPv6 in brackets")
        return host, rest[1:] if rest else None
    host, colon, rest = text.partition(":")
    if ":" in rest:
        return text, None
    return host, rest if colon else None


def _ports(text: str | None) -> tuple[int, ...]:
    if text is None:
        return WEB
    words = text.split(",")
    for word in words:
        if not is_port(word):
            raise ValueError(f"not a port from 1 to 65535: {word!r}")
    return tuple(map(int, words))


def is_port(word: str, least: int = 1) -> bool:
    """Return whether it is a port in decimal digits, of this number at least."""
    return word.isascii() and word.isdigit() and len(word) <= 5 and least <= int(word) < 1 << 16


def _is_numeric(host: str) -> bool:
    """Return whether it can only be meant as an address: no name ends with a number; RFC 3696."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or last[:2].lower() == "0x"


def is_name(name: str) -> bool:
    """Return whether it is a host's name in small letters: labels of up to 63, 253 in all."""
    if not 0 < len(name) <= 253 or _is_numeric(name):
        return False
    return all(
        0 < len(label) <= 63 and _LETTERS.issuperset(label) and label[0] != "-" and label[-1] != "-"
        for label in name.split(".")
    )


class Rules:
    """All rules of a capsule, in their order."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.all = [parse(text) for text in texts]

    def ports(self, name: str) -> dict[int, Rule]:
        """The ports of a name that may be reached, and the rule for each."""
        found: dict[int, Rule] = {}
        if not is_name(name):
            return found  # whatever it ends with
        for rule in self.all:
            if rule.matches(name):
                for port in rule.ports:
                    found.setdefault(port, rule)
        return found

    def covering(self, address: bytes, port: int) -> Rule | None:
        """Return the rule for an address as such.

        One that is not the internet's has to be meant: a network that is wider than its block is not.
        """
        special = addresses.special(address)
        least = 0 if special is None else special[0][1]
        for rule in self.all:
            network = rule.network
            if network is not None and port in rule.ports and addresses.contains(network, address):
                if len(address) == 16 and special is not None and len(special[0][0]) == 4:
                    continue  # by NAT64: only its own address means it
                if network[1] >= least:
                    return rule
        return None

    def refusal(self, address: bytes, port: int) -> str:
        """Say why an address that a name leads to may not be dialled; "" if it may."""
        special = addresses.special(address)
        if special is None or self.covering(addresses.plain(address), port) is not None:
            return ""
        return f"{special[1]} address {addresses.describe(address)}"

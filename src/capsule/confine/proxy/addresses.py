"""Addresses as bytes, and which of them are not the internet's."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Bytes of an address with those beyond the prefix zero, and how many bits the prefix has.
    Network = tuple[bytes, int]

# Of IPv4 and of IPv6.
LOOPBACK = (b"\x7f\0\0\1", b"\0" * 15 + b"\1")
_MAPPED = b"\0" * 10 + b"\xff\xff"
_NAT64 = b"\0\x64\xff\x9b" + b"\0" * 8

# Of the registries of special-purpose addresses (IANA), what is not globally reachable.
_SPECIAL_4 = {
    "0.0.0.0/8": "this host",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "reserved",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_SPECIAL_6 = {
    "::/128": "this host",
    "::1/128": "loopback",
    "64:ff9b:1::/48": "private",
    "100::/64": "discarded",
    "2001::/23": "reserved",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "3fff::/20": "documentation",
    "5f00::/16": "reserved",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "private",
    "ff00::/8": "multicast",
}


def parse(text: str) -> bytes:
    """Return an address as 4 or 16 bytes; one that maps an IPv4 address is that.

    Raises:
        ValueError: it is none, in the notation of inet_pton(3): no octal numbers, no zones.
    """
    family = AF_INET6 if ":" in text else AF_INET
    try:
        return plain(inet_pton(family, text))
    except (OSError, UnicodeError):
        raise ValueError(f"not an address: {text!r}") from None


def plain(address: bytes) -> bytes:
    """Return the IPv4 address that one of IPv6 maps, or else this one."""
    return address[12:] if len(address) == 16 and address.startswith(_MAPPED) else address


def family(address: bytes) -> int:
    """Return AF_INET or AF_INET6."""
    return AF_INET if len(address) == 4 else AF_INET6


def describe(address: bytes) -> str:
    """Return an address as text."""
    return inet_ntop(family(address), address)


def with_ports(host: str, ports: object) -> str:
    """Return host and ports as one writes them: an address of IPv6 in brackets."""
    return f"[{host}]:{ports}" if ":" in host else f"{host}:{ports}"


def parse_network(text: str) -> Network:
    """Return a network, or an address as the network that is only it.

    Raises:
        ValueError: it is none, or has bits beyond its prefix.
    """
    head, slash, tail = text.partition("/")
    address = parse(head)
    most = len(address) * 8
    if not slash:
        return address, most
    if not (tail.isascii() and tail.isdigit() and str(int(tail)) == tail and int(tail) <= most):
        raise ValueError(f"not a prefix length from 0 to {most}: {tail!r}")
    network = _masked(address, int(tail)), int(tail)
    if network[0] != address:
        raise ValueError(f"the network that {head} is in is {describe_network(network)}")
    return network


def describe_network(network: Network) -> str:
    """Return a network as text; one address as that."""
    address, length = network
    return describe(address) + ("" if length == len(address) * 8 else f"/{length}")


def contains(network: Network, address: bytes) -> bool:
    """Return whether an address is in a network."""
    return len(address) == len(network[0]) and _masked(address, network[1]) == network[0]


def _masked(address: bytes, length: int) -> bytes:
    left = len(address) * 8 - length
    return (int.from_bytes(address, "big") >> left << left).to_bytes(len(address), "big")


_SPECIAL = [(parse_network(text), name) for text, name in (*_SPECIAL_4.items(), *_SPECIAL_6.items())]
_GLOBAL_6 = parse_network("2000::/3")
_REST_6 = (b"\0" * 16, 8)


def special(address: bytes) -> tuple[Network, str] | None:
    """Return the block of addresses that are not the internet's in which one lies, and its kind.

    An address of IPv6 that stands for one of IPv4 by NAT64 is as that one.
    """
    address = plain(address)
    if address.startswith(_NAT64) and len(address) == 16:
        address = address[12:]
    for network, name in _SPECIAL:
        if contains(network, address):
            return network, name
    if len(address) == 16 and not contains(_GLOBAL_6, address):
        return _REST_6, "reserved"
    return None

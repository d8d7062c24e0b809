"""The sockets inside by which hosts of a list are reached, and what is published: pure."""

from __future__ import annotations

from capsule.base.values import Value
from capsule.confine.proxy.addresses import LOOPBACK, describe
from capsule.confine.proxy.names import SERVER
from capsule.confine.proxy.rules import LOCALHOST, parse
from capsule.launcher.network import AnyAddress, Listen, Refusals, Sockets
from capsule.policy.network import Only, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from capsule.confine.proxy.rules import Rule
    from capsule.launcher.step import Step
    from capsule.policy.policy import Policy

_STREAM, _DATAGRAM = 1, 2  # socket(2)
_DNS = 53
# Sockets that tell what is refused: of TCP and ICMP, for IPv4 and IPv6.
REFUSALS = 4
RESOLV_CONF = f"nameserver {describe(SERVER)}\noptions timeout:5 attempts:2\n"


class Way(Value):
    """How the network is reached.

    Attributes:
        rules: which hosts may be reached.
        listeners: (host of the rule or "", address in hex digits, port) of each socket inside that is
            there from the start: for addresses, to which no name leads.
        published: (address, port on the host, port inside).
    """

    rules: tuple[str, ...] = ()
    listeners: tuple[tuple[str, str, int], ...] = ()
    published: tuple[tuple[str, int, int], ...] = ()

    @property
    def gifts(self) -> int:
        """How many sockets init sends: the name server's, those that tell of refusals, listeners."""
        return 1 + REFUSALS + len(self.listeners) if self.rules else 0

    def steps(self) -> Iterator[Step]:
        """Init's steps."""
        if self.rules:
            yield AnyAddress(SERVER.hex(), describe(SERVER))
            yield _listen(_DATAGRAM, SERVER.hex(), _DNS)
            yield Refusals()
        for _, address, port in self.listeners:
            yield _listen(_STREAM, address, port)
        yield Sockets()


def make_way(policy: Policy) -> Way:
    """Return the way that a policy asks for."""
    rules = policy.network.rules if isinstance(policy.network, Only) else ()
    listeners = {
        (address, port): (rule.host if rule.host == LOCALHOST else "", address.hex(), port)
        for rule in map(parse, rules)
        for address in _addresses(rule)
        for port in rule.ports
    }
    return Way(rules, tuple(listeners.values()), tuple(map(split, policy.publish)))


def _addresses(rule: Rule) -> tuple[bytes, ...]:
    """Those at which something listens for a rule: a network has any."""
    if rule.host == LOCALHOST:
        return LOOPBACK
    if rule.network is None:
        return ()
    address = rule.network[0]
    return (address if rule.is_exact else b"\0" * len(address),)


def _listen(type: int, address: str, port: int) -> Listen:
    word = "stream" if type == _STREAM else "datagram"
    return Listen(type, address, port, describe(bytes.fromhex(address)), word)

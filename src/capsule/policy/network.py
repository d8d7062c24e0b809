"""Which hosts may be reached, and which ports inside are published: values, checked."""

from __future__ import annotations

from capsule.base.errors import PolicyError
from capsule.base.text import shown
from capsule.base.values import Value
from capsule.confine.proxy import rules
from capsule.confine.proxy.addresses import describe, parse, with_ports

from .units import wrong

_WANTED = "a list of HOST[:PORT[,PORT]...]"
_HINT = "write pypi.org:443, *.example.org, 192.0.2.7:22, 10.0.0.0/8:5432 or localhost:8080"
_PUBLISH_HINT = "write HOSTPORT:PORT, such as 8080:80; or ADDRESS:HOSTPORT:PORT"
# Each address of a rule and each of its ports is a socket inside, from the start on.
MOST_SOCKETS = 128


class Only(Value):
    """A network namespace of its own, from which some hosts can be reached: `Network.only`.

    Attributes:
        rules: which, each as HOST:PORT[,PORT]...
    """

    rules: tuple[str, ...]

    def __post_init__(self) -> None:
        found = {str(rule): rule for rule in map(_rule, self.rules)}
        self._set("rules", tuple(found))
        sockets = sum(len(rule.ports) for rule in found.values() if rule.needs_sockets)
        if sockets > MOST_SOCKETS:
            message = f"network: rules for addresses with more than {MOST_SOCKETS} ports in all"
            raise PolicyError(message, field="network", hint="name a network (CIDR) with the ports")

    def __repr__(self) -> str:
        return f"Network.only({', '.join(map(repr, self.rules))})"


def only(value: object) -> Only:
    """Return a list of rules as a value.

    Raises:
        PolicyError: it is none.
    """
    if isinstance(value, Only):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(rule, str) for rule in value):
        raise wrong("network", value, f"none, host or {_WANTED}", _HINT)
    return Only(tuple(value))


def _rule(text: str) -> rules.Rule:
    if text in ("none", "host"):
        hint = f'write network = "{text}" (--net {text}), without a list'
        message = f"network: not a host: {text!r}"
        raise PolicyError(message, field="network", value=text, hint=hint)
    try:
        return rules.parse(text)
    except ValueError as error:
        message = f"network: {shown(text)}: {error}"
        raise PolicyError(message, field="network", value=text, hint=_HINT) from None


def published(value: object, *, on_host: bool) -> tuple[str, ...]:
    """Return what is published, each as ADDRESS:HOSTPORT:PORT.

    Raises:
        PolicyError: it is no list of that, or the network is the host's.
    """
    if value and on_host:
        hint = "with the host's network, what listens inside listens on the host"
        raise PolicyError("publish: the network is the host's", field="publish", value=value, hint=hint)
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise wrong("publish", value, "a list of HOSTPORT:PORT", _PUBLISH_HINT)
    parts = map(split, value)
    found = tuple(dict.fromkeys(with_ports(at, f"{outside}:{inside}") for at, outside, inside in parts))
    hosts = [one.rpartition(":")[0] for one in found if ":0:" not in one]
    for one in hosts:
        if hosts.count(one) > 1:
            message = f"publish: {one} is published twice"
            raise PolicyError(message, field="publish", value=one, hint="choose another port")
    return found


def split(text: str) -> tuple[str, int, int]:
    """(Address, port on the host or 0 for a free one, port inside) of what is published.

    Raises:
        PolicyError: it is not that.
    """
    head, _, inside = text.rpartition(":")
    address, _, outside = head.rpartition(":")
    if "." in address or address[:1] + address[-1:] == "[]":
        try:
            at = describe(parse(address.strip("[]")))
        except ValueError:
            raise _not_published(text) from None
    elif address:
        raise _not_published(text)
    else:
        at = "127.0.0.1"
    if not rules.is_port(inside) or not rules.is_port(outside, 0):
        raise _not_published(text)
    return at, int(outside), int(inside)


def _not_published(text: str) -> PolicyError:
    return wrong("publish", text, "HOSTPORT:PORT", _PUBLISH_HINT)

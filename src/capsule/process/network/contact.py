"""What was reached and what was refused, as the proxy tells it: read as hostile."""

from __future__ import annotations

from capsule.base.text import printable
from capsule.base.values import Value
from capsule.confine.proxy.addresses import with_ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Bytes; more than the proxy tells of.
MOST = 4 << 20


class Contact(Value):
    """All connections to one port of one host that ended alike, or all of one kind that were refused.

    Attributes:
        protocol: "tcp"; "udp", which is refused; "dns", of a name that was asked for and refused;
            "published", of connections that came in.
        host: the name or the address.
        port: the port; 0 of a name that was asked for.
        count: how many.
        sent: bytes that went out of the capsule.
        received: bytes that came in.
        rule: the rule by which it was allowed, or "".
        refused: why it was refused, or "".
        allow: the option that would have allowed it, or "".
    """

    protocol: str
    host: str
    port: int
    count: int
    sent: int
    received: int
    rule: str
    refused: str
    allow: str

    def describe(self) -> str:
        """One line."""
        times = "" if self.count == 1 else f" {self.count} times"
        where = printable(with_ports(self.host, self.port) if self.port else self.host)
        if self.refused:
            hint = f"; {self.allow} allows it" if self.allow else ""
            return f"refused {self.protocol} {where}{times}: {printable(self.refused)}{printable(hint)}"
        moved = f"{self.sent} bytes sent, {self.received} received"
        return f"reached {where}{times}: {moved}"


def read(text: bytes) -> tuple[tuple[Contact, ...], tuple[str, ...]]:
    """(What the proxy told, notes on what it did not).

    Raises:
        ValueError: it is not as it has to be.
    """
    import json  # only where there is a proxy

    try:
        told: Any = json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(told, dict) or not isinstance(told.get("contacts"), list):
        raise ValueError("not a table")
    contacts = tuple(map(_contact, told["contacts"]))
    notes = []
    if others := _number(told.get("others")):
        notes.append(f"{others} contacts of the network were of kinds beyond the {len(contacts)} told")
    if trouble := _text(told.get("trouble")):
        notes.append(f"the proxy met an error of its own, please report it: {printable(trouble)}")
    return contacts, tuple(notes)


def _contact(told: Any) -> Contact:
    if not isinstance(told, dict):
        raise ValueError("not a row")
    kinds = Contact.__annotations__
    fields: dict[str, Any] = {
        name: _number(told.get(name)) if kinds[name] == "int" else _text(told.get(name))
        for name in Contact.__value_fields__
    }
    return Contact(**fields)


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("not a number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value

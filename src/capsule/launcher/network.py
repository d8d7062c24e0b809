"""The steps of a network with a list of hosts: words of the vocabulary that most plans do without."""

from __future__ import annotations

from .step import Step


class AnyAddress(
    Step, word="any-address", signature="s", text="take every address for its own; {1} is set up"
):
    """rtnetlink(7): local routes, and an address. Arguments: that in hex digits; and, for people."""


class Listen(Step, word="listen", signature="nsn", text="hand out a {4} socket at {3} port {2}"):
    """bind(2), listen(2). Arguments: type, address in hex digits, port; for people, both in words."""


class Refusals(Step, word="refusals", text="hand out sockets that tell what is refused"):
    """raw(7), filtered to resets of what nobody took and ICMP's "port unreachable"; likewise IPv6."""


class Sockets(Step, word="sockets", text="make more sockets, as they are asked for"):
    """Init answers requests of who holds the other end of the gifts' socket."""

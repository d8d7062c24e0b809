"""What the kernel refused, read from its packets; the table of contacts; addresses of names."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.confine.proxy import contacts as proxy_contacts
from capsule.confine.proxy.addresses import parse
from capsule.confine.proxy.contacts import Contacts
from capsule.confine.proxy.names import Names
from capsule.confine.proxy.serve import REFUSED_BY
from capsule.process.network import contact

FOUR, SIX = parse("8.8.8.8"), parse("2001:4860::1")
V4 = struct.Struct("!BBHHHBBH4s4s")
V6 = struct.Struct("!IHBB16s16s")
RESET, UNREACHABLE, RESET6, UNREACHABLE6 = REFUSED_BY


def test_what_is_refused() -> None:
    """The reset comes from where the connection went; ICMP holds the datagram's header."""
    reset = struct.pack("!HHII", 443, 50000, 0, 1)
    datagram = struct.pack("!HHHH", 50000, 53, 9, 0)
    head = V4.pack(0x45, 0, 32, 0, 0, 64, 6, 0, FOUR, FOUR)
    inner4 = V4.pack(0x45, 0, 29, 0, 0, 64, 17, 0, b"\x0a\0\0\1", FOUR) + datagram
    inner6 = V6.pack(6 << 28, 9, 17, 64, b"\0" * 15 + b"\1", SIX) + datagram
    assert RESET(head + reset, FOUR) == ("tcp", FOUR, 443)
    assert RESET6(reset, SIX) == ("tcp", SIX, 443)
    assert UNREACHABLE(head + b"\3\3" + b"\0" * 6 + inner4, FOUR) == ("udp", FOUR, 53)
    assert UNREACHABLE6(b"\1\4" + b"\0" * 6 + inner6, SIX) == ("udp", SIX, 53)


@given(st.binary(max_size=128))
def test_no_packet_is_an_accident(packet: bytes) -> None:
    """Whatever the filter lets through."""
    for read in REFUSED_BY:
        found = read(packet, SIX)
        assert found is None or (found[0] in ("tcp", "udp") and 0 <= found[2] < 1 << 16)


def test_the_table_is_bounded(tmp_path: Path) -> None:
    """So is the log: a program can make up any number of names."""
    log = tmp_path / "log"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    table = Contacts(fd)
    for number in range(proxy_contacts.MOST_ROWS + 7):
        for _ in range(2):
            table.refused("dns", f"{number}.example", 0, "x" * 5000)
    for _ in range(3):
        row = table.reached("tcp", "1.example", 80, "rule")
    os.close(fd)
    assert row is None
    told, notes = contact.read(json.dumps({**table.report(), "trouble": "\x1b[2J"}).encode())
    assert len(told) == proxy_contacts.MOST_ROWS
    assert notes[0].startswith(f"{2 * 7 + 3} contacts of the network were of kinds beyond")
    assert notes[1].endswith("please report it: \\x1b[2J")
    assert {one.count for one in told} == {2}
    assert max(len(one.refused) for one in told) == proxy_contacts.MOST_TEXT
    assert len(log.read_text().splitlines()) <= proxy_contacts.MOST_ROWS + 2 * 7


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["contacts", "others", "host", "port", "count"]), inner),
))  # fmt: skip
def test_what_the_proxy_tells_is_read_as_hostile(told: object) -> None:
    """It is a table, or an error."""
    try:
        found, _ = contact.read(json.dumps(told).encode())
    except ValueError:
        return
    assert not found


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"[" * 100000, b"null", b'{"contacts":[{}],"others":0}']
)
def test_what_is_no_table(text: bytes) -> None:
    """Cut off, too deep, or another thing."""
    with pytest.raises(ValueError):  # noqa: PT011 - of json, too
        contact.read(text)


def test_each_name_has_one_address() -> None:
    """As many as there may be, and no more."""
    names = Names(3, lambda: None)
    found = [names.get(f"{number}.example") for number in range(4)]
    assert found[3] is None
    assert len({one.inside for one in found if one is not None}) == 3
    assert names.get("1.example") is found[1]
    assert found[1] is not None
    assert names.behind(found[1].inside) == "1.example"
    assert names.behind(b"\1\2\3\4") == ""

"""Questions to the name server inside, from programs that are hostile."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capsule.confine.proxy import dns


def question(name: bytes, kind: int = dns.A, flags: int = 0x0100, count: int = 1) -> bytes:
    """A query, with labels as they are given."""
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b".") if label)
    return struct.pack("!6H", 7, flags, count, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def test_an_answer() -> None:
    """It repeats the question, points to its name, and has the address."""
    asked = dns.parse(question(b"WWW.Example.org"))
    assert asked is not None
    assert (asked.name, asked.kind, asked.error) == ("www.example.org", dns.A, dns.OK)
    answer = asked.answer(dns.OK, b"\xc6\x12\1\0")
    assert answer[:12] == struct.pack("!6H", 7, 0x8180, 1, 1, 0, 0)
    assert answer[12:33] == question(b"WWW.Example.org")[12:]
    assert answer[33:] == struct.pack("!HHHIH", 0xC00C, 1, 1, dns.TTL, 4) + b"\xc6\x12\1\0"
    assert asked.answer(dns.NO_SUCH_NAME)[3] & 15 == dns.NO_SUCH_NAME


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (question(b"a.b", flags=0x0900), dns.NOT_IMPLEMENTED),
        (question(b"a.b", count=2), dns.FORMAT_ERROR),
        (question(b"a.b", count=0), dns.FORMAT_ERROR),
        (question(b"a.b")[:-1], dns.FORMAT_ERROR),
        (question(b"a.b")[:-3], dns.FORMAT_ERROR),
        (question(b"a.b")[:12] + b"\xc0\x0c\0\1\0\1", dns.FORMAT_ERROR),
        (question(b"a.b")[:-1] + b"\3", dns.REFUSED),
        (question(b".".join([b"x" * 63] * 4)), dns.FORMAT_ERROR),
    ],
)
def test_what_is_no_question(data: bytes, error: int) -> None:
    """It is answered with an error, and by no name."""
    asked = dns.parse(data)
    assert asked is not None
    assert asked.error == error


@pytest.mark.parametrize("data", [b"", b"x" * 11, question(b"a.b", flags=0x8000), b"\0" * 513])
def test_what_deserves_no_answer(data: bytes) -> None:
    """An answer, above all: two name servers would talk for ever."""
    assert dns.parse(data) is None


def test_a_dot_within_a_label() -> None:
    """It does not end the label: the name is another one than it looks like, and no host's."""
    data = question(b"a")[:12] + b"\x0bexample.org\0\0\1\0\1"
    asked = dns.parse(data)
    assert asked is not None
    assert asked.name == "example\\046org"


@given(st.binary(max_size=600))
@example(question(b"a.b"))
def test_no_datagram_is_an_accident(data: bytes) -> None:
    """Whatever comes is answered within the size of a datagram, or not at all."""
    asked = dns.parse(data)
    if asked is not None:
        answer = asked.answer(dns.OK, b"\0" * 4)
        assert answer[:2] == data[:2]
        assert len(answer) <= dns.MOST + 16
        assert asked.name.isascii()

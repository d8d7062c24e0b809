"""Whom a connection says it is for: TLS and HTTP, whole, in pieces and in two ways."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capsule.confine.proxy import opening
from capsule.confine.proxy.opening import GARBLED, MORE, NAMED, UNNAMED, look


def hello(name: str | None) -> bytes:
    """What OpenSSL begins with."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    if name is None:
        context.verify_mode = ssl.CERT_NONE
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake in records of a size."""
    body = data[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(data[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


HELLO = hello("www.example.org")
REQUEST = b"GET / HTTP/1.1\r\nAccept: */*\r\nHost: www.example.org:8080\r\n\r\nbody"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 14])
def test_a_name_in_tls(size: int) -> None:
    """Also where the handshake is spread over records."""
    assert look(in_records(HELLO, size)) == (NAMED, "www.example.org")


def test_no_name_in_tls() -> None:
    """By address, for instance."""
    assert look(hello(None)) == (UNNAMED, "")


@pytest.mark.parametrize("whole", [HELLO, REQUEST], ids=["tls", "http"])
def test_in_pieces(whole: bytes) -> None:
    """Until it can be said, nothing goes on; and where nothing more comes, nothing at all."""
    end = whole.rfind(b"body") if b"body" in whole else len(whole)
    for size in range(1, end):
        assert look(whole[:size]) == (MORE, "")
        assert look(whole[:size], ended=True)[0] == GARBLED
    assert look(whole)[0] == NAMED


@pytest.mark.parametrize(
    ("request_", "seen"),
    [
        (b"GET / HTTP/1.1\r\nHost: A.b\r\n\r\n", (NAMED, "a.b")),
        (b"GET / HTTP/1.1\nhost:A.b.\n\n", (NAMED, "a.b")),
        (b"GET / HTTP/1.0\r\n\r\n", (UNNAMED, "")),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", (NAMED, "2001:db8::1")),
        (b"GET http://a.b/x HTTP/1.1\r\nHost: a.b\r\n\r\n", (NAMED, "a.b")),
        (b"GET http://u@a.b/x HTTP/1.1\r\nHost: a.b\r\n\r\n", (NAMED, "a.b")),
        (b"GET http://c.d/x HTTP/1.1\r\nHost: a.b\r\n\r\n", GARBLED),
        (b"CONNECT c.d:443 HTTP/1.1\r\n\r\n", (NAMED, "c.d")),
        (b"CONNECT c.d:443 HTTP/1.1\r\nHost: a.b\r\n\r\n", GARBLED),
        (b"GET / HTTP/1.1\r\nHost: a.b\r\nHost: c.d\r\n\r\n", GARBLED),
        (b"GET / HTTP/1.1\r\nHost: a.b\r\nHost: a.b\r\n\r\n", GARBLED),
        (b"GET / HTTP/1.1\r\nHost : a.b\r\n\r\n", GARBLED),
        (b"GET / HTTP/1.1\r\nX: y\r\n Host: a.b\r\n\r\n", GARBLED),
        (b"GET / HTTP/1.1\r\nHost: a.b\0.c.d\r\n\r\n", (NAMED, "a.b\\000.c.d")),
        (b"OPTIONS * HTTP/1.1\r\nHost: a.b\r\n\r\n", (NAMED, "a.b")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (UNNAMED, "")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", (UNNAMED, "")),
        (b"*1\r\n$4\r\nPING\r\n", (UNNAMED, "")),
        (b"SET key value\r\n", (UNNAMED, "")),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", (UNNAMED, "")),
        (b"\x16\x03\x01\0\x05\2hello", GARBLED),
        (b"\x16\x03\x01\0\x01\1\x17\3\3\0\1x", GARBLED),
        (b"\x16abc", (UNNAMED, "")),
    ],
)
def test_requests(request_: bytes, seen: object) -> None:
    """What is written in two ways is not guessed; what is no HTTP/1 and no TLS names nobody."""
    found = look(request_)
    assert found == seen or found[0] == seen


@pytest.mark.parametrize(
    "data",
    [b"GET /" + b"x" * opening.MOST, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * opening.MOST,
     in_records(b"\x16\x03\x01\0\0\x01\0\x7f\xff" + b"x" * opening.MOST, 100)],
)  # fmt: skip
def test_too_much(data: bytes) -> None:
    """What does not end within what is looked at is refused."""
    assert look(data[: opening.MOST])[0] == GARBLED


@given(st.binary(max_size=300), st.booleans())
@example(HELLO, False)
def test_no_beginning_is_an_accident(data: bytes, ended: bool) -> None:
    """Whatever comes, there is a verdict; what was seen once stays so when more comes."""
    verdict, text = look(data, ended=ended)
    assert verdict in (MORE, NAMED, UNNAMED, GARBLED)
    assert text.isascii()


@given(st.data())
def test_a_changed_hello(data: st.DataObject) -> None:
    """No changed byte makes of one name a different one that is not in the bytes."""
    at = data.draw(st.integers(0, len(HELLO) - 1))
    changed = HELLO[:at] + bytes([data.draw(st.integers(0, 255))]) + HELLO[at + 1 :]
    verdict, text = look(changed)
    if verdict == NAMED and "\\" not in text:
        assert text.encode() in changed.lower()

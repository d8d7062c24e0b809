"""Whom a connection says it is for: the name in a TLS ClientHello, the host of an HTTP/1 request.

Only what comes first is looked at, and nothing is decrypted. RFC 8446 4.1.2, RFC 6066 3, RFC 9112 3.2.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    # (Verdict, name or reason)
    Seen = tuple[str, str]

# So much is looked at; of more than that nobody can say whom it is for.
MOST = 1 << 15
MORE, NAMED, UNNAMED, GARBLED = "more", "named", "unnamed", "garbled"
_METHOD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-")
_LONGEST_METHOD = 20


def look(data: bytes, *, ended: bool = False) -> Seen:
    """Return whom it is for, as far as it has come.

    Args:
        data: what came first.
        ended: whether nothing more comes.

    Returns:
        NAMED and the name in small letters; UNNAMED, it names nobody; GARBLED and why it may not go on;
        MORE, it cannot be said yet.
    """
    if data[:1] == b"\x16":
        seen = _tls(data) if data[1:2] in (b"", b"\x03") else (UNNAMED, "")
    else:
        seen = _http(data)
    if seen[0] == MORE and data and (ended or len(data) >= MOST):
        return GARBLED, "its beginning is not whole" if ended else "its beginning is too long"
    return seen


class _Short(Exception):
    """There is more to come."""


class _Reader:
    """Numbers and strings, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self._at + size
        if end > len(self._data):
            raise _Short
        self._at, piece = end, self._data[self._at : end]
        return piece

    def number(self, size: int) -> int:
        """Return the next number."""
        return int.from_bytes(self.take(size), "big")

    def string(self, size: int) -> bytes:
        """Return the next string, before which is its length, in so many bytes."""
        return self.take(self.number(size))

    def is_left(self) -> bool:
        """Return whether anything is left."""
        return self._at < len(self._data)


def _tls(data: bytes) -> Seen:
    """Put the handshake's first message together, which may be spread over records."""
    records, message = _Reader(data), b""
    try:
        while True:
            kind, version = records.number(1), records.number(2)
            if kind != 0x16 or version >> 8 != 3:
                return GARBLED, "it begins as TLS does, and does not go on so"
            message += records.string(2)
            if message and message[0] != 1:
                return GARBLED, "it begins as TLS does, and not with a ClientHello"
            size = int.from_bytes(message[1:4], "big")
            if len(message) >= 4 and size > MOST:
                return GARBLED, "its ClientHello is too long"
            if len(message) >= 4 + size and len(message) >= 4:
                return _hello(message[4 : 4 + size])
    except _Short:
        return MORE, ""


def _hello(text: bytes) -> Seen:
    names = []
    try:
        hello = _Reader(text)
        hello.take(2 + 32)
        for size in (1, 2, 1):  # session, cipher suites, compression
            hello.string(size)
        if not hello.is_left():
            return UNNAMED, ""
        extensions = _Reader(hello.string(2))
        while extensions.is_left():
            kind, content = extensions.number(2), _Reader(extensions.string(2))
            if kind == 0:  # server_name
                listed = _Reader(content.string(2))
                while listed.is_left():
                    names.append((listed.number(1), listed.string(2)))
    except _Short:
        return GARBLED, "its ClientHello is not whole"
    if not names:
        return UNNAMED, ""
    if len(names) > 1 or names[0][0] != 0:
        return GARBLED, "its ClientHello names several servers"
    return NAMED, _text(names[0][1])


def _http(data: bytes) -> Seen:
    """Of HTTP/1; what only begins like it is something else."""
    method = bytes(data[:_LONGEST_METHOD]).partition(b" ")[0]
    if not _METHOD.issuperset(method) or (len(method) == _LONGEST_METHOD):
        return UNNAMED, ""
    line, newline, rest = data.partition(b"\n")
    if not newline:
        return MORE, ""
    words = line.rstrip(b"\r").split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return UNNAMED, ""
    head, whole = _until_blank(rest)
    if not whole:
        return MORE, ""
    hosts = []
    for one in head.split(b"\n"):
        name, colon, value = one.rstrip(b"\r").partition(b":")
        if name[:1] in (b" ", b"\t") or (colon and name != name.strip()):
            return GARBLED, "a header of its request is written in two ways"
        if name.lower() == b"host":
            hosts.append(value.strip(b" \t"))
    if len(hosts) > 1:
        return GARBLED, "its request names several hosts"
    target = words[1]
    if words[0] == b"CONNECT":
        hosts.append(target)
    elif not target.startswith((b"/", b"*")):
        hosts.append(target.partition(b"://")[2].partition(b"/")[0].rpartition(b"@")[2])
    names = {_host(one) for one in hosts}
    if len(names) > 1:
        return GARBLED, "its request names several hosts"
    return (NAMED, names.pop()) if names else (UNNAMED, "")


def _until_blank(rest: bytes) -> tuple[bytes, bool]:
    """(The lines before an empty one, whether there is one)."""
    if rest.startswith((b"\n", b"\r\n")):
        return b"", True
    ends = [at for at in (rest.find(b"\n\n"), rest.find(b"\n\r\n")) if at >= 0]
    return (rest[: min(ends)], True) if ends else (rest, False)


def _host(authority: bytes) -> str:
    """The host of HOST[:PORT]."""
    if authority.startswith(b"["):
        return _text(authority[1:].partition(b"]")[0])
    return _text(authority.partition(b":")[0])


def _text(name: bytes) -> str:
    """A name in small letters; with an escape, which is in no host's name, for any other byte."""
    text = "".join(chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03}" for byte in name)
    return text.lower().removesuffix(".")

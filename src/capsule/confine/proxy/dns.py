"""Questions to the name server inside, and its answers; RFC 1035. What asks is hostile."""

from __future__ import annotations

import struct

A, IN = 1, 1
OK, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED = range(6)
_HEAD = struct.Struct("!6H")
_TAIL = struct.Struct("!HH")
_RESPONSE, _RECURSION_WANTED, _RECURSION = 0x8000, 0x0100, 0x0080
# A resolver asks again sooner than the address is given to another name, which is never.
TTL = 60
MOST = 512


class Question:
    """A question.

    Attributes:
        name: what is asked for, in small letters, without a dot at the end; what is not printable is
            escaped, so that it is no host's name.
        kind: the type of record that is asked for.
        error: how it has to be answered in any case, or OK.
    """

    __slots__ = ("_flags", "_id", "_raw", "error", "kind", "name")

    def __init__(self, id: int, flags: int, raw: bytes, name: str, kind: int, error: int) -> None:
        self._id, self._flags, self._raw = id, flags, raw
        self.name, self.kind, self.error = name, kind, error

    def answer(self, code: int, address: bytes | None = None) -> bytes:
        """Return an answer: an address, or none, or an error."""
        flags = _RESPONSE | (self._flags & (0x7800 | _RECURSION_WANTED)) | _RECURSION | code
        count = 0 if address is None else 1
        head = _HEAD.pack(self._id, flags, 1 if self._raw else 0, count, 0, 0)
        if address is None:
            return head + self._raw
        # 0xc00c: the name that is at 12, the question's.
        return head + self._raw + struct.pack("!HHHIH", 0xC00C, A, 1, TTL, len(address)) + address


def parse(data: bytes) -> Question | None:
    """Return the question of a datagram; None if it deserves no answer."""
    if not 12 <= len(data) <= MOST:
        return None
    id, flags, questions, *_ = _HEAD.unpack_from(data)
    if flags & _RESPONSE:
        return None
    if flags & 0x7800:
        return Question(id, flags, b"", "", 0, NOT_IMPLEMENTED)
    found = _name(data) if questions == 1 else None
    if found is None:
        return Question(id, flags, b"", "", 0, FORMAT_ERROR)
    name, end = found
    kind, family = _TAIL.unpack_from(data, end)
    error = OK if family == IN else REFUSED
    return Question(id, flags, data[12 : end + 4], name, kind, error)


def _name(data: bytes) -> tuple[str, int] | None:
    """(The name, where it ends). In a question nothing is there yet that it could be shortened by."""
    labels, at = [], 12
    while at < len(data) and (size := data[at]) != 0:
        if size > 63 or at + 1 + size >= len(data):
            return None
        labels.append("".join(map(_letter, data[at + 1 : at + 1 + size])))
        at += 1 + size
    if at - 12 > 254 or at + 5 > len(data):
        return None
    return ".".join(labels).lower(), at + 1


def _letter(byte: int) -> str:
    """A dot within a label is no dot between two."""
    return chr(byte) if 0x21 <= byte <= 0x7E and byte not in b".\\" else f"\\{byte:03}"

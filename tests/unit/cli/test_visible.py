"""Control sequences that are shown, and what a program leaves a terminal in."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsule.cli.visible import Left, Visible


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """The same bytes, so many at a time."""
    return (data[at : at + size] for at in range(0, len(data), size))


SHOWN = {
    "text": (b"a \xc3\xbc \xf0\x9d\x84\x9e\tb\r\nc\n", b"a \xc3\xbc \xf0\x9d\x84\x9e\tb\r\nc\n"),
    "a progress bar": (b"10%\r20%\r", b"10%\r20%\r"),
    "colours": (b"\x1b[1;31mred\x1b[38;2;1;2;3mx\x1b[4:3my\x1b[0m", None),
    "a colour left on": (b"\x1b[31mred", b"\x1b[31mred\x1b[m"),
    "the clipboard": (b"\x1b]52;c;aGk=\x07", b"^[]52;c;aGk=^G"),
    "a title": (b"\x1b]0;x\x1b\\", b"^[]0;x^[\\"),
    "a question": (b"\x1b[>c\x1bP$qm\x1b\\\x1b[6n", b"^[[>c^[P$qm^[\\^[[6n"),
    "the cursor": (b"\x1b[2Ax\x1b[K\x1b[?25l", b"^[[2Ax^[[K^[[?25l"),
    "backspace, bell, DEL, NUL": (b"a\x08\x07\x7f\x00", b"a^H^G^?^@"),
    "form feed, shift out": (b"\x0c\x0b\x0e", b"^L^K^N"),
    "C1 in UTF-8": (b"\xc2\x9b31m\xc2\x90", b"\\x9b31m\\x90"),
    "C1 as a byte": (b"\x9b6n\x90\xff", b"\\x9b6n\\x90\\xff"),
    "a character that is cut off": (b"x\xc3", b"x\\xc3"),
    "a sequence that is cut off": (b"x\x1b[31", b"x^[[31"),
    "one without an end": (b"\x1b[" + b"1" * 99 + b"m", b"^[[" + b"1" * 99 + b"m"),
    "what no colour has": (b"\x1b[?1m\x1b[>4;1m\x1b[1 m", b"^[[?1m^[[>4;1m^[[1 m"),
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_what_is_shown(name: str, size: int) -> None:
    """Colours, tabs and ends of lines pass; all else can be seen, in whatever pieces it comes."""
    data, expected = SHOWN[name]
    visible = Visible()
    shown = b"".join(map(visible.feed, pieces(data, size)))
    assert shown + visible.end() == (data if expected is None else expected)


_PIECES = st.sampled_from([b"\x1b", b"[", b"m", b"1;", b"\x9b", b"\xc2", b"]", b"\x07", b"?", b"\r\n"])


@given(st.lists(_PIECES | st.binary(max_size=3), max_size=30), st.integers(1, 7))
def test_nothing_else_passes(parts: list[bytes], size: int) -> None:
    """Of any bytes in any pieces, what is written has no control character but those."""
    data = b"".join(parts)
    visible = Visible()
    shown = b"".join(map(visible.feed, pieces(data, size)))
    text = (shown + visible.end()).decode()
    rest = re.sub(r"\x1b\[[0-9;:]*m|[\t\n\r]", "", text)
    assert not [c for c in rest if c < " " or "\x7f" <= c < "\xa0"]
    whole = Visible()
    assert whole.feed(data) + whole.end() == text.encode()


LEFT = {
    "nothing": (b"text\x1b[2J\x1b[3;4H", b""),
    "a hidden cursor": (b"\x1b[?25l", b"\x1b[?25h"),
    "one that is back": (b"\x1b[?25l\x1b[?25h", b""),
    "another screen, and the mouse": (
        b"\x1b[?1049h\x1b[?1000;1006h",
        b"\x1b[?1000l\x1b[?1006l\x1b[?1049l",
    ),
    "modes that nobody knows": (b"\x1b[?77777;12;3h", b""),
    "a colour": (b"\x1b[1;31mx", b"\x1b[m"),
    "a colour that ended": (b"\x1b[31mx\x1b[m\x1b[1m\x1b[0m", b""),
    "keypad and characters": (b"\x1b=\x1b(0\x0e", b"\x1b>\x1b(B\x0f"),
    "those at rest": (b"\x1b=\x1b>\x1b(0\x1b(B\x0e\x0f", b""),
    "a keyboard's mode": (b"\x1b[>1u\x1b[>5u\x1b[<u", b"\x1b[<1u"),
    "a reset": (b"\x1b[?25l\x1b[31m\x1bc", b""),
    "a soft reset": (b"\x1b[?25l\x1b[!p\x1b[?7l", b"\x1b[?7h"),
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_left(name: str, size: int) -> None:
    """The sequences that end what is on, from output that comes in any pieces."""
    data, undo = LEFT[name]
    left = Left()
    changes = list(map(left.feed, pieces(data, size)))
    assert left.undo == undo
    assert any(changes) or not undo


@given(st.lists(_PIECES | st.binary(max_size=3), max_size=30))
def test_any_output_leaves_something(parts: list[bytes]) -> None:
    """Whatever is written, what undoes it is short, and of known sequences."""
    left = Left()
    left.feed(b"".join(parts))
    assert re.fullmatch(rb"(\x1b(\[<\d+u|\[\?\d+[hl]|\[m|>|\(B)|\x0f)*", left.undo)

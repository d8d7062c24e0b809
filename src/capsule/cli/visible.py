"""Control sequences (ECMA-48, xterm's ctlseqs) in output that goes to the user's terminal.

`Visible` shows them instead of having them obeyed. `Left` lets them pass, and knows what has to be said
for the terminal to be as it was.
"""

from __future__ import annotations

import codecs
import re

# The longest parameters that are waited for: what is longer is shown piece by piece.
_MOST = 64
_COLOUR = rf"\x1b\[[0-9;:]{{0,{_MOST}}}m"
# C0 without tab, newline, and carriage return, which progress bars and files of other systems have;
# DEL; C1, two bytes in UTF-8; bytes that are not UTF-8, among them C1 of terminals that know no other.
_SHOWN = re.compile(rf"{_COLOUR}|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\udc80-\udcff]")
_BEGUN = re.compile(rf"\x1b(?:\[[0-9;:]{{0,{_MOST}}})?\Z")


class Visible:
    """Output in which nothing but colours, tabs and ends of lines means something to a terminal."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes) -> bytes:
        """Return what can be shown of some more output. A sequence that has begun waits for its end."""
        return self._show(self._decoder.decode(data), final=False)

    def end(self) -> bytes:
        """Return what was waiting, and the end of a colour that was left on."""
        rest = self._show(self._decoder.decode(b"", final=True), final=True)
        return rest + (b"\x1b[m" if self._coloured else b"")

    def _show(self, text: str, *, final: bool) -> bytes:
        text = self._held + text
        begun = None if final else _BEGUN.search(text, max(0, len(text) - _MOST - 2))
        at = begun.start() if begun else len(text)
        text, self._held = text[:at], text[at:]
        return _SHOWN.sub(self._shown, text).encode()

    def _shown(self, found: re.Match[str]) -> str:
        what = found[0]
        if len(what) > 1:
            self._coloured = what not in ("\x1b[m", "\x1b[0m")
            return what
        code = ord(what)
        if code < 0x80:
            return f"^{chr(code ^ 0x40)}"
        return f"\\x{code & 0xFF:02x}"


# --- what is left -------------------------------------------------------------------------------

# DEC private modes that a program may change, and whether they are set in a terminal at rest: cursor
# keys, reverse video, wrapping, the cursor, keypad, mouse, focus, other screens, pasting, synchronized.
_AT_REST = dict.fromkeys(
    (1, 5, 9, 47, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004, 2026),
    False,
) | {7: True, 25: True}
_SEQUENCE = re.compile(
    rb"\x1b(?:\[\?(?P<modes>[0-9;]*)(?P<set>[hl])|\[(?P<colour>[0-9;:]*)m"
    rb"|\[(?P<keyboard>[<>])(?P<count>[0-9]*)u|(?P<keypad>[=>])|\((?P<charset>[0-9A-Za-z])"
    rb"|(?P<reset>c|\[!p))|(?P<shift>[\x0e\x0f])"
)
# Of the other parts: what stands in it where it is off, and the sequence that switches it off.
_SWITCHES = {
    "colour": ((b"", b"0"), b"\x1b[m"),
    "keypad": ((b">",), b"\x1b>"),
    "charset": ((b"B",), b"\x1b(B"),
    "shift": ((b"\x0f",), b"\x0f"),
}
_UNFINISHED = re.compile(rb"\x1b(?:\[[?<>!]?[0-9;:]{0,64}|\()?\Z")


class Left:
    """What a program has left a terminal in, from the sequences that it wrote.

    Attributes:
        undo: the sequences that end it; empty for a terminal at rest. The cursor stays where it is.
    """

    def __init__(self) -> None:
        self._held = b""
        self._forget()

    def _forget(self) -> None:
        self.undo = b""
        self._modes: dict[int, bool] = {}
        # What ends something that is on, by what it is.
        self._others: dict[str, bytes] = {}
        self._keyboards = 0

    def feed(self, data: bytes) -> bool:
        """Look at some more output; return whether there is something else to undo than before."""
        if not self._held and b"\x1b" not in data and b"\x0e" not in data and b"\x0f" not in data:
            return False
        data = self._held + data
        begun = _UNFINISHED.search(data, max(0, len(data) - 68))
        self._held = data[begun.start() :] if begun else b""
        for found in _SEQUENCE.finditer(data):
            self._note(found)
        before, self.undo = self.undo, self._undo()
        return self.undo != before

    def _note(self, found: re.Match[bytes]) -> None:
        if found["reset"]:
            self._forget()
        for mode in (found["modes"] or b"").split(b";"):
            if mode and len(mode) < 6 and int(mode) in _AT_REST:
                self._modes[int(mode)] = found["set"] == b"h"
        if found["keyboard"]:
            # The stack of keyboard modes that kitty and others have: pushed and popped.
            count = found["count"]
            popped = int(count) if count and len(count) < 4 else 1
            self._keyboards = max(0, self._keyboards + (1 if found["keyboard"] == b">" else -popped))
        for name, (off, end) in _SWITCHES.items():
            if found[name] is not None:
                self._others.pop(name, None)
                if found[name] not in off:
                    self._others[name] = end

    def _undo(self) -> bytes:
        changed = [mode for mode, on in sorted(self._modes.items()) if on != _AT_REST[mode]]
        modes = (b"\x1b[?%d%s" % (mode, b"h" if _AT_REST[mode] else b"l") for mode in changed)
        keyboard = b"\x1b[<%du" % min(self._keyboards, 99) if self._keyboards else b""
        return keyboard + b"".join(modes) + b"".join(self._others.values())

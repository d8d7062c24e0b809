"""TOML beside what the standard library has of it: the line of a key, for errors, and writing.

Imported only where a profile is read or written.
"""

from __future__ import annotations

import base64
import os
import re

from capsule.base.errors import PolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Key = str | int
    Path = tuple[Key, ...]

# What a run reads before it knows whom it comes from.
LARGEST_FILE = 1 << 20
_EXAMPLE = 'write lines such as network = "none"; `capsule policy show --all` prints all of them'
_LONGEST_VALUE = 40
# A key of so many parts means nothing here, and the standard library takes the square of their number.
_DEEP_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}"""
)


class Document:
    """A TOML text, what it holds, and where.

    Attributes:
        name: what errors call it.
        data: what it holds.
        directory: where relative paths count from.
    """

    def __init__(self, text: str, name: str, directory: str) -> None:
        self.name = name
        self.text = text.replace("\r\n", "\n")
        self.directory = directory
        self.data = self._parse()

    def _parse(self) -> dict[str, Any]:
        import tomllib

        if deep := _DEEP_KEY.search(self.text):
            line = self.text.count("\n", 0, deep.start()) + 1
            message = f"{self.name}:{line}: not TOML that is meant: a key of a hundred parts"
            raise PolicyError(message, field="profile", hint=_EXAMPLE)
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            what, line = _syntax_error(str(error), self.text)
            message = f"{self.name}:{line}: not TOML: {what}"
            raise PolicyError(message, field="profile", hint=_EXAMPLE) from None
        except (ValueError, RecursionError):
            # A number of thousands of digits, arrays a thousand deep.
            message = f"{self.name}:1: not TOML that is meant"
            raise PolicyError(message, field="profile", hint=_EXAMPLE) from None

    def error(self, path: Path, message: str, *, hint: str | None) -> PolicyError:
        """An error about a value: file, line, key and what is wrong with it."""
        field = next((str(part) for part in reversed(path) if isinstance(part, str)), "profile")
        return PolicyError(f"{self.where(path)}: {message}", field=field, hint=hint)

    def where(self, path: Path) -> str:
        """File, line and key of a value, as a message begins."""
        return f"{self.name}:{self.line(path)}: {dotted(path)}" if path else f"{self.name}:1"

    def line(self, path: Path) -> int:
        """The line of a key; of one in an inline value, the line where that begins."""
        lines = key_lines(self.text)
        for length in range(len(path), 0, -1):
            if path[:length] in lines:
                return lines[path[:length]]
        return 1


def dotted(path: Path) -> str:
    """A path as people write it: ``mounts[0].size``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    """(What is wrong, its line) of what tomllib says."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL)
    if found is None:
        return message, 1
    last = text.rstrip().count("\n") + 1
    return found[1], int(found[2]) if found[2] else last


# --- lines --------------------------------------------------------------------------------------

_STRING = (
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|'
    r"'''.*?'''(?:'{0,2})|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'"
)
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY = re.compile(r"[ \t]*(?:([A-Za-z0-9_-]+)|(\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'))[ \t]*(\.?)")
# A piece of a value: a string, a bracket, or what is neither.
_PIECE = re.compile(rf"({_STRING})|([\[{{])|([\]}}])|(#[^\n]*)|(\n)|[^\"'\[\]{{}}#\n]+", re.DOTALL)


def key_lines(text: str) -> dict[Path, int]:
    """The line of each table and key of a valid TOML text, but for those in inline values."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    at = _skip(_BLANK, text, 0)
    # Lines are counted as the text is gone through: a text of many lines is not counted anew for each.
    line, counted = 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        if text[at] == "[":
            many = text.startswith("[[", at)
            names, at = _key(text, at + (2 if many else 1))
            table = _enter(names, counts, many=many)
            at += 2 if many else 1
            lines.setdefault(table, line)
        else:
            names, at = _key(text, at)
            path = (*table, *names)
            at = _value_end(text, at + 1)
            for length in range(len(table) + 1, len(path) + 1):
                lines.setdefault(path[:length], line)
        at = _skip(_BLANK, text, at)
    return lines


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _key(text: str, at: int) -> tuple[Path, int]:
    """(The parts of a dotted key, where it ends)."""
    parts: list[str] = []
    while found := _KEY.match(text, at):
        parts.append(found[1] or _unquoted(found[2]))
        at = found.end()
        if not found[3]:
            break
    # Never without a step forward, whatever the text is.
    return tuple(parts), at if parts else at + 1


def _unquoted(quoted: str) -> str:
    import tomllib

    return str(tomllib.loads(f"key = {quoted}")["key"])


def _enter(names: Path, counts: dict[Path, int], *, many: bool) -> Path:
    """The path of a table's header, with the numbers of the arrays of tables that it lies in."""
    path: Path = ()
    for depth, name in enumerate(names):
        path = (*path, name)
        if many and depth == len(names) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _value_end(text: str, at: int) -> int:
    """Where a value ends: at the end of a line outside of all brackets."""
    depth = 0
    while found := _PIECE.match(text, at):
        depth += bool(found[2]) - bool(found[3])
        if found[5] and depth <= 0:
            break
        at = found.end()
    # Where no piece matches, the text was no TOML: go on rather than stand still.
    return at if found or at >= len(text) else at + 1


# --- writing ------------------------------------------------------------------------------------


def literal(value: object) -> str:
    """A value as TOML. Text that is not Unicode (a path of any bytes) is a table ``{ base64 = … }``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, bytes):
        return encoded(value)
    if isinstance(value, str):
        return quoted(value) if is_unicode(value) else encoded(os.fsencode(value))
    if isinstance(value, dict):
        pairs = ", ".join(f"{key(name)} = {literal(one)}" for name, one in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    # Dates and times have it, and Python writes numbers as TOML does.
    isoformat = getattr(value, "isoformat", None)
    return str(isoformat()) if isoformat is not None else repr(value)


def shown(value: object) -> str:
    """A value of a file for a message: as TOML, not longer than it needs to be recognised."""
    try:
        text = literal(value)
    except (ValueError, RecursionError):
        text = "a very large value"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def encoded(data: bytes) -> str:
    """Bytes that are not text, or text that must not be interpreted."""
    return f'{{ base64 = "{base64.b64encode(data).decode()}" }}'


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 has it: a surrogate stands for a byte that is no part of any character."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def quoted(text: str) -> str:
    """A basic string. What is not printable is escaped: it is shown on terminals, too."""
    return f'"{"".join(map(_escape, text))}"'


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(char: str) -> str:
    if char.isprintable():
        return _ESCAPES.get(char, char)
    number = ord(char)
    return _ESCAPES.get(char) or (f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}")


def key(name: str) -> str:
    """A key, quoted where it has to be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else quoted(name)

"""The plan's encoding and launcher/steps.def, read by other code than Capsule's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STEPS_DEF = Path(__file__).parents[2] / "launcher" / "steps.def"


class Kind(NamedTuple):
    """A line of steps.def."""

    function: str
    word: str
    phases: frozenset[str]
    signature: str


def kinds() -> list[Kind]:
    """The vocabulary as the launcher has it."""
    text = re.sub(r"/\*.*?\*/", "", STEPS_DEF.read_text(), flags=re.DOTALL)
    line = re.compile(r'STEP\((\w+), "([^"]*)", ([A-Z| ]+), "([^"]*)"\)')
    found = [
        Kind(function, word, frozenset(phases.split(" | ")), signature)
        for function, word, phases, signature in line.findall(text)
    ]
    assert not line.sub("", text).strip(), "a line of steps.def that this does not understand"
    return found


def decode(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """(Word, arguments) of each step of an encoded plan."""
    *words, rest = data.decode("utf-8", "surrogateescape").split("\0")
    assert rest == "", "the last word is not terminated"
    assert words.pop(0) == "capsule-plan 1"
    while words:
        word, count = words.pop(0), int(words.pop(0))
        yield word, [words.pop(0) for _ in range(count)]

"""The golden tables: what each profile says of each call, one line a number or arguments."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from capsule.confine.seccomp.numbers import numbers
from capsule.confine.seccomp.rules import ALLOW, KILL, LOG, NOTIFY, TRAP, Rules, errno_of

from . import samples

GOLDEN = Path(__file__).parent / "golden"
LAST = 600
_NAMES = {ALLOW: "allow", LOG: "log", KILL: "kill", TRAP: "trap", NOTIFY: "ask"}


def word(action: int) -> str:
    """An action in a word."""
    number = errno_of(action)
    return errno.errorcode[number] if number else _NAMES[action]


def table(rules: Rules, arch: str, verdict: Callable[[int, tuple[int, ...]], int]) -> str:
    """Every number from 0 to LAST, with the verdict that a filter has for it."""
    names = {number: name for name, number in numbers(arch).items()}
    calls = {call.name: call for call in rules.calls}
    lines: list[str] = []
    start = 0
    for number in range(LAST + 1):
        name = names.get(number)
        if name is None:
            continue
        lines += unknown(start, number - 1, verdict)
        start = number + 1
        for arguments in samples.plain(calls[name]) if samples.tested(calls[name]) else [()]:
            shown = " ".join(f"{n}={arguments[n]:#x}" for n in samples.tested(calls[name]))
            text = word(verdict(number, arguments))
            lines.append(f"{number:3} {name:24} {text}{' ' if shown else ''}{shown}")
    lines += unknown(start, LAST, verdict)
    return "\n".join(lines) + "\n"


def unknown(first: int, last: int, verdict: Callable[[int, tuple[int, ...]], int]) -> list[str]:
    """One line for numbers between those that are known."""
    found = {word(verdict(number, (0,) * 6)) for number in range(first, last + 1)}
    return [f"{first:3}-{last} unknown: {' '.join(sorted(found))}"] if found else []

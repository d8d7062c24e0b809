"""Tables of the documents that are made from the code: `pytest tests/unit --update-golden` does it.

That they are reviewed there is what pins the sentences in them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from capsule.files.found import Survey
from capsule.host.host import Host
from capsule.launcher import steps as s
from capsule.policy.protected import ITSELF, TABLE, Guard
from capsule.process import hints
from capsule.program.command import Command

DOCS = Path(__file__).parents[2] / "docs"
Row = tuple[str, ...]

_NAME = "NAME"
_NOWHERE = "/nowhere"


def sample(kind: type[s.Step]) -> s.Step:
    """A step whose path is the word that the page has for any path."""
    return kind(*["PATH"] * 8)


def hint_rows() -> list[Row]:
    """(Word of the step, errno, hint) of all that the table of hints holds, in its order."""
    rows: list[Row] = []
    for (kind, number), hint in hints.HINTS.items():
        word = "any other" if kind is s.Step else f"`{kind.word}`"
        text = hint(sample(kind)) if callable(hint) else hint
        rows.append((word, errno.errorcode[number], text))
    others = [row for row in rows if row[0] == "any other"]
    return [*(row for row in rows if row not in others), *exec_rows(), *others]


def exec_rows() -> list[Row]:
    """The same of exec, whose hints depend on where the program was found, and on who calls."""
    user, root = Host(uid=1000), Host(uid=0)
    step = s.Exec((), (_NAME,), ())
    cases = [
        (_NAME, None, errno.ENOENT, user, _NOWHERE),
        (f"/{_NAME}", None, errno.ENOENT, user, _NOWHERE),
        (f"/{_NAME}", None, errno.ENOENT, user, "/etc/passwd"),
        (f"/{_NAME}", None, errno.ENOENT, user, "/etc"),
        (_NAME, "PATH", errno.ENOENT, user, _NOWHERE),
        (_NAME, None, errno.EACCES, user, _NOWHERE),
        (_NAME, "PATH", errno.EACCES, user, _NOWHERE),
        (_NAME, "PATH", errno.EACCES, root, _NOWHERE),
    ]
    rows: list[Row] = []
    for name, found, number, host, path in cases:
        command = Command((name,), (path,), found, "/", (), "/root")
        text = hints.hint_for(step, number, host, command, Survey())
        rows.append(("`exec`", errno.errorcode[number], text or ""))
    return rows


def guard_rows(counts: Callable[[Guard], bool]) -> list[Row]:
    """(Names, why) of the guards that count there."""
    reasons: dict[str, list[str]] = {}
    for guard in TABLE:
        if guard.name != ITSELF and counts(guard):
            name = f"`{guard.name}`" + (", a file or link" if guard.unless_directory else "")
            reasons.setdefault(guard.why, []).append(name)
    return [(" ".join(names), why) for why, names in reasons.items()]


TABLES: dict[str, tuple[str, Row, Callable[[], Iterable[Row]]]] = {
    "hints": ("errors.md", ("step", "errno", "hint"), hint_rows),
    "anywhere": (
        "files.md",
        ("at any depth", "because"),
        lambda: guard_rows(lambda guard: guard.anywhere),
    ),
    "top": (
        "files.md",
        ("at a tree's top, and in home directories", "because"),
        lambda: guard_rows(lambda guard: not guard.anywhere and not guard.home),
    ),
    "home": (
        "files.md",
        ("in home directories alone", "because"),
        lambda: guard_rows(lambda guard: guard.home),
    ),
}


def row(cells: Row) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_code_s(name: str, update_golden: bool) -> None:
    """The page has the table that the code makes, row by row, each once."""
    page, head, make = TABLES[name]
    rows = list(make())
    assert len(rows) == len(set(rows))
    text = (DOCS / page).read_text(encoding="utf-8")
    before, begin, rest = text.partition(row(head) + "|" + "---|" * len(head) + "\n")
    assert begin, f"{page} has no table of {head}"
    lines = rest.split("\n")
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    if update_golden:
        made = before + begin + "".join(map(row, rows)) + "\n".join(lines[end:])
        (DOCS / page).write_text(made, encoding="utf-8")
    else:
        assert "".join(f"{line}\n" for line in lines[:end]) == "".join(map(row, rows))

"""A table of kernel x suite from what pytest -v printed in the guests; the exit status is the verdict.

python3 tests/kernels/table.py KERNEL=LOG...
"""

from __future__ import annotations

import collections
import re
import sys
from pathlib import Path

# A test's id may have spaces; a reason to skip stands in parentheses behind the word.
LINE = re.compile(
    r"^tests/(\S+?\.py)::(.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \((.*)\))? +\[ *\d+%\]$"
)
SUMMARY = re.compile(r"^=+ .*\bin [\d.]+s")
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)")
COLUMNS = ("passed", "failed", "skipped")


def suite_of(path: str) -> str:
    """The folder of the tests; those of a session are a suite of their own."""
    name = path.rpartition("/")[2]
    return "systemd" if name in ("test_systemd.py", "test_remedies.py") else path.partition("/")[0]


def read(text: str) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], int], list[str]]:
    """(Counts by suite and outcome, skips by suite and reason, what is wrong) of one guest."""
    counts: dict[tuple[str, str], int] = collections.Counter()
    reasons: dict[tuple[str, str], int] = collections.Counter()
    wrong = []
    for line in text.splitlines():
        found = LINE.match(line.rstrip())
        if found is None:
            continue
        path, name, outcome, reason = found.groups()
        suite = suite_of(path)
        if outcome == "PASSED":
            counts[suite, "passed"] += 1
        elif outcome == "SKIPPED":
            counts[suite, "skipped"] += 1
            reasons[suite, reason or "no reason"] += 1
        else:
            counts[suite, "failed"] += 1
            wrong.append(f"{path}::{name} {outcome}")
    told = summary(text)
    seen = sum(counts.values())
    if told is None:
        wrong.append("the tests did not come to their end")
    elif told != seen and not wrong:
        wrong.append(f"pytest counted {told} tests, and {seen} lines were read")
    return counts, reasons, wrong


def summary(text: str) -> int | None:
    """How many tests pytest says there were; None if it did not come so far."""
    last = next((line for line in reversed(text.splitlines()) if SUMMARY.match(line)), None)
    return None if last is None else sum(int(number) for number, _ in COUNT.findall(last))


def main(words: list[str]) -> int:
    """Print the table, each failure, and each reason to skip."""
    counts: dict[tuple[str, str, str], int] = collections.Counter()
    reasons: dict[tuple[str, str, str], int] = collections.Counter()
    wrong = []
    rows: dict[tuple[str, str], None] = {}
    for word in words:
        kernel, _, log = word.partition("=")
        one, skips, bad = read(Path(log).read_text(encoding="utf-8", errors="replace"))
        for (suite, outcome), number in one.items():
            counts[kernel, suite, outcome] += number
            rows[kernel, suite] = None
        for (suite, reason), number in skips.items():
            reasons[kernel, suite, reason] += number
        wrong += [f"{kernel}  {each}" for each in bad]
    print(f"\n{'kernel':8}{'suite':14}" + "".join(f"{name:>9}" for name in COLUMNS))
    for kernel, suite in rows:
        numbers = "".join(f"{counts[kernel, suite, name]:9}" for name in COLUMNS)
        print(f"{kernel:8}{suite:14}{numbers}")
    for title, lines in (
        ("skipped", [f"{k:8}{s:14}{n:4}  {why}" for (k, s, why), n in reasons.items()]),
        ("failed", wrong),
    ):
        if lines:
            print(f"\n{title}:")
            print("\n".join(lines))
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

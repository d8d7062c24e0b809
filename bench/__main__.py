"""The command: python -m bench, or bench/run."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import capsule

from . import bwrap
from .calls import busy_row, calls_row, filter_row
from .fleet import executor_row, pool_row, pool_threads_row
from .many import many_row, memory_row
from .network import network_row
from .plot import plot
from .starts import (
    cli_row,
    first_row,
    landlock_row,
    large_row,
    limits_row,
    memory_available,
    run_row,
    threads_row,
)
from .timeline import timeline_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .measure import Row

ROWS = {
    "run": run_row,
    "limits": limits_row,
    "large": large_row,
    "cli": cli_row,
    "first": first_row,
    "threads": threads_row,
    "pool": pool_row,
    "pool-threads": pool_threads_row,
    "executor": executor_row,
    "network": network_row,
    "timeline": timeline_row,
    "filter": filter_row,
    "landlock": landlock_row,
    "calls": calls_row,
    "busy": busy_row,
    "memory": memory_row,
    "many": many_row,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON. A missed budget is a result, not a failure."""
    options = _options(arguments)
    try:
        return _measure(options)
    except (capsule.CapsuleError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _measure(options: argparse.Namespace) -> int:
    about = _about()
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    rows = []
    for name in options.only or ROWS:
        rows.append(ROWS[name](options))
        print(render(rows[-1]), flush=True)
    if options.json:
        _write_json(options.json, about, rows)
    if options.svg:
        with options.svg:
            options.svg.write(plot(next(row for row in rows if row.name == "run"), about))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, 100 capsules: under 30 s")
    parser.add_argument("--rounds", type=int, help="how often each subject has its turn")
    parser.add_argument("--json", type=_output, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--svg", type=_output, metavar="FILE", help="draw the row `run` to FILE")
    parser.add_argument("--only", action="append", choices=ROWS, help="measure this row; repeatable")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 40 if options.quick else 300
    if options.svg and options.only and "run" not in options.only:
        parser.error("--svg: needs the row run")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def _output(name: str) -> TextIO:
    """A file, opened at once: not after minutes does it turn out that it cannot be written."""
    try:
        return open(os.path.join(os.environ.get("BENCH_FROM", ""), name), "w")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _about() -> dict[str, str]:
    """Where and with what this was measured."""
    program = bwrap.find()
    return {
        "capsule": capsule.__version__,
        "bwrap": bwrap.version(program) if program else "none",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {os.cpu_count()} x {_cpu()}",
        "memory available": f"{memory_available() >> 20} MiB",
        "load": f"{os.getloadavg()[0]:.2f}",
        "uid": str(os.geteuid()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown CPU"


def render(row: Row) -> str:
    """A row as text: times in milliseconds, then figures, verdicts and notes."""
    lines = [f"{row.name}: {row.title}"]
    if row.skipped:
        return f"{lines[0]}\n  skipped: {row.skipped}\n"
    if row.samples:
        lines.append(f"  {'':32} {'median':>9} {'p95':>9} {'least':>9} {'n':>6}   (ms)")
    for name, sample in row.samples.items():
        times = "".join(f"{t * 1e3:10.3f}" for t in (sample.median, sample.p95, sample.least))
        lines.append(f"  {name:32}{times}{sample.count:7}")
    lines += [f"  {name}: {value:.2f}" for name, value in row.figures.items()]
    for verdict in row.verdicts:
        word = "PASS" if verdict.passed else "MISS"
        lines.append(f"  {word}  {verdict.text}: {verdict.value:.2f} (budget {verdict.budget:g})")
    lines += [f"  note: {note}" for note in row.notes]
    return "\n".join(lines) + "\n"


def _write_json(file: TextIO, about: dict[str, str], rows: Sequence[Row]) -> None:
    data: dict[str, Any] = {"about": about, "rows": []}
    for row in rows:
        verdicts = [{**asdict(v), "passed": v.passed} for v in row.verdicts]
        data["rows"].append({**asdict(row), "verdicts": verdicts})
    with file:
        json.dump(data, file, indent=2)


if __name__ == "__main__":
    sys.exit(main())

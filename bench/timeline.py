"""Where the time of one start goes: a launcher that notes when each of its steps is done."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import struct
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import capsule
from capsule import api
from capsule.process.launch import launch

from .measure import WARM_UP, Row, Sample, summarise
from .starts import ROOT, TRUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .starts import Options

NOTES = 1024  # as in timeline.c
NOTE = struct.Struct("=q24s")
# As packaging/hatch_build.py has it, but for what hardens.
FLAGS = "-std=gnu11 -O2 -ffreestanding -fPIE -static-pie -nostdlib"
WRAPPED = ("plan_parse", "command_main", "send_record")

# Of the moments that are no step: what has been done by then.
MOMENTS = {
    "spawn": "Python: policy to plan, pipes",
    "spawned": "posix_spawn(3), as Python waits for it",
    "launcher": "exec of the launcher, its start; the plan read",
    "plan": "plan parsed",
    "namespaces": "descriptors closed; clone(2) of init: net and 6 more namespaces",
    "undumpable": "init runs; id maps written",
    "fork": "fork of the command",
    "command": "the command runs",
    "exec": "seccomp: filter installed, listener sent",
    "end": "exec, /bin/true itself, its end",
    "return": "init ends and is reaped; Python: the result",
}


def timeline_row(options: Options) -> Row:
    """The parts of one `capsule.run`, in the order in which they are done."""
    title = "where the time of capsule.run([true]) goes"
    with tempfile.TemporaryDirectory() as place:
        notes = Path(place, "notes")
        notes.write_bytes(bytes(NOTES * NOTE.size))
        try:
            launcher = _build(Path(place), notes)
        except (OSError, subprocess.CalledProcessError) as error:
            return Row("timeline", title, skipped=f"the launcher cannot be built: {error}")
        runs = list(_runs(launcher, notes, options.rounds))
    times: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, seconds in run.items():
            times[name].append(seconds)
    samples: dict[str, Sample] = {name: summarise(taken) for name, taken in times.items()}
    whole = [sum(run.values()) for run in runs]
    least = sum(sample.median for sample in samples.values())
    samples["whole"] = summarise(whole)
    figures = {"sum of the medians, ms": least * 1e3}
    note = "a note takes some 0.001 ms; what runs beside something else is counted where it ends"
    return Row("timeline", title, samples, figures, [], [note])


def _build(place: Path, notes: Path) -> Path:
    sources = [*map(str, sorted((ROOT / "launcher").glob("*.c"))), str(ROOT / "bench" / "timeline.c")]
    text = (ROOT / "launcher" / "steps.def").read_text()
    steps = [line[len("STEP(") :].split(",")[0] for line in text.splitlines() if line[:5] == "STEP("]
    wraps = [
        f"-Wl,--wrap={name}"
        for name in (*WRAPPED, *(f"step_{step}" for step in steps if step != "seccomp"))
    ]
    built = place / "capsule-launch"
    options = [*shlex.split(FLAGS), f"-I{ROOT}/launcher", f'-DNOTES_FILE="{notes}"', *wraps]
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *options, *sources, "-o", str(built)], check=True, capture_output=True)
    return built


def _runs(launcher: Path, notes: Path, rounds: int) -> Iterator[dict[str, float]]:
    """Seconds of each part of each run, the first few left out."""
    moments: list[tuple[float, str]] = []
    posix_spawn = os.posix_spawn

    @functools.wraps(posix_spawn)
    def noting(*args: Any, **kwargs: Any) -> int:
        moments.append((time.monotonic(), "spawn"))
        pid = posix_spawn(*args, **kwargs)
        moments.append((time.monotonic(), "spawned"))
        return pid

    ours = functools.partial(launch, launcher=str(launcher))
    with _replaced(api, "launch", ours), _replaced(os, "posix_spawn", noting):
        for turn in range(-WARM_UP, rounds):
            moments.clear()
            _clear(notes)
            begin = time.monotonic()
            capsule.run(TRUE, check=True)
            end = time.monotonic()
            if turn >= 0:
                yield parts(begin, [*moments, *_read(notes), (end, "return")])


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _clear(notes: Path) -> None:
    with notes.open("r+b") as file:
        file.write(bytes(NOTE.size))


def _read(notes: Path) -> Iterator[tuple[float, str]]:
    data = notes.read_bytes()
    count = min(NOTE.unpack_from(data)[0], NOTES - 1)
    for number in range(1, count + 1):
        at, what = NOTE.unpack_from(data, number * NOTE.size)
        yield at / 1e9, what.partition(b"\0")[0].decode()


def parts(begin: float, moments: list[tuple[float, str]]) -> dict[str, float]:
    """What lies between one moment and the next belongs to the later one. Equal steps are one part."""
    found: dict[str, float] = defaultdict(float)
    times: Counter[str] = Counter()
    last = begin
    for at, what in sorted(moments):
        found[what] += at - last
        times[what] += 1
        last = at
    return {_named(what, times[what]): seconds for what, seconds in found.items()}


def _named(what: str, count: int) -> str:
    return MOMENTS.get(what) or (what if count == 1 else f"{what} x {count}")

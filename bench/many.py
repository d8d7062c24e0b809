"""Rows about capsules that stay: what each holds, and whether the thousandth starts as the first."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import capsule
from capsule.process import base

from .measure import Row, Sample, Verdict, quantile, summarise, timed
from .starts import bare, memory_available

if TYPE_CHECKING:
    from collections.abc import Callable

    from .starts import Options

IDLE = ["/bin/sleep", "infinity"]
EDGE = 50  # how many of the first and of the last starts are compared
FDS_EACH = 5  # two pipes of output, status, lifeline, pidfd
PAGE = os.sysconf("SC_PAGE_SIZE")


# --- 5: memory -------------------------------------------------------------------------


def memory_row(options: Options) -> Row:
    """What an idle capsule holds beside its command and beside the supervisor."""
    title = "memory of an idle capsule"
    count = 50 if options.quick else 200
    raise_limit(count)
    ours: list[float] = []
    figures: dict[str, float] = {}
    for _ in range(1 if options.quick else 3):
        without = _held_by(lambda: _bare_idlers(count))
        held = _held_by(lambda: _capsules(count, figures))
        ours.append((held - without) / count)
    verdicts = [
        Verdict("init resident, MiB", figures["init: resident, KiB"] / 1024, 1.0),
        Verdict(
            "all, kernel included (change of MemAvailable), MiB",
            quantile(sorted(ours), 0.5) / 2**20,
            1.0,
        ),
    ]
    note = f"{count} capsules beside {count} bare processes; the supervisor's own growth is left out"
    return Row("memory", title, {}, figures, verdicts, [note])


def _held_by(start: Callable[[], contextlib.ExitStack]) -> float:
    """Bytes by which available memory falls while what *start* starts is there, without our own."""
    before, own = _settled(), _own_memory()
    with start():
        return before - _settled() - (_own_memory() - own)


def _settled() -> int:
    """Available memory, once the kernel has freed what it frees late: within 1 MiB for 0.3 s."""
    last = memory_available()
    for _ in range(30):
        time.sleep(0.3)
        now = memory_available()
        if abs(now - last) < 1 << 20:
            return now
        last = now
    return last


def _own_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _bare_idlers(count: int) -> contextlib.ExitStack:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            idler = stack.enter_context(subprocess.Popen(IDLE, stdin=subprocess.DEVNULL))
            stack.callback(idler.kill)
        return stack.pop_all()


def _capsules(count: int, figures: dict[str, float]) -> contextlib.ExitStack:
    with contextlib.ExitStack() as stack:
        inits = [stack.enter_context(capsule.start(IDLE)).pid for _ in range(count)]
        figures.update(_of_init(inits[count // 2]))
        return stack.pop_all()


def _of_init(pid: int) -> dict[str, float]:
    """What the kernel shows of one init: anybody sees its resident set, only root the shares."""
    figures = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in KEYS:
            figures[KEYS[name]] = float(value.split()[0])
    with contextlib.suppress(PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                figures["init: proportional (PSS), KiB"] = float(line.split()[1])
    return figures


KEYS = {
    "VmRSS": "init: resident, KiB",
    "RssAnon": "init: of that its own (anonymous), KiB",
    "VmPTE": "init: page tables, KiB",
}


# --- 6: many ---------------------------------------------------------------------------


def many_row(options: Options) -> Row:
    """Capsules alive at once: how long each took to start, and that nothing of them stays."""
    wanted = 100 if options.quick else 1000
    title = f"{wanted} capsules alive at once"
    count = min(wanted, raise_limit(wanted))
    if count < 2 * EDGE:
        return Row("many", title, skipped=f"open files are limited to {count * FDS_EACH}")
    _touch(count << 20)
    before = _open_files()
    starts, bares, pids = [], [], []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            begin = time.perf_counter()
            pids.append(stack.enter_context(capsule.start(IDLE)).pid)
            starts.append(time.perf_counter() - begin)
            bares.append(timed(bare))
        begin = time.perf_counter()
    end = time.perf_counter() - begin
    left = sum(map(_is_alive, pids)) + _open_files() - before
    samples = {f"start, {which}": sample for which, sample in _edges(starts).items()}
    samples |= {f"bare spawn, {which}": sample for which, sample in _edges(bares).items()}
    growth = samples[f"start, last {EDGE}"].median / samples[f"start, first {EDGE}"].median
    verdicts = [
        Verdict("last / first", growth, 1.3),
        Verdict("processes and descriptors left", left, 0),
    ]
    figures = {"taking one down, ms": end / count * 1e3}
    note = "bare spawns in between show what the descriptors held by this process cost any spawn"
    return Row("many", title, samples, figures, verdicts, [note])


def _edges(times: list[float]) -> dict[str, Sample]:
    return {
        f"first {EDGE}": summarise(times[:EDGE]),
        "all": summarise(times),
        f"last {EDGE}": summarise(times[-EDGE:]),
    }


def _touch(size: int) -> None:
    """Use memory and free it: a virtual machine pays once for each page that it never used."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, PAGE):
        memory[at] = 1
    memory.close()


def raise_limit(count: int) -> int:
    """Raise the limit of open files as far as it goes; how many capsules then fit, at most *count*."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count * FDS_EACH + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fit = count if soft == resource.RLIM_INFINITY else (soft - 100) // FDS_EACH
    return min(count, fit)


def _open_files() -> int:
    base.drop_all()  # which is no capsule's
    return len(os.listdir("/proc/self/fd"))


def _is_alive(pid: int) -> bool:
    """Whether a process of ours is there. A pid that somebody else has by now does not count."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return int(status.rpartition(")")[2].split()[1]) == os.getpid()

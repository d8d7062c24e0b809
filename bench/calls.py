"""Rows about the filter of system calls: what it costs at a start, at a call, and a busy program."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import capsule
from capsule import Mount, Policy

from .measure import Row, Verdict, interleave, timed
from .starts import Options, Worker

CALLS = 1_000_000
# Everything that has a number, without a look at it.
ALLOW_ALL = '{"defaultAction": "SCMP_ACT_ALLOW"}'
MOST = 1.05
FILES = 10_000
# So that files belong to the same user inside.
_SAME_IDS: dict[str, Any] = {"uid": os.geteuid(), "gid": os.getegid()}

_SOURCE = """
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main(void)
{
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < CALLS; i++)
		syscall(SYS_getpid);
	clock_gettime(CLOCK_MONOTONIC, &to);
	return printf("%.9f\\n", to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) / 1e9) < 0;
}
"""


def filter_row(options: Options) -> Row:
    """A start with the default filter beside one without any; neither has a base, as one cannot."""
    title = "capsule.run([true]) with the filter and without"
    with Worker(0) as with_, Worker(0) as without:
        for worker in (with_, without):
            worker.ask("no base")
        samples = interleave(
            {
                "default filter": lambda: with_.ask("capsule"),
                "--seccomp off": lambda: without.ask("without filter"),
            },
            options.rounds,
        )
    ratio = samples["default filter"].median / samples["--seccomp off"].median
    return Row("filter", title, samples, {}, [Verdict("with / without", ratio, MOST)])


def calls_row(options: Options) -> Row:
    """A million system calls under the default filter beside as many under one that allows all."""
    title = f"{CALLS:,} getpid(2)"
    with tempfile.TemporaryDirectory(prefix="capsule-bench-") as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        (place / "allow.json").write_text(ALLOW_ALL)
        (place / "calls.c").write_text(_SOURCE)
        program = place / "calls"
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            return Row("calls", title, skipped="no C compiler")
        compile_ = [compiler, "-O2", f"-DCALLS={CALLS}", "-o", program, place / "calls.c"]
        subprocess.run(list(map(str, compile_)), check=True)
        mounts = (Mount.read_only(place),)

        def inside(profile: str) -> float:
            policy = Policy(mounts=mounts, cwd="/", seccomp=capsule.Seccomp(profile))
            return float(capsule.run([str(program)], policy, check=True).stdout)

        samples = interleave(
            {
                "default filter": lambda: inside("default"),
                "filter that allows all": lambda: inside(str(place / "allow.json")),
                "--seccomp off": lambda: inside("off"),
                "outside": lambda: float(subprocess.run([str(program)], capture_output=True).stdout),
            },
            max(5, options.rounds // 10),
        )
    ratio = samples["default filter"].median / samples["filter that allows all"].median
    return Row("calls", title, samples, {}, [Verdict("default / allows all", ratio, MOST)])


def busy_row(options: Options) -> Row:
    """Programs that make little else than system calls, inside and outside."""
    title = f"git status of {FILES:,} files, find /usr"
    if os.geteuid() == 0 or shutil.which("git") is None:
        # The index knows owners. Root's files are another's inside, and git would read them all again.
        return Row("busy", title, skipped="needs git, and a caller who is not root")
    with tempfile.TemporaryDirectory(prefix="capsule-bench-") as scratch:
        _make_repository(Path(scratch))
        status = (["git", "-C", scratch, "status", "--short"], Policy(cwd=scratch, **_SAME_IDS))
        find = (["find", "/usr"], Policy(cwd="/"))
        subjects = {}
        for name, (command, policy) in {"git status": status, "find": find}.items():
            subjects[f"{name}, inside"] = functools.partial(_time_inside, command, policy)
            subjects[f"{name}, outside"] = functools.partial(_time_outside, command)
        samples = interleave(subjects, max(5, options.rounds // 10))
    ratios = {
        name: samples[f"{name}, inside"].median / samples[f"{name}, outside"].median
        for name in ("git status", "find")
    }
    figures = {"find, inside / outside": ratios["find"]}
    verdict = Verdict("git status, inside / outside", ratios["git status"], MOST)
    return Row("busy", title, samples, figures, [verdict])


def _make_repository(place: Path) -> None:
    for folder in range(FILES // 100):
        (place / f"d{folder}").mkdir()
        for number in range(100):
            (place / f"d{folder}/f{number}").write_text(f"{folder} {number}\n")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", place, *words], check=True)


def _time_outside(command: list[str]) -> float:
    null = subprocess.DEVNULL
    return timed(lambda: subprocess.run(command, stdin=null, stdout=null, stderr=null))


def _time_inside(command: list[str], policy: Policy) -> float:
    """From its first instruction to its end: a start has rows of its own."""
    return capsule.run(command, policy, stdout=capsule.DEVNULL, stderr=capsule.DEVNULL).usage.wall

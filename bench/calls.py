"""Rows about the filter of system calls: what it costs at a start, at a call, and a busy program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import capsule
from capsule import Mount, Policy

from .measure import Row, Verdict, interleave, timed
from .starts import TRUE, Options

CALLS = 1_000_000
# Everything that has a number, without a look at it.
ALLOW_ALL = '{"defaultAction": "SCMP_ACT_ALLOW"}'
MOST = 1.05

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
    """A start with the default filter beside one without any."""
    title = "capsule.run([true]) with the filter and without"
    policies = {"default filter": Policy(), "--seccomp off": Policy(seccomp=capsule.Seccomp("off"))}

    def start(policy: Policy) -> float:
        return timed(lambda: capsule.run(TRUE, policy, check=True))

    samples = interleave(
        {name: lambda policy=policy: start(policy) for name, policy in policies.items()},  # type: ignore[misc]
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
    """A program that makes little else than system calls, inside and outside."""
    command = ["find", "/usr"]
    title = " ".join(command)
    null = subprocess.DEVNULL

    def outside() -> float:
        return timed(lambda: subprocess.run(command, stdin=null, stdout=null))

    def inside() -> float:
        # From its first instruction to its end: a start has rows of its own.
        return capsule.run(command, cwd="/", stdout=capsule.DEVNULL).usage.wall

    samples = interleave({"inside": inside, "outside": outside}, max(5, options.rounds // 10))
    ratio = samples["inside"].median / samples["outside"].median
    return Row("busy", title, samples, {}, [Verdict("inside / outside", ratio, MOST)])

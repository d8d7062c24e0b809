"""`--stats`: a line on the terminal while a command runs, and one at the end."""

from __future__ import annotations

import re
import subprocess

import capsule
from capsule import Limits
from capsule.cli import stats
from capsule.process.result import Usage
from tests.integration.user_terminal import at_terminal
from tests.support import CAPSULE, HANG, await_line

CLEAR = b"\r\x1b[K"
LIVE = rb"capsule: memory [\d.]+[KM]?(?: of 64M)?, CPUs \d\.\d\d, \d+(?: of 8)? processes, \d+\.\d s"
SUMMARY = rb"capsule: (?:memory|largest process) at most [\d.]+[KM], CPU [\d.]+ s, [\d.]+ s \(\w+\)"


def test_a_line_while_it_runs_and_one_at_the_end() -> None:
    """The live one is gone before what the command writes is shown, and when it ends."""
    with at_terminal(CAPSULE, "--stats", "sh", "-c", "echo begun; read x; echo ended") as user:
        user.see(b"begun\r\n")
        shown = user.see(b" s")
        assert re.fullmatch(re.escape(CLEAR) + LIVE, shown), shown
        user.type(b"\n")
        rest = user.see(b"ended\r\n")
        assert CLEAR in rest
        rest = user.see(b")\r\n")
        assert re.fullmatch(SUMMARY + rb"\r\n", rest), rest


def test_it_never_shows_within_a_line() -> None:
    """Nor on top of a program that draws: one that has the terminal in raw mode."""
    for script in (
        "printf begun; sleep 1.5; printf '\\nended\\n'",
        "stty raw -echo; printf 'begun\\r\\n'; sleep 1.5; printf 'ended\\r\\n'; stty sane",
    ):
        with at_terminal(CAPSULE, "--stats", "sh", "-c", script) as user:
            shown = user.see(b"ended\r\n")
            assert b"CPUs" not in shown


def test_without_a_terminal_there_is_the_line_at_the_end_alone() -> None:
    words = [CAPSULE, "--stats", "sh", "-c", "echo out; sleep 1.2; echo err >&2; exit 3"]
    done = subprocess.run(words, capture_output=True, timeout=HANG)
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert re.fullmatch(rb"err\n" + SUMMARY + rb"\n", done.stderr), done.stderr
    done = subprocess.run([CAPSULE, "sh", "-c", "sleep 1.2"], capture_output=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, b"")


def test_captured_output_leaves_the_terminal_to_it() -> None:
    """With --json - the command's output goes elsewhere; standard error is a terminal all the same."""
    script = "echo begun; sleep 1.5"
    with at_terminal(CAPSULE, "--stats", "--json", "-", "sh", "-c", script) as user:
        assert re.search(LIVE, user.see(b" s"))
        assert user.see(b"{\r\n").startswith(CLEAR)
        user.see(b'"stdout": "begun')


def test_usage_says_what_is_in_use_now() -> None:
    """Three processes and their memory, while they run; nothing of it at the end."""
    hold = "python3 -I -S -c 'x = b\"x\" * (32 << 20); print(1, flush=True); input()'"
    script = f"sleep 1000 & {hold}; kill $!"
    with capsule.start(["sh", "-c", script], stdin=capsule.PIPE) as process:
        assert await_line(process) == b"1\n"
        used = process.usage()
        assert used.source in ("proc", "cgroup")
        assert used.pids == 3
        assert used.memory is not None
        assert 32 << 20 <= used.memory <= 256 << 20
        result = process.wait()
    assert (result.usage.memory, result.usage.pids) == (None, None)


def test_the_lines() -> None:
    """Each figure stands beside its limit, if it has one; the CPUs are those since the last look."""
    limits = Limits(memory="64M", pids=8, cpus=1.5, timeout=60)
    used = Usage(4.25, 1.0, 0.5, 1 << 20, source="cgroup", memory=24 << 20, pids=3)
    assert stats.cpus(used, Usage()) == 1.5 / 4.25
    assert stats.cpus(used, Usage(4.0, 1.0, 0.0)) == 2.0
    assert stats.cpus(used, used) == 0.0
    assert stats.line(used, limits, 1.5 / 4.25) == (
        "capsule: memory 24M of 64M, CPUs 0.35 of 1.5, 3 of 8 processes, 4.2 of 60 s"
    )
    assert stats.line(Usage(2.0), Limits(), 0.0) == "capsule: CPUs 0.00, 2.0 s"
    assert stats.summary(used.replace(peak_pids=4, throttled=0.5), limits) == (
        "memory at most 1M of 64M, CPU 1.500 s, held back 0.500 s, at most 4 of 8 processes, "
        "4.250 s (cgroup)"
    )
    assert stats.summary(Usage(1.0, peak_memory=3 << 20, source="wait4"), Limits()) == (
        "largest process at most 3M, CPU 0.000 s, 1.000 s (wait4)"
    )

"""What the supervisor makes of the records on the status pipe, written here by hand.

Init is played by a process that does nothing; the pipes and the pidfd are real.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from capsule.base.errors import InternalError
from capsule.confine.cgroup import Account
from capsule.confine.seccomp import filters
from capsule.confine.seccomp.denials import argument_text
from capsule.confine.seccomp.spec import Seccomp
from capsule.planner.plan import Plan
from capsule.policy.limits import Limits
from capsule.process import outcome as verdict
from capsule.process.handle import Process
from capsule.process.launch import Running
from capsule.process.result import Outcome, Usage
from capsule.process.stdio import Streams

STARTED, FEATURES, READY, STOPPED, ENDED, REFUSED = range(1, 7)
COMMAND, DEADLINE = range(2)
PLAN = Plan((), ("prog",), ("user",), {"files": "hidden"})
FILTER = filters.load(Seccomp(), arch="x86_64")
PTRACE, SOCKET = 101, 41


def record(kind: int, *values: int) -> bytes:
    """A record as launcher/util.h has it: a kind and eleven numbers of 64 bits."""
    return array.array("q", [kind, *values, *[0] * (11 - len(values))]).tobytes()


def exited(status: int) -> int:
    """A wait status of a process that exited; wait(2)."""
    return status << 8


class Stage:
    """The ends that belong to init and the command."""

    def __init__(
        self, output: int | None = None, timeout: float | None = None, plan: Plan = PLAN
    ) -> None:
        self.pid = os.posix_spawn("/bin/sh", ["sh", "-c", "read x"], {}, file_actions=self._stdin())
        status, self.status = os.pipe()
        self.lifeline, lifeline = os.pipe()
        stdout, self.stdout = os.pipe()
        running = Running(self.pid, os.pidfd_open(self.pid), status, lifeline)
        limits = Limits(output=output, timeout=timeout)
        self.process = Process(running, plan, limits, Streams(stdout=stdout))

    def _stdin(self) -> list[tuple[int, int, int]]:
        read, self.keep = os.pipe()
        os.set_inheritable(read, True)
        self.read = read
        return [(os.POSIX_SPAWN_DUP2, read, 0)]

    def say(self, *data: bytes) -> None:
        """Write to the status pipe and end it, as init does."""
        for part in data:
            os.write(self.status, part)
        self.leave()

    def leave(self) -> None:
        """Close init's and the command's ends."""
        for name in ("status", "stdout", "keep", "read"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)


@contextlib.contextmanager
def staged(
    output: int | None = None, timeout: float | None = None, plan: Plan = PLAN
) -> Iterator[Stage]:
    """A process in front of the scenery; nothing of it is left."""
    stage = Stage(output, timeout, plan)
    try:
        with stage.process:
            yield stage
    finally:
        stage.leave()
        os.close(stage.lifeline)


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (exited(0), Outcome.EXITED, 0),
        (exited(125), Outcome.EXITED, 125),
        (exited(255), Outcome.EXITED, 255),
        (signal.SIGSEGV, Outcome.SIGNALED, -11),
        (signal.SIGABRT | 0x80, Outcome.SIGNALED, -6),
        (64, Outcome.SIGNALED, -64),
    ],
)
def test_the_wait_status_decides(status: int, outcome: Outcome, code: int) -> None:
    """What the command did is what wait(2) told init; a core dump's bit makes no difference."""
    with staged() as stage:
        stage.say(record(ENDED, status, COMMAND))
        result = stage.process.wait()
    assert (result.outcome, result.returncode) == (outcome, code)
    assert (result.args, result.namespaces, result.protections) == (
        ("prog",),
        ("user",),
        {"files": "hidden"},
    )


def test_the_deadline_comes_before_the_status() -> None:
    """Killed for the deadline is timed out, whatever the wait status says."""
    with staged(timeout=1.5) as stage:
        stage.say(record(ENDED, exited(0), DEADLINE))
        result = stage.process.wait()
    assert (result.outcome, result.returncode, result.detail) == (Outcome.TIMED_OUT, -9, "after 1.5 s")


def test_init_without_a_last_word_was_killed() -> None:
    """The end of file alone means that somebody killed init, and with it everything."""
    with staged() as stage:
        stage.say()
        result = stage.process.wait()
    assert (result.outcome, result.returncode) == (Outcome.KILLED, -9)
    assert result.usage == Usage(wall=result.usage.wall)
    assert "outside" in result.detail


def test_killed_by_the_caller_is_told_apart() -> None:
    """kill() kills init, and the result says who did it."""
    with staged() as stage:
        stage.process.kill()
        stage.say()
        result = stage.process.wait()
    assert (result.outcome, result.detail) == (Outcome.KILLED, "killed by the caller")


def test_too_much_output_comes_before_all() -> None:
    """One byte above the limit: cut there, killed, and called so even if the command succeeded."""
    with staged(output=4) as stage:
        os.write(stage.stdout, b"12345")
        stage.say(record(ENDED, exited(0), COMMAND))
        result = stage.process.wait()
    assert (result.outcome, result.returncode) == (Outcome.OUTPUT_LIMIT, -9)
    assert (result.stdout, result.truncated) == (b"1234", True)


def test_output_up_to_the_limit_is_kept() -> None:
    """Exactly the limit is within it."""
    with staged(output=4) as stage:
        os.write(stage.stdout, b"1234")
        stage.say(record(ENDED, exited(0), COMMAND))
        result = stage.process.wait()
    assert (result.outcome, result.stdout, result.truncated) == (Outcome.EXITED, b"1234", False)


def test_a_stop_is_no_end() -> None:
    """A stopped command may go on: the record is passed by."""
    with staged() as stage:
        stage.say(record(STOPPED, signal.SIGTSTP), record(ENDED, exited(3), COMMAND))
        assert stage.process.wait().returncode == 3


@pytest.mark.parametrize(
    ("reason", "outcome", "detail"),
    [
        (1, Outcome.TIMED_OUT, "after 5 s"),
        (2, Outcome.CPU_TIME, "after 2 s of CPU time"),
        (3, Outcome.IDLE, "no CPU used and nothing written for 3 s"),
        (4, Outcome.OUT_OF_MEMORY, "limit 64M"),
    ],
)
def test_a_reason_of_inits(reason: int, outcome: Outcome, detail: str) -> None:
    """Each reason for which init ends everything is an outcome of its own, with the limit."""
    limits = Limits(timeout=5, cpu_time=2, idle=3, memory="64M")
    last = (ENDED, signal.SIGKILL, reason, *[0] * 9)
    found = verdict.verdict(last, limits, None, killed=False, truncated=False)
    assert found == (outcome, -9, detail)


OOM = Account(peak_memory=67_100_000, oom_kills=2)


@pytest.mark.parametrize("last", [None, (ENDED, signal.SIGKILL, COMMAND, *[0] * 9)])
def test_out_of_memory(last: tuple[int, ...] | None) -> None:
    """What the kernel killed ran out of memory, whether init had a last word or died of it, too."""
    limits = Limits(memory="64M")
    found = verdict.verdict(last, limits, None, OOM, killed=False, truncated=False)
    assert found == (Outcome.OUT_OF_MEMORY, -9, "limit 64M, peak 63.99M")
    found = verdict.verdict(last, Limits(cpus=1), None, OOM, killed=False, truncated=False)
    assert found == (Outcome.OUT_OF_MEMORY, -9, "the host had none left")


def test_sigkill_is_no_lack_of_memory() -> None:
    """Status 137, a SIGKILL from inside and one by the caller are three outcomes, and no OOM kill."""
    limits, account = Limits(memory="64M"), Account(peak_memory=1 << 26, memory_met=9)
    for status, killed, outcome in (
        (exited(137), False, Outcome.EXITED),
        (signal.SIGKILL, False, Outcome.SIGNALED),
        (None, True, Outcome.KILLED),
    ):
        last = None if status is None else (ENDED, status, COMMAND, *[0] * 9)
        found = verdict.verdict(last, limits, None, account, killed=killed, truncated=False)
        assert found[0] is outcome


def test_limits_that_end_nothing_are_a_detail() -> None:
    """Of processes and of a file's size."""
    last = (ENDED, exited(2), COMMAND, *[0] * 9)
    for times, text in ((0, ""), (1, "once"), (7, "7 times")):
        found = verdict.verdict(
            last, Limits(pids=32), None, Account(pids_met=times), killed=False, truncated=False
        )
        assert found[:2] == (Outcome.EXITED, 2)
        assert found[2] == (text and f"the limit of 32 processes was met {text}; raise it with --pids")
    last = (ENDED, signal.SIGXFSZ, COMMAND, *[0] * 9)
    for limits, told in ((Limits(file_size="1M"), True), (Limits(), False)):
        found = verdict.verdict(last, limits, None, killed=False, truncated=False)
        assert found[:2] == (Outcome.SIGNALED, -signal.SIGXFSZ)
        assert ("beyond 1M" in found[2]) is told


def test_usage_of_a_cgroup() -> None:
    """It has the word on what it counts; init is not one of the processes; the rest is wait4's."""
    last = (ENDED, 0, COMMAND, 2_500_000, 1, 2, 7, 8, 9, 10, 11, 0)
    account = Account(1.5, 0.5, 0.25, 1 << 20, 5, 0, 3, 4)
    used = verdict.usage(last, account)
    assert used == Usage(2.5, 1.5, 0.5, 1 << 20, 8, 9, 10, 11, 4, 0.25, 0, "cgroup")
    assert verdict.usage(None, account, 7.0, in_use=(1 << 19, 3)) == Usage(
        7.0, 1.5, 0.5, 1 << 20, peak_pids=4, throttled=0.25, source="cgroup", memory=1 << 19, pids=2
    )
    assert verdict.usage(None, Account()).peak_pids is None


def test_usage_in_units() -> None:
    """Microseconds become seconds, kilobytes become bytes, in the record's order."""
    with staged() as stage:
        stage.say(record(ENDED, 0, COMMAND, 2_500_000, 1_000_000, 500_000, 7, 8, 9, 10, 11))
        usage = stage.process.wait().usage
    assert usage == Usage(2.5, 1.0, 0.5, 7 * 1024, 8, 9, 10, 11, source="wait4")


@pytest.mark.parametrize("kind", [0, STARTED, FEATURES, READY, REFUSED, 9, -1])
def test_an_unknown_record_is_an_internal_error(kind: int) -> None:
    """A record that does not belong there is not taken for anything."""
    with staged() as stage:
        stage.say(record(kind), record(ENDED, 0, COMMAND))
        with pytest.raises(InternalError, match="kind"):
            stage.process.wait()


def test_refusals_are_told_in_words() -> None:
    """Number, errno, argument and count become a call, its names, and what would allow it."""
    records = [
        record(REFUSED, PTRACE, 1, 0, 16, 3),
        record(REFUSED, SOCKET, 97, 0, 38, 1),
        record(REFUSED, SOCKET, 1, 1, 0x80003, 2),
        record(REFUSED, SOCKET, 97, 0, 99, 1),
        record(REFUSED, 165, 1, -1, 0, 1),
        record(ENDED, exited(1), COMMAND, *[0] * 8, 7),
    ]
    with staged(plan=PLAN.replace(filter=FILTER)) as stage:
        stage.say(*records)
        result = stage.process.wait()
    assert [(d.call, d.argument, d.count, d.errno) for d in result.denials] == [
        ("ptrace", "PTRACE_ATTACH", 3, 1),
        ("socket", "AF_ALG", 1, 97),
        ("socket", "SOCK_RAW", 2, 1),
        ("socket", "0x63", 1, 97),
        ("mount", "", 1, 1),
    ]
    told = "socket(AF_ALG) 1 time; --allow-syscall socket would allow it"
    assert result.denials[1].describe() == told
    assert (result.denials_complete, result.denials_omitted) == (False, 7)


@pytest.mark.parametrize(
    ("filter_", "last_word", "complete"),
    [
        (FILTER, True, True),
        (FILTER, False, False),
        (filters.load(Seccomp(), listener=False, arch="x86_64"), True, False),
        (None, True, True),
        (None, False, True),
    ],
)
def test_whether_all_refusals_are_told(
    filter_: filters.Filter | None, last_word: bool, complete: bool
) -> None:
    """With a listener and init's last word; without a filter there is nothing to tell."""
    with staged(plan=PLAN.replace(filter=filter_)) as stage:
        stage.say(*[record(ENDED, exited(0), COMMAND)] * last_word)
        result = stage.process.wait()
    assert (result.denials, result.denials_complete, result.denials_omitted) == ((), complete, 0)


@pytest.mark.parametrize(("filter_", "told"), [(FILTER, True), (None, False)])
def test_the_filter_ended_it(filter_: filters.Filter | None, told: bool) -> None:
    """SIGSYS under a filter is another interface of the kernel, and said so in words."""
    with staged(plan=PLAN.replace(filter=filter_)) as stage:
        stage.say(record(ENDED, signal.SIGSYS, COMMAND))
        result = stage.process.wait()
    wanted = Outcome.FILTERED if told else Outcome.SIGNALED
    assert (result.outcome, result.signal) == (wanted, signal.SIGSYS)
    assert ("another interface of the kernel" in result.describe()) is told


@pytest.mark.parametrize(
    ("call", "index", "value", "text"),
    [
        ("unshare", 0, 0x10020000, "CLONE_NEWNS|CLONE_NEWUSER"),
        ("unshare", 0, 0x400, "0x400"),
        ("unshare", 0, 0x80 | 0x400, "CLONE_NEWTIME|0x400"),
        ("clone", 0, 0x10000000 | 0x100 | 17, "CLONE_NEWUSER"),
        ("setns", 1, 0, "0x0"),
        ("fchownat", 2, 1000, "uid 1000"),
        ("chown", 2, 33, "gid 33"),
        ("mknodat", 2, 0x61B6, "S_IFBLK"),
        ("kcmp", 2, 5, "0x5"),
    ],
)
def test_arguments_have_the_names_of_the_manual(call: str, index: int, value: int, text: str) -> None:
    """Flags, families, requests and ids as a manual page writes them; else the number."""
    assert argument_text(call, index, value) == text


def test_half_a_record_is_an_internal_error() -> None:
    """A record that is cut off is not taken for a whole one."""
    with staged() as stage:
        stage.say(record(ENDED, 0, COMMAND)[:40])
        with pytest.raises(InternalError, match="cut off"):
            stage.process.wait()


def test_a_result_stays() -> None:
    """wait() and poll() give the same result again, and signals no longer go anywhere."""
    with staged() as stage:
        stage.say(record(ENDED, exited(0), COMMAND))
        result = stage.process.wait()
        assert stage.process.wait() is stage.process.poll() is result
        stage.process.kill()
        stage.process.terminate()
        with pytest.raises(ValueError, match="ended"):
            stage.process.fileno()


def test_a_signal_is_one_byte() -> None:
    """A signal goes over the lifeline as its number, with a bit if it is for the group."""
    with staged() as stage:
        stage.process.send_signal(signal.SIGTERM)
        stage.process.send_signal(signal.SIGCONT, group=True)
        assert os.read(stage.lifeline, 8) == bytes([signal.SIGTERM, signal.SIGCONT | 0x80])
        stage.say(record(ENDED, exited(0), COMMAND))
        stage.process.wait()

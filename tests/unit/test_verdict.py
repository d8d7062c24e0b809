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

from capsule.errors import InternalError
from capsule.launch import Running
from capsule.plan import Plan
from capsule.policy import Limits
from capsule.result import Outcome, Usage
from capsule.streams import Streams
from capsule.supervise import Process

STARTED, FEATURES, READY, STOPPED, ENDED = range(1, 6)
COMMAND, DEADLINE = range(2)
PLAN = Plan((), ("prog",), ("user",), {"files": "hidden"})


def record(kind: int, *values: int) -> bytes:
    """A record as launcher/util.h has it: a kind and eleven numbers of 64 bits."""
    return array.array("q", [kind, *values, *[0] * (11 - len(values))]).tobytes()


def exited(status: int) -> int:
    """A wait status of a process that exited; wait(2)."""
    return status << 8


class Stage:
    """The ends that belong to init and the command."""

    def __init__(self, output: int | None = None, timeout: float | None = None) -> None:
        self.pid = os.posix_spawn("/bin/sh", ["sh", "-c", "read x"], {}, file_actions=self._stdin())
        status, self.status = os.pipe()
        self.lifeline, lifeline = os.pipe()
        stdout, self.stdout = os.pipe()
        running = Running(self.pid, os.pidfd_open(self.pid), status, lifeline)
        limits = Limits(output=output, timeout=timeout)
        self.process = Process(running, PLAN, limits, Streams(stdout=stdout))

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
def staged(output: int | None = None, timeout: float | None = None) -> Iterator[Stage]:
    """A process in front of the scenery; nothing of it is left."""
    stage = Stage(output, timeout)
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
    assert result.usage == Usage()
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


def test_usage_in_units() -> None:
    """Microseconds become seconds, kilobytes become bytes, in the record's order."""
    with staged() as stage:
        stage.say(record(ENDED, 0, COMMAND, 2_500_000, 1_000_000, 500_000, 7, 8, 9, 10, 11))
        usage = stage.process.wait().usage
    assert usage == Usage(2.5, 1.0, 0.5, 7 * 1024, 8, 9, 10, 11)


@pytest.mark.parametrize("kind", [0, STARTED, FEATURES, READY, 6, -1])
def test_an_unknown_record_is_an_internal_error(kind: int) -> None:
    """A record that does not belong there is not taken for anything."""
    with staged() as stage:
        stage.say(record(kind), record(ENDED, 0, COMMAND))
        with pytest.raises(InternalError, match="kind"):
            stage.process.wait()


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

"""Results: what a run came to, in numbers and in words."""

from __future__ import annotations

import pickle
import signal

import pytest

from capsule.process.result import CommandFailed, Outcome, Result, Usage

# outcome, returncode, detail -> exit status of the shell, signal, text
TABLE = [
    (Outcome.EXITED, 0, "", 0, None, "make exited with status 0"),
    (Outcome.EXITED, 1, "", 1, None, "make exited with status 1"),
    (Outcome.EXITED, 125, "", 125, None, "make exited with status 125"),
    (Outcome.EXITED, 255, "", 255, None, "make exited with status 255"),
    (Outcome.SIGNALED, -11, "", 139, 11, "make was ended by SIGSEGV"),
    (Outcome.SIGNALED, -9, "", 137, 9, "make was ended by SIGKILL"),
    (Outcome.SIGNALED, -33, "", 161, 33, "make was ended by signal 33"),
    (Outcome.TIMED_OUT, -9, "after 5 s", 124, 9, "make: timed out: after 5 s"),
    (Outcome.EXITED, 2, "the limit of", 2, None, "make exited with status 2: the limit of"),
    (Outcome.CPU_TIME, -9, "after 5 s", 124, 9, "make: CPU time used up: after 5 s"),
    (Outcome.IDLE, -9, "for 5 s", 124, 9, "make: idle: for 5 s"),
    (Outcome.OUT_OF_MEMORY, -9, "limit 1M", 137, 9, "make: out of memory: limit 1M"),
    (Outcome.FILTERED, -31, "it made", 159, 31, "make: killed by the filter: it made"),
    (Outcome.OUTPUT_LIMIT, -9, "more than 1", 137, 9, "make: output limit: more than 1"),
    (Outcome.KILLED, -9, "", 137, 9, "make: killed"),
]


@pytest.mark.parametrize(("outcome", "code", "detail", "status", "number", "text"), TABLE)
def test_how_it_ended(
    outcome: Outcome, code: int, detail: str, status: int, number: int | None, text: str
) -> None:
    """Each outcome has its exit status, its signal and its line."""
    result = Result(args=("make", "-j"), outcome=outcome, returncode=code, detail=detail)
    assert (result.exit_status, result.signal) == (status, number)
    assert result.describe() == text


def test_every_outcome_is_in_the_table() -> None:
    """No outcome is left out."""
    assert {row[0] for row in TABLE} == set(Outcome)


@pytest.mark.parametrize("row", TABLE)
def test_check(row: tuple[Outcome, int, str, int, int | None, str]) -> None:
    """check() returns a success itself, and raises with the result for all else."""
    result = Result(args=("make",), outcome=row[0], returncode=row[1])
    assert result.ok == (row[:2] == (Outcome.EXITED, 0))
    if result.ok:
        assert result.check() is result
        return
    with pytest.raises(CommandFailed) as caught:
        result.check()
    assert caught.value.result is result


def test_a_status_of_zero_by_force_is_no_success() -> None:
    """Only a command that ended by itself succeeded."""
    assert not Result(args=("x",), outcome=Outcome.KILLED, returncode=0).ok


def test_every_signal_has_a_line() -> None:
    """Real-time signals, which have no name, are named by number."""
    for number in range(1, signal.NSIG):
        text = Result(args=("x",), outcome=Outcome.SIGNALED, returncode=-number).describe()
        assert text.startswith("x was ended by ")
        assert signal.strsignal(number) is not None or str(number) in text


def test_a_result_is_a_value() -> None:
    """Equal results are one key and survive pickle; the defaults are shared by none."""
    one = Result(args=("x",), outcome=Outcome.EXITED, returncode=0, protections={"a": "b"})
    assert len({one, one.replace(), one.replace(returncode=1)}) == 2
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.usage == Usage()
    assert one.denials == ()

"""The tree of exceptions, and the three parts of every message."""

from __future__ import annotations

import errno
import pickle

import pytest

from capsule.base.errors import CapsuleError, HostError, InternalError, PolicyError
from capsule.fleet.codec import Garbled
from capsule.fleet.interpreter import CallFailed
from capsule.launcher import steps as s
from capsule.launcher.failure import SetupError
from capsule.process.result import CommandFailed, Outcome, Result

FAILED = Result(args=("make",), outcome=Outcome.EXITED, returncode=2, stdout=b"out")
SETUP = SetupError(s.Tree("/x", 7), 3, 9, errno.ENOENT, hint="create it", exit_code=125)
ERRORS: list[CapsuleError] = [
    CapsuleError("it failed", hint="try again"),
    PolicyError("uid: wrong", field="uid", value=-1, hint="choose another"),
    HostError("the kernel lacks it", hint="get a newer one"),
    SETUP,
    InternalError("the launcher said nothing"),
]
EVERY: list[CapsuleError] = [
    *ERRORS,
    CommandFailed(FAILED),
    CallFailed("ValueError", "no", "Traceback ..."),
    Garbled("no result"),
]


def kind_of(error: object) -> str:
    """A name for the test of an error."""
    return type(error).__name__


@pytest.mark.parametrize(
    ("kind", "bases", "code"),
    [
        (CapsuleError, (Exception,), 125),
        (PolicyError, (CapsuleError, ValueError), 2),
        (HostError, (CapsuleError,), 125),
        (SetupError, (CapsuleError, OSError), 125),
        (CommandFailed, (CapsuleError,), 125),
        (CallFailed, (CapsuleError,), 125),
        (Garbled, (CapsuleError,), 125),
        (InternalError, (CapsuleError,), 125),
    ],
)
def test_the_tree(kind: type[CapsuleError], bases: tuple[type[Exception], ...], code: int) -> None:
    """Each exception is what `except` clauses expect it to be, with its exit status."""
    assert kind.__bases__ == bases
    assert kind.exit_code == code


def test_the_tree_is_complete() -> None:
    """There is no exception that the tests do not know."""
    assert set(CapsuleError.__subclasses__()) == {type(error) for error in EVERY} - {CapsuleError}


@pytest.mark.parametrize("error", ERRORS, ids=kind_of)
def test_three_parts(error: CapsuleError) -> None:
    """What failed, that the command did not run, what to do: one part a line."""
    first, second, third = str(error).splitlines()
    assert first == error.message
    assert second.endswith("The command was not run.")
    assert third == f"  hint: {error.hint}"


def test_no_hint_is_no_line() -> None:
    """Where nothing is known to help, nothing is said."""
    assert len(str(HostError("it failed")).splitlines()) == 2


@pytest.mark.parametrize("error", EVERY, ids=kind_of)
def test_an_error_survives_pickle(error: CapsuleError) -> None:
    """Class, text and attributes are the same after pickle, with a traceback on it or not."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert again.__dict__ == error.__dict__
    assert again.exit_code == error.exit_code


def test_setup_error_is_an_os_error() -> None:
    """The step, its place, and what OSError has: errno, strerror, filename; after pickle too."""
    for error in (SETUP, pickle.loads(pickle.dumps(SETUP))):
        assert (error.errno, error.strerror) == (errno.ENOENT, "No such file or directory")
        assert error.filename == "/x"
        assert (error.step, error.index, error.count) == (s.Tree("/x", 7), 3, 9)
        assert type(error.step) is s.Tree
        assert error.message == f"cannot start: {error.step.describe()}: {error.strerror}"
        assert "step 4 of 9" in str(error)


def test_setup_error_takes_its_exit_code() -> None:
    """126 and 127 are the command's own fault, and kept."""
    error = SetupError(s.Exec(("/x",), ("x",), ()), 0, 1, errno.ENOENT, hint=None, exit_code=127)
    assert (error.exit_code, error.filename, error.hint) == (127, "x", None)


def test_policy_error_names_field_and_value() -> None:
    """Whoever catches it can tell which option to correct."""
    error = pickle.loads(pickle.dumps(PolicyError("uid: no", field="uid", value=-1)))
    assert (error.field, error.value, error.hint) == ("uid", -1, None)


def test_command_failed_holds_the_result() -> None:
    """The message is the result's own line: the command did run."""
    error = pickle.loads(pickle.dumps(CommandFailed(FAILED)))
    assert error.result == FAILED
    assert str(error) == "make exited with status 2"


def test_internal_error_asks_for_a_report() -> None:
    """A broken protocol is a defect of Capsule and says so."""
    assert "please report" in str(InternalError("x"))

"""From a plan to a running command, or to the error that says why not."""

from __future__ import annotations

import os

from . import signals, spawn
from .errors import InternalError, SetupError
from .values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .command import Command
    from .host import Host
    from .plan import Plan
    from .spawn import Child


class Running(Value):
    """A capsule whose command runs.

    Attributes:
        pid: init's process id on the host; init is a child of this process.
        pidfd: descriptor of init, readable when the whole PID namespace is gone.
        status: reads records.
        lifeline: its end ends the capsule; a byte is a signal to pass on.
    """

    pid: int
    pidfd: int
    status: int
    lifeline: int


def launch(
    plan: Plan,
    host: Host,
    command: Command | None,
    stdio: Sequence[int],
    *,
    passed: Mapping[int, int] | None = None,
    terminal: int | None = None,
    launcher: str = spawn.LAUNCHER,
    held: signals.Held | None = None,
) -> Running:
    """Start the capsule and return when its command runs.

    Raises:
        SetupError: a step failed; everything was taken down.
        HostError: the launcher could not be started.
        InternalError: the launcher broke its protocol.
    """
    child = spawn.spawn(plan.encode(), stdio, passed=passed, terminal=terminal, launcher=launcher)
    init = 0
    try:
        read = os.read if held is None else held.read
        report = read(child.error, spawn.REPORT_SIZE)
        init = _expect(child, spawn.STARTED)
        # Without the second record, init died of a signal: its end of file is not the command's.
        if report or not init or not _expect(child, spawn.READY):
            raise _failure(report, plan, host, command)
        running = Running(init, _open_init(init), child.status, child.lifeline)
    except BaseException:
        # Also what Ctrl-C raises while the launcher is at work.
        _take_down(child, init)
        raise
    spawn.reap(child.pid)
    os.close(child.error)
    return running


def _open_init(init: int) -> int:
    """A pidfd of init, or something else that is always readable if init is gone already.

    It is our child, so it can be gone only if somebody else in this process waits for all children.
    """
    try:
        return os.pidfd_open(init)
    except ProcessLookupError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _expect(child: Child, kind: int) -> int:
    """The value of the next record, which must be of a kind; 0 at the end of file."""
    record = spawn.read_record(child.status)
    if record is None:
        return 0
    if record[0] != kind:
        raise InternalError(f"a record of kind {record[0]} instead of {kind}")
    return record[1]


def _failure(
    report: bytes, plan: Plan, host: Host, command: Command | None
) -> SetupError | InternalError:
    if not report:
        return InternalError("the launcher or init ended without a report")
    if len(report) != spawn.REPORT_SIZE:
        return InternalError("the report of the launcher is cut off")
    index, error = memoryview(report).cast("i")
    if not 0 <= index < len(plan.steps):
        return InternalError(f"the launcher refused the plan: {os.strerror(error)}")
    from .hints import exit_code_for, hint_for  # only where something failed

    step = plan.steps[index]
    hint = hint_for(step, error, host, command)
    code = exit_code_for(step, error, command)
    return SetupError(step, index, len(plan.steps), error, hint=hint, exit_code=code)


def _take_down(child: Child, init: int) -> None:
    """End and reap a launcher and, if it was cloned, its init; then nothing of the capsule is left."""
    # First init's pid, which the launcher tells at once, or ends: killed between its clone and its
    # word, it would leave us a child that we cannot name, and hence not reap.
    if not init:
        try:
            init = _expect(child, spawn.STARTED)
        except InternalError:
            init = 0
    _kill(child.pid)
    if init:
        _kill(init)
    for fd in (child.error, child.status, child.lifeline):
        os.close(fd)


def _kill(pid: int) -> None:
    """Kill and reap a child that nobody has reaped yet."""
    try:
        os.kill(pid, signals.SIGKILL)
    except ProcessLookupError:
        pass
    spawn.reap(pid)

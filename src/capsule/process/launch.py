"""From a plan to a running command, or to the error that says why not."""

from __future__ import annotations

import os

from capsule.base import signals
from capsule.base.errors import HostError, InternalError
from capsule.base.values import Value
from capsule.launcher import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from socket import socket

    from capsule.base.errors import CapsuleError
    from capsule.confine.cgroup import Leaf
    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.launcher.failure import SetupError
    from capsule.launcher.spawn import Child
    from capsule.planner.plan import Plan
    from capsule.program.command import Command


class Running(Value):
    """A capsule whose command runs.

    Attributes:
        pid: init's process id on the host; init is a child of this process.
        pidfd: descriptor of init, readable when the whole PID namespace is gone.
        status: reads records.
        lifeline: its end ends the capsule; a byte is a signal to pass on.
        gifts: descriptors that init sent: upper layers in memory, then the master of a pty.
    """

    pid: int
    pidfd: int
    status: int
    lifeline: int
    gifts: tuple[int, ...] = ()


def launch(
    plan: Plan,
    host: Host,
    command: Command | None,
    survey: Survey,
    stdio: Sequence[int],
    *,
    passed: Mapping[int, int] | None = None,
    launcher: str = spawn.LAUNCHER,
    held: signals.Held | None = None,
    leaf: Leaf | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Running:
    """Start the capsule, in *leaf* if its plan has a cgroup, and return when its command runs.

    *meanwhile* is called once the launcher is at work.

    Raises:
        SetupError: a step failed; everything was taken down.
        HostError: the launcher could not be started.
        InternalError: the launcher broke its protocol.
    """
    with _Gifts(plan.gifts) as gifts:
        given = {**(passed or {}), **gifts.theirs}
        if leaf is not None:
            given[spawn.CGROUP_FD] = leaf.fd
        child = spawn.spawn(plan.encode(), stdio, passed=given, launcher=launcher)
        gifts.sent()
        running = _await(
            child, held, lambda report: _failure(report, plan, host, command, survey, leaf), meanwhile
        )
        if not plan.gifts:
            return running
        try:
            return running.replace(gifts=gifts.take())
        except BaseException:
            end(running)
            raise


def end(running: Running) -> None:
    """Kill a capsule that nobody watches, reap it and close what is ours of it."""
    _kill(running.pid)
    for fd in (running.pidfd, running.status, running.lifeline, *running.gifts):
        os.close(fd)


def _await(
    child: Child,
    held: signals.Held | None,
    failure: Callable[[bytes], CapsuleError],
    meanwhile: Callable[[], None] | None,
) -> Running:
    """Until the command runs. *failure* makes of a report the error that it stands for."""
    init = 0
    try:
        if meanwhile is not None:
            meanwhile()
        read = os.read if held is None else held.read
        report = read(child.error, spawn.REPORT_SIZE)
        init = _expect(child, spawn.STARTED)
        # Without the second record, init died of a signal: its end of file is not the command's.
        if report or not init or not _expect(child, spawn.READY):
            raise failure(report)
        running = Running(init, _open_init(init), child.status, child.lifeline)
    except BaseException:
        # Also what Ctrl-C raises while the launcher is at work.
        _take_down(child, init)
        raise
    spawn.reap(child.pid)
    os.close(child.error)
    return running


class _Gifts:
    """A socket over which init sends descriptors, if the plan has it send any."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ours: socket | None = None
        self._theirs: socket | None = None

    def __enter__(self) -> _Gifts:
        if self._count:
            from socket import socketpair  # 3 ms

            self._ours, self._theirs = socketpair()
        return self

    @property
    def theirs(self) -> dict[int, int]:
        """The launcher's end, and the number that it has there."""
        return {} if self._theirs is None else {spawn.GIFT_FD: self._theirs.fileno()}

    def sent(self) -> None:
        """The launcher has a copy of its end now."""
        if self._theirs is not None:
            self._theirs.close()

    def take(self) -> tuple[int, ...]:
        """Return what was sent. Init did so before the command ran, so this does not wait."""
        from socket import CMSG_LEN, MSG_CMSG_CLOEXEC

        taken: list[int] = []
        while self._ours is not None and len(taken) < self._count:
            # One byte and one descriptor a message. Not recv_fds, which ignores its flags.
            data, told, _, _ = self._ours.recvmsg(1, CMSG_LEN(4), MSG_CMSG_CLOEXEC)
            fds = [fd for _, _, found in told for fd in memoryview(found).cast("i")]
            taken += fds
            if not data or not fds:
                for fd in taken:
                    os.close(fd)
                raise InternalError("init did not send all descriptors")
        return tuple(taken)

    def __exit__(self, *_exception: object) -> None:
        for end in (self._ours, self._theirs):
            if end is not None:
                end.close()


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
    report: bytes, plan: Plan, host: Host, command: Command | None, survey: Survey, leaf: Leaf | None
) -> SetupError | HostError | InternalError:
    if not report and leaf is not None and leaf.account().oom_kills:
        return HostError(
            "memory: the limit is too low to set the capsule up",
            hint="raise it (--memory): what sets it up, and its files in memory, count as well",
        )
    if not report:
        return InternalError("the launcher or init ended without a report")
    if len(report) != spawn.REPORT_SIZE:
        return InternalError("the report of the launcher is cut off")
    index, error = memoryview(report).cast("i")
    if not 0 <= index < len(plan.steps):
        return InternalError(f"the launcher refused the plan: {os.strerror(error)}")
    from capsule.launcher.failure import SetupError

    from .hints import exit_code_for, hint_for, host_error_for  # only where something failed

    step = plan.steps[index]
    refused = host_error_for(step, error, host)
    if refused is not None:
        return refused
    hint = hint_for(step, error, host, command, survey)
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

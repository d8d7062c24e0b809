"""From a plan to a running command, or to the error that says why not."""

from __future__ import annotations

import errno
import os

from capsule.base import signals
from capsule.base.errors import CapsuleError, HostError, InternalError
from capsule.base.values import Value
from capsule.host.host import expected
from capsule.launcher import spawn
from capsule.launcher.step import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import TypeVar

    from capsule.confine.cgroup import Leaf
    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.launcher.failure import SetupError
    from capsule.launcher.spawn import Child
    from capsule.launcher.step import Step
    from capsule.planner.plan import Plan
    from capsule.program.command import Command

    Started = TypeVar("Started")


class Running(Value):
    """A capsule whose command runs.

    Attributes:
        pid: init's process id on the host; init is a child of this process.
        pidfd: descriptor of init, readable when the whole PID namespace is gone.
        status: reads records.
        lifeline: its end ends the capsule; a byte is a signal to pass on.
        gifts: descriptors that init sent: upper layers in memory, sockets, then the master of a pty.
        channel: socket by which init is asked for more, if its plan says so; else -1.
        handed_over: CLOCK_MONOTONIC at which it got its command, if it was made before that; else 0.
    """

    pid: int
    pidfd: int
    status: int
    lifeline: int
    gifts: tuple[int, ...] = ()
    channel: int = -1
    handed_over: float = 0.0


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
    bases: bool = False,
) -> Running:
    """Start the capsule, in *leaf* if its plan has a cgroup, and return when its command runs.

    *meanwhile* is called once the launcher is at work. With *bases*, what is the same for many capsules
    may come from a base that this process holds.

    Raises:
        SetupError: a step failed; everything was taken down.
        HostError: the launcher could not be started.
        InternalError: the launcher broke its protocol.
    """
    given = dict(passed or {})
    if leaf is not None:
        given[spawn.CGROUP_FD] = leaf.fd

    def start(text: bytes, more: Mapping[int, int], origin: Sequence[int]) -> Running:
        def failure(report: bytes, pids: Sequence[int]) -> CapsuleError:
            about = plan, host, command, survey, leaf
            return failure_of(report, pids, *about, origin, looked=host.presumed)

        about = {**given, **more}, launcher, held, failure, meanwhile, plan.way is not None
        return _launch(expecting(text, host), plan.gifts, stdio, *about)

    # The files of a base belong to each of its capsules.
    shares = plan.filter is not None and plan.filter.refuses_leases
    if bases and shares and _is_one_of_many():
        return by_base(plan, plan.steps, plan.encode, start, stdio, launcher, held)
    return start(plan.encode(), {}, ())


def by_base(
    plan: Plan,
    steps: Sequence[Step],
    whole: Callable[[], bytes],
    start: Callable[[bytes, Mapping[int, int], Sequence[int]], Started],
    stdio: Sequence[int],
    launcher: str = spawn.LAUNCHER,
    held: signals.Held | None = None,
) -> Started:
    """Start a plan, or the first part of one, in a base, if there is one for it, and else as it is.

    Args:
        plan: the whole plan.
        steps: what of it is started.
        whole: returns what the launcher reads of it.
        start: starts what the launcher reads, with these descriptors; and which of these steps each of
            its own is, if it is not all of them.
        stdio: of a launcher that makes a base.
        launcher: as `launch`.
        held: as `launch`.
    """
    from . import base

    joining = base.find(tuple(steps), lambda steps: _make_base(steps, stdio, launcher, held))
    if joining is None:
        return start(whole(), {}, ())
    try:
        return start(joining.plan, joining.passed, joining.origin)
    except CapsuleError as error:
        # A step of the command itself would fail all the same.
        fork = next(i for i, step in enumerate(plan.steps) if step.word == "fork")
        if getattr(error, "index", -1) > fork:
            raise
    finally:
        joining.close()
    # The base may be it: if only by what it holds, where a host allows few namespaces.
    base.refuse(joining.key)
    return start(whole(), {}, ())


def expecting(text: bytes, host: Host) -> bytes:
    """Have a plan begin with a look whether the host is what it was presumed to be, if it was."""
    if not host.presumed:
        return text
    return encode((expected(host),)) + text.removeprefix(encode(()))


# The first runs of a process go without a base: to import what makes one takes 2.5 ms.
FIRST_RUNS = 3
_launches = 0


def _is_one_of_many() -> bool:
    """Count a launch, and return whether this process has done several before."""
    global _launches  # noqa: PLW0603
    _launches += 1
    return _launches > FIRST_RUNS


def _launch(
    text: bytes,
    count: int,
    stdio: Sequence[int],
    given: Mapping[int, int],
    launcher: str,
    held: signals.Held | None,
    failure: Callable[[bytes, Sequence[int]], CapsuleError],
    meanwhile: Callable[[], None] | None,
    channel: bool = False,
) -> Running:
    """Have a plan performed, take as many descriptors as init sends, and keep the *channel* to it."""
    with Gifts(count, always=channel) as gifts:
        child = spawn.spawn(text, stdio, passed={**given, **gifts.theirs}, launcher=launcher)
        gifts.sent()
        running = _await(child, held, failure, meanwhile)
        if not count and not channel:
            return running
        try:
            taken = gifts.take()
            return running.replace(gifts=taken, channel=gifts.keep().detach() if channel else -1)
        except BaseException:
            end(running)
            raise


def _make_base(
    steps: tuple[Step, ...], stdio: Sequence[int], launcher: str, held: signals.Held | None
) -> tuple[int, int]:
    """The namespaces of a base. Its init ends as soon as it has sent them."""
    refused = HostError("no base can be made here")
    text = encode(steps)
    running = _launch(text, 2, stdio, {}, launcher, held, lambda *_told: refused, None)
    end(running.replace(gifts=()))
    return running.gifts[0], running.gifts[1]


def end(running: Running) -> None:
    """Kill a capsule that nobody watches, reap it and close what is ours of it."""
    kill(running.pid)
    for fd in (running.pidfd, running.status, running.lifeline, running.channel, *running.gifts):
        if fd >= 0:
            os.close(fd)


def _await(
    child: Child,
    held: signals.Held | None,
    failure: Callable[[bytes, Sequence[int]], CapsuleError],
    meanwhile: Callable[[], None] | None,
) -> Running:
    """Until the command runs. *failure* makes of a report, or of who ended without, an error."""
    init = 0
    try:
        if meanwhile is not None:
            meanwhile()
        if _launches == FIRST_RUNS:
            from . import base  # noqa: F401 - for the next run, while the launcher is at work
        read = os.read if held is None else held.read
        report = read(child.error, spawn.REPORT_SIZE)
        init = expect(child.status, spawn.STARTED)
        # Without the second record, init died of a signal: its end of file is not the command's.
        if report or not init or not expect(child.status, spawn.READY):
            raise failure(report, (child.pid, init) if init else (child.pid,))
        running = Running(init, open_init(init), child.status, child.lifeline)
    except BaseException:
        # Also what Ctrl-C raises while the launcher is at work.
        take_down(child, init)
        raise
    spawn.reap(child.pid)
    os.close(child.error)
    return running


class Gifts:
    """A socket over which init sends descriptors, if the plan has it send any.

    Args:
        count: how many.
        always: whether there is a socket in any case.
    """

    def __init__(self, count: int, *, always: bool = False) -> None:
        self._count = count
        self._wanted = always or bool(count)
        self._ours: socket | None = None
        self._theirs: socket | None = None

    def __enter__(self) -> Gifts:
        if self._wanted:
            from _socket import socketpair  # socket itself takes 10 ms to import

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
        from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC

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

    def keep(self) -> socket:
        """Give our end away: it has another owner now."""
        assert self._ours is not None
        kept, self._ours = self._ours, None
        return kept

    def __exit__(self, *_exception: object) -> None:
        for end in (self._ours, self._theirs):
            if end is not None:
                end.close()


def open_init(init: int) -> int:
    """A pidfd of init, or something else that is always readable if init is gone already.

    It is our child, so it can be gone only if somebody else in this process waits for all children.
    """
    try:
        return os.pidfd_open(init)
    except ProcessLookupError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def expect(status: int, kind: int) -> int:
    """The value of the next record, which must be of a kind; 0 at the end of file."""
    return expect_any(status, (kind,))[1]


def expect_any(status: int, kinds: Collection[int]) -> tuple[int, int]:
    """(Kind, value) of the next record, which must be of one of these; (0, 0) at the end of file."""
    record = spawn.read_record(status)
    if record is None:
        return 0, 0
    if record[0] not in kinds:
        raise InternalError(f"a record of kind {record[0]} instead of {', '.join(map(str, kinds))}")
    return record[0], record[1]


def failure_of(
    report: bytes,
    pids: Sequence[int],
    plan: Plan,
    host: Host,
    command: Command | None,
    survey: Survey,
    leaf: Leaf | None,
    origin: Sequence[int],
    *,
    looked: bool,
) -> SetupError | HostError | InternalError:
    """Return what a report means, or who ended without one.

    Args:
        report: what the error pipe held.
        pids: those that may have ended, the launcher first.
        plan: what was to be done.
        host: of the plan.
        command: likewise.
        survey: likewise.
        leaf: the capsule's cgroup, or None.
        origin: which step of the plan each of the launcher's was; () if they are the plan's own.
        looked: whether the launcher's first step was a look at the host.
    """
    if not report and leaf is not None and leaf.account().oom_kills:
        return HostError(
            "memory: the limit is too low to set the capsule up",
            hint="raise it (--memory): what sets it up, and its files in memory, count as well",
        )
    if not report:
        from capsule.launcher.failure import killed

        return killed(*pids) or InternalError("the launcher or init ended without a report")
    if len(report) != spawn.REPORT_SIZE:
        return InternalError("the report of the launcher is cut off")
    index, error = memoryview(report).cast("i")
    if error == errno.EFAULT:
        from capsule.launcher.failure import starved

        if (refused := starved()) is not None:
            return refused
    if looked:
        index -= 1
        if index == -1:
            return HostError("the kernel does not offer what its release does")
    if 0 <= index < len(origin):
        index = origin[index]
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


def take_down(child: Child, init: int) -> None:
    """End and reap a launcher and, if it was cloned, its init; then nothing of the capsule is left."""
    # First init's pid, which the launcher tells at once, or ends. Once told of, init leaves the group.
    if not init:
        try:
            init = expect(child.status, spawn.STARTED)
        except InternalError:
            init = 0
    spawn.end_group(child.pid)
    if init:
        kill(init)
    for fd in (child.error, child.status, child.lifeline):
        os.close(fd)


def kill(pid: int) -> None:
    """Kill and reap a child that nobody has reaped yet."""
    try:
        os.kill(pid, signals.SIGKILL)
    except ProcessLookupError:
        pass
    spawn.reap(pid)

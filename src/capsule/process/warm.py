"""A capsule that is made before its command is known, and how it gets one.

Its process waits with all done that can be; nothing foreign has run in it. The rest of the plan comes
in a plan of its own, together with the command's descriptors (launcher/rest.c).
"""

from __future__ import annotations

import os
import select
import sys
import time
from _socket import MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET

from capsule.base.descriptors import Descriptors
from capsule.base.values import Value
from capsule.launcher import spawn
from capsule.launcher import steps as s
from capsule.planner.ahead import part

from .launch import (
    Gifts,
    Running,
    by_base,
    expect_any,
    expecting,
    failure_of,
    kill,
    open_init,
    take_down,
)
from .stdio import PLAIN, Streams, open_stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Mapping, Sequence

    from capsule.base import signals
    from capsule.base.errors import CapsuleError
    from capsule.confine.cgroup import Leaf
    from capsule.files.found import Survey
    from capsule.host.host import Host
    from capsule.launcher.spawn import Child
    from capsule.planner.plan import Plan
    from capsule.program.command import Command

    Failure = Callable[[bytes, Sequence[int]], CapsuleError]

# scm_rights(7) takes 253; the plan and the three standard ones go with them.
MOST_PASSED = 249


class Warm(Value):
    """A capsule that waits for its command. To be handed over once, or ended.

    Attributes:
        pid: init's process id on the host.
        pidfd: of init.
        error: reads the report of a step that failed.
        status: reads records.
        lifeline: as of `Running`.
        socket: takes the rest.
        gifts: as of `Running`.
        count: of steps that made it, as the launcher counts.
        leaf: its cgroup, or None.
        streams: our ends of the descriptors that it was made with.
    """

    pid: int
    pidfd: int
    error: int
    status: int
    lifeline: int
    socket: socket
    gifts: tuple[int, ...]
    count: int
    leaf: Leaf | None
    streams: Streams

    def end(self) -> None:
        """Kill it, reap it and let go of everything."""
        kill(self.pid)
        self.forget()
        if self.leaf is not None:
            self.leaf.remove()

    def forget(self) -> None:
        """Close what is ours of it. In a child that was forked it is the parent's."""
        self.streams.close()
        self.socket.close()
        for fd in (self.pidfd, self.error, self.status, self.lifeline, *self.gifts):
            os.close(fd)


def prepare(plan: Plan, host: Host, command: Command, survey: Survey, leaf: Leaf | None) -> Warm:
    """Make a capsule by the first part of a plan.

    Raises:
        SetupError, HostError, InternalError: as `launch.launch`.
    """
    parts = part(plan)
    whole, places = (*parts.first, s.Rest()), (*parts.origin, -1)
    about = plan, host, command, survey, leaf

    def start(text: bytes, given: Mapping[int, int], origin: Sequence[int]) -> Warm:
        def failure(report: bytes, pids: Sequence[int]) -> CapsuleError:
            real = [places[at] if at >= 0 else -1 for at in origin] if origin else places
            return failure_of(report, pids, *about, real, looked=host.presumed)

        with Gifts(plan.gifts, always=True) as gifts:
            passed = {**given, **gifts.theirs}
            if leaf is not None:
                passed[spawn.CGROUP_FD] = leaf.fd
            child = spawn.spawn(expecting(text, host), stdio, passed=passed)
            gifts.sent()
            pid, pidfd = _await(child, failure)
            ends = child.error, child.status, child.lifeline
            try:
                taken = gifts.take()
            except BaseException:
                kill(pid)
                for fd in (pidfd, *ends):
                    os.close(fd)
                raise
            count = len(origin or whole) + host.presumed
            streams.unblock()
            return Warm(pid, pidfd, *ends, gifts.keep(), taken, count, leaf, streams.move())

    with Streams() as streams, Descriptors(plan.owner) as theirs:
        stdio = open_stdio(PLAIN, streams, theirs)
        # As many are made, it is worth a base; whose files belong to each of its capsules.
        if plan.filter is None or not plan.filter.refuses_leases:
            return start(s.encode(whole), {}, ())
        return by_base(plan, whole, lambda: s.encode(whole), start, stdio)


def _await(child: Child, failure: Failure) -> tuple[int, int]:
    """(Init's process id, a pidfd of it) once the command's process waits and init is ready.

    Each of them says so itself, in whichever order.
    """
    waiting = select.poll()
    for fd in (child.status, child.error):
        waiting.register(fd, select.POLLIN)
    init = 0
    missing = {spawn.STARTED, spawn.READY, spawn.WAITING}
    try:
        while missing:
            ready = dict(waiting.poll())
            if child.error in ready:
                report = os.read(child.error, spawn.REPORT_SIZE)
                raise failure(report, (child.pid, init) if init else (child.pid,))
            kind, value = expect_any(child.status, missing)
            init = value if kind == spawn.STARTED else init
            missing.discard(kind)
        pidfd = open_init(init)
    except BaseException:
        take_down(child, init)
        raise
    spawn.reap(child.pid)
    return init, pidfd


def hand_over(
    warm: Warm,
    plan: Plan,
    host: Host,
    command: Command,
    survey: Survey,
    stdio: Sequence[int],
    *,
    passed: Mapping[int, int],
    still: Callable[[], bool],
    held: signals.Held | None = None,
) -> Running | None:
    """Give a capsule its command, and return when that runs. If this fails, the capsule is to be ended.

    Returns:
        None if it is not to be used.

    Args:
        warm: the capsule.
        plan: what the command is to get, whose first part is the one that made the capsule.
        host: of the plan.
        command: likewise.
        survey: likewise.
        stdio: three descriptors to become 0, 1 and 2; () for those that the capsule was made with.
        passed: further ones: number in the launcher to ours.
        still: asked, while the command's process makes itself ready, whether the capsule is what would
            be made now. Before the answer nothing foreign runs in it.
        held: the block of signals that this is in.

    Raises:
        BrokenPipeError: the capsule had ended before.
        SetupError, HostError, InternalError: as `launch.launch`.
    """
    parts = part(plan)
    handed_over = time.monotonic()
    if parts.begin:
        # Init first: its clock runs when the command does.
        os.write(warm.lifeline, parts.begin)
    text = _rest_text(parts.rest, plan.steps[-1])
    _send(warm, text, (*stdio, *passed.values()))
    if not still():
        return None
    warm.socket.send(b"\0", MSG_NOSIGNAL)
    read = os.read if held is None else held.read
    report = read(warm.error, spawn.REPORT_SIZE)
    if report:
        about = plan, host, command, survey, warm.leaf
        origin = (*(-1,) * warm.count, *parts.later, len(plan.steps) - 1)
        raise failure_of(report, (warm.pid,), *about, origin, looked=False)
    warm.socket.close()
    os.close(warm.error)
    ends = warm.status, warm.lifeline
    return Running(warm.pid, warm.pidfd, *ends, warm.gifts, handed_over=handed_over)


def _send(warm: Warm, text: bytes, fds: Sequence[int]) -> None:
    numbers = b"".join([fd.to_bytes(4, sys.byteorder) for fd in fds])
    control = [(SOL_SOCKET, SCM_RIGHTS, numbers)] if fds else []
    data = memoryview(len(text).to_bytes(8, sys.byteorder) + text)
    sent = warm.socket.sendmsg([data], control, MSG_NOSIGNAL)
    while sent < len(data):
        sent += warm.socket.send(data[sent:], MSG_NOSIGNAL)


# The last rest and the last words of a command, and what the launcher reads of them.
_last: tuple[tuple[s.Step, ...], s.Step | None, bytes] = ((), None, b"")


def _rest_text(rest: tuple[s.Step, ...], words: s.Step) -> bytes:
    global _last  # noqa: PLW0603
    last = _last
    if last[0] is not rest or last[1] is not words:
        last = _last = rest, words, s.encode((*rest, words))
    return last[2]

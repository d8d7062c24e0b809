"""From init's last record to how the run ended: pure."""

from __future__ import annotations

import errno
import os

from capsule.base import signals
from capsule.base.text import describe_size, round_size
from capsule.planner.limits import INIT

from .result import Outcome, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from capsule.confine.cgroup import Account
    from capsule.confine.seccomp.filters import Filter
    from capsule.policy.limits import Limits

# enum end_reason of launcher/util.h
_BY_COMMAND, _BY_DEADLINE, _BY_CPU_TIME, _BY_IDLE, _BY_MEMORY, _WITHOUT_SHARED = range(6)

_SHARED_FULL = "shared memory was full, and SIGBUS refuses more; --tmpfs /dev/shm:SIZE gives it"
# Only a file of rules can end a program for another reason; it may have said SCMP_ACT_KILL.
_FOREIGN = (
    "it made a system call through another interface of the kernel (32-bit, x32), or one that a file "
    "of rules ends it for; only --seccomp off lets it run"
)


def verdict(
    record: tuple[int, ...] | None,
    limits: Limits,
    filter_: Filter | None,
    account: Account | None = None,
    *,
    killed: bool,
    truncated: bool,
) -> tuple[Outcome, int, str]:
    """Return the outcome, the returncode and the detail.

    What was done to the command comes before what it did itself.

    Args:
        record: init's last record; None if it was killed before it could write one.
        limits: those of the run.
        filter_: that of the run, or None.
        account: of the run's cgroup, or None if it had none.
        killed: whether the caller killed it.
        truncated: whether it wrote more than the limit.
    """
    done = _done_to_it(record, limits, account, killed=killed, truncated=truncated)
    if done is not None:
        return done[0], -signals.SIGKILL, done[1]
    assert record is not None
    status = record[1]
    met = _SHARED_FULL if record[2] == _WITHOUT_SHARED else _met(limits, account)
    if not os.WIFSIGNALED(status):
        return Outcome.EXITED, os.WEXITSTATUS(status), met
    number = os.WTERMSIG(status)
    if filter_ is not None and number == signals.SIGSYS:
        return Outcome.FILTERED, -number, _FOREIGN
    if number == signals.SIGXFSZ and limits.file_size is not None:
        size = describe_size(limits.file_size)
        return Outcome.SIGNALED, -number, f"a file was to grow beyond {size}; raise it with --file-size"
    return Outcome.SIGNALED, -number, met


def _done_to_it(
    record: tuple[int, ...] | None,
    limits: Limits,
    account: Account | None,
    *,
    killed: bool,
    truncated: bool,
) -> tuple[Outcome, str] | None:
    """Return what ended the whole capsule; None if its command ended by itself."""
    if truncated:
        return Outcome.OUTPUT_LIMIT, f"more than {limits.output} bytes of output"
    if account is not None and account.oom_kills:
        return Outcome.OUT_OF_MEMORY, _memory(limits, account.peak_memory)
    if record is None:
        return Outcome.KILLED, f"killed {'by the caller' if killed else 'from outside of the capsule'}"
    reasons = {
        _BY_DEADLINE: (Outcome.TIMED_OUT, f"after {limits.timeout or 0:g} s"),
        _BY_CPU_TIME: (Outcome.CPU_TIME, f"after {limits.cpu_time or 0:g} s of CPU time"),
        _BY_IDLE: (Outcome.IDLE, f"no CPU used and nothing written for {limits.idle or 0:g} s"),
        _BY_MEMORY: (Outcome.OUT_OF_MEMORY, _memory(limits, None)),
    }
    return reasons.get(record[2])


def _memory(limits: Limits, peak: int | None) -> str:
    if limits.memory is None:
        return "the host had none left"
    seen = "" if peak is None else f", peak {round_size(peak)}"
    return f"limit {describe_size(limits.memory)}{seen}"


def _met(limits: Limits, account: Account | None) -> str:
    """A limit that only fails what would exceed it."""
    if account is None or not account.pids_met:
        return ""
    times = "once" if account.pids_met == 1 else f"{account.pids_met} times"
    return f"the limit of {limits.pids} processes was met {times}; raise it with --pids"


def usage(
    record: tuple[int, ...] | None,
    account: Account | None = None,
    wall: float = 0.0,
    told: tuple[int, ...] | None = None,
    in_use: tuple[int | None, int | None] = (None, None),
    *,
    handed_over: float = 0.0,
) -> Usage:
    """Return what the run cost: what the cgroup says, and for the rest init's last record.

    Args:
        record: that record; None as long as there is none.
        account: of the cgroup, or None.
        wall: seconds since the start, for want of a record.
        told: what init says while the command runs, for want of both.
        in_use: bytes and processes of the cgroup at this moment, while the command runs.
        handed_over: CLOCK_MONOTONIC at which a capsule that was made ahead got its command, or 0. From
            0 on the record counts then.
    """
    warm = bool(handed_over)
    if record is not None:
        found = _waited(record, wall, handed_over)
    else:
        found = Usage(wall=wall, warm=warm) if told is None else _seen(told, wall, warm=warm)
    if account is None:
        return found
    return found.replace(
        cpu_user=account.cpu_user,
        cpu_system=account.cpu_system,
        peak_memory=max(account.peak_memory or 0, found.peak_memory),
        peak_pids=None if account.peak_pids is None else max(1, account.peak_pids - INIT),
        throttled=account.throttled,
        oom_kills=account.oom_kills,
        memory=in_use[0],
        pids=None if in_use[1] is None else max(0, in_use[1] - INIT),
        source="cgroup",
    )


def _waited(record: tuple[int, ...], most: float, handed_over: float) -> Usage:
    wall, user, system, peak, minor, major, voluntary, involuntary = record[3:11]
    return Usage(
        # Init's clock may have an offset from ours, time_namespaces(7).
        wall=min(max(0.0, wall / 1e6 - handed_over), most) if handed_over else wall / 1e6,
        warm=bool(handed_over),
        cpu_user=user / 1e6,
        cpu_system=system / 1e6,
        peak_memory=peak * 1024,
        source="wait4",
        minor_faults=minor,
        major_faults=major,
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
    )


def _seen(told: tuple[int, ...], wall: float, *, warm: bool) -> Usage:
    user, system, largest, memory, pids = told[1:6]
    return Usage(
        wall=wall,
        warm=warm,
        cpu_user=user / 1e6,
        cpu_system=system / 1e6,
        peak_memory=largest,
        memory=memory,
        pids=pids,
        source="proc",
    )


def omitted(record: tuple[int, ...] | None) -> int | None:
    """How many refusals are of no kind that init tells of; None if it had no last word."""
    return None if record is None else record[11]


def says_read_only(stderr: Any) -> bool:
    """Return whether a command has written that it was told EROFS."""
    said = os.strerror(errno.EROFS)
    return stderr is not None and (said if isinstance(stderr, str) else said.encode()) in stderr

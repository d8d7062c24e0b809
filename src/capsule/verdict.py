"""From init's last record to how the run ended: pure."""

from __future__ import annotations

import os

from . import signals
from .result import Outcome, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .policy import Limits
    from .seccomp import Filter

# enum end_reason of launcher/util.h
_BY_COMMAND, _BY_DEADLINE = range(2)


# Only a file of rules can end a program for another reason; it may have said SCMP_ACT_KILL.
_FOREIGN = (
    "it made a system call through another interface of the kernel (32-bit, x32), or one that a file "
    "of rules ends it for; only --seccomp off lets it run"
)


def verdict(
    record: tuple[int, ...] | None,
    limits: Limits,
    filter_: Filter | None,
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
        killed: whether the caller killed it.
        truncated: whether it wrote more than the limit.
    """
    if truncated:
        return Outcome.OUTPUT_LIMIT, -signals.SIGKILL, f"more than {limits.output} bytes of output"
    if record is None:
        who = "by the caller" if killed else "from outside of the capsule"
        return Outcome.KILLED, -signals.SIGKILL, f"killed {who}"
    status, reason = record[1:3]
    if reason == _BY_DEADLINE:
        return Outcome.TIMED_OUT, -signals.SIGKILL, f"after {limits.timeout:g} s"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        by_filter = filter_ is not None and number == signals.SIGSYS
        return Outcome.SIGNALED, -number, _FOREIGN if by_filter else ""
    return Outcome.EXITED, os.WEXITSTATUS(status), ""


def usage(record: tuple[int, ...] | None) -> Usage:
    """Return what the run cost, as init's last record says."""
    if record is None:
        return Usage()
    wall, user, system, peak, minor, major, voluntary, involuntary = record[3:11]
    return Usage(
        wall=wall / 1e6,
        cpu_user=user / 1e6,
        cpu_system=system / 1e6,
        peak_memory=peak * 1024,
        minor_faults=minor,
        major_faults=major,
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
    )


def omitted(record: tuple[int, ...] | None) -> int | None:
    """How many refusals are of no kind that init tells of; None if it had no last word."""
    return None if record is None else record[11]

"""A plan in two parts: what makes a capsule before its command is known, and what comes then; pure.

What is ahead is what the whole plan does first, and in the same order: all of init's part but for the
limits of time, which begin with the run, and of the command's what neither depends on its words nor
stands in the way of what comes then. The filter is one of these if it allows that for certain.
"""

from __future__ import annotations

import struct

from capsule.base.values import Value
from capsule.confine.seccomp.filters import BUILT_IN
from capsule.launcher import steps as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.confine.seccomp.filters import Filter

    from .plan import Plan

# Of init: they begin with the run. A byte of the lifeline, and struct begin of launcher/launcher.h
_TIMES = (s.Deadline, s.CpuTime, s.Idle)
BEGIN = 65
_BEGIN = struct.Struct("=B4Q")
# Of the command, which it can do at once.
_AT_ONCE = (s.BoundingSet, s.Capabilities, s.NoNewPrivs)


class Parts(Value):
    """The two parts of a plan, but for its last step, which executes the command's words.

    Attributes:
        first: the steps of the plan that makes the capsule, without the last, which waits.
        rest: those of the other.
        origin: which step of the whole plan each of the first is.
        later: the same of the rest; -1 for the one that waits.
        begin: what init is told when the run begins; b"" if it has no limit of time.
    """

    first: tuple[s.Step, ...]
    rest: tuple[s.Step, ...]
    origin: tuple[int, ...]
    later: tuple[int, ...]
    begin: bytes


# From run to run it is the same, compared for that is mostly the very same objects.
_last: tuple[tuple[s.Step, ...], Filter | None, Parts | None] = ((), None, None)


def part(plan: Plan) -> Parts:
    """Part a plan that runs a command."""
    global _last  # noqa: PLW0603
    last, steps = _last, plan.steps[:-1]
    if last[2] is None or last[1] is not plan.filter or last[0] != steps:
        last = _last = steps, plan.filter, _part(steps, plan.filter)
    parts = last[2]
    assert parts is not None
    return parts


def _part(steps: tuple[s.Step, ...], filter_: Filter | None) -> Parts:
    at_once = _at_once(steps, filter_)
    fork = next(index for index, step in enumerate(steps) if isinstance(step, s.Fork))
    first, later = [], []
    times: dict[type[s.Step], s.Step] = {}
    for index, step in enumerate(steps):
        if isinstance(step, _TIMES):
            times[type(step)] = step
        elif index <= fork or isinstance(step, at_once):
            first.append(index)
        else:
            later.append(index)
    # What is left after it is the filter, at the most.
    rest = [steps[index] for index in later]
    go = next((at for at, step in enumerate(rest) if isinstance(step, s.Seccomp)), len(rest))
    rest.insert(go, s.Go())
    later.insert(go, -1)
    (deadline,) = times.get(s.Deadline, (0,))
    cpu, cpus = times.get(s.CpuTime, (0, 1))
    (idle,) = times.get(s.Idle, (0,))
    return Parts(
        tuple(steps[index] for index in first),
        tuple(rest),
        tuple(first),
        tuple(later),
        _BEGIN.pack(BEGIN, deadline, cpu, cpus, idle) if times else b"",
    )


def _at_once(steps: tuple[s.Step, ...], filter_: Filter | None) -> tuple[type[s.Step], ...]:
    """Choose what the command does before it waits.

    With another identity than the one that set up, its working directory may be closed to it later. A
    filter that a caller wrote, or took a call out of, may refuse what has to come.
    """
    if any(isinstance(step, s.Credentials) for step in steps):
        return ()
    spec = None if filter_ is None else filter_.request.spec
    known = spec is not None and spec.profile in BUILT_IN and not spec.deny
    return (*_AT_ONCE, s.Seccomp) if known else _AT_ONCE

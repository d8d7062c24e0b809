"""Taking times side by side, and what they come to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Subject = Callable[[], float]

WARM_UP = 5


@dataclass(frozen=True)
class Sample:
    """What many times, in seconds, come to."""

    count: int
    median: float
    p95: float
    least: float


@dataclass(frozen=True)
class Verdict:
    """A figure against its budget."""

    text: str
    value: float
    budget: float

    @property
    def passed(self) -> bool:
        return self.value <= self.budget


@dataclass(frozen=True)
class Row:
    """One row of the table of budgets, measured. A skipped one says why and has nothing else."""

    name: str
    title: str
    samples: Mapping[str, Sample] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    skipped: str = ""


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, interpolated between neighbours."""
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(times: Sequence[float]) -> Sample:
    """Median, 95th percentile and least of some times."""
    ordered = sorted(times)
    return Sample(len(ordered), quantile(ordered, 0.5), quantile(ordered, 0.95), ordered[0])


def interleave(subjects: Mapping[str, Subject], rounds: int) -> dict[str, Sample]:
    """Let every subject have its turn in every round, a different one first each time.

    What the machine does meanwhile then falls on all of them alike.
    """
    names = list(subjects)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-WARM_UP, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = subjects[name]()
            if turn >= 0:
                times[name].append(elapsed)
    return {name: summarise(values) for name, values in times.items()}


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start

"""What a command uses while it runs: a line on the terminal, gone before anything else is shown."""

from __future__ import annotations

import contextlib
import os
import termios

from capsule.base.text import describe_size, round_size
from capsule.process.handle import loop_of
from capsule.process.result import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.policy.limits import Limits
    from capsule.process.handle import Process

INTERVAL = 0.5  # seconds between two looks
_CLEAR = b"\r\x1b[K"
_STANDARD_ERROR = 2


class Live:
    """A line on the terminal that standard error is, for as long as a command runs.

    It shows only where the cursor is at the beginning of a line, and never on top of a program that
    draws by itself: of one whose terminal is not in canonical mode (termios(3)) nothing is known.
    """

    def __init__(self, process: Process, limits: Limits) -> None:
        self._process = process
        self._limits = limits
        self._shown = False
        self._at_start = True
        self._before = Usage()

    def __enter__(self) -> Live:
        loop_of(self._process).every(INTERVAL, self.show)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.clear()

    def show(self) -> None:
        """Write the line anew."""
        if self._at_start and self._is_free():
            used, before = self._process.usage(), self._before
            self._before = used
            text = line(used, self._limits, cpus(used, before))
            self._shown = self._write(_CLEAR + text.encode()[: self._width()])

    def clear(self) -> None:
        """Take the line away: something else is about to be written."""
        if self._shown:
            self._shown = False
            self._write(_CLEAR)

    def wrote(self, data: bytes) -> None:
        """Note what else was written to the screen."""
        self._at_start = data.endswith(b"\n")

    def _is_free(self) -> bool:
        """Return whether the program leaves the terminal's line discipline as it is."""
        master = self._process.terminal
        if master is None:
            return True
        with contextlib.suppress(termios.error, OSError):
            return bool(termios.tcgetattr(master)[3] & termios.ICANON)
        return False

    def _width(self) -> int:
        with contextlib.suppress(termios.error, OSError):
            return max(0, termios.tcgetwinsize(_STANDARD_ERROR)[1] - 1) or 79
        return 79

    def _write(self, data: bytes) -> bool:
        """Write to the terminal. False where it does not take it: a line less is no loss."""
        with contextlib.suppress(OSError):
            os.write(_STANDARD_ERROR, data)
            return True
        return False


def cpus(used: Usage, before: Usage) -> float:
    """Return how many were in use on average since an earlier look."""
    time = used.wall - before.wall
    spent = used.cpu_user + used.cpu_system - before.cpu_user - before.cpu_system
    return spent / time if time > 0 else 0.0


def line(used: Usage, limits: Limits, cpus: float) -> str:
    """Return the live line: memory, CPUs in use, processes, time."""
    memory = "" if used.memory is None else f"memory {_of(used.memory, limits.memory)}, "
    pids = "" if used.pids is None else f"{used.pids}{_bound(limits.pids)} processes, "
    share = f"{cpus:.2f}" + ("" if limits.cpus is None else f" of {limits.cpus:g}")
    bound = "" if limits.timeout is None else f" of {limits.timeout:g}"
    return f"capsule: {memory}CPUs {share}, {pids}{used.wall:.1f}{bound} s"


def summary(used: Usage, limits: Limits) -> str:
    """Return the line for the end."""
    whose = "memory" if used.source == "cgroup" else "largest process"
    peak = f"{whose} at most {_of(used.peak_memory, limits.memory)}"
    pids = (
        "" if used.peak_pids is None else f"at most {used.peak_pids}{_bound(limits.pids)} processes, "
    )
    held = f"held back {used.throttled:.3f} s, " if used.throttled else ""
    times = f"CPU {used.cpu_user + used.cpu_system:.3f} s, {held}{pids}{used.wall:.3f} s"
    return f"{peak}, {times} ({used.source or 'no account'})"


def _of(size: int, limit: int | None) -> str:
    return round_size(size) + ("" if limit is None else f" of {describe_size(limit)}")


def _bound(limit: int | None) -> str:
    return "" if limit is None else f" of {limit}"

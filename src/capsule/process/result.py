"""What a run comes to: frozen values."""

from __future__ import annotations

from capsule.base import signals
from capsule.base.errors import CapsuleError
from capsule.base.text import printable
from capsule.base.values import Choice, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    from capsule.changes.values import Change, SetAside
    from capsule.confine.seccomp.denials import Denial

    from .network.contact import Contact


class Outcome(Choice):
    """How a run ended. What the command itself did is told apart from what was done to it."""

    EXITED = "exited"
    """By itself, with a status."""
    SIGNALED = "signaled"
    """By a signal that came from inside, of the kernel for a fault, or from `Process.send_signal`."""
    TIMED_OUT = "timed out"
    """`Limits.timeout`."""
    CPU_TIME = "CPU time used up"
    """`Limits.cpu_time`."""
    IDLE = "idle"
    """`Limits.idle`."""
    OUT_OF_MEMORY = "out of memory"
    """`Limits.memory`; or the host had none left, and the kernel chose this capsule."""
    OUTPUT_LIMIT = "output limit"
    """`Limits.output`."""
    FILTERED = "killed by the filter"
    """SIGSYS of the seccomp filter. A program that sends it to itself looks the same."""
    KILLED = "killed"
    """As a whole, by the caller or by somebody else on the host."""


_TIMES = (Outcome.TIMED_OUT, Outcome.CPU_TIME, Outcome.IDLE)


class Usage(Value):
    """What a run cost.

    Attributes:
        wall: seconds from the command's start to its end.
        cpu_user: seconds of CPU time in user mode, of all processes. Without a cgroup, what a process
            used whose parent ignores SIGCHLD, and so never waits for it, is missing.
        cpu_system: seconds of CPU time in the kernel, likewise.
        peak_memory: bytes. With a cgroup the most that all held at once, with their files in memory and
            what the kernel held for them; before Linux 5.19 the most that was seen, or the limit where
            it was met. Else the largest resident set that any single process had (ru_maxrss).
        minor_faults: page faults served without I/O; this and the three after it only from wait4(2).
        major_faults: page faults that needed I/O.
        voluntary_switches: context switches by waiting.
        involuntary_switches: context switches by the scheduler.
        peak_pids: the most processes and threads at once: pids.peak (Linux 6.1), before the most that
            were seen; None without a cgroup.
        throttled: seconds for which the limit of CPUs held processes back.
        oom_kills: processes that the kernel killed for want of memory.
        source: where the figures come from: "cgroup", "wait4" (wait4(2) over the whole tree), "proc"
            (proc_pid_stat(5), while it runs) or "" if init had no last word.
        memory: bytes in use at this moment, while it runs: with a cgroup what all hold together, else
            the sum of the resident sets, where a page that processes share counts in each; else None.
        pids: processes and threads at this moment, likewise.
        warm: whether a `Pool` had the capsule ready; False where it was made for the run.
    """

    wall: float = 0.0
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    peak_memory: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    peak_pids: int | None = None
    throttled: float = 0.0
    oom_kills: int = 0
    source: str = ""
    memory: int | None = None
    pids: int | None = None
    warm: bool = False


class Result(Value):
    """How a command ended and what it left.

    Attributes:
        args: the command's argument vector.
        outcome: how it ended.
        returncode: as in `subprocess`: 0 to 255, or -N for signal N. Of a command that was killed
            for meeting a limit it is -9.
        stdout: what it wrote, bytes or str; None unless it was captured.
        stderr: likewise.
        truncated: whether output was cut off at the output limit.
        usage: what it cost.
        namespaces: the kinds of namespace that were entered.
        protections: each protection in force, and how it was enforced.
        denials: what the program tried and the seccomp filter refused, in the order in which each kind
            was first refused; at most 64 kinds. Fallbacks by design (docs/seccomp.md) are not told.
        denials_complete: whether that is all that is worth telling. Of a capsule that was killed from
            outside, or with a filter whose refusals are not told, it is not.
        denials_omitted: how many refusals were of further kinds, counted and not listed.
        detail: more of the outcome in words, or "": which limit was met, also one that does not end a
            command by itself, of processes or of a file's size.
        changes: what the upper layers of overlays changed, each layer in the order of its paths.
        changes_complete: whether that is all; a program can make more than are listed.
        set_aside: protected paths that the command made in writable trees; see ``Policy.protect``.
        network: what was reached, of a capsule with a list of hosts or published ports, and what was
            refused; see `Contact`.
        notes: what else was noticed at the end.
        hints: of a command that failed, or said so, what may be of use: which paths of the host its
            words name that are not shown; that a directory is shown read-only, where that was an error.
    """

    args: tuple[str, ...]
    outcome: Outcome
    returncode: int
    stdout: Any = None
    stderr: Any = None
    truncated: bool = False
    usage: Usage = Usage()
    namespaces: tuple[str, ...] = ()
    protections: Mapping[str, str] = {}
    denials: tuple[Denial, ...] = ()
    denials_complete: bool = True
    denials_omitted: int = 0
    detail: str = ""
    changes: tuple[Change, ...] = ()
    changes_complete: bool = True
    set_aside: tuple[SetAside, ...] = ()
    network: tuple[Contact, ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with status 0."""
        return self.outcome is Outcome.EXITED and self.returncode == 0

    @property
    def signal(self) -> int | None:
        """Number of the signal that ended the command, or None."""
        return -self.returncode if self.returncode < 0 else None

    @property
    def exit_status(self) -> int:
        """What a shell sees: the status, 128+N for signal N, 124 if a limit of time was met."""
        if self.outcome in _TIMES:
            return 124
        return 128 - self.returncode if self.returncode < 0 else self.returncode

    def describe(self) -> str:
        """One line: how the command ended."""
        name = printable(self.args[0])
        if self.outcome is Outcome.EXITED:
            return f"{name} exited with status {self.returncode}{self._why()}"
        if self.outcome is Outcome.SIGNALED:
            return f"{name} was ended by {signals.name(-self.returncode)}{self._why()}"
        return f"{name}: {self.outcome.value}{self._why()}"

    def _why(self) -> str:
        return f": {self.detail}" if self.detail else ""

    def check(self) -> Self:
        """Return the result itself if the command succeeded.

        Raises:
            CommandFailed: it did not end by itself with status 0.
        """
        if not self.ok:
            raise CommandFailed(self)
        return self


class CommandFailed(CapsuleError):
    """The command ran and did not succeed. Raised by `Result.check` alone.

    Attributes:
        result: the whole `Result`.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(result.describe())
        self.result = result

    def __str__(self) -> str:
        return self.message

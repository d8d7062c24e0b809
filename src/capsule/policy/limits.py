"""How much a run may use: frozen values, and their validation."""

from __future__ import annotations

from capsule.base.errors import PolicyError
from capsule.base.values import Value

from .units import parse_count, parse_cpus, parse_size, parse_time, wrong

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self, TypedDict, Unpack

    Size = int | str
    Time = float | str

    class LimitFields(TypedDict, total=False):
        """What `Limits` takes."""

        timeout: Time | None
        output: Size | None
        cpu_time: Time | None
        idle: Time | None
        memory: Size | None
        swap: Size | None
        cpus: float | str | None
        cpu_weight: int | str | None
        pids: int | str | None
        file_size: Size | None
        open_files: int | str | None
        ulimits: Sequence[str]


# Less does not even hold what sets a capsule up.
LEAST_MEMORY, LEAST_FILES = 1 << 20, 16


class Limits(Value):
    """How much a run may use. None is no limit.

    *memory*, *cpus*, *cpu_weight*, *pids* and *cpu_time* hold for all processes of the capsule
    together. They need a cgroup (docs/limits.md); where none can be made, `Policy.allow_degraded` says
    which of them may be enforced in a weaker way.

    Attributes:
        timeout: seconds (or text such as "1m30s") from the command's start until everything is
            killed, whatever it does with its signals. Kept by init with CLOCK_MONOTONIC.
        output: bytes that are captured of stdout and stderr together. One byte more and the
            capsule is killed. Only what Capsule captures counts. Kept by the supervisor.
        cpu_time: seconds of CPU time of the tree, user and system, until everything is killed. Kept by
            init, which looks at cpu.stat of the cgroup.
        idle: seconds without any use of a CPU, and hence without output, until everything is killed.
            Kept by init, which looks at the clocks of the processes; clock_getcpuclockid(3).
        memory: bytes, those of private file systems and of the kernel for the capsule included, from
            1 MiB. One page more and everything is killed. memory.max and memory.oom.group (4.19).
        swap: bytes of swap on top of *memory*; memory.swap.max.
        cpus: how many CPUs' worth of time in each tenth of a second; cpu.max.
        cpu_weight: share of the CPUs when they are contended, from 1 to 10000; others have 100;
            cpu.weight.
        pids: processes and threads at once. One more fails with EAGAIN; pids.max. Without this limit
            there may be 2048, counted by RLIMIT_NPROC, which counts by user namespace since 5.14.
        file_size: bytes of any one file that is written to; RLIMIT_FSIZE, setrlimit(2).
        open_files: descriptors that a process may have, from 16; RLIMIT_NOFILE.
        ulimits: other limits of each process, as "NAME=SOFT:HARD" or "NAME=BOTH", by the names of
            setrlimit(2) in lower case, bytes as sizes, or "unlimited": ["stack=64M", "rtprio=0:10"].
    """

    timeout: float | None = None
    output: int | None = 16 << 20
    cpu_time: float | None = None
    idle: float | None = None
    memory: int | None = None
    swap: int | None = 0
    cpus: float | None = None
    cpu_weight: int | None = None
    pids: int | None = None
    file_size: int | None = None
    open_files: int | None = None
    ulimits: tuple[str, ...] = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            timeout: float | str | None = None,
            output: int | str | None = 16 << 20,
            cpu_time: float | str | None = None,
            idle: float | str | None = None,
            memory: int | str | None = None,
            swap: int | str | None = 0,
            cpus: float | str | None = None,
            cpu_weight: int | str | None = None,
            pids: int | str | None = None,
            file_size: int | str | None = None,
            open_files: int | str | None = None,
            ulimits: Sequence[str] = (),
        ) -> None: ...

        def replace(self, **changes: Unpack[LimitFields]) -> Self:  # type: ignore[override]
            """Return a copy with the named fields changed, validated anew."""

    def __post_init__(self) -> None:
        for field in ("timeout", "cpu_time", "idle"):
            self._parse(field, parse_time)
        for field in ("memory", "swap", "file_size", "output"):
            self._parse(field, parse_size)
        self._parse("cpus", parse_cpus)
        for field, most in (("cpu_weight", 10_000), ("pids", 1 << 22), ("open_files", 1 << 30)):
            if self.__dict__[field] is not None:
                self._set(field, parse_count(self.__dict__[field], field, most))
        if self.memory is not None and self.memory < LEAST_MEMORY:
            hint = "a capsule itself takes some hundred KiB: write 1M or more"
            raise wrong("memory", self.memory, "at least 1 MiB", hint)
        if self.open_files is not None and self.open_files < LEAST_FILES:
            hint = "what sets the command up has some open itself: write 16 or more"
            raise wrong("open_files", self.open_files, "at least 16", hint)

        self._set("ulimits", _ulimits(self.ulimits))
        for field, name in (("open_files", "nofile"), ("file_size", "fsize")):
            if self.__dict__[field] is not None and any(u.startswith(f"{name}=") for u in self.ulimits):
                message = f"ulimits: {name} is what {field} sets"
                hint = "leave one of the two out"
                raise PolicyError(message, field="ulimits", value=self.ulimits, hint=hint)

    def _parse(self, field: str, parse: Callable[[Any, str], object]) -> None:
        if self.__dict__[field] is not None:
            self._set(field, parse(self.__dict__[field], field))

    def of_tree(self) -> tuple[str, ...]:
        """Those that were set and need a cgroup."""
        names = ("memory", "cpus", "cpu_weight", "pids", "cpu_time")
        return tuple(name for name in names if self.__dict__[name] is not None)


# setrlimit(2): the number of each; those of bytes are written as sizes.
RESOURCES = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nofile": 7, "memlock": 8,
    "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
BYTES = ("fsize", "data", "stack", "core", "rss", "memlock", "as", "msgqueue")
UNLIMITED = 2**64 - 1


def _ulimits(value: Any) -> tuple[str, ...]:
    """Each name once, the last one that was given; sorted."""
    hint = 'write a list, such as ["stack=64M", "rtprio=0:10"]'
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise wrong("ulimits", value, "a list of limits", hint)
    return tuple(sorted({parse_ulimit(text)[0]: text for text in value}.values()))


def parse_ulimit(text: str) -> tuple[str, int, int, int]:
    """(Name, the resource's number, soft, hard) of "NAME=SOFT:HARD"; without a colon both are one.

    Raises:
        PolicyError: it cannot be meant.
    """
    name, equals, values = text.partition("=")
    if not equals or name not in RESOURCES:
        hint = f"write NAME=SOFT or NAME=SOFT:HARD; the names are {', '.join(RESOURCES)}"
        if name == "nproc":
            hint = "RLIMIT_NPROC bounds what pids does: use --pids"
        raise wrong("ulimits", text, "a limit of setrlimit(2)", hint)
    soft, colon, hard = values.partition(":")
    low = _ulimit_value(name, soft, text)
    high = _ulimit_value(name, hard, text) if colon else low
    if low > high:
        hint = "the second number is the hard limit, which the program cannot go beyond"
        raise wrong("ulimits", text, "a soft limit below the hard one", hint)
    return name, RESOURCES[name], low, high


def _ulimit_value(name: str, word: str, text: str) -> int:
    if word == "unlimited":
        return UNLIMITED
    try:
        if name in BYTES:
            return parse_size(word, "ulimits")
    except PolicyError:
        word = ""
    if not word.isascii() or not word.isdigit() or len(word) > 18:
        what = "a size" if name in BYTES else "a number"
        hint = f"write {what}, or unlimited"
        raise wrong("ulimits", text, f"{what} for {name}", hint)
    return int(word)

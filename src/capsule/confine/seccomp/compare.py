"""Comparisons of arguments as tests of bits, which is all that a rule has.

An order is a set of prefixes: a number is below 6 (110) if it begins with 0, or with 10. Where the
kernel takes an argument for 32 bits, so does the comparison: the rest is the program's to choose, and a
filter that looked at it could be got around.
"""

from __future__ import annotations

import itertools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rules import Tests

    # (argument, operator, value, second value)
    Comparison = tuple[int, str, int, int]
    # (mask, value)
    Bits = tuple[int, int]

# Arguments of 32 bits, or of which the kernel reads no more, by call.
_NARROW = """
arch_prctl 0 bpf 0 clock_adjtime 0 clock_settime 0 clone 0 fanotify_init 01 fcntl 1 getsockopt 12
ioctl 1 kcmp 2 keyctl 0 kill 01 madvise 2 mknod 1 mknodat 2 open 12 openat 23 perf_event_open 12
personality 0 pkey_mprotect 3 prctl 0 prlimit64 01 quotactl 0 sched_setscheduler 01 seccomp 01 setns
1 setsockopt 12 shutdown 1 socket 012 socketpair 012 syslog 0 tgkill 012 tkill 01 umask 0 umount2 1
unshare 0
"""
_WORDS = _NARROW.split()
_NARROW_ARGUMENTS = dict(zip(_WORDS[::2], _WORDS[1::2], strict=True))

OPERATORS = tuple(f"SCMP_CMP_{name}" for name in ("EQ", "NE", "LT", "LE", "GE", "GT", "MASKED_EQ"))


def cases(name: str, comparisons: Sequence[Comparison]) -> list[Tests]:
    """Lists of tests: the comparisons hold if all tests of one list do.

    Of several comparisons of the same argument one is enough, as in runc, which cannot say more either.
    """
    arguments = [comparison[0] for comparison in comparisons]
    if len(set(arguments)) == len(arguments):
        return _all_of(name, comparisons)
    return [tests for comparison in comparisons for tests in _all_of(name, [comparison])]


def _all_of(name: str, comparisons: Sequence[Comparison]) -> list[Tests]:
    alternatives = [
        [(argument, mask, value) for mask, value in bits(op, one, two, width(name, argument))]
        for argument, op, one, two in comparisons
    ]
    return [tuple(t for t in tests if t[1]) for tests in itertools.product(*alternatives)]


def width(name: str, argument: int) -> int:
    """The bits of an argument that the kernel looks at: 32 or 64."""
    return 32 if str(argument) in _NARROW_ARGUMENTS.get(name, "") else 64


def bits(op: str, one: int, two: int, width_: int) -> list[Bits]:
    """The tests of which one holds if the comparison does."""
    full = (1 << width_) - 1
    if op.endswith("MASKED_EQ"):
        return [(one & full, two & one & full)]
    value = one & full
    below, above = _prefixes(value, width_, 1), _prefixes(value, width_, 0)
    same = [(full, value)]
    return {
        "EQ": same,
        "NE": below + above,
        "LT": below,
        "LE": below + same,
        "GT": above,
        "GE": above + same,
    }[op.removeprefix("SCMP_CMP_")]


def _prefixes(value: int, width_: int, bit: int) -> list[Bits]:
    """The numbers that differ from a value first in a bit that is this one there."""
    found: list[Bits] = []
    for at in range(width_):
        if value >> at & 1 == bit:
            mask = (1 << width_) - (1 << at)
            found.append((mask, (value ^ 1 << at) & mask))
    return found

"""Arguments to try on a call: at, beside and above everything that its rule compares with."""

from __future__ import annotations

import random

from capsule.confine.seccomp.rules import Call

HIGH = (0, 1 << 32, 0xFFFFFFFF << 32, 0x123 << 32)


def values(call: Call, argument: int) -> list[int]:
    """Values of one argument that its rule tells apart, and their neighbours."""
    found = {0, 1, 0xFFFFFFFF, 0x80000000}
    for case in call.cases:
        for index, mask, value in case.tests:
            if index == argument:
                low = mask & -mask
                found |= {value, value ^ low, (value + 1) & mask, value | (~mask & 0xFFFFFFFF)}
                found |= {(value - 1) & mask, value ^ 0x80000000}
    return sorted(found)


def tested(call: Call) -> list[int]:
    """The arguments that its rule looks at."""
    return sorted({test[0] for case in call.cases for test in case.tests})


def plain(call: Call) -> list[tuple[int, ...]]:
    """Arguments without upper halves: each value alone, and those of the cases together."""
    found: dict[tuple[int, ...], None] = {(0,) * 6: None}
    for case in call.cases:
        base = [0] * 6
        for index, _, value in case.tests:
            base[index] = value
        found[tuple(base)] = None
        for index in tested(call):
            for value in values(call, index):
                found[(*base[:index], value, *base[index + 1 :])] = None
    return list(found)


def wide(call: Call, seed: int, count: int = 40) -> list[tuple[int, ...]]:
    """Some of them with upper halves, and some that are random."""
    rng = random.Random(f"{call.name} {seed}")
    known = plain(call)
    found = [tuple(v | rng.choice(HIGH) for v in rng.choice(known)) for _ in range(count)]
    return found + [tuple(rng.getrandbits(64) for _ in range(6)) for _ in range(8)]

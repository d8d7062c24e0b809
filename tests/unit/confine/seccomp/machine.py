"""The kernel's filter machine, as far as filters use it: classic BPF over struct seccomp_data."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

MASK = 0xFFFFFFFF
LOAD, AND, RETURN, JUMP = 0x20, 0x54, 0x06, 0x05
CONDITIONS: dict[int, Callable[[int, int], bool]] = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}


class Instruction(NamedTuple):
    """``struct sock_filter``."""

    code: int
    jt: int
    jf: int
    k: int


def program(data: bytes) -> list[Instruction]:
    """The instructions of an exported filter."""
    return [Instruction(*fields) for fields in struct.iter_unpack("=HBBI", data)]


def words(number: int, arch: int, arguments: Sequence[int] = ()) -> tuple[int, ...]:
    """``struct seccomp_data`` in words of 32 bits, little end first."""
    full = [*arguments, *[0] * (6 - len(arguments))]
    halves = (half for value in full for half in (value & MASK, value >> 32 & MASK))
    return (number & MASK, arch, 0, 0, *halves)


def run(code: Sequence[Instruction], data: Sequence[int]) -> int:
    """What the program returns; an instruction that is unknown here is a failure."""
    return _walk(code, data)[0]


def steps(code: Sequence[Instruction], data: Sequence[int]) -> int:
    """How many instructions that takes, but for those that look at arguments: installing skips them."""
    return _walk(code, data)[1]


def _walk(code: Sequence[Instruction], data: Sequence[int]) -> tuple[int, int]:
    at = accumulator = taken = 0
    looked = False
    while True:
        op, jt, jf, k = code[at]
        at += 1
        looked = looked or (op == LOAD and k >= 16)
        taken += not looked
        if op == LOAD:
            assert k % 4 == 0
            accumulator = data[k // 4]
        elif op in CONDITIONS:
            at += jt if CONDITIONS[op](accumulator, k) else jf
        elif op == AND:
            accumulator &= k
        elif op == JUMP:
            at += k
        elif op == RETURN:
            return k, taken
        else:
            raise AssertionError(f"unknown instruction {op:#x}")


def shapes(code: Sequence[Instruction]) -> Iterator[str]:
    """What the kernel's checker would refuse: jumps out of the program, loads beside the data."""
    for at, (op, jt, jf, k) in enumerate(code):
        targets = [at + 1 + k] if op == JUMP else [at + 1 + jt, at + 1 + jf]
        if op != RETURN and max(targets) >= len(code):
            yield f"{at}: jumps out of the program"
        if op == LOAD and (k % 4 or k >= 64):
            yield f"{at}: loads at {k}"

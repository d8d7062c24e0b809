"""Rules to a program of the kernel's filter machine: classic BPF over struct seccomp_data, seccomp(2).

    load the architecture; another one: end the process
    load the number
    a tree of comparisons over ranges of numbers, each with one answer
    where arguments decide: the rule's cases, one after the other

The kernel walks the program once for each of some 900 numbers when it is installed, to know which of
them it need never ask about again. So a path through the tree is short: the ranges are some hundred.

A refusal that is worth telling asks PID 1. What that is to answer, and which argument tells such
refusals from each other, lies in the lower half of the return value, which the kernel leaves alone
there: PID 1 runs the same program on the same data (launcher/seccomp.c), and so there is no table
beside it that could say something else.
"""

from __future__ import annotations

from capsule.errors import PolicyError

from . import numbers
from .rules import ERRNO, KILL, NOTIFY, errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rules import Case, Rules, Test

    # (code, jump if true, jump if false, constant): struct sock_filter
    Instruction = tuple[int, int, int, int]
    Block = list[Instruction]
    # (first number, what is done from there on)
    Range = tuple[int, Block]

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
NO_ARGUMENT = 7

_LOAD, _AND, _EQUAL, _AT_LEAST, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_FARTHEST = 255
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000
_LAST = 0xFFFFFFFF
_UNKNOWN = ERRNO | 38  # ENOSYS, on every architecture here


def emit(rules: Rules, arch: str) -> str:
    """The program, in hexadecimal digits.

    Args:
        rules: what it is to do.
        arch: the architecture, as uname(2) calls it; any other ends the process.

    Raises:
        PolicyError: the rules do not fit into a program.
    """
    program: Block = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, numbers.AUDIT[arch]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_tree(_ranges(rules, arch)),
    ]
    if len(program) > MOST_INSTRUCTIONS:
        message = (
            f"seccomp: the filter has {len(program)} instructions, the kernel takes {MOST_INSTRUCTIONS}"
        )
        raise PolicyError(message, field="seccomp", hint="ask for fewer comparisons of arguments")
    return b"".join(map(_encoded, program)).hex()


def _encoded(instruction: Instruction) -> bytes:
    code, true, false, constant = instruction
    return bytes((code, 0, true, false)) + constant.to_bytes(4, "little")


# --- numbers --------------------------------------------------------------------------------


def _ranges(rules: Rules, arch: str) -> list[Range]:
    """All 2^32 numbers, neighbours with the same answer as one."""
    table = numbers.numbers(arch)
    by_number = {table[call.name]: call for call in rules.calls if call.name in table}
    beyond = {max(by_number) + 1: _UNKNOWN} if by_number else {0: _UNKNOWN}
    if arch == "x86_64":
        # With this bit it is a call of x32; -1 is what a tracer puts there to have none made.
        beyond |= {_X32: KILL, _LAST: _UNKNOWN}
    found: list[Range] = []
    for number in sorted({0, *by_number, *(n + 1 for n in by_number), *beyond}):
        call = by_number.get(number)
        done = [(_RETURN, 0, 0, beyond.get(number, _UNKNOWN))] if call is None else _cases(call.cases)
        if not found or found[-1][1] != done or len(done) > 1:
            found.append((number, done))
    return found


def _tree(ranges: Sequence[Range]) -> Block:
    """Which of the ranges it is, in as few comparisons as there are doublings of their count."""
    if len(ranges) == 1:
        return ranges[0][1]
    if len(ranges) == 3 and ranges[0][1] == ranges[2][1] and ranges[1][0] + 1 == ranges[2][0]:
        # One number that differs from all around it.
        only, others = ranges[1][1], ranges[0][1]
        if len(only) <= _FARTHEST:
            return [(_EQUAL, 0, len(only), ranges[1][0]), *only, *others]
    # An odd half can end in such a number.
    middle = len(ranges) // 2
    middle += middle % 2 == 0 and len(ranges) % 4 == 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    first = ranges[middle][0]
    if len(below) <= _FARTHEST:
        return [(_AT_LEAST, len(below), 0, first), *below, *above]
    if len(above) <= _FARTHEST:
        return [(_AT_LEAST, 0, len(above), first), *above, *below]
    return [(_AT_LEAST, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above]


# --- arguments ------------------------------------------------------------------------------


def _cases(cases: Sequence[Case]) -> Block:
    """The first case whose tests all hold decides. The last one has none."""
    program: Block = []
    loaded: tuple[int, int] | None = None
    for case in cases:
        block, loaded = _case(case, loaded)
        program += block
        if not case.tests:
            break
    return program


def _case(case: Case, loaded: tuple[int, int] | None) -> tuple[Block, tuple[int, int] | None]:
    """One case, which goes on behind itself if it does not fit; and what is in the accumulator then."""
    parts = [part for test in case.tests for part in _halves(test)]
    block: Block = []
    left: set[tuple[int, int] | None] = set()
    jumps = []
    for offset, mask, value in parts:
        if loaded != (offset, _LAST):
            block.append((_LOAD, 0, 0, offset))
        if mask != _LAST:
            block.append((_AND, 0, 0, mask))
        loaded = (offset, mask)
        left.add(loaded)
        jumps.append(len(block))
        block.append((_EQUAL, 0, 0, value))
    block.append((_RETURN, 0, 0, _returned(case)))
    for at in jumps:
        code, _, _, value = block[at]
        block[at] = (code, 0, len(block) - at - 1, value)
    return block, left.pop() if len(left) == 1 else None


def _halves(test: Test) -> list[Test]:
    """(Offset in the data, mask, value) of each half of an argument that is looked at."""
    argument, mask, value = test
    offset = _ARGUMENTS + 8 * argument
    halves = [(offset, mask & _LAST, value & _LAST), (offset + 4, mask >> 32, value >> 32)]
    return [half for half in halves if half[1]]


def _returned(case: Case) -> int:
    """What the program returns for a case."""
    error = errno_of(case.action)
    if not case.report or not error:
        return case.action
    return asking(error, case.argument)


def asking(error: int, argument: int | None) -> int:
    """The return value that has PID 1 answer with an error, and count by an argument."""
    return NOTIFY | (NO_ARGUMENT if argument is None else argument) << 12 | error


def untold(program: str) -> str:
    """The same program without asking anyone: every refusal answers by itself."""
    words = [program[at : at + 16] for at in range(0, len(program), 16)]
    return "".join(map(_untold, words))


def _untold(word: str) -> str:
    returned = int.from_bytes(bytes.fromhex(word[8:]), "little")
    if not word.startswith("06") or returned & 0xFFFF0000 != NOTIFY:
        return word
    return word[:8] + (ERRNO | returned & 0xFFF).to_bytes(4, "little").hex()

"""Rules to a program of the kernel's filter machine: classic BPF over struct seccomp_data, seccomp(2).

    load the architecture; another one: end the process
    load the number
    a tree of comparisons over ranges of numbers, each with one answer
    where arguments decide: a graph of comparisons, none of which is made twice on a way through it

The kernel walks the program once for each of some 900 numbers when it is installed, to know which of
them it need never ask about again, and compiles it. So a path through the tree is short (the ranges are
some hundred), and what is the same is there once.

A refusal that is worth telling asks PID 1. What that is to answer, and which argument tells such
refusals from each other, lies in the lower half of the return value, which the kernel leaves alone
there: PID 1 runs the same program on the same data (launcher/seccomp.c), and so there is no table
beside it that could say something else.
"""

from __future__ import annotations

from capsule.base.errors import PolicyError

from . import numbers
from .rules import ERRNO, KILL, NOTIFY, errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rules import Case, Rules, Test

    # (first number, node from there on)
    Range = tuple[int, int]
    # (tests of words of the data, what is returned if all hold)
    Choice = tuple[tuple[Test, ...], int]
    Loaded = tuple[int, int] | None

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
NO_ARGUMENT = 7
# Of one call. More were not written by hand, nor do they fit.
_MOST_CASES = 300

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
    graph = _Graph()
    calls = graph.node(_LOAD, _NUMBER, _tree(graph, _ranges(graph, rules, arch)))
    same = graph.node(_EQUAL, numbers.AUDIT[arch], calls, graph.node(_RETURN, KILL))
    program = _Program(graph)
    program.place(graph.node(_LOAD, _ARCHITECTURE, same))
    if len(program.code) > MOST_INSTRUCTIONS:
        raise _too_long(f"the filter has {len(program.code)} instructions")
    return b"".join(reversed(program.code)).hex()


def _too_long(what: str) -> PolicyError:
    message = f"seccomp: {what}, the kernel takes {MOST_INSTRUCTIONS}"
    return PolicyError(message, field="seccomp", hint="ask for fewer comparisons of arguments")


# --- numbers --------------------------------------------------------------------------------


def _ranges(graph: _Graph, rules: Rules, arch: str) -> list[Range]:
    """All 2^32 numbers, neighbours with the same answer as one."""
    table = numbers.numbers(arch)
    by_number = {table[call.name]: call for call in rules.calls if call.name in table}
    # With this bit it is a call of x32; -1 is what a tracer puts there to have none made.
    beyond = {_X32: KILL, _LAST: _UNKNOWN} if arch == "x86_64" else {}
    found: list[Range] = []
    for number in sorted({0, *by_number, *(n + 1 for n in by_number), *beyond}):
        call = by_number.get(number)
        if call is None:
            node = graph.node(_RETURN, beyond.get(number, _UNKNOWN))
        else:
            node = _cases(graph, call.cases)
        if not found or found[-1][1] != node:
            found.append((number, node))
    return found


def _tree(graph: _Graph, ranges: Sequence[Range]) -> int:
    """Which of the ranges it is, in as few comparisons as there are doublings of their count."""
    if len(ranges) == 1:
        return ranges[0][1]
    if len(ranges) == 3 and ranges[0][1] == ranges[2][1] and ranges[1][0] + 1 == ranges[2][0]:
        # One number that differs from all around it.
        return graph.node(_EQUAL, ranges[1][0], ranges[1][1], ranges[0][1])
    # An odd half can end in such a number.
    middle = len(ranges) // 2
    middle += middle % 2 == 0 and len(ranges) % 4 == 2
    below, above = _tree(graph, ranges[:middle]), _tree(graph, ranges[middle:])
    return graph.node(_AT_LEAST, ranges[middle][0], above, below)


# --- arguments ------------------------------------------------------------------------------


def _cases(graph: _Graph, cases: Sequence[Case]) -> int:
    """The first case whose tests all hold decides. The last one has none."""
    if len(cases) > _MOST_CASES:
        raise _too_long(f"one call has {len(cases)} cases")
    choices = [(tuple(w for t in case.tests for w in _words(t)), _returned(case)) for case in cases]
    return _Chooser(graph).choose(tuple(choices), None)


def _words(test: Test) -> list[Test]:
    """(Offset in the data, mask, value) of each half of an argument that is looked at."""
    argument, mask, value = test
    offset = _ARGUMENTS + 8 * argument
    halves = [(offset, mask & _LAST, value & _LAST), (offset + 4, mask >> 32, value >> 32)]
    return [half for half in halves if half[1]]


class _Chooser:
    """Decides between choices, of which the first that fits counts."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        self._done: dict[object, int] = {}

    def choose(self, choices: tuple[Choice, ...], loaded: Loaded) -> int:
        """The node that decides.

        Args:
            choices: the choices.
            loaded: (offset, mask) of what the accumulator holds.
        """
        key = (choices, loaded)
        if key not in self._done:
            # Tests of single bits can make up no end of what is left to decide.
            if len(self._done) > MOST_INSTRUCTIONS:
                raise _too_long("the comparisons of one call's arguments are too many")
            self._done[key] = self._make(choices, loaded)
        return self._done[key]

    def _make(self, choices: tuple[Choice, ...], loaded: Loaded) -> int:
        """Make the first test; what is left to decide after either answer is decided likewise."""
        tests, returned = choices[0]
        node = self._graph.node
        if not tests:
            return node(_RETURN, returned)
        offset, mask, value = tests[0]
        yes = self.choose(_if_true(choices, tests[0]), (offset, mask))
        no = self.choose(tuple(c for c in choices if tests[0] not in c[0]), (offset, mask))
        if yes == no:
            return yes
        made = node(_EQUAL, value, yes, no)
        if loaded == (offset, mask):
            return made
        if mask != _LAST:
            made = node(_AND, mask, made)
        return made if loaded == (offset, _LAST) else node(_LOAD, offset, made)


def _if_true(choices: Sequence[Choice], known: Test) -> tuple[Choice, ...]:
    """The choices that can still fit, without the tests that are sure to hold."""
    left: list[Choice] = []
    for tests, returned in choices:
        if any(_contradict(test, known) for test in tests):
            continue
        left.append((tuple(test for test in tests if not _implied(test, known)), returned))
        if not left[-1][0]:
            break
    return tuple(left)


def _contradict(test: Test, known: Test) -> bool:
    return test[0] == known[0] and bool((test[2] ^ known[2]) & test[1] & known[1])


def _implied(test: Test, known: Test) -> bool:
    return test[0] == known[0] and not test[1] & ~known[1]


def _returned(case: Case) -> int:
    """Return what the program returns for a case."""
    error = errno_of(case.action)
    if not case.report or not error:
        return case.action
    return asking(error, case.argument)


# --- instructions ---------------------------------------------------------------------------


class _Graph:
    """What is done, each thing once: (code, constant, nodes that follow)."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, ...]] = []
        self._numbers: dict[tuple[int, ...], int] = {}

    def node(self, *what: int) -> int:
        """The number of a node; of a comparison, first what follows if it holds."""
        if what not in self._numbers:
            self._numbers[what] = len(self.nodes)
            self.nodes.append(what)
        return self._numbers[what]


class _Program:
    """Instructions from the last one to the first, since jumps only lead forward.

    Attributes:
        code: of struct sock_filter each.
    """

    def __init__(self, graph: _Graph) -> None:
        self.code: list[bytes] = []
        self._graph = graph
        self._places: dict[int, int] = {}

    def place(self, number: int) -> None:
        """Put a node and what follows it, unless it is there already."""
        if number in self._places:
            return
        code, constant, *following = self._graph.nodes[number]
        for each in following:
            self.place(each)
        if len(following) == 1 and self._distance(following[0]):
            self._add(_JUMP, self._distance(following[0]))
        for each in following[1:] and following:
            self._bring_near(each)
        jumps = map(self._distance, following) if len(following) == 2 else ()
        self._add(code, constant, *jumps)
        self._places[number] = len(self.code) - 1

    def _bring_near(self, number: int) -> None:
        """Repeat an answer, or put a jump, where a comparison could not reach it."""
        # One more may come between them and the comparison.
        if self._distance(number) < _FARTHEST:
            return
        code, constant, *following = self._graph.nodes[number]
        if following:
            code, constant = _JUMP, self._distance(number)
        self._add(code, constant)
        self._places[number] = len(self.code) - 1

    def _distance(self, number: int) -> int:
        """How many instructions lie between the one that comes next and a node."""
        return len(self.code) - self._places[number] - 1

    def _add(self, code: int, constant: int, true: int = 0, false: int = 0) -> None:
        self.code.append(bytes((code, 0, true, false)) + constant.to_bytes(4, "little"))


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

"""What a filter is to do: pure values, and the one place that says what they mean.

A rule is a list of cases; the first whose tests all hold decides. A filter of the kernel knows no
order, so `disjoint` turns the list into cases of which exactly one fits, whatever the arguments are.
"""

from __future__ import annotations

from capsule.errors import PolicyError
from capsule.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    # (argument, mask, value): (argument & mask) == value
    Test = tuple[int, int, int]
    Tests = tuple[Test, ...]
    Leaf = tuple[Tests, int]

# Actions are what a filter returns, and what libseccomp calls them: <linux/seccomp.h>.
ALLOW = 0x7FFF0000
LOG = 0x7FFC0000
NOTIFY = 0x7FC00000
ERRNO = 0x00050000
TRAP = 0x00030000
KILL = 0x80000000
_KIND = 0xFFFF0000

ARGUMENTS = 6
# More of one call are not a rule that anyone wrote by hand, and do not fit into a filter.
_MOST_LEAVES = 1024
_TOO_MANY = "its rules for arguments are too many for a filter"


def errno_of(action: int) -> int | None:
    """The error number that an action answers, or None if it does something else."""
    return action & 0xFFFF if action & _KIND == ERRNO else None


class Case(Value):
    """One case of a rule.

    Attributes:
        action: what happens.
        tests: what must hold of the arguments for it; none, and it always does.
        report: a refusal is worth telling.
    """

    action: int
    tests: Tests = ()
    report: bool = False


class Call(Value):
    """What holds for one system call.

    Attributes:
        name: of the call.
        cases: the first that fits decides; the last one always does.
        reason: why, a phrase.
        significant: index of the argument that matters, or None.
        remedy: options that allow what is refused.
    """

    name: str
    cases: tuple[Case, ...]
    reason: str = ""
    significant: int | None = None
    remedy: str = ""

    @property
    def allowed(self) -> bool:
        """Whether nothing of it is refused."""
        return all(case.action in (ALLOW, LOG) for case in self.cases)


class Rules(Value):
    """A whole filter: what holds for each known call; any other number answers ENOSYS.

    Attributes:
        source: where it comes from: a profile's name or a file's.
        calls: sorted by name.
    """

    source: str
    calls: tuple[Call, ...]

    def call(self, name: str) -> Call:
        """The call of this name."""
        return next(call for call in self.calls if call.name == name)


def decide(call: Call, arguments: Sequence[int]) -> Case:
    """The case that fits these arguments, by the letter of the rule."""
    return next(c for c in call.cases if all(arguments[n] & mask == v for n, mask, v in c.tests))


# --- disjoint cases -------------------------------------------------------------------------


def disjoint(cases: Iterable[Leaf]) -> tuple[Leaf, ...]:
    """The same decisions as cases of which exactly one fits, each testing an argument at most once.

    Raises:
        PolicyError: they are too many.
    """
    return tuple(_split(_reachable(list(cases))))


def _reachable(cases: list[Leaf]) -> list[Leaf]:
    """Without what comes after a case that always fits."""
    for at, (tests, _) in enumerate(cases):
        if not tests:
            return cases[: at + 1]
    return cases


def _split(cases: list[Leaf]) -> list[Leaf]:
    """Decide by one bit of the first argument that is tested at all, then by the others."""
    tests, action = cases[0]
    if not tests:
        return [((), action)]
    if all(other == action for _, other in cases[1:]):
        return [((), action)]
    argument = min(t[0] for ts, _ in cases for t in ts)
    bit = _highest_bit(m for ts, _ in cases for n, m, _ in ts if n == argument)
    zero = _split(_assume(cases, argument, bit, 0))
    one = _split(_assume(cases, argument, bit, bit))
    if zero == one:
        return zero
    leaves = [_with_bit(leaf, argument, bit, 0) for leaf in zero]
    leaves += [_with_bit(leaf, argument, bit, bit) for leaf in one]
    if len(leaves) > _MOST_LEAVES:
        raise PolicyError(f"seccomp: {_TOO_MANY}", field="seccomp")
    return leaves


def _highest_bit(masks: Iterable[int]) -> int:
    return 1 << max(mask.bit_length() for mask in masks) - 1


def _assume(cases: list[Leaf], argument: int, bit: int, value: int) -> list[Leaf]:
    """The cases that can still fit when the bit of the argument has this value."""
    left: list[Leaf] = []
    for tests, action in cases:
        if any(n == argument and m & bit and v & bit != value for n, m, v in tests):
            continue
        known = ((n, m & ~bit, v & ~bit) if n == argument else (n, m, v) for n, m, v in tests)
        left.append((tuple(test for test in known if test[1]), action))
        if not left[-1][0]:
            break
    return left


def _with_bit(leaf: Leaf, argument: int, bit: int, value: int) -> Leaf:
    tests, action = leaf
    if tests and tests[0][0] == argument:
        _, mask, rest = tests[0]
        return ((argument, mask | bit, rest | value), *tests[1:]), action
    return ((argument, bit, value), *tests), action


# --- what differs ---------------------------------------------------------------------------


def opened(rules: Rules, default: Rules) -> tuple[str, ...]:
    """The calls that the default policy refuses, wholly or in part, and these rules do not."""
    strict = {call.name for call in default.calls if not call.allowed}
    return tuple(call.name for call in rules.calls if call.allowed and call.name in strict)


def changed(rules: Rules, change: Callable[[Call], Call], names: Iterable[str]) -> Rules:
    """The same rules, but for the calls of these names."""
    wanted = frozenset(names)
    calls = tuple(change(call) if call.name in wanted else call for call in rules.calls)
    return rules.replace(calls=calls)

"""What a filter is to do: pure values, and the one place that says what they mean.

A rule is a list of cases; the first whose tests all hold decides.
"""

from __future__ import annotations

from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    # (argument, mask, value): (argument & mask) == value
    Test = tuple[int, int, int]
    Tests = tuple[Test, ...]

# Actions are what a filter returns: <linux/seccomp.h>.
ALLOW = 0x7FFF0000
LOG = 0x7FFC0000
NOTIFY = 0x7FC00000
ERRNO = 0x00050000
TRAP = 0x00030000
KILL = 0x80000000
_KIND = 0xFFFF0000


def errno_of(action: int) -> int | None:
    """The error number that an action answers, or None if it does something else."""
    return action & 0xFFFF if action & _KIND == ERRNO else None


class Case(Value):
    """One case of a rule.

    Attributes:
        action: what happens.
        tests: what must hold of the arguments for it; none, and it always does.
        report: a refusal is worth telling.
        argument: index of the argument that tells such refusals from each other, or None.
    """

    action: int
    tests: Tests = ()
    report: bool = False
    argument: int | None = None


class Call(Value):
    """What holds for one system call.

    Attributes:
        name: of the call.
        cases: the first that fits decides; the last one always does.
        reason: why, a phrase.
        remedy: options that allow what is refused.
    """

    name: str
    cases: tuple[Case, ...]
    reason: str = ""
    remedy: str = ""

    @property
    def allowed(self) -> bool:
        """Whether nothing of it is refused."""
        return all(case.action in (ALLOW, LOG) for case in self.cases)

    @property
    def checked(self) -> bool:
        """Whether its arguments decide."""
        return not self.allowed and any(case.action in (ALLOW, LOG) for case in self.cases)


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

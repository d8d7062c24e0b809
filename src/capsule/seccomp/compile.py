"""Rules to programs of the kernel's filter machine, through libseccomp.

Its language has limits that shape what is said in it. A rule tests an argument once, and where no rule
fits the filter's default answers, which is ENOSYS here, the answer to unknown numbers. So there is no
"all but" and no "else" for one call: each rule list is made disjoint before, with a rule for every
combination of bits that decides. Then no two rules overlap either, and their order, which the library
picks, means nothing. Every comparison is a masked one: the upper halves of arguments stay out of it.

The first program has two exceptions. The launcher sends a descriptor and closes some after that program
is in; where the rules refuse those calls, the first program allows them and the second one, `tail`,
refuses them.
"""

from __future__ import annotations

from capsule.errors import PolicyError

from . import numbers
from .library import Filter
from .rules import ALLOW, ERRNO, NOTIFY, disjoint, errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rules import Call, Case, Leaf, Rules

    # (architecture's token, number, errno, index of the argument that matters or -1)
    Answer = tuple[int, int, int, int]

_UNKNOWN = ERRNO | 38  # ENOSYS, on every architecture here
INSTRUCTION = 8
MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# What the launcher makes between the first program and the second; the last one installs that.
DELAYED = ("sendmsg", "close", "seccomp")


def compile(rules: Rules, arch: str, notify: bool) -> bytes:
    """The program.

    Args:
        rules: what it is to do.
        arch: the architecture, as uname(2) calls it.
        notify: refusals that are worth telling ask PID 1, which answers and counts them.

    Raises:
        HostError: libseccomp is missing or too old.
        PolicyError: the rules do not fit into a program.
    """
    table = numbers.numbers(arch)
    delayed = _delayed(rules)
    with Filter(_UNKNOWN, numbers.AUDIT[arch]) as made:
        for call in rules.calls:
            if call.name in table:
                leaves: tuple[Leaf, ...] = (((), ALLOW),)
                if call.name not in delayed:
                    leaves = _leaves(call, notify=notify)
                _add(made, call.name, table[call.name], leaves, _UNKNOWN)
        return _checked(made.export())


def tail(rules: Rules, arch: str) -> bytes | None:
    """The second program, or None where none is needed."""
    delayed = _delayed(rules)
    if not delayed:
        return None
    table = numbers.numbers(arch)
    with Filter(ALLOW, numbers.AUDIT[arch]) as made:
        for call in rules.calls:
            if call.name in delayed:
                _add(made, call.name, table[call.name], _leaves(call, notify=False), ALLOW)
        return _checked(made.export())


def _delayed(rules: Rules) -> frozenset[str]:
    """The calls that the first program must allow and the second one refuse."""
    refused = {call.name for call in rules.calls if call.name in DELAYED and not call.allowed}
    return frozenset() if refused <= {"seccomp"} else frozenset(refused)


def _leaves(call: Call, *, notify: bool) -> tuple[Leaf, ...]:
    told = _told_errno(call) if notify else None
    return disjoint((case.tests, _action(case, told)) for case in call.cases)


def _action(case: Case, told: int | None) -> int:
    """What the program returns for a case: PID 1 has one answer for each call."""
    return NOTIFY if case.report and told is not None and errno_of(case.action) == told else case.action


def _told_errno(call: Call) -> int | None:
    """The errno of the last refusal worth telling, which is the widest one; None if there is none."""
    found = [errno_of(case.action) for case in call.cases if case.report]
    return found[-1] if found and found[-1] else None


def _add(made: Filter, name: str, number: int, leaves: tuple[Leaf, ...], default: int) -> None:
    for tests, action in leaves:
        # The library refuses a rule that says what the default says.
        if action != default:
            made.add(action, name, number, tests)


def _checked(program: bytes) -> bytes:
    if len(program) > MOST_INSTRUCTIONS * INSTRUCTION:
        count = len(program) // INSTRUCTION
        message = f"seccomp: the filter has {count} instructions, the kernel takes {MOST_INSTRUCTIONS}"
        raise PolicyError(message, field="seccomp", hint="ask for fewer comparisons of arguments")
    return program


def answers(rules: Rules, arch: str) -> tuple[Answer, ...]:
    """How PID 1 answers what it is asked, sorted by number."""
    table = numbers.numbers(arch)
    delayed = _delayed(rules)
    found: list[Answer] = []
    for call in rules.calls:
        told = _told_errno(call)
        if told is not None and call.name in table and call.name not in delayed:
            argument = -1 if call.significant is None else call.significant
            found.append((numbers.AUDIT[arch], table[call.name], told, argument))
    return tuple(sorted(found))


def explain(rules: Rules, arch: str) -> dict[int, Call]:
    """The call behind each number, for a report on refusals."""
    table = numbers.numbers(arch)
    return {table[call.name]: call for call in rules.calls if call.name in table}

"""The compiled filters say what the table says: a simulator runs them over every number."""

from __future__ import annotations

import errno
from functools import cache

import pytest

from capsule.errors import InternalError, PolicyError
from capsule.seccomp import Spec, compile, numbers, resolve
from capsule.seccomp.library import Filter
from capsule.seccomp.rules import ALLOW, ERRNO, KILL, NOTIFY, Call, Case, Rules, decide, errno_of

from . import machine, samples, verdicts

PROFILES = ("default", "strict", "debug", "nest")
X86_64, AARCH64 = numbers.AUDIT["x86_64"], numbers.AUDIT["aarch64"]
I386, ARM = 0x40000003, 0x40000028
X32 = 0x40000000
UNKNOWN = ERRNO | errno.ENOSYS


@cache
def rules_of(profile: str) -> Rules:
    return resolve.resolve(Spec(profile), "x86_64")


@cache
def compiled(profile: str, *, notify: bool = False) -> list[machine.Instruction]:
    return machine.program(compile.compile(rules_of(profile), "x86_64", notify))


def called(profile: str, name: str, *arguments: int, notify: bool = False) -> int:
    """What the filter returns for a call."""
    data = machine.words(numbers.numbers("x86_64")[name], X86_64, arguments)
    return machine.run(compiled(profile, notify=notify), data)


@pytest.mark.parametrize("profile", PROFILES)
def test_golden_verdicts(profile: str, update_golden: bool) -> None:
    """The program's verdict on every number, and on arguments that matter, is the checked-in one."""
    text = verdicts.table(
        rules_of(profile),
        "x86_64",
        lambda number, args: machine.run(compiled(profile), machine.words(number, X86_64, args)),
    )
    compare(f"{profile}.x86_64", text, update_golden)


@pytest.mark.parametrize("profile", PROFILES)
def test_golden_verdicts_of_the_other_architecture(profile: str, update_golden: bool) -> None:
    """The rules' verdicts with the numbers of aarch64 are the checked-in ones."""
    rules = resolve.resolve(Spec(profile), "aarch64")
    text = verdicts.table(rules, "aarch64", verdicts.by_rules(rules, "aarch64"))
    compare(f"{profile}.aarch64", text, update_golden)


def compare(name: str, text: str, update: bool) -> None:
    path = verdicts.GOLDEN / name
    if update:
        verdicts.GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="ascii")
    assert path.read_text(encoding="ascii") == text


@pytest.mark.parametrize("notify", [False, True], ids=["errno", "notify"])
@pytest.mark.parametrize("profile", PROFILES)
def test_upper_halves_change_nothing(profile: str, notify: bool) -> None:
    """Whatever is in the upper 32 bits of an argument, the verdict is that of the lower ones."""
    table = numbers.numbers("x86_64")
    code = compiled(profile, notify=notify)
    for call in rules_of(profile).calls:
        for arguments in samples.wide(call, 1) if samples.tested(call) else []:
            narrow = tuple(value & machine.MASK for value in arguments)
            wide, low = (
                machine.run(code, machine.words(table[call.name], X86_64, a))
                for a in (arguments, narrow)
            )
            case = decide(call, narrow)
            asked = notify and case.report and errno_of(case.action) == answer(profile, call.name)
            assert wide == low == (NOTIFY if asked else case.action), (call.name, arguments)


def answer(profile: str, name: str) -> int | None:
    number = numbers.numbers("x86_64")[name]
    found = compile.answers(rules_of(profile), "x86_64")
    return next((row[2] for row in found if row[1] == number), None)


@pytest.mark.parametrize("profile", PROFILES)
def test_other_architectures_are_killed(profile: str) -> None:
    """Every number of i386, arm, aarch64 and x32 ends the process."""
    code = compiled(profile)
    for number in range(verdicts.LAST + 1):
        for arch in (I386, ARM, AARCH64):
            assert machine.run(code, machine.words(number, arch)) == KILL
        assert machine.run(code, machine.words(number | X32, X86_64)) == KILL


def test_numbers_beside_all_tables() -> None:
    """A number that no kernel has is unknown, up to the last one of 32 bits."""
    for number in (601, 4095, 0x3FFFFFFF, 0xFFFFFFFF):
        assert machine.run(compiled("default"), machine.words(number, X86_64)) == UNKNOWN


@pytest.mark.parametrize("profile", PROFILES)
def test_the_kernel_would_take_them(profile: str) -> None:
    """Programs are well formed and not longer than the kernel takes, with room left."""
    code = compiled(profile)
    assert len(code) < compile.MOST_INSTRUCTIONS * 3 // 4
    assert not list(machine.shapes(code))


def test_the_other_architecture_compiles() -> None:
    """For aarch64 the program's verdicts are those of the rules, where the library knows the names."""
    known = [c for c in rules_of("default").calls if c.name in library_names()]
    rules = Rules("known", tuple(known))
    code = machine.program(compile.compile(rules, "aarch64", False))
    table = numbers.numbers("aarch64")
    for call in known:
        for arguments in samples.plain(call) if call.name in table else []:
            expected = decide(call, arguments).action
            assert machine.run(code, machine.words(table[call.name], AARCH64, arguments)) == expected
    assert machine.run(code, machine.words(table["read"], X86_64)) == KILL
    assert len(known) > 300


@cache
def library_names() -> frozenset[str]:
    """The calls of aarch64 that the installed library has under the numbers of the table."""
    from capsule.seccomp import library

    resolve_ = library.load().seccomp_syscall_resolve_name_arch
    table, native = numbers.numbers("aarch64"), numbers.numbers("x86_64")
    return frozenset(
        name
        for name in table
        if resolve_(AARCH64, name.encode()) == table[name]
        and resolve_(X86_64, name.encode()) == native.get(name)
    )


# --- asking PID 1 ---------------------------------------------------------------------------


def test_refusals_worth_telling_are_asked_about() -> None:
    """ptrace is asked about and answered with EPERM; clone3 answers by itself."""
    assert called("default", "ptrace", notify=True) == NOTIFY
    assert called("default", "clone3", notify=True) == UNKNOWN
    number = numbers.numbers("x86_64")["ptrace"]
    assert (X86_64, number, errno.EPERM, -1) in compile.answers(rules_of("default"), "x86_64")


def test_one_answer_for_a_call() -> None:
    """Where a call has several errnos, the widest refusal is asked about; the others say their own."""
    assert called("default", "socket", 38, notify=True) == NOTIFY
    assert called("default", "socket", 2, 3, notify=True) == ERRNO | errno.EPERM
    assert called("default", "socket", 2, 1, 262, notify=True) == ERRNO | errno.EPROTONOSUPPORT
    number = numbers.numbers("x86_64")["socket"]
    assert (X86_64, number, errno.EAFNOSUPPORT, 0) in compile.answers(rules_of("default"), "x86_64")


@pytest.mark.parametrize("profile", PROFILES)
def test_all_that_is_asked_has_an_answer(profile: str) -> None:
    """A call that the program asks about has its answer, and only such a call has one."""
    asked = set()
    table = numbers.numbers("x86_64")
    for call in rules_of(profile).calls:
        for arguments in samples.plain(call):
            data = machine.words(table[call.name], X86_64, arguments)
            if machine.run(compiled(profile, notify=True), data) == NOTIFY:
                asked.add(table[call.name])
    assert asked == {row[1] for row in compile.answers(rules_of(profile), "x86_64")}


# --- what the launcher still has to do ------------------------------------------------------


def test_the_launcher_s_calls_are_refused_last() -> None:
    """Where sendmsg is refused, the first program allows it and the second one refuses it."""
    rules = resolve.resolve(Spec(deny=("sendmsg", "seccomp")), "x86_64")
    first = machine.program(compile.compile(rules, "x86_64", True))
    second = machine.program(compile.tail(rules, "x86_64") or b"")
    table = numbers.numbers("x86_64")
    for name, last in (
        ("sendmsg", ERRNO | 1),
        ("seccomp", ERRNO | 1),
        ("close", ALLOW),
        ("read", ALLOW),
    ):
        assert machine.run(first, machine.words(table[name], X86_64)) == ALLOW
        assert machine.run(second, machine.words(table[name], X86_64)) == last
    assert not {table["sendmsg"], table["seccomp"]} & {r[1] for r in compile.answers(rules, "x86_64")}


def test_there_is_no_second_program_without_need() -> None:
    """The profiles refuse nothing that the launcher needs; seccomp alone can be refused at once."""
    assert all(compile.tail(rules_of(profile), "x86_64") is None for profile in PROFILES)
    alone = resolve.resolve(Spec(deny=("seccomp",)), "x86_64")
    assert compile.tail(alone, "x86_64") is None
    code = machine.program(compile.compile(alone, "x86_64", False))
    number = numbers.numbers("x86_64")["seccomp"]
    assert machine.run(code, machine.words(number, X86_64)) == ERRNO | errno.EPERM


# --- failures -------------------------------------------------------------------------------


def test_a_rule_that_cannot_be_added_is_fatal() -> None:
    """The library's refusal of one rule ends the compilation."""
    with pytest.raises(InternalError, match="the rule for nonsense"), Filter(UNKNOWN, X86_64) as made:
        made.add(ERRNO | 1, "nonsense", 1, ((7, 1, 1),))
    with pytest.raises(InternalError, match="the name nonsense"), Filter(UNKNOWN, AARCH64) as made:
        made.add(ERRNO | 1, "nonsense", 1, ())


def test_too_many_rules_are_refused() -> None:
    """A rule that would need thousands of comparisons is the request's fault, and says so."""
    odd = tuple(Case(ALLOW, ((0, 0xFFFFFFFF, n * 0x01000193 & 0xFFFFFFFF),)) for n in range(200))
    rules = Rules("odd", (Call("read", (*odd, Case(ERRNO | 1))),))
    with pytest.raises(PolicyError, match="too many"):
        compile.compile(rules, "x86_64", False)

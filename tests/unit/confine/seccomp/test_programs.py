"""The programs say what the table says: a simulator runs them over every number."""

from __future__ import annotations

import errno
import random
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from capsule.base.errors import PolicyError
from capsule.confine.seccomp import emit, filters, numbers, resolve
from capsule.confine.seccomp.rules import (
    ALLOW,
    ERRNO,
    KILL,
    LOG,
    NOTIFY,
    Call,
    Case,
    Rules,
    decide,
    errno_of,
)
from capsule.confine.seccomp.spec import Seccomp

from . import machine, samples, verdicts

PROFILES = filters.BUILT_IN
ARCHES = numbers.ARCHITECTURES
AUDIT = numbers.AUDIT
I386, ARM = 0x40000003, 0x40000028
X32 = 0x40000000
UNKNOWN = ERRNO | errno.ENOSYS
LONGEST = 12


@cache
def rules_of(profile: str, arch: str = "x86_64") -> Rules:
    return resolve.resolve(Seccomp(profile), arch)


@cache
def compiled(
    profile: str, arch: str = "x86_64", *, listener: bool = False
) -> list[machine.Instruction]:
    """The program that a run would carry."""
    found = filters.load(Seccomp(profile), listener=listener, arch=arch)
    assert found is not None
    return machine.program(bytes.fromhex(found.program))


def emitted(rules: Rules, arch: str = "x86_64") -> list[machine.Instruction]:
    return machine.program(bytes.fromhex(emit.emit(rules, arch)))


def called(code: list[machine.Instruction], name: str, *arguments: int, arch: str = "x86_64") -> int:
    """What a program returns for a call."""
    return machine.run(code, machine.words(numbers.numbers(arch)[name], AUDIT[arch], arguments))


# --- what is shipped ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.row("D-11")
def test_golden_verdicts(profile: str, arch: str, update_golden: bool) -> None:
    """The program's verdict on every number, and on arguments that matter, is the checked-in one."""
    code = compiled(profile, arch)
    text = verdicts.table(
        rules_of(profile, arch),
        arch,
        lambda number, args: machine.run(code, machine.words(number, AUDIT[arch], args)),
    )
    path = verdicts.GOLDEN / f"{profile}.{arch}"
    if update_golden:
        path.write_text(text, encoding="ascii")
    assert path.read_text(encoding="ascii") == text


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("profile", PROFILES)
def test_the_shipped_program_is_the_table_s(profile: str, arch: str, update_golden: bool) -> None:
    """What is shipped is what the table says today, with places for the command's ids."""
    text = filters.shipped_text(profile, arch)
    source = Path(__file__).parents[4] / "src/capsule/confine/seccomp/built_in" / f"{profile}.{arch}"
    if update_golden:
        source.write_text(text, encoding="ascii")
    assert source.read_text(encoding="ascii") == text
    assert Path(filters.FOLDER, source.name).read_text(encoding="ascii") == text
    for ids in ((0, 0), (1000, 33), (0xFFFFFFFE, 1)):
        made = filters.load(Seccomp(profile), ids=ids, arch=arch)
        assert made is not None
        assert made.program == emit.emit(made.request.rules(), arch)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("profile", PROFILES)
def test_the_kernel_would_take_them(profile: str, arch: str) -> None:
    """Programs are well formed, short, and their paths are."""
    code = compiled(profile, arch)
    assert len(code) < 200
    assert not list(machine.shapes(code))
    paths = [machine.steps(code, machine.words(n, AUDIT[arch])) for n in range(verdicts.LAST + 1)]
    assert max(paths) <= LONGEST
    assert machine.steps(code, machine.words(0, I386)) == 3


# --- other ways in --------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("profile", PROFILES)
def test_other_architectures_are_killed(profile: str, arch: str) -> None:
    """Every number of i386, arm, x32 and the other one of ours ends the process."""
    code = compiled(profile, arch)
    others = {I386, ARM, *AUDIT.values()} - {AUDIT[arch]}
    for number in range(verdicts.LAST + 1):
        for other in others:
            assert machine.run(code, machine.words(number, other)) == KILL
        if arch == "x86_64":
            assert machine.run(code, machine.words(number | X32, AUDIT[arch])) == KILL


@pytest.mark.parametrize("arch", ARCHES)
def test_numbers_beside_all_tables(arch: str) -> None:
    """A number that no kernel has is unknown, up to the last one of 32 bits."""
    for number in (601, 4095, 0x3FFFFFFF, 0xFFFFFFFF):
        assert machine.run(compiled("default", arch), machine.words(number, AUDIT[arch])) == UNKNOWN


@pytest.mark.parametrize("listener", [False, True], ids=["errno", "told"])
@pytest.mark.parametrize("profile", PROFILES)
def test_upper_halves_change_nothing(profile: str, listener: bool) -> None:
    """Whatever is in the upper 32 bits of an argument, the verdict is that of the lower ones."""
    code = compiled(profile, listener=listener)
    for call in rules_of(profile).calls:
        for arguments in samples.wide(call, 1) if samples.tested(call) else []:
            narrow = tuple(value & machine.MASK for value in arguments)
            wide, low = (called(code, call.name, *a) for a in (arguments, narrow))
            expected = returned(decide(call, narrow), told=listener)
            assert wide == low == expected, (call.name, arguments)


def returned(case: Case, *, told: bool) -> int:
    """What a program has to return where a case fits."""
    error = errno_of(case.action)
    if not told or not case.report or not error:
        return case.action
    return NOTIFY | (7 if case.argument is None else case.argument) << 12 | error


# --- asking PID 1 ---------------------------------------------------------------------------


def test_refusals_worth_telling_are_asked_about() -> None:
    """ptrace is asked about, with its errno and the argument that counts; clone3 answers by itself."""
    code = compiled("default", listener=True)
    assert called(code, "ptrace", 16) == NOTIFY | errno.EPERM
    assert called(code, "bpf") == NOTIFY | errno.EPERM
    assert called(code, "mount") == NOTIFY | 7 << 12 | errno.EPERM
    assert called(code, "clone3") == UNKNOWN


def test_each_refusal_of_a_call_has_its_own_errno() -> None:
    """Other families and raw sockets differ in errno and in what counts; a protocol is not told."""
    code = compiled("default", listener=True)
    assert called(code, "socket", 38) == NOTIFY | errno.EAFNOSUPPORT
    assert called(code, "socket", 2, 3) == NOTIFY | 1 << 12 | errno.EPERM
    assert called(code, "socket", 2, 1, 99) == ERRNO | errno.EPROTONOSUPPORT


@pytest.mark.parametrize("profile", PROFILES)
def test_without_a_listener_the_answers_are_the_same(profile: str) -> None:
    """Untold refusals have the errno that told ones have, and nothing else differs."""
    told, untold = compiled(profile, listener=True), compiled(profile)
    for call in rules_of(profile).calls:
        for arguments in samples.plain(call):
            one, other = called(told, call.name, *arguments), called(untold, call.name, *arguments)
            if one & 0xFFFF0000 == NOTIFY:
                one = ERRNO | one & 0xFFF
            assert one == other, (call.name, arguments)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("profile", PROFILES)
def test_no_built_in_profile_lets_leases_be_taken(profile: str, arch: str) -> None:
    """It is what `refuses_leases` promises, and what files that capsules share stand on."""
    for higher in (0, 1 << 32):
        answer = called(compiled(profile, arch), "fcntl", 3, 1024 | higher, 1, arch=arch)
        assert answer == ERRNO | errno.EPERM
    found = filters.load(Seccomp(profile), arch=arch)
    allowed = filters.load(Seccomp(profile, allow=("fcntl",)), arch=arch)
    assert found is not None
    assert allowed is not None
    assert (found.refuses_leases, allowed.refuses_leases) == (True, False)


# --- any rules ------------------------------------------------------------------------------

TESTS = st.tuples(
    st.integers(0, 2), st.integers(1, 15) | st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1)
).map(lambda t: (t[0], t[1], t[1] & t[2]))
ACTIONS = st.sampled_from([ALLOW, LOG, KILL, ERRNO | 1, ERRNO | 4095])
CASES = st.lists(st.tuples(ACTIONS, st.lists(TESTS, max_size=3).map(tuple), st.booleans()), max_size=5)


@hypothesis.given(
    CASES, st.lists(st.integers(0, 15) | st.integers(0, 2**64 - 1), min_size=6, max_size=6)
)
def test_cases_decide_alike(cases: list[tuple[Any, ...]], arguments: list[int]) -> None:
    """A program of any cases says what the first one that fits says, of halves and wholes."""
    call = Call("read", (*(Case(*case) for case in cases), Case(ERRNO | 9)))
    code = emitted(Rules("any", (call,)))
    assert not list(machine.shapes(code))
    tried = [tuple(arguments)]
    for _, tests, _ in cases:
        fitting = list(arguments)
        for n, mask, value in tests:
            fitting[n] = fitting[n] & ~mask | value
        tried.append(tuple(fitting))
    for each in tried:
        assert called(code, "read", *each) == returned(decide(call, each), told=True)


@hypothesis.given(st.sets(st.sampled_from(sorted(numbers.numbers("x86_64")))), st.booleans())
def test_any_calls_decide_alike(names: set[str], long: bool) -> None:
    """Trees of any shape find each number, also where their halves are too far apart for one jump."""
    slow = tuple(Case(ERRNO | 2, ((0, 0xFFFFFFFF, n),)) for n in range(200)) if long else ()
    first = min(names, default="")
    calls = [Call(n, (*(slow if n == first else ()), Case(ALLOW))) for n in sorted(names)]
    code = emitted(Rules("any", tuple(calls)))
    assert not list(machine.shapes(code))
    for name in numbers.numbers("x86_64"):
        assert called(code, name, 1000) == (ALLOW if name in names else UNKNOWN)


@pytest.mark.row("D-10")
def test_too_many_rules_are_refused() -> None:
    """A program that is longer than the kernel takes is the request's fault, and says so at once."""
    many = [Case(ALLOW, ((0, 0xFFFFFFFF, n),)) for n in range(301)]
    rng = random.Random(1)
    bits = [
        Case(ERRNO | n, tuple((rng.randrange(6), 1 << rng.randrange(64), 0) for _ in range(3)))
        for n in range(60)
    ]
    names = sorted(numbers.numbers("x86_64"))
    each = [(name, [Case(ALLOW, ((0, 0xFFFF, n),)) for n in range(150)]) for name in names[:30]]
    for calls in ([("read", many)], [("read", bits)], each):
        rules = [Call(name, (*cases, Case(ERRNO | at))) for at, (name, cases) in enumerate(calls, 1)]
        with pytest.raises(PolicyError, match="the kernel takes 4096"):
            emit.emit(Rules("odd", tuple(rules)), "x86_64")

"""The table: complete, without contradictions, and as new as the newest headers at hand."""

from __future__ import annotations

import errno
import os
import platform
import re
from pathlib import Path

import pytest

from capsule.confine.seccomp import filters, groups, numbers, resolve, table
from capsule.confine.seccomp.rules import ALLOW, errno_of
from capsule.confine.seccomp.spec import Seccomp

from . import document

X86_HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")
GENERIC_HEADER = "/usr/include/asm-generic/unistd.h"


def listed() -> list[str]:
    """Every name that the table has a row for."""
    rows = [row[1] for row in table.ALLOWED] + [row[4] for row in table.REFUSED]
    return [name for names in [*rows, *(row[0] for row in table.CHECKED)] for name in names.split()]


def test_each_call_has_one_row() -> None:
    """Every call of either architecture is in the table, once, and nothing else is."""
    assert len(listed()) == len(set(listed()))
    assert set(listed()) == numbers.every_name()


@pytest.mark.parametrize("arch", numbers.ARCHITECTURES)
def test_no_number_is_used_twice(arch: str) -> None:
    """Names and numbers are one to one, without those that x32 has for itself."""
    found = numbers.numbers(arch)
    assert len(set(found.values())) == len(found)
    assert not any(512 <= number < 548 for number in found.values())


def test_well_known_numbers() -> None:
    """The packed text is read as it is meant: numbers beside gaps."""
    x86, arm = numbers.numbers("x86_64"), numbers.numbers("aarch64")
    names = ["read", "clone", "uprobe", "pidfd_send_signal", "rseq_slice_yield"]
    assert [x86[name] for name in names] == [0, 56, 336, 424, 471]
    names = ["io_setup", "statfs", "clone", "wait4", "kexec_file_load", "rseq_slice_yield"]
    assert [arm[name] for name in names] == [0, 43, 220, 260, 294, 471]


def named_in(*paths: str) -> dict[str, int]:
    """Names and numbers of the first of these headers that is installed."""
    found = next((path for path in paths if os.path.exists(path)), None)
    if found is None:
        pytest.skip(f"no kernel headers: {paths[0]} is missing")
    rows = re.findall(
        r"^#define __NR(?:3264)?_(\w+) (\d+)", Path(found).read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 250
    return {name: int(number) for name, number in rows}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the headers are those of another machine")
def test_the_headers_here_know_nothing_newer() -> None:
    """Each call that the kernel headers of this machine name has a row, under their number."""
    named, known = named_in(*X86_HEADERS), numbers.numbers("x86_64")
    assert {name: number for name, number in named.items() if known.get(name) != number} == {}


def test_the_generic_headers_know_nothing_newer() -> None:
    """The numbers of aarch64 are the generic ones, without those of 32 bits and of single machines."""
    known = numbers.numbers("aarch64") | {"fstatat": numbers.numbers("aarch64")["newfstatat"]}
    named = named_in(GENERIC_HEADER)
    beside = {"syscalls", "arch_specific_syscall", *numbers.foreign_names()}
    wrong = {n: number for n, number in named.items() if n not in beside and known.get(n) != number}
    assert wrong == {}


def test_about_three_hundred_calls_are_allowed() -> None:
    """The default is an allow-list of a size that is known."""
    rules = resolve.resolve(Seccomp(), "x86_64")
    allowed = [c.name for c in rules.calls if c.allowed and c.name in numbers.numbers("x86_64")]
    assert 285 <= len(allowed) <= 300


@pytest.mark.parametrize("profile", ["default", "strict", "debug", "nest"])
def test_each_refusal_has_a_reason_and_a_remedy(profile: str) -> None:
    """Whatever is refused says why and which option allows it; its errno is one that programs know."""
    known = {errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP}
    known |= {errno.EINVAL}  # of an id that does not exist
    for call in resolve.profile(profile).calls:
        assert call.reason
        options = (f"--allow-syscall {call.name}", table.PRETEND)
        assert call.allowed or any(option in call.remedy for option in options)
        assert {errno_of(case.action) for case in call.cases if case.action != ALLOW} <= known


def test_an_absent_call_is_not_told() -> None:
    """What answers ENOSYS has a way around that programs take: it is no denial to report."""
    for call in resolve.profile("default").calls:
        for case in call.cases:
            quiet = errno_of(case.action) in (errno.ENOSYS, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)
            assert case.report == (case.action != ALLOW and not quiet), call.name


@pytest.mark.parametrize("profile", ["default", "strict", "debug"])
def test_no_namespace_in_any_profile_but_one(profile: str) -> None:
    """Each of the doors to a new namespace is shut; the significant bits are those of clone(2)."""
    rules = resolve.profile(profile)
    for name in (
        "unshare",
        "setns",
        "clone3",
        "mount",
        "chroot",
        "pivot_root",
        "io_uring_setup",
        "bpf",
    ):
        assert all(case.action != ALLOW for case in rules.call(name).cases), name
    assert rules.call("clone").cases[0].tests == ((0, 0x7E020000, 0),)


@pytest.mark.parametrize("name", groups.GROUPS)
def test_groups_name_calls(name: str) -> None:
    """Each group has members, all of them calls, and clone3 is not among them."""
    found = groups.members(name)
    assert found
    assert found <= numbers.every_name() - {"clone3"}


def test_foreign_names_are_no_calls_here() -> None:
    """What is ignored in lists that people bring has no number here."""
    assert not numbers.foreign_names() & numbers.every_name()


def test_the_page_is_the_table(update_golden: bool) -> None:
    """docs/seccomp.md is what the table says, word by word."""
    path = Path(__file__).parents[4] / "docs" / "seccomp.md"
    if update_golden:
        path.write_text(document.page(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == document.page()


def test_each_profile_is_shipped() -> None:
    """The list of what is shipped, which a run reads without the table, is the table's."""
    assert (*filters.BUILT_IN, "off") == table.PROFILES


def test_what_decides_is_of_calls() -> None:
    """The list of deciding arguments names refused calls that are told."""
    words = table.DECIDING.split()
    rules = resolve.profile("default")
    for name, argument in zip(words[::2], words[1::2], strict=True):
        assert [case.argument for case in rules.call(name).cases] == [int(argument)]
        assert all(case.report for case in rules.call(name).cases)

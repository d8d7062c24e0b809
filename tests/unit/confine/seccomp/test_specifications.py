"""From what is asked for to rules: profiles, names, groups, and files of Docker's format."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from capsule.base.errors import PolicyError
from capsule.confine.seccomp import compare, numbers, oci, resolve
from capsule.confine.seccomp.rules import ALLOW, ERRNO, KILL, Case, Rules, decide, opened
from capsule.confine.seccomp.spec import Seccomp

EPERM = ERRNO | errno.EPERM
AF_ALG = 38


def action(rules: Rules, name: str, *arguments: int) -> int:
    """What the rules say of a call."""
    return decide(rules.call(name), [*arguments, *[0] * 6][:6]).action


def resolved(profile: str = "default", allow: str = "", deny: str = "") -> Rules:
    return resolve.resolve(Seccomp(profile, tuple(allow.split()), tuple(deny.split())), "x86_64")


# --- names and groups -----------------------------------------------------------------------


def test_a_name_lifts_its_rule() -> None:
    """--allow-syscall socket allows every family; the other rules stay."""
    rules = resolved(allow="socket")
    assert action(rules, "socket", AF_ALG) == ALLOW
    assert action(rules, "clone", 0x10000000) == EPERM


def test_a_group_does_not_lift_a_rule() -> None:
    """A group allows a call as far as its rule goes."""
    rules = resolved(allow="@process @network-io @debug")
    assert action(rules, "ptrace") == ALLOW
    assert action(rules, "unshare") == ALLOW
    assert action(rules, "clone", 0x10000000) == EPERM
    assert action(rules, "socket", AF_ALG) == ERRNO | errno.EAFNOSUPPORT


def test_a_group_gives_back_what_a_profile_took() -> None:
    """In strict no socket can be made; with the group those of the default can."""
    rules = resolved("strict", allow="@network-io")
    assert action(rules, "socket", 2, 1) == ALLOW
    assert action(rules, "socket", AF_ALG) == ERRNO | errno.EAFNOSUPPORT


def test_denied_names_and_groups() -> None:
    """--deny-syscall refuses with EPERM, tells it, and names itself as the remedy."""
    rules = resolved(deny="@timer getrandom")
    for name in ("timer_create", "getrandom"):
        assert rules.call(name).cases == (Case(EPERM, (), True),)
        assert rules.call(name).remedy == f"leaving out --deny-syscall {name}"


def test_a_name_says_more_than_a_group() -> None:
    """A call can be taken out of a group that is allowed or denied."""
    assert action(resolved(allow="@debug", deny="ptrace"), "ptrace") == EPERM
    assert action(resolved(allow="flock", deny="@file-system @sync"), "flock") == ALLOW


def test_denying_what_is_refused_keeps_its_errno() -> None:
    """Programs rely on ENOSYS of clone3, whoever refuses it."""
    assert action(resolved(deny="clone3"), "clone3") == ERRNO | errno.ENOSYS


@pytest.mark.parametrize(
    ("allow", "deny", "hint"),
    [
        ("pttrace", "", "ptrace"),
        ("", "opennat", "openat"),
        ("@file-sistem", "", "@file-system"),
        ("ptrace", "ptrace", None),
    ],
)
def test_wrong_names(allow: str, deny: str, hint: str | None) -> None:
    """A name that nothing has is an error with the option and what may be meant."""
    with pytest.raises(PolicyError) as caught:
        resolved(allow=allow, deny=deny)
    assert caught.value.field == "seccomp"
    assert (hint or "") in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["execve", "write", "exit_group"])
def test_what_starts_the_command_cannot_be_denied(name: str) -> None:
    """Refusing what the launcher itself must call is an error, not a capsule that dies."""
    with pytest.raises(PolicyError, match=name):
        resolved(deny=name)


def test_wrong_profiles() -> None:
    """A profile that is none of ours says which there are."""
    for name in ("strickt", "unconfined"):
        with pytest.raises(PolicyError, match="no such profile") as caught:
            resolved(name)
        assert "default, strict, debug, nest, off" in (caught.value.hint or "")


def test_lists_as_systemd_writes_them() -> None:
    """A list that begins with a group allows that; one that begins with ~ takes from the default."""
    only = resolved("@basic-io @file-system ~@chown")
    assert action(only, "read") == action(only, "openat") == action(only, "execve") == ALLOW
    assert action(only, "kill") == action(only, "chown") == EPERM
    less = resolved("~@file-system @privileged")
    assert action(less, "openat") == EPERM
    assert action(less, "kill") == ALLOW
    assert action(resolved("@system-service"), "clone", 0x10000000) == EPERM


def test_profiles_say_what_they_open() -> None:
    """Debug and nest open what the default refuses; strict opens nothing."""
    default = resolved()
    assert opened(resolved("strict"), default) == ()
    assert set(opened(resolved("debug"), default)) >= {"ptrace", "kcmp"}
    assert set(opened(resolved("nest"), default)) >= {"unshare", "clone", "mount", "chroot", "setns"}


# --- owners ---------------------------------------------------------------------------------

EINVAL = ERRNO | errno.EINVAL
ANY = 0xFFFFFFFF


def owned(ids: tuple[int, int] | None, **more: Any) -> Rules:
    return resolve.resolve(Seccomp(**more), "x86_64", ids=ids)


def test_an_owner_that_does_not_exist() -> None:
    """The command's own ids and -1 go through to the kernel; any other has its answer, and is told."""
    rules = owned((1000, 33))
    for uid, gid, expected in (
        (1000, 33, ALLOW), (ANY, 33, ALLOW), (1000, ANY, ALLOW), (ANY, ANY, ALLOW),
        (0, 33, EINVAL), (1000, 0, EINVAL), (ANY, 0, EINVAL), (0, ANY, EINVAL), (33, 1000, EINVAL),
    ):  # fmt: skip
        for name in ("chown", "lchown", "fchown"):
            assert action(rules, name, 0, uid, gid) == expected
        assert action(rules, "fchownat", 0, 0, uid, gid) == expected
    case = decide(rules.call("chown"), (0, 1000, 5, 0, 0, 0))
    assert (case.report, case.argument, rules.call("chown").remedy) == (True, 2, "--pretend-chown")
    assert decide(rules.call("chown"), (0, 7, 33, 0, 0, 0)).argument == 1


def test_many_owners_exist() -> None:
    """Where a range of ids is mapped, the kernel alone decides."""
    rules = owned(None)
    assert all(rules.call(name).allowed for name in ("chown", "fchown", "lchown", "fchownat"))


def test_pretended_owners() -> None:
    """With pretend_chown the whole family answers 0, unless one is allowed or denied by name."""
    spec = Seccomp("strict", allow=("lchown", "@chown"), deny=("fchown",))
    rules = resolve.resolve(spec, "x86_64", pretend_chown=True)
    assert action(rules, "chown", 0, 0, 0) == action(rules, "fchownat", 0, 0, 5, 5) == ERRNO
    assert action(rules, "lchown", 0, 5, 5) == ALLOW
    assert action(rules, "fchown", 0, 0, 0) == EPERM


# --- Docker's format ------------------------------------------------------------------------


def docker(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> Rules:
    """Rules of a file with what starts a command and these."""
    start = {"names": ["execve", "exit_group", "write"], "action": "SCMP_ACT_ALLOW"}
    content = {"defaultAction": default, "syscalls": [start, *rules], **more}
    return oci.parse(json.dumps(content).encode(), "x.json", "x86_64")


def allow(name: str, **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", **more}


def compared(op: str, value: int, two: int = 0, index: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": two}


def test_docker_rules() -> None:
    """Names, actions, errnos and the default of a file mean what they say."""
    clone3 = {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    kill = {"name": "ptrace", "action": "SCMP_ACT_KILL"}
    rules = docker(allow("read"), clone3, kill, defaultErrnoRet=13)
    expected = {"read": ALLOW, "clone3": ERRNO | 38, "ptrace": KILL, "bpf": ERRNO | errno.EACCES}
    assert {name: action(rules, name) for name in expected} == expected
    assert rules.call("bpf").remedy == "--allow-syscall bpf"


def test_docker_conditions() -> None:
    """Rules for capabilities that nobody has, other machines and other kernels do not apply."""
    rules = docker(
        allow("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
        allow("read", excludes={"caps": ["CAP_SYS_ADMIN"]}),
        allow("sync", includes={"arches": ["amd64"]}),
        allow("tee", includes={"arches": ["s390x"]}),
        allow("flock", excludes={"arches": ["amd64", "x86"]}),
        allow("ptrace", includes={"minKernel": "4.8"}),
        allow("kcmp", includes={"minKernel": "99.1"}),
    )
    found = {
        n
        for n in ("mount", "read", "sync", "tee", "flock", "ptrace", "kcmp")
        if not action(rules, n) - ALLOW
    }
    assert found == {"read", "sync", "ptrace"}


def test_docker_arguments() -> None:
    """Comparisons of one rule must all hold; of the same argument one is enough."""
    rules = docker(
        allow("clone", args=[compared("MASKED_EQ", 0x7E020000, 0)]),
        allow("socket", args=[compared("LT", 38), compared("EQ", 39), compared("GT", 40)]),
        allow("lseek", args=[compared("EQ", 3), compared("GE", 5, index=2)]),
    )
    assert [action(rules, "clone", n) for n in (0x11, 0x10000011)] == [ALLOW, EPERM]
    assert [action(rules, "socket", n) for n in (37, 38, 39, 40, 41)] == [
        ALLOW,
        EPERM,
        ALLOW,
        EPERM,
        ALLOW,
    ]
    assert [action(rules, "lseek", 3, 0, n) for n in (4, 5)] == [EPERM, ALLOW]


def test_docker_comparisons_see_what_the_kernel_sees() -> None:
    """The upper half of a 32-bit argument is no way around a comparison, but counts in a wide one."""
    rules = docker(
        allow("socket", args=[compared("NE", 38)]), allow("mmap", args=[compared("NE", 7, index=1)])
    )
    assert action(rules, "socket", 1 << 32 | 38) == EPERM
    assert action(rules, "mmap", 0, 1 << 32 | 7) == ALLOW


def test_docker_block_lists() -> None:
    """A file may allow what it does not name; unknown names in it are errors, foreign ones are not."""
    refuse = {"names": ["ptrace", "socketcall", "vm86"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    rules = docker(refuse, default="SCMP_ACT_ALLOW")
    assert (action(rules, "ptrace"), action(rules, "bpf")) == (EPERM, ALLOW)
    with pytest.raises(PolicyError, match=r"x\.json: syscalls\[1\]: unknown system call frobnicate"):
        docker({"names": ["frobnicate"], "action": "SCMP_ACT_KILL"}, default="SCMP_ACT_ALLOW")
    assert action(docker(allow("frobnicate")), "read") == EPERM


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the file: is not JSON"),
        ("[" * 100000, "the file: is not JSON"),
        ("[]", "the file: is not an object"),
        ({}, "defaultAction: is not text"),
        ({"defaultAction": "SCMP_ACT_MAYBE"}, "defaultAction: unknown action SCMP_ACT_MAYBE"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction: SCMP_ACT_NOTIFY: there is no other"),
        (
            {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1},
            "defaultErrnoRet: is not a number",
        ),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENONE"}, "defaultErrno: unknown error"),
        ({"defaultAction": "SCMP_ACT_KILL", "syscall": []}, "syscall: unknown key"),
        ({"defaultAction": "SCMP_ACT_KILL", "architectures": ["SCMP_ARCH_ARM"]}, "not for x86_64"),
        ({"defaultAction": "SCMP_ACT_KILL", "listenerPath": "/x"}, "listenerPath: "),
        ({"defaultAction": "SCMP_ACT_KILL", "flags": ["X"]}, r"flags\[0\]: unknown flag"),
        ({"defaultAction": "SCMP_ACT_KILL", "syscalls": {}}, "syscalls: is not a list"),
        ({"defaultAction": "SCMP_ACT_KILL", "syscalls": [3]}, r"syscalls\[0\]: is not an object"),
    ],
)
def test_wrong_files(content: object, message: str) -> None:
    """What is wrong in a file is named with the file and the key."""
    data = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(PolicyError, match=rf"^x\.json: .*{message}"):
        oci.parse(data.encode(), "x.json", "x86_64")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"action": "SCMP_ACT_ALLOW"}, "names no system call"),
        ({"names": ["read"]}, "action: is not text"),
        ({"names": ["read"], "action": "SCMP_ACT_ALLOW", "arg": []}, "arg: unknown key"),
        (allow("read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}]), r"args\[0\]\.index: is not a number"),
        (allow("read", args=[{"index": 0, "op": "EQ"}]), r"args\[0\]\.op: unknown operator EQ"),
        (allow("read", args=[compared("EQ", 2**64)]), r"args\[0\]\.value: is not a number"),
        (allow("read", args=[compared("EQ", True)]), r"args\[0\]\.value: is not a number"),
        (allow("read", includes={"cap": []}), "includes.cap: unknown key"),
        (allow("read", includes={"minKernel": "new"}), "includes.minKernel: is not a version"),
    ],
)
def test_wrong_rules(rule: dict[str, Any], message: str) -> None:
    """What is wrong in a rule is named with its place in the file."""
    with pytest.raises(PolicyError, match=rf"^x\.json: syscalls\[1\].*{message}"):
        docker(rule)


# --- the arithmetic -------------------------------------------------------------------------

NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 70) | st.integers(2**32 - 3, 2**32 + 40)
PLAIN: dict[str, Callable[[int, int, int], bool]] = {
    "EQ": lambda a, x, _: a == x,
    "NE": lambda a, x, _: a != x,
    "LT": lambda a, x, _: a < x,
    "LE": lambda a, x, _: a <= x,
    "GE": lambda a, x, _: a >= x,
    "GT": lambda a, x, _: a > x,
    "MASKED_EQ": lambda a, x, y: a & x == y & x,
}


@hypothesis.given(st.sampled_from(sorted(PLAIN)), NUMBERS, NUMBERS, NUMBERS, st.sampled_from([32, 64]))
def test_comparisons_are_sets_of_bits(op: str, argument: int, one: int, two: int, width: int) -> None:
    """An order, said in bits, is the order, on as many bits as the kernel looks at."""
    mask = (1 << width) - 1
    found = any(argument & m == v for m, v in compare.bits(f"SCMP_CMP_{op}", one, two, width))
    assert found == PLAIN[op](argument & mask, one & mask, two & mask)


def test_narrow_arguments_are_of_calls() -> None:
    """The list of 32-bit arguments names calls that there are."""
    assert {name for name in numbers.every_name() if compare.width(name, 0) == 32} >= {
        "socket",
        "prctl",
    }
    assert set(compare._WORDS[::2]) <= numbers.every_name()

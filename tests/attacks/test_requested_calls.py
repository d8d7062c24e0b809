"""Calls that somebody allows or denies, ownership that is pretended, requests that are refused."""

from __future__ import annotations

import errno
import json
import subprocess
from typing import Any

import pytest

import capsule
from capsule import Denial, Policy, Seccomp
from tests.attacks.calls import (
    _LIBC,
    ALLOW_ALL,
    BAD_FD,
    BAD_POINTER,
    NUMBERS,
)
from tests.support import (
    CAPSULE,
    HANG,
    ask,
    ask_outside,
    give,
    needs,
    probe_args,
    shared_directory,
)

# --- what is asked for --------------------------------------------------------------------------

_ONE = f"{_LIBC}\ntell(call(given['number'], given['args'])[1])"


def answer(name: str, *args: int, **options: Any) -> int:
    """The errno of a call inside."""
    found: int = ask(_ONE, None, {"number": NUMBERS[name], "args": args}, **options)
    return found


def test_allowed_and_denied_by_name() -> None:
    """A call more, a call less, a group less; a rule that is lifted is lifted wholly."""
    assert answer("unshare", 0, seccomp=Seccomp(allow=("unshare",))) == 0
    assert answer("personality", 0x40000, seccomp=Seccomp(allow=("personality",))) == 0
    assert answer("flock", BAD_FD, 1) == errno.EBADF
    assert answer("flock", BAD_FD, 1, seccomp=Seccomp(deny=("flock",))) == errno.EPERM
    assert answer("getitimer", 0, BAD_POINTER, seccomp=Seccomp(deny=("@timer",))) == errno.EPERM


def test_profiles_of_system_calls() -> None:
    """strict has no sockets and no System V IPC; debug has tracing; off has all."""
    assert answer("socket", 2, 1, 0, seccomp="strict") == errno.EAFNOSUPPORT
    assert answer("shmget", 0, 4096, 0o1000, seccomp="strict") == errno.EPERM
    assert answer("shmget", 0, 4096, 0o1000) == 0
    assert answer("ptrace", 0, seccomp="debug") == 0
    assert answer("unshare", 0, seccomp="off") == 0


def test_a_list_of_groups() -> None:
    """What is in no group of the list is refused, and told."""
    profile = "@system-service ~@ipc"
    assert answer("shmget", 0, 4096, 0o1000, seccomp=profile) == errno.EPERM
    result = capsule.run(
        probe_args(f"{_LIBC}\ncall({NUMBERS['shmget']}, [0, 4096, 0])"), seccomp=profile
    )
    assert [d.call for d in result.denials] == ["shmget"]


def test_a_file_in_dockers_format() -> None:
    """An allow-list of somebody's is in force; its errno is its own."""
    with shared_directory() as place:
        rules = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}],
        }
        (place / "rules.json").write_text(json.dumps(rules))
        options = {"seccomp": f"{place}/rules.json"}
        assert answer("getppid", **options) == 77
        assert answer("unshare", 0, **options) == 0
        done = subprocess.run(
            [CAPSULE, "--seccomp", "rules.json", "true"], cwd=place, capture_output=True, timeout=HANG
        )
        assert (done.returncode, done.stderr) == (0, b"")
        (place / "rules.json").write_text("{}")
        done = subprocess.run(
            [CAPSULE, "--seccomp", "rules.json", "true"], cwd=place, capture_output=True, timeout=HANG
        )
        assert done.returncode == 2
        assert b"rules.json: defaultAction: is not text" in done.stderr


# --- owners -------------------------------------------------------------------------------------

_OWN = """
open("/tmp/file", "w").close()
def own(*ids):
    try:
        os.chown("/tmp/file", *ids)
    except OSError as error:
        return errno.errorcode[error.errno]
    found = os.stat("/tmp/file")
    return [found.st_uid, found.st_gid]
tell([own(*given["own"]), own(-1, -1), own(*given["other"])])
"""


@pytest.mark.parametrize("ids", [(0, 0), (1000, 33)])
def test_owners(ids: tuple[int, int]) -> None:
    """To the own ids files can be given; to others EINVAL, as without a filter, but told."""
    given = {"own": ids, "other": [7, 7]}
    policy = Policy(uid=ids[0], gid=ids[1])
    expected = [list(ids), list(ids), "EINVAL"]
    assert ask(_OWN, policy, given) == ask(_OWN, policy, given, seccomp="off") == expected
    result = capsule.run(probe_args(_OWN, given), policy)
    assert result.denials == (Denial("chown", "uid 7", 1, errno.EINVAL, "--pretend-chown"),)
    assert ask(_OWN, policy, given, pretend_chown=True) == [list(ids)] * 3


@needs("overlay")
def test_pretended_owners_for_tar() -> None:
    """An archive of another user's files unpacks; without the option the message names it."""
    with shared_directory() as place:
        give(place)
        (place / "f").write_text("content")
        script = "tar --owner=1000 --group=1000 -cf o.tar f && tar xf o.tar -C /tmp && cat /tmp/f"
        words = [CAPSULE, "--overlay", ".", "--", "sh", "-c", script]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=HANG)
        assert done.returncode != 0
        assert "Cannot change ownership" in done.stderr
        assert "--pretend-chown would allow it" in done.stderr
        words.insert(1, "--pretend-chown")
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=HANG)
        assert (done.returncode, done.stdout, done.stderr) == (0, "content", "")


# --- before anything runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seccomp", "strickt"], "seccomp: no such profile: strickt"),
        (["--allow-syscall", "pttrace"], "hint: did you mean ptrace"),
        (["--deny-syscall", "execve"], "seccomp: default refuses execve, which starts the command"),
        (["--seccomp", "off", "--deny-syscall", "ptrace"], "seccomp: seccomp is off"),
        (["--seccomp", "off", "--pretend-chown"], "pretend_chown: seccomp is off"),
        (["--seccomp", "/nowhere.json"], "seccomp: /nowhere.json: No such file or directory"),
    ],
)
@pytest.mark.row("D-10")
def test_wrong_words(options: list[str], message: str) -> None:
    """They end with 2, name what is wrong, and nothing runs."""
    done = subprocess.run([CAPSULE, *options, "echo", "ran"], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "The command was not run." in done.stderr


def test_a_host_without_filters() -> None:
    """Where none can be installed, nothing runs unless that is asked for."""
    from capsule.base.errors import HostError
    from capsule.files.found import Survey
    from capsule.planner.plan import make_plan
    from capsule.program.command import resolve as find

    host = capsule.probe().replace(seccomp=False)
    with pytest.raises(HostError, match="no filter of system calls") as caught:
        make_plan(Policy(), host, find(["true"], Policy()), Survey())
    assert "--seccomp off" in (caught.value.hint or "")
    policy = Policy(seccomp=Seccomp("off"))
    plan = make_plan(policy, host, find(["true"], policy), Survey())
    assert plan.protections["seccomp"].startswith("off")


@pytest.mark.row("D-08")
def test_the_command_cannot_write_its_rules() -> None:
    """A file of rules in a writable tree is read-only there, as a profile is; others are not."""
    with shared_directory() as place:
        give(place)
        (place / "rules.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
        give(place / "rules.json")
        script = "echo x >beside && echo x >rules.json"
        words = [CAPSULE, "--seccomp", "rules.json", "--rw", ".", "sh", "-c", script]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=HANG)
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr
        assert (place / "beside").read_text() == "x\n"
        assert "SCMP_ACT_ALLOW" in (place / "rules.json").read_text()


_OWN_FILTER = f"""{_LIBC}
{ALLOW_ALL}
flags = (8, 0)  # SECCOMP_FILTER_FLAG_NEW_LISTENER, none
tell([call({NUMBERS["seccomp"]}, [1, flag, ctypes.addressof(program)])[1] for flag in flags])
"""


def test_filters_of_its_own() -> None:
    """A program can confine itself further; the one listener that a process can have is taken."""
    assert ask_outside(_OWN_FILTER)[0] == 0
    assert ask(_OWN_FILTER) == [errno.EBUSY, 0]

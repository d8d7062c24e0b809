"""What is closed in every run: namespaces, rlimits, keys, groups, the out-of-memory score."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from typing import Any

import pytest

import capsule
from capsule import Limits, Policy, SetupError
from capsule.confine.seccomp import numbers
from capsule.planner.tail import CEILINGS
from capsule.policy.limits import RESOURCES
from tests.support import CAPSULE, PYTHON, REAL_ROOT, ask, ask_outside, assert_denied, needs

# --- settings of namespaces -----------------------------------------------------------------------

_SETTINGS = """
import glob
tell({path: open(path).read().split() for path in given["paths"] if os.path.exists(path)})
"""
_KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_LIMITS = [f"/proc/sys/user/max_{kind}_namespaces" for kind in _KINDS]


@pytest.mark.row("E-01")
def test_no_namespaces() -> None:
    """Of each kind none can be made, whatever the filter says; with nest, as many as outside."""
    given = {"paths": _LIMITS}
    for profile in ("default", "off"):
        assert ask(_SETTINGS, given=given, seccomp=profile) == {
            path: ["0"] for path in _LIMITS if os.path.exists(path)
        }
    assert ["0"] not in ask(_SETTINGS, given=given, seccomp="nest").values()
    for path in _LIMITS:
        if os.path.exists(path):
            with open(path) as file:
                assert file.read() != "0\n"


@needs("unshare")
def test_a_sandbox_inside_needs_other_ids_than_root() -> None:
    """Root without capabilities may not map root, its namespace's or not: the caller's own ids may."""
    command = ["unshare", "--user", "--map-root-user", "id", "-u"]
    assert subprocess.check_output(command) == b"0\n"
    refused = capsule.run(command, seccomp="nest")
    assert b"uid_map: " + os.strerror(errno.EPERM).encode() in refused.stderr
    for options in ({"keep_id": True}, {"uid": 1000}):
        assert capsule.run(command, seccomp="nest", **options).stdout == b"0\n"


@pytest.mark.parametrize("options", [{}, {"seccomp": "nest"}, {"seccomp": "nest", "keep_id": True}])
def test_a_capsule_inside_says_what_is_in_its_way(options: dict[str, Any]) -> None:
    """None is made, and the hint is about where it was started."""
    result = capsule.run([CAPSULE, "run", "--", "true"], text=True, **options)
    assert result.returncode == 125
    assert "hint: this is inside of a capsule" in result.stderr
    assert result.stderr.count("\n") == 3


def test_what_a_namespace_may_be_made_for() -> None:
    """ENOSPC without a filter; who names the call, or nest, gets what is asked for."""
    act = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    act += "if libc.unshare(0x10000000) < 0:\n    raise OSError(ctypes.get_errno(), 'unshare')"
    assert_denied(act, errno.ENOSPC, seccomp="off")
    script = ["unshare", "--user", "true"]
    assert b"No space left on device" in capsule.run(script, seccomp="off").stderr
    for options in ({"seccomp": "nest"}, {"seccomp": capsule.Seccomp(allow=("unshare",))}):
        result = capsule.run(script, **options)
        assert result.ok
        assert result.protections["namespaces"] == "can be made inside: asked for"


_IPC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmget.argtypes = ctypes.c_int, ctypes.c_size_t, ctypes.c_int
def attempt(function, *args):
    return 0 if function(*args) >= 0 else ctypes.get_errno()
told = [attempt(libc.shmget, 0, size << 20, 0o600) for size in (513, 300, 300, 100)]
queues = [attempt(libc.msgget, 0, 0o600) for _ in range(1025)]
tell([told, queues.count(0), queues[-1], attempt(libc.semget, 0, 32000, 0o600)])
"""


@needs("ipc limits")
@pytest.mark.row("F-04")
def test_limits_of_system_v_ipc() -> None:
    """Memory of one segment and of all, queues: EINVAL, ENOSPC; they are those of uid 0 inside."""
    assert ask(_IPC) == [[errno.EINVAL, 0, errno.ENOSPC, 0], 1024, errno.ENOSPC, 0]
    # The control: not as uid 0 of the namespace, these are the kernel's own.
    assert ask(_IPC, uid=1000) == [[0, 0, 0, 0], 1025, 0, 0]
    assert "System V shared memory of 512M" in capsule.run(["true"]).protections["ipc"]
    assert capsule.run(["true"], uid=1000).protections["ipc"] == "IPC namespace"


# --- limits of processes ----------------------------------------------------------------------------

_RLIMITS = """
import resource
tell({name: resource.getrlimit(number) for name, number in given["names"].items()})
"""


def rlimits(**options: Any) -> dict[str, list[int]]:
    """Soft and hard of each, inside."""
    found: dict[str, list[int]] = ask(_RLIMITS, given={"names": RESOURCES}, **options)
    return found


def lowered(value: int, most: int) -> int:
    """What is left of a caller's limit."""
    return most if value == resource.RLIM_INFINITY else min(value, most)


def test_ceilings() -> None:
    """What is higher is lowered, soft and hard; nothing is raised, and others are as outside."""
    inside = rlimits()
    for name, number in RESOURCES.items():
        outside = resource.getrlimit(number)
        if name in CEILINGS:
            assert inside[name] == [lowered(value, CEILINGS[name]) for value in outside], name
        elif name != "core":
            assert inside[name] == list(outside), name
    assert inside["core"][0] in (0, 1)


def test_named_limits() -> None:
    """Each as asked for, also above a ceiling; the options of others go on working."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    asked = ["stack=1M:2M", f"nofile=99:{most}", "rttime=5", "core=0"]
    inside = rlimits(ulimits=asked)
    assert inside["stack"] == [1 << 20, 2 << 20]
    assert inside["nofile"] == [99, most]
    assert inside["rttime"] == [5, 5]
    assert inside["core"] == [0, 0]
    assert inside["memlock"] == rlimits()["memlock"]
    assert rlimits(open_files=50)["nofile"] == [50, 50]


def test_a_limit_above_the_caller_s() -> None:
    """It is refused with the reason, and the command does not run."""
    code = "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))\n"
    code += f"os.execv({CAPSULE!r}, ['capsule', '--ulimit', 'nofile=501', '--', 'echo', 'ran'])"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (125, "")
    assert "set the limit of nofile to 501, hard 501: Operation not permitted" in done.stderr
    assert "own hard limit is lower (`ulimit -H`)" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nope=1", "the names are cpu, fsize,"),
        ("nproc=1", "use --pids"),
        ("stack", "write NAME=SOFT"),
        ("stack=much", "write a size"),
        ("cpu=1K", "write a number"),
        ("stack=2M:1M", "the second number is the hard limit"),
        ("nice=-1", "write a number"),
    ],
)
def test_what_is_no_limit(text: str, says: str) -> None:
    """It is refused with what would be one."""
    with pytest.raises(capsule.PolicyError, match="ulimits") as caught:
        Limits(ulimits=[text])
    assert says in str(caught.value)


@pytest.mark.parametrize(("text", "field"), [("nofile=99", "open_files"), ("fsize=1M", "file_size")])
def test_two_for_one(text: str, field: str) -> None:
    """Two values for one limit are refused."""
    with pytest.raises(capsule.PolicyError, match=f"is what {field} sets"):
        Limits(ulimits=[text], **{field: 1000})


# --- keys, groups, memory ---------------------------------------------------------------------------

_FULL = """
import ctypes, errno, sys, time
import capsule
from capsule.confine.seccomp import numbers
import platform
calls = numbers.numbers(platform.machine())
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(calls["keyctl"], 1, None) > 0
made = 0
# The keyring of a capsule that has just ended is there, and counted, for a moment more.
for _ in range(100):
    while libc.syscall(calls["add_key"], b"user", b"%d" % made, b"x", 1, -3) > 0:
        made += 1
    assert ctypes.get_errno() == errno.EDQUOT
    try:
        capsule.run(["true"])
    except capsule.SetupError as error:
        print(error.step.word, errno.errorcode[error.errno], "kernel.keys.maxkeys" in error.hint)
        break
    time.sleep(0.1)
libc.syscall(calls["keyctl"], 7, -3)  # KEYCTL_CLEAR
def runs():
    try:
        return capsule.run(["true"]).ok
    except capsule.SetupError:
        return False
# What is freed is counted for a moment more.
while not runs():
    pass
print("runs again")
"""


@needs("unprivileged")
def test_the_quota_of_keys() -> None:
    """Where it is used up and no capsule is alive there is no keyring: refused, with the remedy."""
    done = subprocess.run([PYTHON, "-c", _FULL], capture_output=True, text=True)
    assert done.stdout == "keyring EDQUOT True\nruns again\n", done.stderr


_MANY = """
import ctypes, contextlib, sys
import capsule
# As in a login session: the caller has a session keyring, and so each further one counts.
assert ctypes.CDLL(None).syscall(int(sys.argv[1]), 1, None) > 0
with contextlib.ExitStack() as stack:
    for _ in range(220):
        stack.enter_context(capsule.start(["sleep", "100"]))
    print("all run")
"""


def test_more_capsules_than_keys() -> None:
    """All capsules of a user have one keyring: the quota of 200 keys is no limit of capsules."""
    number = str(numbers.numbers(os.uname().machine)["keyctl"])
    done = subprocess.run([PYTHON, "-c", _MANY, number], capture_output=True, text=True)
    assert done.stdout == "all run\n", done.stderr


_KEYS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def attempt(*args):
    return 0 if libc.syscall(*args) >= 0 else ctypes.get_errno()
add, keyctl = given["add_key"], given["keyctl"]
if given["outside"]:
    assert libc.syscall(keyctl, 1, None) > 0
tell([
    attempt(add, b"user", b"x", b"y", 1, -3), attempt(keyctl, 5, -3, 0x3f3f3f3f),
    attempt(keyctl, 8, -4, -3), attempt(keyctl, 10, -3, b"user", b"x", 0),
])
"""


@pytest.mark.row("B-14")
def test_nothing_can_be_put_into_the_keyring() -> None:
    """Without the filter, too, it is no way from one capsule to another: not written, not changed."""
    given = numbers.numbers(os.uname().machine)
    assert ask_outside(_KEYS, {**given, "outside": True}) == [0] * 4
    found = ask(_KEYS, given={**given, "outside": False}, seccomp="off")
    assert found[:3] == [errno.EACCES] * 3
    assert found[3] in (errno.EACCES, errno.ENOKEY)


def test_groups_are_told() -> None:
    """Those that stay are named; root's are dropped."""
    said = capsule.run(["true"]).protections["groups"]
    others = sorted(set(os.getgroups()) - {os.getegid()})
    if REAL_ROOT or not others:
        assert said == "no supplementary groups"
    else:
        assert said.endswith(f"only root can drop: {' '.join(map(str, others))}")
    assert len(ask("tell(os.getgroups())")) == (0 if REAL_ROOT else len(os.getgroups()))


_SCORE = """
import capsule, sys
with open("/proc/self/oom_score_adj", "w") as file:
    file.write(sys.argv[1])
code = '''
import os, sys
print(open("/proc/self/oom_score_adj").read(), end="")
try:
    os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), sys.argv[1].encode())
except OSError as error:
    print(error.errno)
'''
print(capsule.run([sys.executable, "-I", "-S", "-c", code, sys.argv[2]], text=True).stdout, end="")
"""


def score(of_caller: int, wanted: int) -> list[str]:
    """The command's oom_score_adj, and what it is told when it asks for another."""
    command = [PYTHON, "-c", _SCORE, str(of_caller), str(wanted)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_score_for_want_of_memory() -> None:
    """It is the caller's, and can be raised."""
    assert score(300, 400) == ["300"]


@needs("CAP_SYS_RESOURCE")
def test_root_s_score_is_not_handed_on() -> None:
    """Who is spared for the host's sake passes nothing of it on, and it cannot be taken back."""
    assert score(-500, -500) == ["0", str(errno.EACCES)]
    assert score(300, 299) == ["300", str(errno.EACCES)]


def test_setup_errors_are_named() -> None:
    """A limit that cannot be set is the error of its step."""
    hard = resource.getrlimit(resource.RLIMIT_RTPRIO)[1]
    if hard == resource.RLIM_INFINITY:
        hard = 99
    with pytest.raises(SetupError) as caught:
        capsule.run(["true"], Policy(limits=Limits(ulimits=[f"rtprio={hard + 1}"])))
    assert caught.value.step.word == "setrlimit"

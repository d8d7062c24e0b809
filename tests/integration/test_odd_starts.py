"""Odd starts: from wherever and under whatever it is started, it runs, or says what is missing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import capsule
from tests.support import CAPSULE, HANG, PYTHON, REAL_ROOT, needs, shared_directory

REFUSE = Path(__file__).with_name("refuse.py")
RUN = [CAPSULE, "--chdir", "/", "echo", "ran"]


def told(*words: str, **options: Any) -> tuple[int, str, str]:
    """(Status, output, messages) of a program."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG, **options)
    return done.returncode, done.stdout, done.stderr


def assert_runs(*words: str, **options: Any) -> None:
    """It runs the command and says nothing."""
    assert told(*words, **options) == (0, "ran\n", "")


# --- by whom ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["nohup"],
        ["setsid", "-w"],
        ["nice", "-n", "19"],
        ["env", "-i", "SHELL=/bin/sh", "PATH=/usr/bin:/bin", "LOGNAME=x", "HOME=/nonexistent"],
        ["env", "-i"],
        ["unshare", "-Ur"],
        ["unshare", "-Urpf", "--mount-proc"],
        ["unshare", "-Urmnuip", "-f", "--mount-proc"],
        ["sh", "-c", 'umask 0777; exec "$@"', "sh"],
        ["sh", "-c", 'cd / && exec "$@" </dev/null 2>&1 | cat', "sh"],
        ["sh", "-c", '"$@" & wait $!', "sh"],
        ["sh", "-c", 'trap "" HUP INT QUIT TERM PIPE CHLD USR1 TSTP; exec "$@"', "sh"],
    ],
    ids=" ".join,
)
def test_started_by_something_else(words: list[str]) -> None:
    """Under nohup and setsid, from cron's bare environment, as root or PID 1 of namespaces."""
    assert_runs(*words, *RUN)


_AS_PID_1 = """
import os, capsule
assert os.getpid() == 1
result = capsule.run(["echo", "ran"], cwd="/")
# Orphans of others come to PID 1; a capsule's own go with it.
assert os.listdir("/proc/1/task") == ["1"]
assert open("/proc/1/task/1/children").read() == ""
os.write(1, result.stdout)
"""


def test_as_pid_1() -> None:
    """As PID 1 of a container-like namespace: it runs, and no zombie is left to it."""
    assert_runs("unshare", "-Urpf", "--mount-proc", PYTHON, "-c", _AS_PID_1)


_FORKING = """
import os, threading, capsule
capsule.probe()
ends, told = threading.Event(), []
def forks():
    while not ends.is_set():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
def runs():
    for _ in range(20):
        told.append(capsule.run(["echo", "ran"], cwd="/").stdout)
others = [threading.Thread(target=forks) for _ in range(2)]
mine = [threading.Thread(target=runs) for _ in range(2)]
[thread.start() for thread in others + mine]
[thread.join() for thread in mine]
ends.set()
[thread.join() for thread in others]
assert told == [b"ran\\n"] * 40, told
os.write(1, told[0])
"""


def test_from_threads_of_a_process_that_forks() -> None:
    """While other threads fork and wait for their children, each run ends with its own result."""
    assert_runs(PYTHON, "-W", "ignore", "-c", _FORKING)


# --- with what ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {"TMPDIR": "/nonexistent"},
        {"TMPDIR": "/dev/null\n\x1b[31m"},
        {"TMPDIR": ""},
        {"HOME": "/nonexistent"},
        {"HOME": "relative/../.."},
        {"HOME": "/etc/passwd"},
        {"HOME": "/"},
        {"HOME": ""},
        {"PATH": ""},
        {"PATH": ".:relative::/nonexistent:/etc/passwd"},
        {"PATH": ":".join(["/usr/bin"] * 3000)},
        {"LD_LIBRARY_PATH": "/nonexistent", "PYTHONPATH": "/nonexistent", "PYTHONHOME": "/nonexistent"},
        {"LANG": "xx_YY.nonsense", "LC_ALL": "C", "PYTHONIOENCODING": "nonsense"},
        {"XDG_RUNTIME_DIR": "/nonexistent", "XDG_CONFIG_HOME": "\n", "TERM": "\x1b"},
        {"COLUMNS": "-1", "SOURCE_DATE_EPOCH": "x", "TZ": "../../etc/passwd"},
    ],
    ids=" ".join,
)
def test_hostile_variables(variables: dict[str, str]) -> None:
    """Whatever they say: directories that are none, paths that lead nowhere, a locale that is none."""
    words = [CAPSULE, "--chdir", "/", "/bin/echo", "ran"]
    assert_runs(*words, env={**os.environ, **variables})


def test_a_library_that_is_preloaded_is_the_loaders_matter() -> None:
    """One that is missing is told of by ld.so, for sh and Python; nothing of it is inside."""
    words = [CAPSULE, "--chdir", "/", "sh", "-c", 'echo "ran$LD_PRELOAD"']
    status, output, messages = told(*words, env={**os.environ, "LD_PRELOAD": "/nonexistent.so"})
    assert (status, output) == (0, "ran\n")
    assert all("ld.so" in line for line in messages.splitlines())


def test_a_small_stack() -> None:
    """With 256 KiB it runs; with 64 KiB it is Python that dies, of SIGSEGV or, since 3.14, in words."""
    assert_runs("sh", "-c", 'ulimit -s 256; exec "$@"', "sh", *RUN)
    status, output, _ = told("sh", "-c", 'ulimit -s 64; exec "$@"', "sh", *RUN)
    assert (status == 0) == (output == "ran\n")
    assert output in ("ran\n", "")
    inside = [CAPSULE, "--ulimit", "stack=64K", *RUN[1:3], "sh", "-c", "ulimit -s"]
    assert told(*inside) == (0, "64\n", "")


@pytest.mark.parametrize(
    ("crossed", "out", "err"),
    [("3>&1 1>&2 2>&3 3>&-", "err\n", "out\n"), ("2>&1", "out\nerr\n", ""), ("1>&2", "", "out\nerr\n")],
)
def test_streams_that_are_crossed(crossed: str, out: str, err: str) -> None:
    """What is 1 and 2 outside is 1 and 2 inside, whatever they are."""
    script = f'"$@" {crossed}'
    words = [CAPSULE, "--chdir", "/", "sh", "-c", "echo out; echo err >&2"]
    assert told("sh", "-c", script, "sh", *words) == (0, out, err)


def test_standard_input_is_an_output(tmp_path: Path) -> None:
    """A file that is open for writing as 0, and one for reading as 1: the command gets the error."""
    (tmp_path / "in").write_text("")
    words = [CAPSULE, "--chdir", "/", "sh", "-c", "read x; echo $? >&2; echo x; echo $? >&2"]
    script = f'cd {tmp_path}; "$@" 0>out 1<in'
    status, output, messages = told("sh", "-c", script, "sh", *words)
    assert (status, output) == (0, "")
    lines = messages.splitlines()
    assert (lines[0] != "0", lines[-1] != "0") == (True, True)


# --- where --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 0o100, 0o400])
def test_a_working_directory_that_cannot_be_read(mode: int) -> None:
    """It is not shown, or refused with its name; the command is not run somewhere else unsaid."""
    with shared_directory() as place:
        closed = place / "closed"
        closed.mkdir()
        try:
            script = f'cd "$1"; chmod {mode:o} "$1"; shift; exec "$@"'
            words = ["sh", "-c", script, "sh", str(closed), CAPSULE]
            status, output, messages = told(*words, "sh", "-c", "pwd; ls; exit 0")
            if status:
                assert (status in (2, 125), output) == (True, "")
                assert str(closed) in messages
                assert "hint: " in messages
            else:
                # It is there, and as closed as it was.
                assert output == f"{closed}\n"
            closed.chmod(0o700)
            assert_runs(*words, *RUN[1:])
        finally:
            closed.chmod(0o700)


# --- under a filter that takes a call away ------------------------------------------------------

# What the command tells of its walls, and whether all of them stand.
_TELLS = """
import json, os
import capsule
try:
    result = capsule.run(["sh", "-c",
        "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ls /proc/self/fd | wc -l; "
        "ls /; readlink /proc/1/root || echo closed; "
        "grep -c . /proc/self/mountinfo; : > /usr/x || echo closed"],
        cwd="/", text=True, LANDLOCK)
    told = ["ran", result.outcome.value, result.stdout, sorted(result.protections.items())]
except capsule.CapsuleError as error:
    told = [type(error).__name__, str(error), error.hint, None]
os.write(1, json.dumps(told).encode())
"""
# Each with words that its message has one of; "run" where it can be done without.
CALLS = {
    "clone": ("new namespaces", "the launcher or init"),
    "clone3": ("clone3", "run"),
    "close_range": ("close_range", "the launcher or init"),
    "fsconfig": ("proc file system", "the launcher or init"),
    "fsmount": ("proc file system", "the launcher or init"),
    "fsopen": ("fsopen", "the launcher or init"),
    "landlock_add_rule": ("allow beneath", "the launcher or init"),
    "landlock_create_ruleset": ("Landlock", "the launcher or init"),
    "landlock_restrict_self": ("restrict itself by the ruleset", "the launcher or init"),
    "memfd_create": ("memfd_create",),
    "mount": ("private", "the launcher or init"),
    "mount_setattr": ("run", "the launcher or init"),
    "move_mount": ("move_mount", "the root", "the launcher or init"),
    "open_tree": ("open_tree", "the launcher or init"),
    "openat2": ("openat2", "the launcher or init"),
    "pidfd_open": ("pidfd_open",),
    "pivot_root": ("the root", "the launcher or init"),
    "seccomp": ("filter system calls", "the launcher or init"),
    "setns": ("run",),
    "unshare": ("run",),
}


def _under(call: str, word: str, landlock: str = "") -> list[Any] | None:
    """What a run tells under a filter; None if the filter killed the supervisor itself."""
    code = _TELLS.replace("LANDLOCK", landlock)
    rules = [f"{call}={word}"] if call else []
    done = subprocess.run(
        [PYTHON, str(REFUSE), *rules, "--", PYTHON, "-c", code], capture_output=True, timeout=HANG
    )
    if word == "kill" and done.returncode < 0:
        assert done.stdout == b""
        return None
    assert done.returncode == 0, done.stderr.decode()
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def whole() -> list[Any]:
    """What a run tells under a filter that takes nothing away."""
    found = _under("", "")
    assert found is not None
    assert found[:2] == ["ran", "exited"]
    return found


@pytest.mark.row("F-22")
@pytest.mark.parametrize("word", ["ENOSYS", "EPERM", "kill"])
@pytest.mark.parametrize("call", CALLS)
def test_a_filter_that_takes_a_call_away(call: str, word: str, whole: list[Any]) -> None:
    """The command runs with every protection, or not at all, and the error says which call it was."""
    found = _under(call, word)
    if found is None:
        return
    if found[0] == "ran":
        if found[1] != "exited":
            # The command's own process was killed before it became the command.
            assert word == "kill"
            assert found[2] == ""
            return
        assert found[2] == whole[2]
        lost = dict(whole[3]).items() - dict(found[3]).items()
        if call.startswith("landlock") and dict(whole[3])["landlock"].startswith("none"):
            # There is nothing to take away.
            assert not lost
        elif call == "landlock_create_ruleset":
            assert {name for name, _ in lost} == {"landlock"}
            assert dict(found[3])["landlock"].startswith("none: ")
        else:
            # A listener, for what is told of refusals, is no protection.
            assert {name for name, _ in lost} <= {"seccomp"}
            assert "run" in CALLS[call]
        return
    assert found[0] in ("HostError", "SetupError"), found
    assert any(each in f"{found[1]} {found[2]}" for each in CALLS[call]), found
    assert found[2]


@pytest.mark.parametrize("word", ["ENOSYS", "EPERM"])
def test_landlock_that_is_asked_for_and_taken_away(word: str) -> None:
    """Who names a version gets an error, not a run with one wall less."""
    if capsule.probe().landlock_abi == 0:
        word = "ENOSYS"
    found = _under("landlock_create_ruleset", word, "landlock=1")
    assert found is not None
    assert found[0] == "HostError"
    assert "landlock" in found[1].lower()


@needs("unprivileged")
def test_a_host_without_user_namespaces() -> None:
    """EPERM of the namespaces, as Ubuntu's AppArmor answers: refused, with where to look."""
    found = _under("clone", "EPERM")
    assert found is not None
    assert found[0] == "SetupError"
    assert os.strerror(errno.EPERM) in found[1]
    assert "capsule doctor" in found[2]
    assert not REAL_ROOT

"""Capsules that are made ahead: what runs in one is as in any other, and none is one of yesterday's."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Outcome
from tests.integration.test_base import SHOWN
from tests.support import PYTHON, assert_denied, await_end, children, give, needs

HANG = 60


@pytest.fixture
def pool() -> Iterator[capsule.Pool]:
    """One for the default policy, full."""
    with capsule.Pool(size=2) as made:
        assert made.fill(HANG)
        yield made


def warm(pool: capsule.Pool, *args: str, **options: Any) -> capsule.Result:
    """A run in a capsule that was made ahead."""
    assert pool.fill(HANG)
    result = pool.run(args, **options)
    assert result.usage.warm
    return result


# --- as any other -------------------------------------------------------------------------------


POLICIES: list[dict[str, Any]] = [
    {"uid": 1000, "gid": 1000, "hostname": "other"},
    {"keep_id": True, "landlock": "off"},
    {"network": "host", "pretend_chown": True},
    {"system": "needed", "show_cwd": False, "cwd": "/tmp"},
    {"env": (("PATH", "/usr/bin:/bin"), ("A", "b")), "open_files": 99, "file_size": "1M"},
    {"ulimits": ("stack=1M", "core=0"), "idle": 50, "cpu_time": 50, "allow_degraded": ("cpu_time",)},
]
# What those that show nothing but what a program needs still have.
PLAIN = """
while read -r line; do echo "$line"; done </proc/self/uid_map
while read -r line; do
case $line in Cap*|NoNew*|Seccomp*|Umask*) echo "$line";; esac
done </proc/self/status
read -r name </proc/sys/kernel/hostname; echo "$name $HOME $A"; ulimit -a; pwd; echo /* /etc/* /tmp/*
"""


@pytest.mark.parametrize("fields", POLICIES, ids=str)
def test_each_policy_is_what_it_is_without(fields: dict[str, Any]) -> None:
    """Its fields have the same effect inside of a capsule that was made ahead."""
    words = ["sh", "-c", PLAIN]
    cold = capsule.run(words, text=True, **fields)
    with capsule.Pool(command=["sh"], size=1, **fields) as pool:
        found = warm(pool, *words, text=True)
    assert (found.stdout, found.stderr, found.returncode) == (cold.stdout, cold.stderr, cold.returncode)
    assert found.protections == cold.protections
    assert "NoNewPrivs:\t1" in found.stdout


def test_words_of_text(pool: capsule.Pool) -> None:
    """encoding=, errors=, stderr= and check= mean what they mean to run()."""
    script = r"printf '\344\377'; printf err >&2; exit 3"
    for options in (
        {"encoding": "latin-1"},
        {"encoding": "ascii", "errors": "backslashreplace"},
        {"stderr": capsule.STDOUT},
        {"stdout": capsule.DEVNULL},
    ):
        found, cold = (
            warm(pool, "sh", "-c", script, **options),
            capsule.run(["sh", "-c", script], **options),
        )
        assert (found.stdout, found.stderr) == (cold.stdout, cold.stderr)
    with pytest.raises(capsule.CommandFailed):
        pool.run(["false"], check=True)
    with pytest.raises(capsule.PolicyError):
        pool.run(["true"], input=b"", stdin=capsule.DEVNULL)


FILTERS: list[Any] = [
    *("default", "strict", "debug", "nest", "off"),
    capsule.Seccomp(deny=("socket", "prlimit64", "chdir")),
    capsule.Seccomp(allow=("ptrace",)),
]


@pytest.mark.parametrize("seccomp", FILTERS, ids=str)
def test_it_is_what_it_is_without(seccomp: Any, tmp_path: Path) -> None:
    """Identity, view, limits, descriptors, protections and denials; under each kind of filter."""
    mounts = [Mount.read_write(str(tmp_path)), Mount.tmpfs("/data", size="1M")]
    words = ["sh", "-c", f"{SHOWN}; unshare -r true"]
    options: dict[str, Any] = {"mounts": mounts, "seccomp": seccomp, "text": True, "timeout": 60}
    cold = capsule.run(words, **options)
    with capsule.Pool(mounts=mounts, seccomp=seccomp, size=1) as pool:
        found = warm(pool, *words, text=True, timeout=60)
    assert found.stdout.replace(f"{os.getpid()}", "") == cold.stdout.replace(f"{os.getpid()}", "")
    assert found.stderr == cold.stderr
    assert (found.outcome, found.returncode) == (cold.outcome, cold.returncode)
    assert found.protections == cold.protections
    assert (found.denials, found.denials_complete) == (cold.denials, cold.denials_complete)
    assert found.namespaces == cold.namespaces
    assert not cold.usage.warm


def test_each_is_used_once(pool: capsule.Pool) -> None:
    """What one command did, the next does not see."""
    script = (
        "ls -A /tmp /dev/shm $HOME; echo $$; date >/tmp/x; date >/dev/shm/x; date >$HOME/x; sleep 60 &"
    )
    first, second = (warm(pool, "sh", "-c", script, text=True) for _ in range(2))
    assert first.stdout == second.stdout
    assert "x" not in first.stdout.replace("/tmp", "").split()


def test_words_environment_and_text(pool: capsule.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come at the end, of the moment of the run."""
    monkeypatch.setenv("LC_TEST", "later")
    result = warm(
        pool,
        "sh",
        "-c",
        'echo "$0 $LC_TEST $A"; cat',
        "é",
        extra_env=(("A", "b"),),
        input="x",
        text=True,
    )
    assert result.stdout == "é later b\nx"
    many = [str(number) for number in range(100_000)]
    assert warm(pool, "sh", "-c", "echo $#", *many, text=True).stdout == "99999\n"


def test_descriptors(pool: capsule.Pool, tmp_path: Path) -> None:
    """Files, passed ones with low, high and scattered numbers; each can be opened anew by its name."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("from a file\n")
    fds = [os.open(source, os.O_RDONLY) for _ in range(12)]
    moved = [os.dup2(fd, 200 + 7 * index) for index, fd in enumerate(fds)]
    try:
        script = (
            f"cat; cat /dev/stdin; cat /dev/fd/{fds[0]}; cat <&{moved[-1]}; ls /proc/self/fd | wc -l"
        )
        with open(source) as stdin, open(target, "wb") as stdout:
            result = warm(
                pool,
                *("bash", "-c", script),
                stdin=stdin,
                stdout=stdout,
                stderr=capsule.STDOUT,
                pass_fds=[*fds, *moved],
            )
        assert result.stdout is None
        assert target.read_text() == "from a file\n" * 3 + "from a file\n" + "28\n"
    finally:
        for fd in (*fds, *moved):
            os.close(fd)


def test_more_descriptors_than_a_message_takes(pool: capsule.Pool) -> None:
    """Such a run has a capsule of its own, and gets them all."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(251)]
    try:
        result = pool.run(["sh", "-c", "ls /proc/self/fd | wc -l"], pass_fds=fds, text=True)
    finally:
        for fd in fds:
            os.close(fd)
    assert (result.stdout, result.usage.warm) == ("255\n", False)


SPIN = "while :; do :; done"


@pytest.mark.parametrize(
    ("script", "limits", "outcome"),
    [
        ("sleep 60", {"timeout": 0.2}, Outcome.TIMED_OUT),
        (SPIN, {"cpu_time": 0.2, "allow_degraded": ("cpu_time",)}, Outcome.CPU_TIME),
        ("sleep 60", {"idle": 0.3}, Outcome.IDLE),
        ("yes", {"output": 1000}, Outcome.OUTPUT_LIMIT),
        ("exec head -c 2M /dev/zero >/tmp/x", {"file_size": "1M"}, Outcome.SIGNALED),
        ("ulimit -n; exit 3", {"open_files": 77}, Outcome.EXITED),
        ("ulimit -s; exit 3", {"ulimits": ("stack=100K",)}, Outcome.EXITED),
    ],
    ids=lambda value: str(value)[:20],
)
def test_limits_of_a_run(
    pool: capsule.Pool, script: str, limits: dict[str, Any], outcome: Outcome
) -> None:
    """Those that differ from run to run come with it; time counts from the run on."""
    if "allow_degraded" in limits:
        pool.close()
        # The account is a cgroup's, where one can be made.
        pool = capsule.Pool(cpu_time=9, allow_degraded=limits.pop("allow_degraded"), size=1)
    with pool:
        result, cold = warm(pool, "sh", "-c", script, **limits), None
        cold = capsule.run(["sh", "-c", script], **limits) if outcome is not Outcome.CPU_TIME else None
    assert result.outcome is outcome
    assert 0 < result.usage.wall < 30
    if cold is not None:
        assert (result.detail, result.returncode) == (cold.detail, cold.returncode)
    if outcome is Outcome.EXITED:
        assert cold is not None
        assert result.stdout == cold.stdout


def test_time_counts_from_the_run_on() -> None:
    """A capsule that has waited longer than its limits of time has all of it."""
    with capsule.Pool(timeout=0.5, idle=0.5, size=1) as pool:
        assert pool.fill(HANG)
        threading.Event().wait(0.8)
        result = warm(pool, "sh", "-c", "sleep 0.2; echo done")
    assert (result.stdout, result.outcome) == (b"done\n", Outcome.EXITED)
    assert 0.2 <= result.usage.wall < 0.5


def test_start(pool: capsule.Pool) -> None:
    """A process of the pool is one as any other: streams, signals, account, the end of the block."""
    with pool.start(["cat"], stdin=capsule.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"there\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"there\n"
        assert process.usage().warm
        assert process.wait(HANG).ok
    with pool.start(["sleep", "60"]) as process:
        process.terminate()
        assert process.wait(HANG).returncode == -signal.SIGTERM
    with pool.start(["sleep", "60"]) as process:
        pid = process.pid
    assert await_end(pid)
    last = process.poll()
    assert last is not None
    assert last.outcome is Outcome.KILLED


def test_changes_and_what_is_set_aside(tmp_path: Path) -> None:
    """An overlay in memory is each run's own; a writable tree is looked through at the end."""
    lower, work = tmp_path / "lower", tmp_path / "work"
    for path in (lower, work):
        path.mkdir()
        give(path)
    mounts = [Mount.overlay(str(lower)), Mount.read_write(str(work))]
    script = (
        f"ls -A {lower}; echo x >{lower}/x; mkdir {work}/.vscode; echo x >{work}/.vscode/settings.json"
    )
    with capsule.Pool(mounts=mounts, size=2) as pool:
        for _ in range(2):
            result = warm(pool, "sh", "-c", script)
            assert (result.stdout, result.stderr) == (b"", b"")
            assert [change.path for change in result.changes] == [f"{lower}/x"]
            assert [one.path for one in result.set_aside] != []
    assert os.listdir(lower) == []


@pytest.mark.parametrize("words", [["/etc/passwd"], ["/nowhere"], ["nowhere"], ["/tmp"]], ids=str)
def test_a_command_that_cannot_be_run(pool: capsule.Pool, words: list[str]) -> None:
    """The same error as without a pool, to the word but for the number of the step."""
    told = []
    for run in (capsule.run, pool.run):
        with pytest.raises(capsule.CapsuleError) as caught:
            run(words)
        error = caught.value
        told.append((type(error), error.message, error.hint, error.exit_code))
    assert told[0] == told[1]
    assert warm(pool, "true").ok


def test_a_step_that_fails_at_the_end_is_named(pool: capsule.Pool) -> None:
    """The rest of the plan is counted on: a limit that cannot be set is what the error says."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for run in (capsule.run, pool.run):
        with pytest.raises(capsule.SetupError, match="nofile") as caught:
            run(["true"], ulimits=(f"nofile={hard + 1}",))
        assert caught.value.errno == errno.EPERM


def test_a_denial(tmp_path: Path) -> None:
    """In a capsule that was made ahead it has the three parts of any."""
    give(tmp_path)
    act = "os.rmdir(given['path']) if os.path.isdir(given['path']) else os.mkdir(given['path'])"
    mounts = [Mount.read_only(str(tmp_path))]
    with capsule.Pool(mounts=mounts, command=[PYTHON], size=1) as pool:
        run = lambda words: warm(pool, *words)  # noqa: E731
        assert_denied(act, errno.EROFS, outside={"path": f"{tmp_path}/new"}, run=run)


# --- what does not go ---------------------------------------------------------------------------


def test_another_view_is_refused(pool: capsule.Pool, tmp_path: Path) -> None:
    """Of a program or a policy that would have needed it: said, and nothing was started."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    for words, options in (
        ([str(program)], {}),
        (["true"], {"mounts": [Mount.tmpfs("/data")]}),
        (["true"], {"network": "host"}),
        (["true"], {"hostname": "other"}),
    ):
        with pytest.raises(capsule.PolicyError, match="pool"):
            pool.run(words, **options)
    with capsule.Pool(size=1, command=[str(program)]) as other:
        assert warm(other, str(program)).stdout == b"mine\n"


def test_a_kept_layer_is_refused(tmp_path: Path) -> None:
    """One capsule at a time can have it."""
    with pytest.raises(capsule.PolicyError, match="keep"):
        capsule.Pool(mounts=[Mount.overlay(str(tmp_path), keep=str(tmp_path.parent / "kept"))])


@pytest.mark.parametrize("size", [0, -1, 1025, True, "4", 1.0])
def test_wrong_sizes(size: Any) -> None:
    """A size is a whole number from 1 on."""
    with pytest.raises(capsule.PolicyError, match="size"):
        capsule.Pool(size=size)


def test_a_closed_pool() -> None:
    """It starts nothing, and can be closed again; what runs goes on."""
    with capsule.Pool(size=1) as pool:
        assert pool.fill(HANG)
        process = pool.start(["cat"], stdin=capsule.PIPE)
    pool.close()
    assert "closed" in repr(pool)
    with pytest.raises(capsule.PolicyError, match="closed"):
        pool.run(["true"])
    with process:
        assert process.communicate(b"still") == (b"still", b"")


# --- none of yesterday's ---------------------------------------------------------------------------


@contextlib.contextmanager
def umask() -> Iterator[None]:
    """Another umask."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def directory() -> Iterator[None]:
    """Another working directory, which is not shown."""
    before = os.getcwd()
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def limit() -> Iterator[None]:
    """A lower soft limit."""
    before = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, before)


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Fewer CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("change", [umask, directory, limit, one_cpu])
def test_a_caller_that_is_another(
    pool: capsule.Pool, change: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """What a capsule takes over from its caller is that of the run, and then of those made since."""
    script = "umask; pwd; ulimit -s; nproc"
    with change():
        cold = capsule.run(["sh", "-c", script])
        result = pool.run(["sh", "-c", script])
        assert not result.usage.warm
        again = warm(pool, "sh", "-c", script)
        assert cold.stdout == result.stdout == again.stdout
    assert not pool.run(["true"]).usage.warm
    assert warm(pool, "true").ok


RESTRICTED = """
import ctypes, os, sys
import capsule
libc = ctypes.CDLL(None, use_errno=True)
with capsule.Pool(size=2) as pool:
    assert pool.fill(60) and pool.run(["true"]).usage.warm and pool.fill(60)
    if sys.argv[1] == "no_new_privs":
        assert libc.prctl(38, 1, 0, 0, 0) == 0
    else:
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("at", ctypes.c_void_p)]
        allow = ctypes.create_string_buffer(bytes.fromhex("060000000000ff7f"), 8)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert pool.run(["true"]).ok and pool.fill(60)
        program = Program(1, ctypes.addressof(allow))
        assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
    first = pool.run(["true"])
    second = pool.fill(60) and pool.run(["true"])
    print(first.usage.warm, second.usage.warm, second.ok)
"""


@pytest.mark.parametrize("how", ["no_new_privs", "seccomp"])
def test_a_caller_that_has_restricted_itself(how: str) -> None:
    """It gets no capsule that was made before; those made since are as restricted."""
    done = subprocess.run([PYTHON, "-c", RESTRICTED, how], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("False True True\n", "")


def test_a_source_that_was_replaced(tmp_path: Path) -> None:
    """What lies where the policy points is looked at again; also what is covered in it."""
    data, tree = tmp_path / "data", tmp_path / "tree"
    tree.mkdir()
    data.write_text("old")
    (tree / ".env").write_text("secret")
    mounts = [Mount.read_only(str(data)), Mount.read_only(str(tree)), Mount.hide(f"{tree}/.env")]
    policy = capsule.Policy(mounts=mounts)
    script = f"cat {data}; cat {tree}/.env 2>/dev/null | wc -c"
    with capsule.Pool(policy, size=1) as pool:
        before = warm(pool, "sh", "-c", script).stdout
        for path, text in ((data, "new"), (tree / ".env", "another secret")):
            assert pool.fill(HANG)
            other = tmp_path / "other"
            other.write_text(text)
            other.rename(path)
            result = pool.run(["sh", "-c", script])
            assert not result.usage.warm
            assert result.stdout == capsule.run(["sh", "-c", script], policy).stdout
            assert warm(pool, "sh", "-c", script).stdout == result.stdout
    assert before.startswith(b"old")


def test_a_capsule_that_somebody_killed(pool: capsule.Pool) -> None:
    """The run has another one."""
    assert pool.fill(HANG)
    for pid, _ in children():
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        assert pool.run(["true"]).ok
    assert warm(pool, "true").ok


def test_drop(pool: capsule.Pool) -> None:
    """All that wait are ended, and others made."""
    assert pool.fill(HANG)
    before = children()
    pool.drop()
    assert pool.fill(HANG)
    assert len(children() - before) == 2


@needs("cgroup")
def test_limits_of_a_cgroup() -> None:
    """Each capsule has its own; what differs from the pool's is refused."""
    with capsule.Pool(memory="64M", pids=20, size=2) as pool:
        result = warm(pool, "sh", "-c", "for i in $(seq 40); do sleep 1 & done; wait")
        assert result.detail
        with pytest.raises(capsule.PolicyError, match="cgroup"):
            pool.run(["true"], memory="32M")


def test_a_reader_waits(pool: capsule.Pool) -> None:
    """The streams of a process are files as any, though the loop reads them without waiting."""
    with pool.start(["sh", "-c", "sleep 0.2; echo late; sleep 0.2; echo err >&2; echo end"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"late\n"
        result = process.wait(HANG)
    assert (result.stdout, result.stderr) == (b"end\n", b"err\n")

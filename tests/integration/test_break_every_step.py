"""Fail closed: whatever fails before exec, the command does not run and nothing is left behind.

First each step of a plan is made to fail as such, in the launcher that is shipped: what is sent has a
step in its place that must fail. Then each system call that the set-up makes is made to fail, one in
each launch: either the launch ends with the error, or the call is listed here as harmless and what
runs is confined as ever.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import capsule
from capsule.api import look
from capsule.base.errors import CapsuleError, InternalError
from capsule.files.found import Survey
from capsule.host.host import Host
from capsule.launcher import spawn
from capsule.launcher import steps as s
from capsule.launcher.failure import SetupError
from capsule.launcher.spawn import FIRST_USER_FD
from capsule.planner.base import split
from capsule.planner.plan import Plan, Terminal, make_plan
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.policy import Policy
from capsule.process.launch import Running, launch
from capsule.process.launch import _make_base as make_base
from capsule.program.command import Command, resolve
from tests.launcher.witness import KILL, SOCKET, Call, Watch, refusal, witness
from tests.support import NEEDS, REAL_ROOT
from tests.unit.wire import kinds

HANG = 20  # seconds; nothing here takes one
KINDS = ["default", "full", "old kernel", "joined"]

# It leaves marks wherever it can, and says how it is confined.
SCRIPT = """
echo ran >/out/ran
echo ran >&7
cat /proc/self/uid_map /proc/self/gid_map
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|SigBlk|SigIgn|Uid|Gid)' /proc/self/status
cut -d' ' -f4- /proc/self/mountinfo
ls /proc/self/fd
cat /proc/sys/kernel/hostname /proc/net/if_inet6
cut -d: -f1 /proc/net/dev
cut -d' ' -f5-6 /proc/self/stat
ulimit -c; ulimit -l; umask; pwd
cat /proc/sys/user/max_user_namespaces /proc/self/oom_score_adj
kill -0 1; echo $?
""".replace("\n", "; ").strip("; ")
SCRIPT = f"exec 2>/dev/null; {SCRIPT}"

LAUNCHED, IN_INIT, IN_COMMAND = "LAUNCH", "INIT", "COMMAND"
# A step of each phase that must fail: no map, no such tree, no such directory.
STAND_INS: dict[str, s.Step] = {
    LAUNCHED: s.UidMap("this is no map"),
    IN_INIT: s.Attach(1023, "/nowhere", ""),
    IN_COMMAND: s.Chdir("/no such directory"),
}
EXPECTED = {errno.EINVAL, errno.ENOENT, errno.EPROTO}


class Broken(Plan):
    """A plan that sends other steps than it shows."""

    sent: tuple[s.Step, ...] = ()

    def encode(self) -> bytes:
        """The steps with the one that must fail."""
        return s.encode(self.sent)


# --- the stage ------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A directory that the command can write to, and what is to be launched."""

    out: Path
    plan: Plan
    host: Host
    command: Command
    passed: dict[int, int] = {}  # noqa: RUF012 - nobody changes it


class Ran(NamedTuple):
    """What came of a launch."""

    error: CapsuleError | None
    ended: tuple[int, ...] | None  # init's last record
    marks: bytes  # what the command wrote to its standard output and to descriptor 7
    files: list[str]

    @property
    def anything(self) -> bool:
        """Whether the command executed a single instruction that can be seen."""
        return bool(self.marks or self.files)


def the_policy(out: Path, **fields: Any) -> Policy:
    """The default policy, but for a place to leave a mark in."""
    fields.setdefault("mounts", [Mount.read_write(out, at="/out")])
    return Policy(cwd="/", env={"PATH": "/usr/bin:/bin"}, **fields)


def stage(out: Path, kind: str, *, watched: bool = False) -> Stage:
    """The plan of each kind, for this host; one that is watched can have no listener of its own."""
    host = capsule.probe().replace(seccomp_listener=not watched)
    terminal = None
    policy = the_policy(out)
    if kind == "full":
        mounts = [Mount.read_write(out, at="/out"), Mount.tmpfs("/scratch")]
        mounts.append(Mount.read_only("/usr/lib", at="/data"))
        ids, hosts = {"uid": 1234, "gid": 2345}, ["allowed.example", "93.184.216.34:443"]
        policy = the_policy(out, mounts=mounts, limits=Limits(timeout=60), network=hosts, **ids)
        terminal = Terminal((0,), 24, 80)
    if kind == "old kernel":
        host = host.replace(mount_setattr=False)
    command = resolve(["sh", "-c", SCRIPT], policy)
    descriptors = ((FIRST_USER_FD, 7),)
    plan = make_plan(
        policy, host, command, look(policy, command), descriptors=descriptors, terminal=terminal
    )
    if kind == "joined":
        return joined(Stage(out, plan, host, command))
    return Stage(out, plan, host, command)


def joined(whole: Stage) -> Stage:
    """The same as a capsule has it that joins a base, which is made here, and held by the test."""
    parted = split(whole.plan.steps)
    if parted is None:
        lacks = "unprivileged" if REAL_ROOT else "mount_setattr"
        assert not NEEDS[lacks].met()
        pytest.skip(NEEDS[lacks].reason)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    namespaces = make_base(parted.base, (null, null, null), spawn.LAUNCHER, None)
    os.close(null)
    HELD.extend(namespaces)
    passed = dict(zip((spawn.BASE_USER_FD, spawn.BASE_MOUNTS_FD), namespaces, strict=True))
    return whole._replace(plan=whole.plan.replace(steps=parted.steps), passed=passed)


HELD: list[int] = []


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    while HELD:
        os.close(HELD.pop())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory that everybody may write to, whoever that is outside of the capsule."""
    place = tmp_path / "out"
    place.mkdir()
    place.chmod(0o777)
    return place


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, of which either end may be closed in the block."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for fd in ends:
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """A launch that never returns is a failure, not a test that never ends."""

    def late(_number: int, _frame: object) -> None:
        raise TimeoutError("the launch does not return")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def perform(what: Stage, launcher: str, extra: dict[int, int]) -> Ran:
    """Launch and wait for the end; then read what the command left."""
    error: CapsuleError | None = None
    ended: tuple[int, ...] | None = None
    with no_hang(), pipe() as (reading, writing):
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            running = launch(
                what.plan,
                what.host,
                what.command,
                Survey(),
                (null, writing, null),
                passed={FIRST_USER_FD: writing, **what.passed, **extra},
                launcher=launcher,
            )
            ended = finish(running)
        except CapsuleError as caught:
            error = caught
        finally:
            os.close(null)
        os.close(writing)
        marks = b""
        # The end of the file comes only if nobody holds the other end any more.
        while data := os.read(reading, 65536):
            marks += data
    files = [name for name in os.listdir(what.out) if (what.out / name).is_file()]
    for name in files:
        os.unlink(what.out / name)
    return Ran(error, ended, marks, files)


def finish(running: Running) -> tuple[int, ...] | None:
    """Wait for the capsule's end; init's last record, or None if it had no time for one."""
    ended = None
    while record := spawn.read_record(running.status):
        assert record[0] in (spawn.STOPPED, spawn.REFUSED, spawn.ENDED)
        ended = record
    spawn.reap(running.pid)
    for fd in (running.pidfd, running.status, running.lifeline, running.channel, *running.gifts):
        if fd >= 0:
            os.close(fd)
    return ended


def descriptors() -> dict[str, str]:
    """What this process holds open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def holdings() -> tuple[dict[str, str], str, str]:
    """What a launch could leave with us: descriptors, mounts, children (zombies too)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return descriptors(), Path("/proc/self/mountinfo").read_text(), children


def attempt(what: Stage, launcher: str = spawn.LAUNCHER, extra: dict[int, int] | None = None) -> Ran:
    """Launch; whatever came of it, this process holds what it held before."""
    before = holdings()
    ran = perform(what, launcher, extra or {})
    assert holdings() == before
    return ran


# --- each step ------------------------------------------------------------------------------


def phases(plan: Plan) -> list[str]:
    """The phase in which the launcher is at each step."""
    allowed = {kind.word: kind.phases for kind in kinds()}
    order = (LAUNCHED, IN_INIT, IN_COMMAND)
    now, found = 0, []
    for step in plan.steps:
        while order[now] not in allowed[step.word]:
            now += 1
        found.append(order[now])
    return found


def broken(plan: Plan, index: int) -> Broken:
    """The plan, with a step that must fail in the place of one."""
    step = plan.steps[index]
    stand_in = STAND_INS[phases(plan)[index]]
    if isinstance(step, s.Exec):
        stand_in = s.Exec(("/no such program",), step[1], step[2])
    sent = (*plan.steps[:index], stand_in, *plan.steps[index + 1 :])
    return Broken(plan.steps, plan.args, sent=sent)


def test_old_kernels_confine_alike(out: Path) -> None:
    """Without mount_setattr(2) the command finds the same attributes on the same mounts."""
    (out / "below").mkdir()
    mounts = [
        Mount.read_write(out, at="/out"),
        Mount.read_only(out, at="/shown"),
        Mount.read_write(out, at="/shown/below"),
        Mount.read_only(out, at="/var/run/linked"),
    ]
    seen = []
    for has_call in (True, False):
        host = capsule.probe().replace(mount_setattr=has_call)
        policy = the_policy(out, mounts=mounts)
        command = resolve(["sh", "-c", SCRIPT], policy)
        plan = make_plan(
            policy, host, command, look(policy, command), descriptors=((FIRST_USER_FD, 7),)
        )
        ran = attempt(Stage(out, plan, host, command))
        assert ran.error is None
        seen.append(sorted(ran.marks.splitlines()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.row("F-22")
def test_a_step_that_fails_ends_the_launch(out: Path, kind: str) -> None:
    """Each step in turn: the error names it, the command did not run, and nothing is left."""
    what = stage(out, kind)
    control = attempt(what)
    assert control.error is None
    assert control.files == ["ran"]
    assert control.marks.startswith(b"ran\n")
    for index, step in enumerate(what.plan.steps):
        if isinstance(step, s.Fork):
            continue  # no other step can stand for it; see test_a_fork_that_fails_says_so
        ran = attempt(what._replace(plan=broken(what.plan, index)))
        assert isinstance(ran.error, SetupError), (index, step, ran)
        assert ran.error.index == index
        assert ran.error.step is step
        assert ran.error.errno in EXPECTED
        assert step.describe() in str(ran.error)
        assert not ran.anything, (index, step, ran)


# --- each system call -----------------------------------------------------------------------

# (name of the call, which of them, which errors, why). The call after it is the second argument.
Excuse = tuple[str, Callable[[Call, str], bool], tuple[int, ...], str]
HARMLESS: list[Excuse] = [
    ("openat2", lambda _call, _next: True, (errno.ENOENT,), "a place that is missing is made"),
    ("openat2", lambda _call, _next: True, (errno.EAGAIN,),
     "tried again: something was renamed on the way, on a busy host now and then"),
    ("read", lambda _call, _next: True, (errno.EINTR,), "tried again"),
    ("write", lambda _call, _next: True, (errno.EINTR,), "tried again"),
    ("pread64", lambda _call, _next: True, (errno.EINTR,), "tried again"),
    ("keyctl", lambda call, _next: call.args[0] == 1, (errno.ENOSYS, errno.EPERM),
     "there are no keys, or a filter around Capsule takes them away, inside as well"),
    ("keyctl", lambda call, _next: call.args[0] == 5, (errno.EACCES,),
     "another capsule's keyring is as it must be; what it is, is looked at"),
    ("execve", lambda _call, _next: True, (errno.ENOENT, errno.EACCES, errno.ENOTDIR),
     "the next directory of PATH is tried, as execvp(3) does"),
]  # fmt: skip


def is_wait_for_go(call: Call) -> bool:
    """Init's first call: it waits for the launcher's byte, and takes no step without it.

    Whether the launcher still finds a process whose maps it can write is then a race: if not, that is
    the error that is told.
    """
    return call.role == "init" and call.number == 0


def is_first_record(call: Call) -> bool:
    """The launcher's word on init's pid: an empty pipe, held by the supervisor, has room for it."""
    return call.role == "launcher" and call.name == "write" and call.args[0] == spawn.STATUS_FD


def set_up(calls: list[Call]) -> list[Call]:
    """Of all calls those before the command runs: init's up to its fork, the command's up to exec."""
    found = []
    for role, last in (("launcher", None), ("init", "clone"), ("command", "execve")):
        own = [call for call in calls if call.role == role]
        end = next((i for i, call in enumerate(own) if call.name == last), len(own))
        found += own[: end + 1]
    return [call for call in found if not is_first_record(call)]


class Laboratory:
    """Launches in which one system call fails."""

    def __init__(self, what: Stage, launcher: str) -> None:
        self.what, self.launcher = what, launcher
        self.calls: list[Call] = []
        # On a busy host a call is made twice now and then (openat2(2), EAGAIN), and moves all others.
        (self.whole, one), (_, other) = self.run(None, 0), self.run(None, 0)
        self.calls = min(set_up(one.calls), set_up(other.calls), key=len)
        self.steps: set[int] = set()

    def run(self, chosen: Call | None, error: int) -> tuple[Ran, Watch]:
        """Launch; the chosen call fails."""
        for _ in range(3):
            ran, watch = self.try_once(chosen, error)
            if chosen is None or watch.failed:
                return ran, watch
        made = [str(call) for call in watch.calls if chosen and call.role == chosen.role]
        raise AssertionError((str(chosen), ran, made[-5:]))

    def try_once(self, chosen: Call | None, error: int) -> tuple[Ran, Watch]:
        """Launch; the chosen call fails, if it is made."""

        def judge(call: Call) -> int:
            hit = chosen is not None and not watch.failed and call[:3] == chosen[:3]
            return error if hit else 0

        watch = Watch(judge)
        before = holdings()
        with watch.open() as fd:
            ran = perform(self.what, self.launcher, {SOCKET: fd})
        assert holdings() == before, (chosen, error)
        return ran, watch

    def is_harmless(self, call: Call, error: int) -> bool:
        """Whether a capsule may go on after this failure."""
        following = self.calls[self.calls.index(call) + 1 :][:1]
        after = following[0].name if following else ""
        return any(
            name == call.name and fits(call, after) and error in errors
            for name, fits, errors, _ in HARMLESS
        )

    def verdict(self, chosen: Call, error: int) -> str | None:
        """What is wrong with how a launch took the failure of a call, or None."""
        ran = self.run(chosen, error)[0]
        if isinstance(ran.error, SetupError):
            self.steps.add(ran.error.index)
        if ran.anything:
            if not self.is_harmless(chosen, error):
                return "the command ran"
            alike = (ran.error, ran.marks, ran.files) == (None, self.whole.marks, self.whole.files)
            return None if alike else "the command is not confined as ever"
        if is_wait_for_go(chosen):
            return None if ran.error is not None else "no error"
        if isinstance(ran.error, SetupError):
            # What is told to be missing is made, and then it is there.
            made = chosen.name == "openat2" and error == errno.ENOENT and errno.EEXIST
            expected = ran.error.errno in (error, made)
            return None if expected else f"another errno: {ran.error.message}"
        # Before the first step there is none to name.
        early = isinstance(ran.error, InternalError) and chosen.role == "launcher"
        return None if early else f"no proper error: {ran.error!r}"

    def killed(self, chosen: Call) -> str | None:
        """What is wrong with how a launch took the death of a process at a call, or None."""
        ran = self.run(chosen, KILL)[0]
        if ran.anything:
            return f"{chosen} -> SIGKILL: the command ran"
        # Whoever is killed so late that no error can be told, counts as killed and not as ended.
        wrong = ran.error is None and ran.ended is not None and not os.WIFSIGNALED(ran.ended[1])
        return f"{chosen} -> SIGKILL: {ran}" if wrong else None

    def sweep(self, calls: list[Call], errors: list[int]) -> str:
        """The verdicts that are bad, one a line."""
        bad = []
        for call in calls:
            for error in errors:
                verdict = self.verdict(call, error)
                if verdict:
                    bad.append(f"{call} -> {errno.errorcode[error]}: {verdict}")
        return "\n".join(bad)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The launcher under a listener."""
    place = tmp_path_factory.mktemp("witness")
    reason = refusal(place)
    if reason is not None:
        pytest.skip(reason)
    return str(witness(place, spawn.LAUNCHER))


def first_and_last(calls: list[Call]) -> list[Call]:
    """Of each kind of call that a process makes, the first and the last one."""
    first: dict[tuple[str, str], Call] = {}
    last: dict[tuple[str, str], Call] = {}
    for call in calls:
        first.setdefault((call.role, call.name), call)
        last[call.role, call.name] = call
    return list(dict.fromkeys([*first.values(), *last.values()]))


@pytest.mark.parametrize("kind", ["default", "joined"])
@pytest.mark.row("F-22")
def test_a_call_that_fails_ends_the_launch(out: Path, watched: str, kind: str) -> None:
    """Each system call of the default plan's set-up in turn: EIO ends it, at the step that made it."""
    lab = Laboratory(stage(out, kind, watched=True), watched)
    assert lab.whole.error is None
    assert lab.whole.files == ["ran"]
    assert lab.sweep(lab.calls, [errno.EIO]) == ""
    # Each step was among them: every step of this plan asks the kernel for something, but for a filter
    # without a listener, which is only read.
    asking = [i for i, one in enumerate(lab.what.plan.steps) if not isinstance(one, s.Filter)]
    assert sorted(lab.steps) == asking


def test_a_fork_that_fails_says_so(out: Path, watched: str) -> None:
    """It is a step of its own: an error of it is not taken for one of the step that comes next."""
    lab = Laboratory(stage(out, "default", watched=True), watched)
    (fork,) = (call for call in lab.calls if (call.role, call.name) == ("init", "clone"))
    ran = lab.run(fork, errno.EAGAIN)[0]
    assert isinstance(ran.error, SetupError)
    assert isinstance(ran.error.step, s.Fork)
    assert str(ran.error).startswith("cannot start: fork the command: Resource temporarily")
    assert "ulimit -u" in str(ran.error.hint)
    assert not ran.anything


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.row("F-22")
def test_errors_with_a_meaning_end_the_launch_too(out: Path, watched: str, kind: str) -> None:
    """The errors that code likes to forgive, at the first and last call of each kind."""
    lab = Laboratory(stage(out, kind, watched=True), watched)
    errors = [errno.ENOSYS, errno.ENOENT, errno.EINTR]
    assert lab.sweep(first_and_last(lab.calls), errors) == ""


@pytest.mark.parametrize("kind", ["default", "joined"])
def test_a_process_that_is_killed_takes_all_with_it(out: Path, watched: str, kind: str) -> None:
    """The launcher, init or the command killed at a call: nothing runs and nothing is left."""
    lab = Laboratory(stage(out, kind, watched=True), watched)
    assert [wrong for call in first_and_last(lab.calls) if (wrong := lab.killed(call))] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", ["EPERM", "ENOSYS", "ENOENT", "EINTR", "EACCES", "EAGAIN", "ENOMEM"])
def test_every_call_with_every_error(out: Path, watched: str, kind: str, number: str) -> None:
    """The whole sweep: each call of each plan with each of the errors."""
    lab = Laboratory(stage(out, kind, watched=True), watched)
    assert lab.sweep(lab.calls, [getattr(errno, number)]) == ""

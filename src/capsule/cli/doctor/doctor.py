"""What this host can enforce, found by trying: each line stands for something that was done.

The trials are the default plan's own steps, a few at a time, ended before a command would run. Where
one of them fails, the host's settings are looked at, and `causes` draws the conclusion.
"""

from __future__ import annotations

import os
import sys
from itertools import takewhile

from capsule import api
from capsule.base.errors import CapsuleError
from capsule.base.values import Value
from capsule.confine.cgroup import read_text
from capsule.files.found import Survey
from capsule.host import delegation
from capsule.host.host import probe
from capsule.host.ids import has_initial_ids
from capsule.launcher import spawn
from capsule.launcher import steps as s
from capsule.launcher.failure import SetupError
from capsule.planner.plan import Plan, make_plan
from capsule.policy.mounts import Mount
from capsule.policy.policy import IdMap, Policy
from capsule.process.launch import launch
from capsule.program.command import resolve

from . import checks
from .causes import SYSCTLS, Failure, Surroundings, conclude
from .checks import Check, Report, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capsule.host.host import Host

# What every host has at this path, in a directory that every capsule has.
COMMAND, POLICY = ("/bin/sh", "-c", ":"), Policy(cwd="/")
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trials.py")
# A guard against a hang: what is tried takes milliseconds.
PATIENCE = 20


class Trial(Value):
    """Some of the default plan's steps, and what they show.

    Attributes:
        name: of the line in the report.
        namespaces: the kinds to enter, beside the user namespace.
        uses: the kinds of steps to take inside.
        found: what is seen if they work.
        loses: what is lost if they do not.
        needs: the lines without which this cannot be tried.
    """

    name: str
    namespaces: tuple[str, ...]
    uses: tuple[type[s.Step], ...]
    found: str = "entered"
    loses: str = checks.NOTHING
    needs: tuple[str, ...] = ("user namespaces",)


KINDS = (
    Trial("mount namespace", ("mount",), (s.Private,), "entered, propagation made private"),
    Trial("pid namespace", ("pid",), ()),
    Trial("net namespace", ("net",), (s.Loopback,), "entered, loopback up", "only --net host works"),
    Trial("ipc namespace", ("ipc",), ()),
    Trial("uts namespace", ("uts",), (s.Hostname,), "entered, hostname set"),
    Trial("cgroup namespace", ("cgroup",), ()),
)
SOURCES = Trial(
    "mount_setattr",
    ("mount",),
    (s.Private, s.Tree, s.Device),
    "whole trees made read-only at once",
    needs=("user namespaces", "mount namespace", "mount API"),
)
PROC = Trial(
    "proc",
    ("mount", "pid"),
    (s.Private, s.Proc),
    "a new one made",
    needs=("user namespaces", "mount namespace", "pid namespace", "mount API"),
)
ROOT = Trial(
    "root",
    ("mount",),
    (s.Private, s.Identity, s.PivotRoot, s.Tmpfs, s.Devpts),
    "tmpfs and devpts made, pivot_root done",
    needs=("user namespaces", "mount namespace", "mount API"),
)
OF_LAUNCHER: tuple[type[s.Step], ...] = (
    s.DropGroups,
    s.Namespaces,
    s.DenySetgroups,
    s.GidMap,
    s.UidMap,
    s.MapHelper,
)


def main(*, json: bool = False) -> int:
    """Print the report. Return 0 if the default policy can be enforced, else 1."""
    report = examine()
    sys.stdout.write(f"{report.to_json() if json else report}\n")
    sys.stdout.flush()
    return 0 if report.ok else 1


def examine(host: Host | None = None) -> Report:
    """Try what the default policy needs, and what goes beyond it.

    Args:
        host: facts to take in place of those that `probe` finds now.
    """
    around = look_around()
    try:
        lines = _Examination(probe(refresh=True) if host is None else host, around).lines()
    except CapsuleError as error:
        lines = [_failed("launcher", _failure(error), around)]
    return Report(os.uname().release, around.uid, tuple(lines))


class _Examination:
    """The lines of a report, made in an order in which what stands on another comes after it."""

    def __init__(self, host: Host, around: Surroundings) -> None:
        self.host, self.around = host, around
        # As if no call were missing: a plan is wanted for its steps even where it cannot work.
        self.able = host.replace(mount_api=True, openat2=True, seccomp=True)
        self.plan = self.plan_of(POLICY)
        self.done: dict[str, Check] = {}

    def plan_of(self, policy: Policy) -> Plan:
        """The plan of the trials' command."""
        command = resolve(COMMAND, policy)
        return make_plan(policy, self.able, command, api.look(policy, command))

    def lines(self) -> list[Check]:
        """All of them."""
        host, around = self.host, self.around
        self.add(Check("launcher", State.OK, around.launcher, checks.NOTHING, required=True))
        self.add(self.user_namespaces())
        for trial in KINDS:
            self.add(self.outcome(trial))
        self.add(checks.seccomp(host))
        self.add(checks.mount_api(host, around))
        self.add(checks.mount_setattr(host, around) or self.outcome(SOURCES))
        self.add(self.proc())
        self.add(self.outcome(ROOT))
        self.add(self.default_policy())
        self.add(self.overlay())
        self.add(checks.landlock(host, around))
        self.add(checks.cgroup(delegation.find()))
        self.add(self.subordinate_ids())
        return list(self.done.values())

    def add(self, check: Check) -> None:
        """One more line."""
        self.done[check.name] = check

    def outcome(self, trial: Trial) -> Check:
        """Take the steps of a trial, unless something they need is missing."""
        lacks = next((name for name in trial.needs if self.done[name].fails), None)
        if lacks is not None:
            return checks.untried(trial.name, lacks, trial.loses, required=True)
        failure = attempt(select(self.plan, trial.namespaces, trial.uses), self.host)
        if failure is not None:
            return _failed(trial.name, failure, self.around, trial.loses)
        return Check(trial.name, State.OK, trial.found, trial.loses, required=True)

    def user_namespaces(self) -> Check:
        """One that is entered and, so that there is something to have it for, capabilities in it."""
        failure = attempt(select(self.plan, (), ()), self.host)
        if failure is None:
            failure = attempt(select(self.plan, ("uts",), (s.Hostname,)), self.host)
            if failure is not None and isinstance(failure.step, s.Namespaces):
                failure = None  # this is the UTS namespace's matter
        if failure is not None:
            return _failed("user namespaces", failure, self.around)
        nested = "" if self.around.initial_ids else ", within another one"
        found = f"entered, ids mapped, capabilities held{nested}"
        return Check("user namespaces", State.OK, found, checks.NOTHING, required=True)

    def proc(self) -> Check:
        """A new procfs. What covers the old one is said at once, even where this cannot be tried."""
        check = self.outcome(PROC)
        if check.state is State.UNTRIED and self.around.covered:
            return checks.covered_proc(self.around)
        return check

    def default_policy(self) -> Check:
        """A real run, which decides."""
        name, loses = "default policy", "nothing runs, unless another policy asks for less"
        try:
            result = api.run(COMMAND, POLICY, timeout=PATIENCE)
            failure = None if result.ok else Failure(result.describe())
        except CapsuleError as error:
            failure = _failure(error)
        if failure is None:
            found = f"{' '.join(COMMAND)} was run with it"
            return Check(name, State.OK, found, loses, required=True)
        check = _failed(name, failure, self.around, loses)
        if any(other.fails for other in self.done.values()):
            return check.replace(found=failure.message, remedy="")
        return check

    def overlay(self) -> Check:
        """One over the host's programs: all of a plan that has one, up to where its command starts."""
        if self.done["default policy"].fails:
            return checks.untried("overlay", "default policy", checks.NO_OVERLAY)
        plan = self.plan_of(POLICY.replace(mounts=[Mount.overlay("/usr", "/overlay")]))
        steps = takewhile(lambda step: not isinstance(step, s.Fork), plan.steps)
        failure = attempt((*steps, s.Stop()), self.host, plan.overlays)
        return checks.overlay(failure, self.around)

    def subordinate_ids(self) -> Check:
        """The map of a whole range of ids."""
        if self.done["user namespaces"].fails:
            return checks.untried(checks.SUBORDINATE, "user namespaces", checks.ONE_ID)
        failure = None
        try:
            plan = self.plan_of(POLICY.replace(id_map=IdMap.AUTO))
            failure = attempt(select(plan, (), ()), self.host)
        except CapsuleError as error:
            failure = _failure(error)
        return checks.subordinate_ids(self.host, failure, _user_name())


def _failed(name: str, failure: Failure, around: Surroundings, loses: str = checks.NOTHING) -> Check:
    found, remedy = conclude(failure, around)
    return Check(name, State.MISSING, found, loses, remedy, required=True)


# --- trials ---------------------------------------------------------------------------------


def select(plan: Plan, namespaces: Sequence[str], uses: Sequence[type[s.Step]]) -> tuple[s.Step, ...]:
    """The plan's steps of some kinds, in some namespaces and a user namespace, and then an end."""
    kinds: tuple[type[s.Step], ...] = (*OF_LAUNCHER, s.Undumpable, *uses)
    flags = sum(s.NAMESPACES[kind] for kind in ("user", *namespaces))
    chosen = [step for step in plan.steps if isinstance(step, kinds)]
    return (*(s.Namespaces(flags) if isinstance(c, s.Namespaces) else c for c in chosen), s.Stop())


def attempt(
    steps: Sequence[s.Step], host: Host, overlays: Sequence[tuple[str, str, str]] = ()
) -> Failure | None:
    """Take steps, the last of which is `Stop`. None if all went well; nothing is left either way."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        plan = Plan(steps=tuple(steps), overlays=tuple(overlays))
        running = launch(plan, host, None, Survey(), (null, null, null))
    except CapsuleError as error:
        return _failure(error)
    finally:
        os.close(null)
    spawn.reap(running.pid)
    for fd in (running.pidfd, running.status, running.lifeline, *running.gifts):
        os.close(fd)
    return None


def _failure(error: CapsuleError) -> Failure:
    # A hint to ask the doctor is none to the doctor.
    hint = "" if error.hint is None or "capsule doctor" in error.hint else error.hint
    if isinstance(error, SetupError):
        return Failure(f"{error.step.describe()}: {error.strerror}", hint, error.step, error.errno or 0)
    return Failure(error.message, hint)


# --- looking ----------------------------------------------------------------------------------


def look_around() -> Surroundings:
    """Return what may keep Capsule from something here. Most of it is wanted only if something does."""
    status = dict(
        line.split(":\t", 1) for line in read_text("/proc/self/status").splitlines() if ":\t" in line
    )
    numbers = os.uname().release.split(".")[:2]
    ids = [
        [int(word) for word in line.split()] for line in read_text("/proc/self/uid_map").splitlines()
    ]
    uid = os.geteuid()
    mounts = [line.split()[4] for line in read_text("/proc/self/mountinfo").splitlines()]
    return Surroundings(
        kernel=(int(numbers[0]), int(numbers[1])),
        uid=uid,
        initial_ids=has_initial_ids(unsure=False),
        launcher=os.path.realpath(spawn.LAUNCHER),
        sysctls={n: v for n in SYSCTLS if (v := read_text(f"/proc/sys/{n.replace('.', '/')}").strip())},
        filtered=status.get("Seccomp", "0").strip() != "0",
        answers=_ask(),
        profile=_profile(read_text("/proc/self/attr/apparmor/current")),
        selinux=read_text("/sys/fs/selinux/enforce") == "1",
        proc=bool(status),
        mapped=any(start <= uid < start + count for start, _, count in ids),
        chrooted=bool(mounts) and "/" not in mounts,
        covered=tuple(m for m in mounts if m.startswith("/proc/") and m not in checks.EMPTY_IN_PROC),
        capabilities=int(status.get("CapEff", "0"), 16),
    )


def _profile(label: str) -> str:
    """The AppArmor profile, "" if it restricts nothing: "unconfined", "docker-default (enforce)"."""
    return label.strip() if label.strip().endswith("(enforce)") else ""


def _ask() -> dict[str, int]:
    """Return what came of the trials that are made in a process of Python's, as far as it got."""
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", SCRIPT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    words = [line.split(" ", 1) for line in done.stdout.decode("ascii", "replace").splitlines()]
    return {name: int(answer) for answer, name in words}


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())

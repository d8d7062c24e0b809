"""What this host can enforce, found by trying: each line stands for something that was done.

The trials are the default plan's own steps, a few at a time, ended before a command would run. Where
one of them fails, the host's settings are looked at, and `causes` draws the conclusion.
"""

from __future__ import annotations

import contextlib
import os
import sys

from . import api, checks, spawn
from . import steps as s
from .causes import SYSCTLS, Failure, Surroundings, conclude, covered_proc
from .checks import Check, Delegation, Report, State
from .command import resolve
from .errors import CapsuleError, HostError, SetupError
from .host import probe
from .launch import launch
from .plan import Plan, make_plan
from .policy import IdMap, Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .host import Host
    from .policy import Policy

# What every host has at this path, in a directory that every capsule has.
COMMAND, POLICY = ("/bin/sh", "-c", ":"), Policy(cwd="/")
# Guards against a hang: what is tried takes milliseconds.
PATIENCE = 20

NOTHING = "Capsule starts nothing"
# Kind of namespace: (the steps that use it, what is seen if they work, what is lost without it).
NAMESPACES: dict[str, tuple[tuple[type[s.Step], ...], str, str]] = {
    "mount": ((s.Private,), "entered, propagation made private", NOTHING),
    "pid": ((), "entered", NOTHING),
    "net": ((s.Loopback,), "entered, loopback brought up", "only --net host works"),
    "ipc": ((), "entered", NOTHING),
    "uts": ((s.Hostname,), "entered, hostname set", NOTHING),
    "cgroup": ((), "entered", NOTHING),
}
IN_LAUNCHER = (s.DropGroups, s.Namespaces, s.DenySetgroups, s.GidMap, s.UidMap, s.MapHelper)
TAKE_SOURCES = (s.Private, s.Tree, s.Device)
MAKE_PROC = (s.Private, s.Proc)
MAKE_ROOT = (s.Private, s.Identity, s.PivotRoot, s.Tmpfs, s.Devpts)


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
    kernel, uid = os.uname().release, os.geteuid()
    try:
        host = probe(refresh=True) if host is None else host
    except CapsuleError as error:
        lost = Check("launcher", State.MISSING, error.message, NOTHING, error.hint or "", required=True)
        return Report(kernel, uid, (lost,))
    return Report(kernel, uid, tuple(_Examination(host).checks()))


class _Examination:
    """The trials, in the order in which one stands on another."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.around = look_around(host)
        # As if no call were missing: a plan is wanted all the same, for its steps.
        able = host.replace(mount_api=True, openat2=True)
        self.plan = make_plan(POLICY, able, resolve(COMMAND, POLICY))
        self.done: list[Check] = []

    def checks(self) -> list[Check]:
        """All lines of the report."""
        host, around = self.host, self.around
        self._add(Check("launcher", State.OK, around.launcher, NOTHING, required=True))
        self._user_namespaces()
        for kind, (uses, seen, loses) in NAMESPACES.items():
            self._try(f"{kind} namespace", {kind}, uses, seen, loses)
        self._add(checks.mount_api(host, around))
        self._mount_setattr()
        self._proc()
        self._try("root", {"mount"}, MAKE_ROOT, "made of tmpfs and devpts, entered by pivot_root")
        self._default_policy()
        self._add(checks.overlay(around))
        self._add(checks.landlock(host, around))
        self._add(checks.seccomp(host))
        self._add(checks.cgroup(look_at_cgroup()))
        self._subordinate_ids()
        return self.done

    def _add(self, check: Check) -> None:
        self.done.append(check)

    def _state(self, name: str) -> State:
        return next(check.state for check in self.done if check.name == name)

    def _try(
        self,
        name: str,
        namespaces: set[str],
        uses: Sequence[type[s.Step]],
        seen: str,
        loses: str = NOTHING,
    ) -> None:
        """Take steps of these kinds in these namespaces; a line says what came of it."""
        missing = [check.name for check in self.done if check.fails and check.state is State.MISSING]
        if missing:
            found = f"not tried without: {missing[0]}"
            self._add(Check(name, State.UNTRIED, found, loses, required=True))
            return
        failure = attempt(select(self.plan, namespaces, uses), self.host)
        if failure is None:
            self._add(Check(name, State.OK, seen, loses, required=True))
        else:
            self._failed(name, failure, loses)

    def _failed(self, name: str, failure: Failure, loses: str = NOTHING) -> None:
        found, remedy = conclude(failure, self.around)
        self._add(Check(name, State.MISSING, found, loses, remedy, required=True))

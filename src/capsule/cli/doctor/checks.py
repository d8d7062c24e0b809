"""What `doctor` reports: one value a line, and the lines that follow from facts alone."""

from __future__ import annotations

import enum
import errno

from capsule.base.text import printable
from capsule.base.values import Value
from capsule.host.delegation import conclude

from . import causes
from .causes import seccomp_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.host.delegation import Delegation
    from capsule.host.host import Host

    from .causes import Failure, Surroundings


class State(enum.Enum):
    """What came of a check."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"
    UNTRIED = "untried"


class Check(Value):
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: what came of it. Untried is what stands on something else that is missing.
        found: what was seen.
        loses: what Capsule cannot do without it.
        remedy: what repairs it, in lines; "" if there is nothing to repair.
        required: whether the default policy needs it.
    """

    name: str
    state: State
    found: str
    loses: str
    remedy: str = ""
    required: bool = False

    @property
    def fails(self) -> bool:
        """Whether the default policy cannot be enforced because of it."""
        return self.required and self.state in (State.MISSING, State.UNTRIED)


class Report(Value):
    """What a host can enforce. Its text is what ``capsule doctor`` prints.

    Attributes:
        kernel: its release.
        uid: who asked.
        checks: what was looked at; what others stand on comes before them.
    """

    kernel: str
    uid: int
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the default policy can be enforced."""
        return not any(check.fails for check in self.checks)

    def to_json(self) -> str:
        """The report for programs."""
        import json

        checks = [
            {name: getattr(check, name) for name in Check.__value_fields__}
            | {"state": check.state.value}
            for check in self.checks
        ]
        report = {"ok": self.ok, "kernel": self.kernel, "uid": self.uid, "checks": checks}
        return json.dumps(report, indent=2)

    def __str__(self) -> str:
        width = max(len(name) for name in ("without it", *(check.name for check in self.checks)))
        lines = [f"Capsule on Linux {printable(self.kernel)}, as uid {self.uid}"]
        for title, required in (("The default policy needs", True), ("Beyond it", False)):
            chosen = [check for check in self.checks if check.required is required]
            lines += ["", f"{title}:"] if chosen else []
            for check in chosen:
                lines += _describe(check, width)
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        if self.ok:
            return "The default policy can be enforced on this host."
        # The last of them is the default policy itself: it says no more than those before it.
        failed = [check.name for check in self.checks if check.fails and check.state is State.MISSING]
        return (
            f"The default policy can NOT be enforced on this host: {', '.join(failed[:-1] or failed)}."
        )


def _describe(check: Check, width: int) -> list[str]:
    """The line; and below it, if there is anything to repair, what is lost and how to repair it."""
    parts = [(check.state.value, check.name, check.found)]
    if check.state in (State.DEGRADED, State.MISSING):
        parts.append(("", "without it", check.loses))
    titles = ["remedy", *[""] * check.remedy.count("\n")]
    parts += [("", *pair) for pair in zip(titles, check.remedy.splitlines(), strict=False)]
    return [f"{state:8}  {title:{width}}  {printable(text)}" for state, title, text in parts]


# --- lines that follow from facts -----------------------------------------------------------

NOTHING = "Capsule starts nothing"
NO_OVERLAY = "no private writes over a directory of the host"
MOUNT_API = ("fsopen", "fsconfig", "fsmount", "open_tree", "move_mount", "openat2")
# Directories of /proc that are there to be mounted on: what lies on them hides nothing.
EMPTY_IN_PROC = ("/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd")


def untried(name: str, lacks: str, loses: str, *, required: bool = False) -> Check:
    """Return what stands on something that is missing."""
    return Check(name, State.UNTRIED, f"cannot be tried without: {lacks}", loses, required=required)


def mount_api(host: Host, around: Surroundings) -> Check:
    """The calls without which nothing can be started, as far as they are there at all."""
    lacks = [] if host.mount_api else ["fsopen, open_tree or move_mount"]
    lacks += [] if host.openat2 else ["openat2"]
    conclusion = seccomp_filter(around, *MOUNT_API)
    if conclusion is None and lacks:
        conclusion = f"the kernel does not offer {' and '.join(lacks)}", "run Linux 5.10 or later"
    if conclusion is None:
        return Check("mount API", State.OK, ", ".join(MOUNT_API), NOTHING, required=True)
    found, remedy = conclusion
    return Check("mount API", State.MISSING, found, NOTHING, remedy, required=True)


def mount_setattr(host: Host, around: Surroundings) -> Check | None:
    """The fallback's line; None if the call is there, as far as facts tell."""
    if host.mount_setattr:
        return None
    loses = "nothing but time: trees are made read-only mount by mount"
    found, remedy = "the kernel does not offer it", "run Linux 5.12 or later"
    found, remedy = seccomp_filter(around, "mount_setattr") or (found, remedy)
    return Check("mount_setattr", State.DEGRADED, found, loses, remedy, required=True)


def covered_proc(around: Surroundings) -> Check:
    """Return what is sure to fail once it can be tried."""
    found, remedy = causes.covered_proc(around)
    return Check("proc", State.MISSING, found, NOTHING, remedy, required=True)


def landlock(host: Host, around: Surroundings) -> Check:
    """Landlock, without which the mounts are the only wall around files."""
    name, loses = "Landlock", "no second wall behind the mount namespace"
    if host.landlock_abi > 0:
        return Check(name, State.OK, f"ABI {host.landlock_abi}", loses)
    found, remedy = "the kernel has none", "run Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK"
    if around.filtered:
        found = "the kernel has none, or a seccomp filter around Capsule hides it"
    if around.answers.get("landlock_create_ruleset") == errno.EOPNOTSUPP:
        found, remedy = "left out at boot", "boot with landlock in the parameter lsm="
    found, remedy = seccomp_filter(around, "landlock_create_ruleset") or (found, remedy)
    return Check(name, State.MISSING, found, loses, remedy)


def seccomp(host: Host) -> Check:
    """Return whether filters can be installed."""
    name, loses = "seccomp", "only --seccomp off works, with every system call allowed"
    if not host.seccomp:
        remedy = "run a kernel with CONFIG_SECCOMP_FILTER, outside of a filter that forbids prctl(2)"
        return Check(name, State.MISSING, "no filter can be installed", loses, remedy, required=True)
    under = "; Capsule itself is under one" if host.outer_seccomp else ""
    if not host.seccomp_listener:
        found = f"filters can be installed, but none with a listener{under}"
        remedy = "start Capsule outside of a filter that has one, such as another capsule's"
        loses = "refusals are not told: Result.denials stays empty; what is refused is the same"
        return Check(name, State.DEGRADED, found, loses, remedy, required=True)
    found = f"filters can be installed, and what they refuse is told{under}"
    return Check(name, State.OK, found, loses, required=True)


def overlay(failure: Failure | None, around: Surroundings) -> Check:
    """Overlay mounts by a caller who is not root, as the trial of one ended."""
    if failure is None:
        found = "made in a user namespace, its upper layer in memory"
        return Check("overlay", State.OK, found, NO_OVERLAY)
    told = seccomp_filter(around, "fsopen", "fsconfig", "fsmount")
    found, remedy = told or (failure.message, f"{failure.hint}\nas root: modprobe overlay".strip())
    return Check("overlay", State.MISSING, found, NO_OVERLAY, remedy)


SUBORDINATE = "subordinate ids"
ONE_ID = "--uid-map auto: one id inside, no chown to others"


def subordinate_ids(host: Host, failure: Failure | None, user: str) -> Check:
    """The caller's ranges, as the trial with them ended."""
    if host.subuids is None or host.subgids is None:
        table = "/etc/subuid" if host.subuids is None else "/etc/subgid"
        ranges = "--add-subuids 100000-165535 --add-subgids 100000-165535"
        found, remedy = f"{table} has no range for {user}", f"as root: usermod {ranges} {user}"
        return Check(SUBORDINATE, State.MISSING, found, ONE_ID, remedy)
    if failure is not None:
        return Check(SUBORDINATE, State.MISSING, failure.message, ONE_ID, failure.hint)
    found = f"{host.subuids.count} uids, {host.subgids.count} gids, mapped"
    return Check(SUBORDINATE, State.OK, found, ONE_ID)


def cgroup(own: Delegation) -> Check:
    """Return whether limits can be set on a capsule as a whole."""
    name, loses = "cgroup v2", "no limit of memory, CPU or processes over a capsule as a whole"
    found, remedy = conclude(own)
    if not remedy:
        return Check(name, State.OK, f"{found}: {own.way}", loses)
    state = State.DEGRADED if own.way else State.MISSING
    return Check(name, state, found, loses, remedy)

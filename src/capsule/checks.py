"""What `doctor` reports: one value a line, and the lines that follow from facts alone."""

from __future__ import annotations

import enum
import errno
import os

from .causes import seccomp_filter
from .values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .causes import Surroundings
    from .host import Host


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
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"Capsule on Linux {_printable(self.kernel)}, as uid {self.uid}", ""]
        for check in self.checks:
            lines.append(f"{check.state.value:8}  {check.name:{width}}  {_printable(check.found)}")
            lines += _more(check)
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        if self.ok:
            return "The default policy can be enforced on this host."
        # The last check is the default policy itself: it says no more than those before it.
        failed = [check.name for check in self.checks if check.fails and check.state is State.MISSING]
        return f"The default policy can NOT be enforced on this host: {', '.join(failed[:-1] or failed)}."


def _more(check: Check) -> list[str]:
    """What is lost and what repairs it, below the line of a check that is not ok."""
    if check.state is State.OK:
        return []
    parts = [] if check.state is State.UNTRIED else [("without it", check.loses)]
    parts += [("remedy", line) for line in check.remedy.splitlines()]
    seen: set[str] = set()
    lines = []
    for title, text in parts:
        lines.append(f"{'':10}{'' if title in seen else title:10}  {_printable(text)}")
        seen.add(title)
    return lines


def _printable(text: str) -> str:
    """Text that cannot break out of its line or into the terminal."""
    if text.isprintable():
        return text
    return text.encode("unicode_escape", "surrogatepass").decode("ascii")


# --- lines that follow from facts -----------------------------------------------------------


def mount_api(host: Host, around: Surroundings) -> Check:
    """The calls without which nothing can be started, as far as they are there at all."""
    name, loses = "mount API", "Capsule starts nothing"
    lacks = [] if host.mount_api else ["fsopen, open_tree or move_mount"]
    lacks += [] if host.openat2 else ["openat2"]
    refused = seccomp_filter(around, "mount", "umount2", "open_tree", "fsconfig", "openat2")
    if refused is not None:
        return Check(name, State.MISSING, *_placed(refused, loses), required=True)
    if lacks:
        found = f"the kernel does not offer {' and '.join(lacks)}"
        return Check(name, State.MISSING, found, loses, "run Linux 5.10 or later", required=True)
    return Check(name, State.OK, "fsopen, open_tree, move_mount, openat2", loses, required=True)


def mount_setattr(host: Host, around: Surroundings) -> Check:
    """Whole trees made read-only at once. Without it the launcher goes through them mount by mount."""
    name, loses = "mount_setattr", "nothing but time: trees become read-only mount by mount"
    refused = seccomp_filter(around, "mount_setattr")
    if refused is not None:
        # A filter that says ENOSYS is as good as an old kernel; another errno fails the start.
        state = State.MISSING if host.mount_setattr else State.DEGRADED
        loses = "Capsule starts nothing" if host.mount_setattr else loses
        return Check(name, state, *_placed(refused, loses), required=True)
    if not host.mount_setattr:
        found = "the kernel does not offer it"
        return Check(name, State.DEGRADED, found, loses, "run Linux 5.12 or later", required=True)
    return Check(name, State.OK, "whole trees become read-only at once", loses, required=True)


def _placed(conclusion: tuple[str, str], loses: str) -> tuple[str, str, str]:
    found, remedy = conclusion
    return found, loses, remedy


def landlock(host: Host, around: Surroundings) -> Check:
    """Landlock, which the default policy does without."""
    name, loses = "Landlock", "no second wall behind the mount namespace"
    if host.landlock_abi > 0:
        return Check(name, State.OK, f"ABI {host.landlock_abi}", loses)
    refused = seccomp_filter(around, "landlock_create_ruleset")
    if refused is not None:
        return Check(name, State.MISSING, *_placed(refused, loses))
    if around.answers.get("landlock_create_ruleset") == errno.EOPNOTSUPP:
        found, remedy = "left out at boot", "boot with landlock in the parameter lsm="
    else:
        found, remedy = "the kernel has none", "run Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK"
    return Check(name, State.MISSING, found, loses, remedy)


def seccomp(host: Host) -> Check:
    """Whether filters can be installed."""
    name, loses = "seccomp", "no filter of system calls"
    if not host.seccomp:
        remedy = "run a kernel with CONFIG_SECCOMP_FILTER, outside of a filter that forbids prctl(2)"
        return Check(name, State.MISSING, "no filter can be installed", loses, remedy)
    under = "; Capsule itself is under one" if host.outer_seccomp else ""
    return Check(name, State.OK, f"filters can be installed{under}", loses)


def overlay(around: Surroundings) -> Check:
    """Overlay mounts by a caller who is not root."""
    name, loses = "overlay", "no private writes over a directory of the host"
    answer = around.answers.get("overlay")
    if answer == 0:
        return Check(name, State.OK, "a file changed and one removed in a user namespace", loses)
    if answer is None:
        return Check(name, State.UNTRIED, "not tried", loses)
    found = "the trial was killed" if answer < 0 else f"refused: {os.strerror(answer)}"
    remedy = "run Linux 5.11 or later; as root: modprobe overlay"
    return Check(name, State.MISSING, found, loses, remedy)


# --- cgroups ------------------------------------------------------------------------------


class Delegation(Value):
    """The caller's own cgroup of version 2.

    Attributes:
        directory: where it lies, or "" if it cannot be seen.
        controllers: those that may be used in it.
        top: it is the root of the whole tree: nobody's to give away.
        error: errno of making a cgroup below it, 0 if that can be done.
    """

    directory: str = ""
    controllers: tuple[str, ...] = ()
    top: bool = False
    error: int = 0


CONTROLLERS = ("memory", "pids", "cpu")
_UNIFIED = "boot with: systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
_DELEGATE = (
    "one command: systemd-run --user --scope -p Delegate=yes COMMAND\n"
    "docker: --cgroupns=private --security-opt writable-cgroups=true\n"
    "podman: --security-opt unmask=/sys/fs/cgroup"
)
_DELEGATE_MORE = (
    "as root: systemctl edit user@.service, write\n"
    "  [Service]\n"
    "  Delegate=cpu cpuset io memory pids\n"
    "then log in again"
)


def cgroup(own: Delegation) -> Check:
    """Whether limits can be set on a capsule as a whole."""
    name, loses = "cgroup v2", "no limit of memory, CPU or processes over a capsule as a whole"
    lacks = [each for each in CONTROLLERS if each not in own.controllers]
    none = len(lacks) == len(CONTROLLERS)
    if not own.directory:
        found, remedy = "the caller's own cgroup of version 2 cannot be seen", _UNIFIED
    elif own.top and none:
        found, remedy = "version 1 has the controllers memory, pids and cpu", _UNIFIED
    elif own.error:
        found = f"{own.directory} is not delegated: {os.strerror(own.error)}"
        remedy = _DELEGATE
    elif lacks:
        found, remedy = f"{own.directory} is delegated without {', '.join(lacks)}", _DELEGATE_MORE
    else:
        found = f"{own.directory} is delegated with {', '.join(CONTROLLERS)}"
        return Check(name, State.OK, found, loses)
    state = State.DEGRADED if lacks and not none and not own.error else State.MISSING
    return Check(name, state, found, loses, remedy)

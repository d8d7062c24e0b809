"""From a step that a host refused, and what stands around Capsule there, to the cause and the remedy.

Pure; `doctor` does the looking.
"""

from __future__ import annotations

import errno
import os

from capsule.base.values import Value
from capsule.launcher import steps as s
from capsule.process.hints import APPARMOR, UNPRIVILEGED

from .trials import CALLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from capsule.launcher.steps import Step

    # (What was found, the remedy in lines that can be copied)
    Conclusion = tuple[str, str]

# Limits of namespaces, by kind; namespaces(7).
LIMITS = {kind: f"user.max_{'mnt' if kind == 'mount' else kind}_namespaces" for kind in s.NAMESPACES}
SYSCTLS = (UNPRIVILEGED, APPARMOR, *LIMITS.values())
SETTERS = {6: "CAP_SETGID", 7: "CAP_SETUID"}

_DENIALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)
_UNCONFINED = (
    "docker, podman: --security-opt seccomp=unconfined\n"
    "systemd unit: RestrictNamespaces=no, and no SystemCallFilter=\n"
    "else start Capsule outside of that filter"
)


class Surroundings(Value):
    """What stands around Capsule on this host and may be why it is refused something.

    Attributes:
        kernel: the first two numbers of its release.
        uid: effective user id.
        initial_ids: whether ids are the kernel's own.
        launcher: path of the launcher, links resolved.
        sysctls: those of SYSCTLS that can be read.
        filtered: Capsule itself is under a seccomp filter.
        answers: the errno that came of each of trials.CALLS; -1 for one that was
            never answered.
        profile: the AppArmor profile that Capsule itself is under, or "".
        selinux: SELinux enforces.
        proc: /proc is there.
        mapped: the uid is one of those that this user namespace has.
        chrooted: the root directory is not a mount point.
        covered: parts of /proc that something is mounted over.
        capabilities: the effective set, as a number.
    """

    kernel: tuple[int, int] = (5, 10)
    uid: int = 1000
    initial_ids: bool = True
    launcher: str = "/usr/lib/python3/dist-packages/capsule/launcher/capsule-launch"
    sysctls: Mapping[str, str] = {}
    filtered: bool = False
    answers: Mapping[str, int] = {}
    profile: str = ""
    selinux: bool = False
    proc: bool = True
    mapped: bool = True
    chrooted: bool = False
    covered: tuple[str, ...] = ()
    capabilities: int = 0

    @property
    def real_root(self) -> bool:
        """Whether what binds the unprivileged does not bind this caller."""
        return self.uid == 0 and self.initial_ids

    def refused(self, *names: str) -> list[str]:
        """Which calls, of these or of all, a seccomp filter around Capsule refuses."""
        return [name for name in names or CALLS if self.filtered and self._is_refused(name)]

    def _is_refused(self, name: str) -> bool:
        call = CALLS[name]
        answer = self.answers.get(name, call.usual[0])
        return answer not in call.usual and (answer != errno.ENOSYS or self.kernel >= call.since)


class Failure(Value):
    """Why a trial did not come to its end.

    Attributes:
        message: in words.
        hint: what to do, as far as the message's author knew.
        step: the step that failed, None if it was none of them.
        errno: of that step.
    """

    message: str
    hint: str = ""
    step: Step | None = None
    errno: int = 0


def conclude(failure: Failure, around: Surroundings) -> Conclusion:
    """Return what was found and the remedy for a trial that failed."""
    found = None
    step, denied = failure.step, failure.errno in _DENIALS
    if not around.proc:
        found = "/proc is not mounted", "as root: mount -t proc proc /proc"
    elif step is None:
        found = _no_launcher(failure, around)
    elif isinstance(step, s.Namespaces):
        found = _no_namespace(step, failure.errno, around)
    elif (isinstance(step, s.Proc) and denied) or failure.errno == errno.EROFS:
        found = covered_proc(around)
    elif denied:
        found = _powerless_root(step, around) or _refused(around) or _landlock(step, around)
    return found or (failure.message, failure.hint or "the kernel's log may tell why: dmesg")


def _refused(around: Surroundings) -> Conclusion | None:
    """Return what may refuse any step."""
    return seccomp_filter(around) or _confined(around) or _apparmor(around)


def _no_launcher(failure: Failure, around: Surroundings) -> Conclusion | None:
    """The launcher could not be started, or it or init was killed."""
    fatal = any(around.answers[name] < 0 for name in around.refused())
    if fatal or not failure.hint:
        return seccomp_filter(around)
    return seccomp_filter(around, "memfd_create", "pidfd_open", "close_range")


def _no_namespace(step: s.Namespaces, error: int, around: Surroundings) -> Conclusion | None:
    if error == errno.ENOSPC:
        return _limit(step, around)
    if error == errno.EINVAL:
        kinds = ", ".join(kind for kind in step.names() if kind != "user") or "user"
        return f"the kernel was built without it ({kinds})", "run a distribution's usual kernel"
    if error not in _DENIALS:
        return None
    return (
        _unmapped(around)
        or _chroot(around)
        or _sysctl(around)
        or seccomp_filter(around, "clone")
        or _confined(around)
        or _apparmor(around)
        or _selinux(around)
        or _somebody(error)
    )


def _landlock(step: Step, around: Surroundings) -> Conclusion | None:
    """Who is under a ruleset about files may change no mount; it cannot be seen, only be felt."""
    if not isinstance(step, s.Private) or around.answers.get("landlock_create_ruleset") != 0:
        return None
    remedy = (
        "start Capsule outside of the sandbox that runs it (agents and other sandboxes use Landlock);\n"
        "within one, files are as that one shows them, and no capsule can be made"
    )
    return "a Landlock ruleset around Capsule, in all likelihood: it lets no mount be changed", remedy


def _limit(step: s.Namespaces, around: Surroundings) -> Conclusion:
    """ENOSPC: a limit of this user namespace or of one around it, or 32 levels of nesting."""
    for kind in step.names():
        if around.sysctls.get(LIMITS[kind]) == "0":
            return f"{LIMITS[kind]} is 0", _set_sysctl(LIMITS[kind], 65536)
    found = "too many namespaces, or too deeply nested (32 levels), here or in a container around"
    return found, f"on the host: {_set_sysctl(LIMITS['user'], 65536)}"


def _set_sysctl(name: str, value: int) -> str:
    return f"as root: sysctl -w {name}={value} && echo {name}={value} >>/etc/sysctl.d/60-capsule.conf"


def _unmapped(around: Surroundings) -> Conclusion | None:
    if around.mapped:
        return None
    remedy = "have who made this user namespace write its maps (unshare --map-root-user)"
    return f"uid {around.uid} is not mapped in the user namespace around Capsule", remedy


def _somebody(error: int) -> Conclusion:
    """A chroot to a mount point cannot be told from a root directory."""
    remedy = (
        "in a chroot, start Capsule outside of it or use systemd-nspawn in place of it\n"
        "else a security module has refused it and may have said why: dmesg"
    )
    return f"the kernel refuses it: {os.strerror(error)}", remedy


def _chroot(around: Surroundings) -> Conclusion | None:
    if not around.chrooted:
        return None
    remedy = "start Capsule outside of the chroot, or use systemd-nspawn in place of chroot"
    return "this is a chroot, in which the kernel gives none", remedy


def _sysctl(around: Surroundings) -> Conclusion | None:
    if around.sysctls.get(UNPRIVILEGED) != "0" or around.real_root:
        return None
    return f"{UNPRIVILEGED} is 0", _set_sysctl(UNPRIVILEGED, 1)


def seccomp_filter(around: Surroundings, *names: str) -> Conclusion | None:
    """The cause, if it is a filter that refuses one of these calls, or any."""
    calls = around.refused(*names)
    if not calls:
        return None
    fatal = [name for name in calls if around.answers[name] < 0]
    how = f"kills who calls {fatal[0]}" if fatal else f"refuses {', '.join(calls)}"
    return f"a seccomp filter around Capsule {how}", _UNCONFINED


def _confined(around: Surroundings) -> Conclusion | None:
    if not around.profile:
        return None
    remedy = "docker, podman: --security-opt apparmor=unconfined\nelse start Capsule outside of it"
    return f"the AppArmor profile around Capsule refuses it: {around.profile}", remedy


def _apparmor(around: Surroundings) -> Conclusion | None:
    """Ubuntu from 23.10 on: a profile decides which program gets capabilities from a user namespace."""
    if around.sysctls.get(APPARMOR, "0") == "0" or around.real_root:
        return None
    found = f"AppArmor grants it only to programs with a profile ({APPARMOR})"
    return found, apparmor_profile(around.launcher)


def apparmor_profile(launcher: str) -> str:
    """Return what lets the launcher, and no other program, make user namespaces."""
    path = "".join(f"\\{letter}" if letter in '\\"*?[]{}^' else letter for letter in launcher)
    return (
        "as root, write this to /etc/apparmor.d/capsule-launch:\n"
        "  abi <abi/4.0>,\n"
        "  include <tunables/global>\n"
        f'  profile capsule-launch "{path}" flags=(unconfined) {{\n'
        "    userns,\n"
        "  }\n"
        "then: apparmor_parser --replace /etc/apparmor.d/capsule-launch"
    )


def _selinux(around: Surroundings) -> Conclusion | None:
    if not around.selinux:
        return None
    remedy = (
        "podman: --security-opt label=disable\nelse see what it refused: ausearch -m avc -ts recent"
    )
    return "SELinux refuses it", remedy


def _powerless_root(step: Step, around: Surroundings) -> Conclusion | None:
    """Root by number and not by capability: a container that was started with --cap-drop."""
    lacks = [name for bit, name in SETTERS.items() if not around.capabilities >> bit & 1]
    if around.uid != 0 or not lacks or not isinstance(step, (s.DropGroups, s.GidMap, s.UidMap)):
        return None
    remedy = (
        "start Capsule as an ordinary user (docker, podman: --user 1000:1000)\n"
        "or give root both (docker, podman: --cap-add SETUID --cap-add SETGID)"
    )
    return f"this is root without {' and '.join(lacks)}", remedy


def covered_proc(around: Surroundings) -> Conclusion:
    """The kernel gives a new procfs to nobody who does not see his own whole; mount_namespaces(7)."""
    some = ", ".join(around.covered[:3]) + (", ..." if len(around.covered) > 3 else "")
    how = f"covered in places ({some})" if some else "covered in places, or read-only"
    remedy = (
        "docker: --security-opt systempaths=unconfined\n"
        "podman: --security-opt unmask=ALL\n"
        "Kubernetes: hostUsers: false, and procMount: Unmasked in the securityContext"
    )
    return f"/proc is {how}, so the kernel gives out no new one", remedy

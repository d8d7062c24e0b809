"""What `doctor` concludes and prints; none of this asks the kernel."""

from __future__ import annotations

import errno
import json

import pytest

from capsule.cli.doctor import causes, checks, doctor, trials
from capsule.cli.doctor.causes import Failure, Surroundings, conclude
from capsule.cli.doctor.checks import Check, Report, State
from capsule.files.found import Survey
from capsule.host.delegation import (
    DELEGATED,
    FOREIGN_MANAGER,
    NO_BUS,
    NO_BUSCTL,
    NO_MANAGER,
    SCOPE,
    Delegation,
)
from capsule.host.ids import Range
from capsule.launcher import steps as s
from capsule.planner.plan import make_plan
from capsule.process import hints
from capsule.program.command import Command
from tests.support import host

USER_ONLY = s.Namespaces(s.NAMESPACES["user"])
FILTERED = Surroundings(kernel=(6, 12), filtered=True)
APPARMOR = Surroundings(sysctls={hints.APPARMOR: "1"})


def failed(step: s.Step, error: int) -> Failure:
    """The failure of one step, of which no hint is known."""
    return Failure("it failed", "", step, error)


# --- causes -----------------------------------------------------------------------------------

CONCLUSIONS = {
    "sysctl": (
        failed(USER_ONLY, errno.EPERM),
        Surroundings(sysctls={hints.UNPRIVILEGED: "0"}),
        "kernel.unprivileged_userns_clone is 0",
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    "limit": (
        failed(USER_ONLY, errno.ENOSPC),
        Surroundings(sysctls={"user.max_user_namespaces": "0"}),
        "user.max_user_namespaces is 0",
        "sysctl -w user.max_user_namespaces=",
    ),
    "limit of another kind": (
        failed(s.Namespaces(s.NAMESPACES["user"] | s.NAMESPACES["mount"]), errno.ENOSPC),
        Surroundings(sysctls={"user.max_user_namespaces": "9", "user.max_mnt_namespaces": "0"}),
        "user.max_mnt_namespaces is 0",
        "sysctl -w user.max_mnt_namespaces=",
    ),
    "limit around": (
        failed(USER_ONLY, errno.ENOSPC),
        Surroundings(sysctls={"user.max_user_namespaces": "9"}),
        "too deeply nested",
        "on the host: as root: sysctl -w user.max_user_namespaces=",
    ),
    "kernel without": (
        failed(USER_ONLY, errno.EINVAL),
        Surroundings(),
        "the kernel was built without it (user)",
        "kernel",
    ),
    "apparmor, no namespace": (
        failed(USER_ONLY, errno.EACCES),
        APPARMOR,
        "AppArmor grants it only to programs with a profile",
        "apparmor_parser --replace",
    ),
    "apparmor, no capabilities": (
        failed(s.Hostname("capsule"), errno.EPERM),
        APPARMOR,
        "AppArmor grants it only to programs with a profile",
        "userns,",
    ),
    "apparmor, no map": (
        failed(s.UidMap("0 1000 1"), errno.EPERM),
        APPARMOR,
        "AppArmor grants it only to programs with a profile",
        "userns,",
    ),
    "profile around": (
        failed(s.Private(), errno.EACCES),
        Surroundings(profile="docker-default (enforce)"),
        "docker-default (enforce)",
        "--security-opt apparmor=unconfined",
    ),
    "selinux": (
        failed(USER_ONLY, errno.EACCES),
        Surroundings(selinux=True),
        "SELinux refuses it",
        "ausearch",
    ),
    "filter": (
        failed(USER_ONLY, errno.EPERM),
        FILTERED.replace(answers={"clone": errno.EPERM}),
        "a seccomp filter around Capsule refuses clone",
        "--security-opt seccomp=unconfined",
    ),
    "filter that lies": (
        failed(USER_ONLY, errno.ENOSYS),
        FILTERED.replace(answers={"clone": errno.ENOSYS}),
        "a seccomp filter around Capsule refuses clone",
        "RestrictNamespaces=no",
    ),
    "filter that kills": (
        Failure("the launcher ended without a report", "please report it"),
        FILTERED.replace(answers={"clone": errno.EINVAL, "openat2": -1}),
        "a seccomp filter around Capsule kills who calls openat2",
        "outside of that filter",
    ),
    "filter on the supervisor": (
        Failure("cannot execute the launcher", "is it on a file system mounted noexec?"),
        FILTERED.replace(answers={"pidfd_open": errno.EPERM}),
        "a seccomp filter around Capsule refuses pidfd_open",
        "outside of that filter",
    ),
    "chroot": (
        failed(USER_ONLY, errno.EPERM),
        Surroundings(chrooted=True),
        "this is a chroot",
        "systemd-nspawn",
    ),
    "unmapped": (
        failed(USER_ONLY, errno.EPERM),
        Surroundings(uid=65534, mapped=False),
        "uid 65534 is not mapped",
        "--map-root-user",
    ),
    "unknown": (
        failed(USER_ONLY, errno.EPERM),
        Surroundings(),
        "Operation not permitted",
        "dmesg",
    ),
    "covered proc": (
        failed(s.Proc(), errno.EPERM),
        Surroundings(covered=("/proc/acpi", "/proc/keys", "/proc/kcore", "/proc/sys")),
        "/proc is covered in places (/proc/acpi, /proc/keys, /proc/kcore, ...)",
        "systempaths=unconfined",
    ),
    "read-only proc": (
        failed(s.DenySetgroups(), errno.EROFS),
        Surroundings(),
        "read-only",
        "unmask=ALL",
    ),
    "no proc": (
        failed(s.DropGroups(), errno.EPERM),
        Surroundings(uid=0, proc=False),
        "/proc is not mounted",
        "mount -t proc proc /proc",
    ),
    "root without capabilities": (
        failed(s.DropGroups(), errno.EPERM),
        Surroundings(uid=0, capabilities=1 << 7),
        "this is root without CAP_SETGID",
        "--cap-add SETUID --cap-add SETGID",
    ),
    "hint": (
        Failure("cannot start the launcher", "raise ulimit -n"),
        Surroundings(),
        "cannot start the launcher",
        "raise ulimit -n",
    ),
}


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_cause(name: str) -> None:
    """A failed step and what stands around it lead to one cause and its remedy."""
    failure, around, found, remedy = CONCLUSIONS[name]
    conclusion = conclude(failure, around)
    assert found in conclusion[0]
    assert remedy in conclusion[1]


def test_real_root_is_not_bound_by_what_binds_users() -> None:
    """Neither sysctl is the reason when the host's root is refused."""
    around = Surroundings(uid=0, sysctls={hints.UNPRIVILEGED: "0", hints.APPARMOR: "1"})
    found, _ = conclude(failed(USER_ONLY, errno.EPERM), around)
    assert "sysctl" not in found
    assert "AppArmor" not in found


def test_root_of_a_container_is_bound() -> None:
    """Root of another user namespace is nobody special."""
    around = Surroundings(uid=0, initial_ids=False, sysctls={hints.UNPRIVILEGED: "0"})
    found, _ = conclude(failed(USER_ONLY, errno.EPERM), around)
    assert hints.UNPRIVILEGED in found


@pytest.mark.row("E-14")
def test_no_remedy_switches_apparmor_off() -> None:
    """The restriction stays: a profile names the launcher, and only that."""
    for failure, around, _, _ in CONCLUSIONS.values():
        _, remedy = conclude(failure, around)
        assert "apparmor_restrict_unprivileged_userns" not in remedy


def test_apparmor_profile_names_a_path_and_no_pattern() -> None:
    """What AppArmor reads as a pattern or as a quote is escaped."""
    profile = causes.apparmor_profile('/a "b" [c] {d} *?^\\/capsule-launch')
    quoted = r'"/a \"b\" \[c\] \{d\} \*\?\^\\/capsule-launch"'
    assert f"profile capsule-launch {quoted} flags=(unconfined) {{" in profile


def test_call_that_an_old_kernel_lacks_is_not_refused_by_a_filter() -> None:
    """ENOSYS is the filter's only from the release on that surely has the call."""
    answers = {"mount_setattr": errno.ENOSYS, "landlock_create_ruleset": errno.ENOSYS}
    around = FILTERED.replace(answers=answers)
    assert around.refused() == ["mount_setattr"]
    assert around.replace(kernel=(5, 11)).refused() == []


def test_nothing_is_refused_where_there_is_no_filter() -> None:
    """What a kernel lacks is then its own."""
    assert Surroundings(kernel=(6, 12), answers={"mount_setattr": errno.ENOSYS}).refused() == []


def test_usual_answers_are_no_refusal() -> None:
    """The answers of a kernel without a filter, told by a process under one, blame nobody."""
    answers = {name: call.usual[-1] for name, call in trials.CALLS.items()}
    assert FILTERED.replace(answers=answers).refused() == []


# --- lines --------------------------------------------------------------------------------------

CGROUPS = {
    "none": (Delegation(), State.MISSING, "cannot be seen", "systemd.unified_cgroup_hierarchy=1"),
    "hybrid": (
        Delegation("/sys/fs/cgroup/unified", top=True),
        State.MISSING,
        "version 1 has the controllers",
        "cgroup_no_v1=all",
    ),
    "not delegated": (
        Delegation("/sys/fs/cgroup/user.slice", ("cpu", "memory", "pids"), error=errno.EACCES),
        State.MISSING,
        "/sys/fs/cgroup/user.slice is not delegated: Permission denied",
        "systemd-run --user --scope -p Delegate=yes",
    ),
    "read-only": (
        Delegation("/sys/fs/cgroup", ("cpu", "memory", "pids"), error=errno.EROFS),
        State.MISSING,
        "is not delegated: Read-only file system",
        "writable-cgroups=true",
    ),
    "in part": (
        Delegation("/sys/fs/cgroup/own", ("memory", "pids"), DELEGATED),
        State.DEGRADED,
        "/sys/fs/cgroup/own is delegated without cpu",
        "Delegate=cpu cpuset io memory pids",
    ),
    "no controller": (
        Delegation("/sys/fs/cgroup/own"),
        State.MISSING,
        "is delegated without memory, pids, cpu",
        "Delegate=cpu cpuset io memory pids",
    ),
    "of a service manager": (
        Delegation("/sys/fs/cgroup/user.slice/x.scope", ("memory", "pids"), callers=True),
        State.MISSING,
        "is not delegated: its service manager divides it",
        "systemd-run --user --scope -p Delegate=yes",
    ),
    "no session": (
        Delegation("/sys/fs/cgroup/x.scope", ("memory",), error=errno.EACCES, no_scope=NO_MANAGER),
        State.MISSING,
        "/sys/fs/cgroup/x.scope is not delegated: Permission denied; this user has no service manager",
        "as root: loginctl enable-linger",
    ),
    "no bus": (
        Delegation("/sys/fs/cgroup/x.scope", error=errno.EACCES, no_scope=NO_BUS),
        State.MISSING,
        "is not delegated: Permission denied; the user has no message bus",
        "apt install dbus-user-session",
    ),
    "no busctl": (
        Delegation("/sys/fs/cgroup/x.scope", error=errno.EACCES, no_scope=NO_BUSCTL),
        State.MISSING,
        "is not delegated: Permission denied; there is no /usr/bin/busctl",
        "as root: install what has busctl",
    ),
    "a manager elsewhere": (
        Delegation("/sys/fs/cgroup/x.scope", error=errno.EACCES, no_scope=FOREIGN_MANAGER),
        State.MISSING,
        "the user's service manager is in another PID namespace",
        "start Capsule outside of that namespace",
    ),
    "a scope": (
        Delegation("/sys/fs/cgroup/user@1000.service", ("memory", "pids", "cpu"), SCOPE),
        State.OK,
        "the user's systemd makes a scope there when it is needed",
        "",
    ),
    "a scope, in part": (
        Delegation("/sys/fs/cgroup/user@1000.service", ("memory", "pids"), SCOPE),
        State.DEGRADED,
        "is delegated without cpu",
        "Delegate=cpu cpuset io memory pids",
    ),
    "whole": (
        Delegation("/sys/fs/cgroup/own", ("memory", "pids", "cpu"), DELEGATED),
        State.OK,
        "/sys/fs/cgroup/own, with memory, pids, cpu",
        "",
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_cgroup(name: str) -> None:
    """What is seen of the caller's cgroup leads to a state and a remedy."""
    own, state, found, remedy = CGROUPS[name]
    check = checks.cgroup(own)
    assert check.state is state
    assert found in check.found
    assert remedy in check.remedy
    assert bool(check.remedy) is (state is not State.OK)


@pytest.mark.parametrize(
    ("answers", "filtered", "found", "remedy"),
    [
        ({"landlock_create_ruleset": errno.ENOSYS}, False, "the kernel has none", "5.13"),
        ({"landlock_create_ruleset": errno.ENOSYS}, True, "or a seccomp filter", "5.13"),
        ({"landlock_create_ruleset": errno.EOPNOTSUPP}, False, "left out at boot", "lsm="),
        ({"landlock_create_ruleset": errno.EPERM}, True, "a seccomp filter", "seccomp=unconfined"),
    ],
)
def test_landlock_is_missing(answers: dict[str, int], filtered: bool, found: str, remedy: str) -> None:
    """A kernel without it, one that was booted without it and a filter have remedies of their own."""
    around = Surroundings(kernel=(6, 12), filtered=filtered, answers=answers)
    check = checks.landlock(host(landlock_abi=0), around)
    assert (check.state, check.required) == (State.MISSING, False)
    assert found in check.found
    assert remedy in check.remedy


def test_a_ruleset_around_is_named() -> None:
    """Mounts that are refused where no other reason is seen; not where the kernel has no Landlock."""
    around = Surroundings(answers={"landlock_create_ruleset": 0})
    found, remedy = causes.conclude(failed(s.Private(), errno.EPERM), around)
    assert "a Landlock ruleset around Capsule" in found
    assert "outside of the sandbox" in remedy
    for other in (Surroundings(), around.replace(answers={"landlock_create_ruleset": errno.ENOSYS})):
        assert "Landlock" not in causes.conclude(failed(s.Private(), errno.EPERM), other)[0]


def test_landlock_has_its_version() -> None:
    """The ABI is what programs ask for."""
    assert checks.landlock(host(landlock_abi=4), Surroundings()).found == "ABI 4"


def test_mount_api_is_required() -> None:
    """Without openat2(2) nothing is started, and the line says so."""
    check = checks.mount_api(host(openat2=False), Surroundings())
    assert check.fails
    assert "does not offer openat2" in check.found


def test_mount_setattr_has_a_fallback() -> None:
    """Without it Capsule is slower, not weaker."""
    check = checks.mount_setattr(host(mount_setattr=False), Surroundings())
    assert check is not None
    assert check.state is State.DEGRADED
    assert not check.fails


def test_seccomp_names_an_outer_filter() -> None:
    """A filter around Capsule is worth knowing of even if it does no harm."""
    assert "Capsule itself is under one" in checks.seccomp(host(outer_seccomp=True)).found
    assert checks.seccomp(host(seccomp=False)).fails


def test_without_a_listener_seccomp_is_only_degraded() -> None:
    """Where refusals cannot be told, the default policy can be enforced all the same."""
    check = checks.seccomp(host(outer_seccomp=True, seccomp_listener=False))
    assert (check.state, check.required, check.fails) == (State.DEGRADED, True, False)
    assert "refusals are not told" in check.loses
    assert "outside of a filter that has one" in check.remedy


def test_overlay() -> None:
    """How the trial ended decides; nothing of the default policy depends on it."""
    made = checks.overlay(None, Surroundings())
    assert (made.state, made.required) == (State.OK, False)
    failed = checks.overlay(Failure("overlay at /overlay: no", "use another"), Surroundings())
    assert (failed.state, failed.required) == (State.MISSING, False)
    assert failed.found == "overlay at /overlay: no"
    assert failed.remedy.splitlines() == ["use another", "as root: modprobe overlay"]


def test_subordinate_ids_name_the_user_in_the_remedy() -> None:
    """The command can be copied as it stands."""
    check = checks.subordinate_ids(host(), None, "ada")
    assert check.state is State.MISSING
    assert check.remedy.startswith("as root: usermod --add-subuids ")
    assert check.remedy.endswith(" ada")


def test_subordinate_ids_are_tried() -> None:
    """Ranges alone are not enough: the helpers have to write the maps."""
    able = host(subuids=Range(100000, 65536), subgids=Range(100000, 65536))
    assert checks.subordinate_ids(able, None, "ada").state is State.OK
    failure = Failure("map ids with /usr/bin/newuidmap", "set-uid root", s.MapHelper("/n", "0"), 1)
    check = checks.subordinate_ids(able, failure, "ada")
    assert (check.state, check.remedy) == (State.MISSING, "set-uid root")


# --- trials -------------------------------------------------------------------------------------


def test_trial_takes_the_steps_of_the_default_plan() -> None:
    """Its launcher's part is the plan's, its namespaces are fewer, and it runs no command."""
    command = Command(
        args=("true",), paths=("/usr/bin/true",), found=None, cwd="/", env=(), home="/root"
    )
    plan = make_plan(doctor.POLICY, host(), command, Survey())
    trial = doctor.select(plan, ("mount",), (s.Private, s.PivotRoot))
    assert trial == (
        s.Namespaces(s.NAMESPACES["user"] | s.NAMESPACES["mount"]),
        s.DenySetgroups(),
        s.GidMap("0 1000 1"),
        s.UidMap("0 1000 1"),
        s.Undumpable(),
        s.Private(),
        *(step for step in plan.steps if isinstance(step, s.PivotRoot)),
        s.Stop(),
    )


def test_every_namespace_has_a_line() -> None:
    """None is entered by the default plan that doctor does not try by itself."""
    tried = {kind for trial in doctor.KINDS for kind in trial.namespaces}
    assert tried | {"user"} == set(s.NAMESPACES)


def test_trials_stand_on_lines_before_them() -> None:
    """What a trial needs is known when its turn comes."""
    before = {"launcher", "user namespaces"}
    for trial in doctor.KINDS:
        assert set(trial.needs) <= before
        before.add(trial.name)
    before.add("mount API")
    for trial in (doctor.SOURCES, doctor.PROC, doctor.ROOT):
        assert set(trial.needs) <= before


# --- the report ---------------------------------------------------------------------------------


def report(*lines: Check) -> Report:
    """A report with some lines."""
    return Report("6.12.0", 1000, lines)


GOOD = Check("first", State.OK, "seen", "all", required=True)
BAD = Check("second", State.MISSING, "not seen", "much", "do this\n  and that", required=True)
UNTRIED = Check("third", State.UNTRIED, "cannot be tried without: second", "more", required=True)
LAST = Check("default policy", State.MISSING, "refused", "all of it", required=True)
EXTRA = Check("extra", State.MISSING, "none", "little", "get it")


def test_report_in_words() -> None:
    """One line a check; below those that are not ok what is lost and a remedy that can be copied."""
    assert str(report(GOOD, BAD, UNTRIED, LAST, EXTRA)) == (
        "Capsule on Linux 6.12.0, as uid 1000\n"
        "\n"
        "The default policy needs:\n"
        "ok        first           seen\n"
        "missing   second          not seen\n"
        "          without it      much\n"
        "          remedy          do this\n"
        "                            and that\n"
        "untried   third           cannot be tried without: second\n"
        "missing   default policy  refused\n"
        "          without it      all of it\n"
        "\n"
        "Beyond it:\n"
        "missing   extra           none\n"
        "          without it      little\n"
        "          remedy          get it\n"
        "\n"
        "The default policy can NOT be enforced on this host: second."
    )


def test_report_is_ok_without_what_goes_beyond() -> None:
    """Only what the default policy needs counts."""
    assert report(GOOD, EXTRA).ok
    assert str(report(GOOD, EXTRA)).endswith("The default policy can be enforced on this host.")


@pytest.mark.parametrize("check", [BAD, UNTRIED, LAST])
def test_report_is_not_ok_without_what_is_needed(check: Check) -> None:
    """Missing is missing, and so is what could not even be tried."""
    assert not report(GOOD, check).ok


def test_degraded_is_enough() -> None:
    """A fallback is a way to enforce the policy."""
    assert report(GOOD.replace(state=State.DEGRADED)).ok


def test_report_cannot_reach_the_terminal() -> None:
    """Names that the host gives, of paths, profiles and kernels, stay text on one line."""
    nasty = "a\nok  forged\x1b]52;c;\x07\u202e\udcff"
    text = str(
        Report(nasty, 0, (GOOD.replace(found=nasty), BAD.replace(found=nasty, remedy="\x1b[2J")))
    )
    assert all(line.isprintable() for line in text.splitlines())
    assert not any(line.startswith("ok  forged") for line in text.splitlines())


def test_report_for_programs() -> None:
    """The JSON holds every field of every check, states as words."""
    document = json.loads(report(GOOD, BAD).to_json())
    assert document["ok"] is False
    assert (document["kernel"], document["uid"]) == ("6.12.0", 1000)
    assert document["checks"][1] == {
        "name": "second",
        "state": "missing",
        "found": "not seen",
        "loses": "much",
        "remedy": "do this\n  and that",
        "required": True,
    }

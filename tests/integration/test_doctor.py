"""`doctor` on this host, and on hosts that refuse something: it says what, and how to repair it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import capsule
from capsule.cli.doctor import causes, doctor
from capsule.cli.doctor.checks import State
from capsule.host import delegation
from capsule.host.delegation import CONTROLLERS
from capsule.launcher import steps as s
from tests.support import CAPSULE, HANG, PYTHON, REAL_ROOT, needs, nothing_left, shared_directory

REFUSE = Path(__file__).with_name("refuse.py")
DOCTOR = [PYTHON, "-m", "capsule", "doctor"]


class Told(NamedTuple):
    """What doctor said."""

    status: int
    ok: bool
    checks: dict[str, dict[str, Any]]

    def states(self, *, required: bool) -> dict[str, str]:
        """The state of each check."""
        return {n: c["state"] for n, c in self.checks.items() if c["required"] is required}

    def causes(self) -> list[str]:
        """The checks that have a remedy among those that the default policy needs."""
        return [n for n, c in self.checks.items() if c["required"] and c["remedy"]]


def told(*before: str) -> Told:
    """Run doctor through some other commands. It tells all on stdout, whatever it finds."""
    done = subprocess.run(
        [*before, *DOCTOR, "--json"], capture_output=True, stdin=subprocess.DEVNULL, timeout=HANG
    )
    assert done.stderr == b""
    document = json.loads(done.stdout)
    assert done.returncode == (0 if document["ok"] else 1)
    return Told(done.returncode, document["ok"], {c["name"]: c for c in document["checks"]})


LACKS = () if capsule.probe().mount_setattr else ("mount_setattr",)


def assert_one_cause(heard: Told, name: str, found: str, remedy: str) -> None:
    """The default policy is refused for one reason; it is named, with its remedy, and only once."""
    # Before 5.12 there is one line more, of what is done without.
    assert [cause for cause in heard.causes() if cause not in LACKS] == [name]
    assert found in heard.checks[name]["found"]
    assert remedy in heard.checks[name]["remedy"]
    assert not heard.ok
    assert heard.checks[name]["state"] == "missing"
    policy = heard.checks.get("default policy", {"state": "missing"})
    assert policy["state"] == "missing"


# --- this host --------------------------------------------------------------------------------


def test_this_host_can_enforce_the_default_policy() -> None:
    """All that the default policy needs is there: the other tests of this folder stand on it."""
    with nothing_left():
        report = doctor.examine()
    assert {check.name: check.found for check in report.checks if check.fails} == {}
    assert report.ok
    assert report.uid == os.geteuid()


def test_the_command_says_the_same_in_words_and_in_json() -> None:
    """Two forms of one report, and status 0 with either."""
    done = subprocess.run(DOCTOR, capture_output=True, text=True, timeout=HANG)
    heard = told()
    assert (done.returncode, done.stderr, heard.status) == (0, "", 0)
    for name, check in heard.checks.items():
        assert any(line.startswith(f"{check['state']:8}  {name} ") for line in done.stdout.splitlines())
    assert done.stdout.endswith("\nThe default policy can be enforced on this host.\n")


def test_the_landlock_version_is_the_kernel_s() -> None:
    """The report and the facts that plans are made from agree."""
    abi = capsule.probe().landlock_abi
    assert (told().checks["Landlock"]["found"] == f"ABI {abi}") is (abi > 0)


def test_facts_of_the_caller_s_own_are_used() -> None:
    """A host without mount_setattr(2) is examined as one, and works."""
    report = doctor.examine(capsule.probe().replace(mount_setattr=False))
    states = {check.name: check.state for check in report.checks}
    assert states["mount_setattr"] is State.DEGRADED
    assert report.ok


def test_own_cgroup_is_looked_at_and_left_alone() -> None:
    """What is said of the cgroup is so, and there is no cgroup more or less after it."""
    own = delegation.find()
    before = os.listdir(own.directory or "/")
    state = told().checks["cgroup v2"]["state"]
    assert sorted(os.listdir(own.directory or "/")) == sorted(before)
    assert (state == "ok") is (bool(own.way) and set(CONTROLLERS) <= set(own.controllers))


# --- a trial ----------------------------------------------------------------------------------


def test_trial_that_works() -> None:
    """It comes to no failure, and neither launcher nor init is left."""
    with nothing_left():
        assert (
            doctor.attempt((s.Namespaces(s.NAMESPACES["user"]), s.Undumpable(), s.Stop()), HOST) is None
        )


def test_trial_that_fails_names_the_step() -> None:
    """The first step that fails and its errno come back, and nothing is left."""
    steps = (s.Namespaces(s.NAMESPACES["user"]), s.UidMap("no map"), s.Undumpable(), s.Stop())
    with nothing_left():
        failure = doctor.attempt(steps, HOST)
    assert failure is not None
    assert (failure.step, failure.errno) == (steps[1], errno.EINVAL)


HOST = capsule.Host()


# --- hosts that refuse ------------------------------------------------------------------------

# The rules of a filter, the line that names it, and the calls that it has to name.
FILTERS = {
    "clone": (("clone=EPERM", "unshare=EPERM"), "user namespaces", "refuses clone"),
    "clone, with a lie": (("clone=ENOSYS",), "user namespaces", "refuses clone"),
    "clone, deadly": (("clone=kill",), "user namespaces", "kills who calls clone"),
    "mount": (("mount=EPERM",), "mount namespace", "refuses mount"),
    "mount, deadly": (("mount=kill",), "mount namespace", "kills who calls mount"),
    "open_tree": (("open_tree=ENOSYS",), "mount API", "refuses open_tree"),
    "open_tree, denied": (("open_tree=EPERM",), "mount API", "refuses open_tree"),
    "fsopen": (("fsopen=ENOSYS",), "mount API", "refuses fsopen"),
    "fsopen, denied": (("fsopen=EPERM",), "mount API", "refuses fsopen"),
    "move_mount, denied": (("move_mount=EPERM",), "mount API", "refuses move_mount"),
    "openat2": (("openat2=ENOSYS",), "mount API", "refuses openat2"),
    "openat2, denied": (("openat2=EPERM",), "mount API", "refuses openat2"),
    "openat2, deadly": (("openat2=kill",), "launcher", "kills who calls openat2"),
    "memfd_create": (("memfd_create=ENOSYS",), "launcher", "refuses memfd_create"),
    "pidfd_open": (("pidfd_open=EPERM",), "launcher", "refuses pidfd_open"),
    "close_range": (("close_range=ENOSYS",), "launcher", "refuses close_range"),
    "many": (("clone=EPERM", "mount=EPERM", "openat2=EPERM"), "user namespaces", "refuses clone"),
}


def under(*rules: str) -> Told:
    """Doctor under a seccomp filter."""
    return told(PYTHON, str(REFUSE), *rules, "--")


def test_filter_that_refuses_nothing() -> None:
    """The control: being under a filter is no reason by itself, and is mentioned."""
    heard = under()
    assert heard.ok
    assert "Capsule itself is under one" in heard.checks["seccomp"]["found"]


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "many"])
def test_outer_filter(name: str) -> None:
    """A filter around Capsule is named as the cause, with the call that it refuses."""
    rules, line, found = FILTERS[name]
    heard = under(*rules)
    assert_one_cause(heard, line, f"a seccomp filter around Capsule {found}", "seccomp=unconfined")


def test_outer_filter_of_a_container() -> None:
    """Several refusals: each line names its own, and what stands on them is not tried."""
    heard = under(*FILTERS["many"][0])
    assert not heard.ok
    assert heard.checks["user namespaces"]["found"] == "a seccomp filter around Capsule refuses clone"
    assert "refuses openat2" in heard.checks["mount API"]["found"]
    assert heard.checks["proc"]["state"] == "untried"


@needs("mount_setattr")
def test_filter_that_hides_mount_setattr() -> None:
    """ENOSYS is what an old kernel says: the fallback works, and the default policy with it."""
    heard = under("mount_setattr=ENOSYS")
    assert heard.ok
    assert heard.checks["mount_setattr"]["state"] == "degraded"
    assert "refuses mount_setattr" in heard.checks["mount_setattr"]["found"]


def test_filter_that_denies_mount_setattr() -> None:
    """The call is named; whether the fallback is taken or not, the real run is the verdict."""
    heard = under("mount_setattr=EPERM")
    check = heard.checks["mount_setattr"]
    assert "a seccomp filter around Capsule refuses mount_setattr" in check["found"]
    assert check["state"] == ("degraded" if heard.ok else "missing")
    assert heard.checks["default policy"]["state"] == ("ok" if heard.ok else "missing")


@pytest.mark.parametrize("word", ["ENOSYS", "EPERM"])
def test_filter_that_hides_landlock(word: str) -> None:
    """The default policy does without; the line says what is lost."""
    heard = under(f"landlock_create_ruleset={word}")
    assert heard.ok
    assert heard.checks["Landlock"]["state"] == "missing"
    assert "a seccomp filter around Capsule" in heard.checks["Landlock"]["found"]


def within(script: str, *options: str) -> Told:
    """Doctor in new namespaces that a script has made poorer."""
    return told("unshare", "-Ur", *options, "sh", "-euc", f'{script}\nexec "$@"', "sh")


@needs("unshare")
def test_within_another_user_namespace() -> None:
    """The control: being nested is no reason by itself, and is mentioned."""
    heard = within("")
    assert heard.ok
    assert "within another one" in heard.checks["user namespaces"]["found"]


KINDS = {"user namespaces": "user", **{f"{kind} namespace": kind for kind in s.NAMESPACES}}


@needs("unshare")
@pytest.mark.parametrize("line", [name for name in KINDS if name != "user namespace"])
def test_limit_of_namespaces(line: str) -> None:
    """A limit of 0 is named by its sysctl, on the line of its kind alone."""
    name = causes.LIMITS[KINDS[line]]
    heard = within(f"echo 0 >/proc/sys/{name.replace('.', '/')}")
    assert_one_cause(heard, line, f"{name} is 0", f"sysctl -w {name}=")


@needs("unshare")
def test_a_run_names_the_limit_too() -> None:
    """And says who knows the remedy; the same program runs without that limit."""
    for limit, status in (("", 0), ("echo 0 >/proc/sys/user/max_user_namespaces\n", 125)):
        words = ["unshare", "-Ur", "sh", "-euc", f'{limit}exec "$@"', "sh", CAPSULE, "run", "true"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == status, done.stderr
    assert "cannot start: enter new namespaces: " in done.stderr
    assert "hint: user.max_user_namespaces is 0: " in done.stderr


OWN_PROC = ("-m", "-p", "-f")
WHOLE_PROC = "mount -t proc proc /proc"


@needs("unshare")
def test_whole_proc() -> None:
    """The control: with a procfs of its own that is whole, a container is no hindrance."""
    assert within(WHOLE_PROC, *OWN_PROC).ok


@needs("unshare")
def test_covered_proc() -> None:
    """What a container covers of /proc is named, and it is the only thing that is."""
    heard = within(f"{WHOLE_PROC}\nmount -t tmpfs tmpfs /proc/fs", *OWN_PROC)
    assert_one_cause(heard, "proc", "covered in places (/proc/fs)", "systempaths=unconfined")


@needs("unshare")
def test_covered_proc_is_told_with_what_comes_before_it() -> None:
    """Where user namespaces are missing too, both remedies are there at once."""
    limit = "echo 0 >/proc/sys/user/max_user_namespaces"
    heard = within(f"{WHOLE_PROC}\nmount -t tmpfs tmpfs /proc/fs\n{limit}", *OWN_PROC)
    assert [c for c in heard.causes() if c not in LACKS] == ["user namespaces", "proc"]


@needs("unshare")
def test_read_only_proc() -> None:
    """The maps cannot be written in it."""
    heard = within("mount -t proc -o ro proc /proc", *OWN_PROC)
    assert_one_cause(heard, "user namespaces", "read-only", "unmask=ALL")


@needs("unshare")
def test_no_proc() -> None:
    """A host without /proc is told to mount it."""
    heard = within("mount -t tmpfs tmpfs /proc", "-m")
    assert_one_cause(heard, "user namespaces", "/proc is not mounted", "mount -t proc proc /proc")


CHROOT = """
cd "$0"; mount -t tmpfs tmpfs .; cd "$0"; mkdir new; cd new
for entry in /*; do
    if [ -L "$entry" ]; then cp -P "$entry" .
    elif [ -d "$entry" ]; then mkdir ".$entry"; mount --rbind "$entry" ".$entry"; fi
done
# Not on every ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin
exec chroot . "$@"
"""


@needs("unshare")
def test_chroot() -> None:
    """The kernel gives no user namespace in a chroot, and doctor says so."""
    with shared_directory() as place:
        heard = told("unshare", "-Urm", "sh", "-euc", CHROOT, str(place))
    assert_one_cause(heard, "user namespaces", "this is a chroot", "outside of the chroot")


@needs("unshare")
def test_uid_that_is_not_mapped() -> None:
    """A user namespace whose maps nobody wrote has no place for the caller."""
    heard = told("unshare", "-U")
    assert_one_cause(heard, "user namespaces", "is not mapped", "--map-root-user")


@needs("setpriv", "real root")
def test_root_without_capabilities() -> None:
    """Root of a container that was started without capabilities is told to be somebody else."""
    heard = told("setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-setuid,-setgid")
    assert REAL_ROOT
    lacks = "this is root without CAP_SETGID and CAP_SETUID"
    assert_one_cause(heard, "user namespaces", lacks, "--user 1000")

"""Capsules that join a base: they are what they are without, and a base is never one of yesterday's."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule.base.descriptors import Kept
from capsule.base.errors import HostError
from capsule.planner.base import split
from capsule.process import base, launch
from tests.support import needs

pytestmark = needs("unprivileged", "mount_setattr")

# All that tells one capsule from another; of mounts neither their numbers nor their order.
SHOWN = """
cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|SigBlk|SigIgn|Uid|Gid|Umask)' /proc/self/status
stat -c '%A %u %g %N' / /* /dev/* /etc/* /tmp /dev/shm "$HOME"
cat /etc/passwd /etc/hosts /proc/sys/kernel/hostname /proc/sys/user/max_user_namespaces
ls /proc/self/fd /tmp /proc/acpi; wc -c </proc/kallsyms; cut -d' ' -f4- /proc/self/stat | wc -w
ulimit -a; pwd; id; cut -d: -f1 /proc/net/dev; ls -A "$HOME" /dev/shm /run /var
"""


@pytest.fixture(autouse=True)
def _no_base_before() -> Iterator[None]:
    base.drop_all()
    base._refused.clear()
    base._doubts = 0
    yield
    base.drop_all()
    base._refused.clear()


@contextlib.contextmanager
def without_bases() -> Iterator[None]:
    """Runs in the block join none."""
    base.OFTEN, before = sys.maxsize, base.OFTEN
    base.drop_all()
    try:
        yield
    finally:
        base.OFTEN = before


def shown(text: str) -> capsule.Result:
    """A run of a shell."""
    return capsule.run(["sh", "-c", text], text=True)


def mounts(table: str) -> dict[str, tuple[str, ...]]:
    """What lies topmost at each place: type, flags and options."""
    found = {}
    for line in table.splitlines():
        words = line.split()
        found[words[4]] = (*words[5:6], *words[words.index("-") + 1 :])
    return found


def test_a_capsule_is_the_same_with_a_base() -> None:
    """Identity, files, modes, mounts, limits, confinement: no difference."""
    with_base = shown(SHOWN), shown("cat /proc/self/mountinfo")
    assert len(base._held) == 1
    with without_bases():
        without = shown(SHOWN), shown("cat /proc/self/mountinfo")
    assert with_base[0].stdout == without[0].stdout
    assert with_base[0].stderr == without[0].stderr
    assert mounts(with_base[1].stdout) == mounts(without[1].stdout)
    assert with_base[0].protections == without[0].protections
    assert with_base[0].namespaces == without[0].namespaces


def test_a_base_comes_with_the_fourth_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of the same view go without, and so does the first of another."""
    monkeypatch.setattr(base, "OFTEN", 4)
    monkeypatch.setattr(base, "_wanted", ((), 0))
    counts = []
    for _ in range(5):
        assert capsule.run(["true"]).ok
        counts.append(len(base._held))
    assert counts == [0, 0, 0, 1, 1]
    assert capsule.run(["true"], hostname="other").ok
    assert len(base._held) == 1


EARLY = """
import sys, capsule
for _ in range(8):
    assert capsule.run(["true"]).ok
    base = sys.modules.get("capsule.process.base")
    print(-1 if base is None else len(base._held), end=" ")
print("socket" in sys.modules)
"""


def test_the_first_runs_of_a_process_go_without() -> None:
    """The first two do not even import what makes one, and nobody imports the slow module socket."""
    command = [sys.executable, "-c", EARLY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("-1 -1 0 0 0 0 1 1 False\n", 0), done.stderr


def test_there_are_never_many() -> None:
    """The oldest makes room, and its descriptors are closed."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(base.MOST + 2):
        assert capsule.run(["true"], hostname=f"h{number}").ok
    assert len(base._held) == base.MOST
    assert len(os.listdir("/proc/self/fd")) == before + 3 * base.MOST
    base.drop_all()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "code",
    [
        "open('/x', 'w')",
        "open('/etc/passwd', 'a')",
        "os.chmod('/', 0o777)",
        "os.unlink('/etc/hosts')",
        "os.mkdir('/etc/x')",
        "os.utime('/etc/passwd')",
    ],
)
def test_nothing_of_a_base_can_be_changed(code: str, tmp_path: Path) -> None:
    """What capsules share is read-only for each of them, whoever owns it there."""
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "hosts"):
        (tmp_path / "etc" / name).write_text("")
    control = f"import os; {code}".replace("'/", f"'{tmp_path}/")
    subprocess.run([sys.executable, "-c", control], check=True)
    text = f"import os\ntry:\n {code}\nexcept OSError as e:\n print(e.errno)\nopen('/tmp/x', 'w')"
    result = capsule.run(["/usr/bin/python3", "-c", text], text=True)
    assert (result.stdout, result.returncode) == (f"{errno.EROFS}\n", 0)
    assert base._held


def test_the_mounts_of_a_base_are_locked() -> None:
    """A program with namespaces of its own cannot look below a mount, as it cannot without a base."""
    control = "mount -t tmpfs none /mnt && mount -o remount,ro,bind /mnt && umount /mnt"
    subprocess.run(["unshare", "-Urm", "sh", "-c", control], check=True)
    inner = "umount /usr; umount /proc; umount /tmp; mount -o remount,rw,bind /"
    text = f"unshare -Urm sh -c '{inner}'; echo on"
    result = capsule.run(["sh", "-c", text], text=True, seccomp="nest", uid=1000, gid=1000)
    assert base._held
    assert result.stdout == "on\n"
    refused = result.stderr.lower()
    assert refused.count("not mounted") + refused.count("invalid argument") >= 3, refused
    assert "permission denied" in refused or "operation not permitted" in refused, refused


def test_capsules_of_a_base_do_not_meet() -> None:
    """Each has file systems, processes and an IPC namespace of its own."""
    text = "touch /tmp/x /dev/shm/y; ls /tmp/x /dev/shm/y; readlink /proc/self/ns/mnt; sleep 60"
    first = capsule.start(["sh", "-c", text], text=True)
    with first:
        assert first.stdout
        made = [first.stdout.readline().strip() for _ in range(2)]
        here = first.stdout.readline().strip()
        second = shown("ls /tmp/x /dev/shm/y; ls -d /proc/[0-9]* | wc -l; readlink /proc/self/ns/mnt")
    assert base._held
    assert made == ["/dev/shm/y", "/tmp/x"]
    assert second.stderr.count("No such file or directory") == 2
    processes, there = second.stdout.split()
    assert int(processes) <= 5
    assert here.startswith("mnt:")
    assert there.startswith("mnt:")
    assert there != here


# --- doubts -----------------------------------------------------------------------------------


def a_base(tmp_path: Path) -> base.Base:
    """One of files that are no namespaces, with a directory to look at."""
    user, mounts_ = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
    table = os.open("/proc/self/mountinfo", os.O_RDONLY)
    base.poll_table(table).poll(0)
    places = base.places_of(tuple(f"{tmp_path}/{name}" for name in "abc"))
    return base.Base(user, mounts_, table, places, base._look(places))


def test_a_change_of_a_source_is_noticed(tmp_path: Path) -> None:
    """Another entry in the directory of a source, or another directory in its place."""
    for name in "abc":
        (tmp_path / name).write_text("")
    for change in (lambda: (tmp_path / "a").rename(tmp_path / "b"), (tmp_path / "d").mkdir):
        held = a_base(tmp_path)
        assert held.holds()
        change()
        assert not held.holds()
        held.close()


def test_a_closed_descriptor_is_noticed_and_its_number_left_alone(tmp_path: Path) -> None:
    """Whoever closes what is not theirs, and opens something else, keeps that."""
    for name in "abc":
        (tmp_path / name).write_text("")
    held = a_base(tmp_path)
    os.close(held.user)
    other = os.open("/dev/zero", os.O_RDONLY)
    assert other == held.user
    assert not held.holds()
    held.close()
    assert os.read(other, 1) == b"\0"
    os.close(other)


MOUNTED = """
import os, subprocess, capsule
from capsule.process import base, launch
base.OFTEN, launch.FIRST_RUNS = 1, 0
assert [capsule.run(["true"]).ok for _ in range(2)] == [True, True]
first = base._held[0][1]
subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
assert not first.holds()
print([capsule.run(["ls", "/usr"]).ok for _ in range(3)], base._held[0][1] is first)
"""


def test_a_mount_on_the_host_is_noticed() -> None:
    """A host whose mounts changed is shown as it is now."""
    command = ["unshare", "-Urm", sys.executable, "-c", MOUNTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[True, True, True] False\n", 0), done.stderr


def test_a_forked_child_makes_its_own() -> None:
    """A base is one process's: the child lets go of it, and its parent's stays."""
    assert capsule.run(["true"]).ok
    ours = base._held[0][1]
    pid = os.fork()
    if pid == 0:
        good = all(capsule.run(["true"]).ok for _ in range(3)) and base._held[0][1] is not ours
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert ours.holds()


def test_where_none_can_be_made_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried once, and the run goes on without."""
    tries: list[object] = []

    def fail(*given: object) -> tuple[int, int]:
        tries.append(given)
        raise HostError("no")

    monkeypatch.setattr(launch, "_make_base", fail)
    assert [capsule.run(["true"]).ok for _ in range(3)] == [True] * 3
    assert (len(tries), base._held) == (1, [])


def test_one_that_cannot_be_joined_is_given_up() -> None:
    """The run that finds out goes on without, and so do those after it."""
    assert capsule.run(["true"]).ok
    held = base._held[0][1]
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, held.mounts, inheritable=False)
    held._kept = Kept(held._kept.fds)
    assert capsule.run(["true"]).ok
    assert base._held == []
    assert capsule.run(["true"]).ok
    assert base._held == []
    os.close(null)


FEW = """
import os, time, capsule
from capsule.process import base, launch
base.OFTEN, launch.FIRST_RUNS = 1, 0
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("1")
def run():
    # What is let go of is counted for a moment more, with a base or without; what is held, for ever.
    until = time.monotonic() + 20
    while True:
        try:
            return capsule.run(["true"]).ok
        except capsule.SetupError as error:
            assert error.step.word == "namespaces"
            assert time.monotonic() < until
            time.sleep(0.05)
print([run() for _ in range(5)], len(base._refused), base._held)
"""


def test_where_namespaces_are_few_there_is_none() -> None:
    """A base holds one: where that is the last, capsules have it."""
    command = ["unshare", "-Ur", sys.executable, "-c", FEW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[True, True, True, True, True] 1 []\n", 0), done.stderr


FEW_FILES = """
import os, resource, capsule
from capsule.process import base, launch
base.OFTEN, launch.FIRST_RUNS = 1, 0
assert [capsule.run(["true"]).ok for _ in range(3)] == [True] * 3
assert base._held
used = max(map(int, os.listdir("/proc/self/fd")))
for most in range(used + 40, used, -1):
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, 4096))
    base.drop_all()
    try:
        capsule.run(["true"])
    except capsule.CapsuleError as error:
        assert "open files" in str(error), error
print("done", len(os.listdir("/proc/self/fd")) <= used + 2)
"""


def test_where_descriptors_are_few_a_run_needs_no_more() -> None:
    """At any limit it runs, or says what is missing; nothing of a base is left open."""
    command = [sys.executable, "-c", FEW_FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("done True\n", 0), done.stderr


def test_an_error_of_the_command_is_told_as_ever() -> None:
    """A program that is not there: the same error, and the base is still good."""
    found = []
    for _ in range(2):
        with pytest.raises(capsule.SetupError) as caught:
            capsule.run(["/usr/bin/no-such-program"])
        found.append((str(caught.value), caught.value.exit_code))
    with without_bases(), pytest.raises(capsule.SetupError) as caught:
        capsule.run(["/usr/bin/no-such-program"])
    assert found == [(str(caught.value), 127)] * 2
    assert base._refused == []


def test_many_threads_share_one() -> None:
    """Threads of two policies at once: each capsule has the view of its own policy."""
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(10):
            result = capsule.run(["cat", "/etc/hostname"], text=True, hostname=name)
            if result.stdout != f"{name}\n":
                wrong.append(f"{name}: {result.stdout!r} {result.stderr!r}")

    threads = [threading.Thread(target=work, args=(f"h{i % 2}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_trees_of_the_caller_s_are_no_part_of_it(tmp_path: Path) -> None:
    """What is mounted is taken anew by each capsule, from where its path leads then."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("1")
    mount = capsule.Mount.read_write(source, at="/data")
    assert capsule.run(["cat", "/data/a"], mounts=[mount], text=True).stdout == "1"
    assert base._held
    source.rename(tmp_path / "old")
    source.mkdir()
    (source / "a").write_text("2")
    result = capsule.run(["sh", "-c", "cat /data/a; echo 3 >/data/a"], mounts=[mount], text=True)
    assert (result.stdout, result.returncode) == ("2", 0)
    assert (source / "a").read_text() == "3\n"


# A lease makes the open(2) of all others wait, and is for who owns the file.
LEASE = """
import errno, fcntl, os, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
try:
    fcntl.fcntl(os.open('/etc/hosts', os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print('leased', flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("seccomp", "answer"), [("default", "EPERM"), ("strict", "EPERM"), ("off", "leased")]
)
def test_no_capsule_makes_another_wait(seccomp: str, answer: str) -> None:
    """Who may take leases has no part in a base."""
    assert all(capsule.run(["true"], seccomp=profile).ok for profile in (seccomp, "default", "default"))
    assert base._held
    with capsule.start(["/usr/bin/python3", "-c", LEASE], text=True, seccomp=seccomp) as process:
        assert process.stdout
        assert process.stdout.readline() == f"{answer}\n"
        assert capsule.run(["cat", "/etc/hosts"], timeout=10).ok
    assert base._held


@pytest.mark.parametrize("allow", [(), ("fcntl",)])
@pytest.mark.parametrize("profile", ["default", "off"])
def test_the_caller_s_own_filter_goes_without(profile: str, allow: tuple[str, ...]) -> None:
    """Only of a built-in profile, with nothing allowed besides, it is known what it refuses."""
    if profile == "off" and allow:
        return
    seccomp = capsule.Seccomp(profile, allow)
    assert [capsule.run(["true"], seccomp=seccomp).ok for _ in range(3)] == [True] * 3
    assert bool(base._held) == (profile == "default" and not allow)


@pytest.mark.parametrize(
    "policy",
    [
        capsule.Policy(mounts=[capsule.Mount.overlay("/usr/share/doc", at="/data")]),
        capsule.Policy(mounts=[capsule.Mount.read_only("/etc/hostname", at="/name")]),
    ],
)
def test_what_cannot_be_parted_goes_without(policy: capsule.Policy) -> None:
    """Overlays and single files: the whole plan, as ever."""
    assert split(capsule.plan(["true"], policy).steps) is None
    assert capsule.run(["true"], policy).ok
    assert base._held == []

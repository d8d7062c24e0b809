"""What is to be seen with no options, and what is not."""

from __future__ import annotations

import errno
import os
import pwd
import secrets
from pathlib import Path

import pytest

import capsule
from capsule import Mount, Network
from capsule.host.places import ETC_CLOSED, PROC_MASKED
from tests.support import (
    PYTHON,
    ask,
    assert_denied,
    give,
    lab,
    needs,
    shared_directory,
    sleeper,
)

GENERATED = {"passwd", "group", "hosts", "hostname", "nsswitch.conf"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from /, so that no working directory is shown."""
    monkeypatch.chdir("/")


# --- what is there ----------------------------------------------------------------------------


@pytest.mark.usefixtures("elsewhere")
def test_the_root_holds_programs_and_private_places() -> None:
    """Of the host there are its programs and what leads to them, this Python and the home: no more."""
    system = {os.path.basename(path) for path, _ in capsule.probe().system}
    own = {"dev", "etc", "proc", "run", "tmp", "var"}
    places = (os.environ["HOME"], PYTHON, os.path.realpath(PYTHON), *capsule.probe().installed)
    ways = {path.split("/")[1] for path in places}
    shown = set(ask('tell(os.listdir("/"))'))
    assert system | own <= shown <= system | own | ways
    assert not ({"boot", "mnt", "media", "srv"} - ways) & shown


@pytest.mark.usefixtures("elsewhere")
def test_programs_of_the_host_run() -> None:
    """A shell with usual tools, and the loader's cache and the certificates beside them."""
    script = "ls / | sort | head -1; id -u; uname -n; date >/dev/null; mkdir /tmp/a; rmdir /tmp/a"
    result = capsule.run(["sh", "-c", f"set -e; {script}"], text=True)
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["bin", "0", "capsule"], "")
    shared = [path for path, _ in capsule.probe().etc]
    assert ask("tell([os.path.exists(path) for path in given['paths']])", given={"paths": shared}) == [
        True for _ in shared
    ]


def test_etc_holds_what_programs_need_and_no_more() -> None:
    """/etc has what the rule for it finds and what is made up for the capsule, and nothing else."""
    shown = set(ask('tell(os.listdir("/etc"))'))
    host = capsule.probe()
    found = {path.split("/")[2] for path, _ in (*host.etc, *host.etc_files)}
    assert shown == GENERATED | found
    assert shown - GENERATED <= set(os.listdir("/etc")) - ETC_CLOSED
    assert not {"shadow", "sudoers", "ssh", "machine-id", "fstab", "resolv.conf"} & shown
    with_network = set(ask('tell(os.listdir("/etc"))', network=Network.HOST))
    assert with_network - shown <= {"resolv.conf"}


def test_accounts_of_the_host_are_unknown() -> None:
    """passwd and group name root, the command and nobody: no user of the host."""
    code = """
import grp, pwd
tell([[user.pw_name for user in pwd.getpwall()], [group.gr_name for group in grp.getgrall()]])
"""
    users, groups = ask(code, uid=1234)
    assert users == ["root", "user", "nobody"]
    assert set(groups) == {"root", "tty", "nogroup"}


def test_run_is_empty() -> None:
    """/run, where services of the host listen, is empty; /var/run is the same place."""
    assert ask('tell([os.listdir("/run"), os.listdir("/var/run")])') == [[], []]


# --- homes ------------------------------------------------------------------------------------


def test_the_home_is_empty_private_and_writable() -> None:
    """HOME is the caller's own path, with nothing of the caller's in it."""
    name = f"capsule-{secrets.token_hex(8)}"
    code = """
home = os.environ["HOME"]
before = os.listdir(home)
open(f"{home}/{given['name']}", "w").close()
tell([before, os.listdir(home), home])
"""
    # This Python may lie in the home itself, and is shown then.
    ways = {word for path in (PYTHON, os.path.realpath(PYTHON)) for word in path.split("/")}
    before, after, home = ask(code, given={"name": name})
    assert set(before) <= ways
    assert set(after) - set(before) == {name}
    assert home == os.environ["HOME"]
    assert not os.path.exists(f"{home}/{name}")


def test_a_file_in_the_home_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the caller's home does not exist inside: ENOENT."""
    with shared_directory() as home:
        (home / ".ssh").mkdir()
        (home / ".ssh/id").write_text("secret")
        monkeypatch.setenv("HOME", str(home))
        given = {"path": str(home / ".ssh/id")}
        assert_denied("open(given['path']).read()", errno.ENOENT, outside=given)


def test_homes_of_others_are_empty() -> None:
    """No home directory that the host's passwd names has an entry inside."""
    homes = {user.pw_dir for user in pwd.getpwall() if user.pw_uid == 0 or user.pw_uid >= 1000}
    homes -= {"/", "/nonexistent"}
    code = 'tell([name for home in given["homes"] if os.path.isdir(home) for name in os.listdir(home)])'
    ways = {word for path in (PYTHON, os.path.realpath(PYTHON)) for word in path.split("/")}
    assert set(ask(code, given={"homes": sorted(homes)})) <= ways


# --- private places -----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp", "/dev/shm"])
def test_temporary_places_are_private(place: str) -> None:
    """Files of the host's are not there, and files made there do not reach the host."""
    name = f"capsule-test-{secrets.token_hex(8)}"
    ours = Path(place, name)
    code = """
before = os.path.exists(given["path"])
open(given["path"], "x").close()
tell([before, os.path.exists(given["path"])])
"""
    assert ask(code, given={"path": str(ours)}) == [False, True]
    assert not ours.exists()
    ours.write_text("here")
    try:
        act = "open(given['path']).read()"
        assert_denied(act, errno.ENOENT, outside={"path": str(ours)})
    finally:
        ours.unlink()


def test_private_places_have_a_size() -> None:
    """Each tmpfs is bounded, and so is the number of its files."""
    code = """
def size(path):
    found = os.statvfs(path)
    return [found.f_blocks * found.f_frsize >> 20, found.f_files]
tell([size(path) for path in ("/tmp", os.environ["HOME"], "/dev/shm", "/")])
"""
    assert ask(code) == [[512, 262144], [512, 262144], [512, 262144], [4, 4096]]


@pytest.mark.usefixtures("elsewhere")
def test_shared_memory_is_within_the_limit_of_memory() -> None:
    """Where memory has a limit, /dev/shm is no larger."""
    code = """
found = os.statvfs("/dev/shm")
tell(found.f_blocks * found.f_frsize >> 20)
"""
    for memory, size in (("100M", 100), ("4G", 512)):
        limits = capsule.Limits(memory=memory)
        assert ask(code, limits=limits, allow_degraded=("memory",)) == size


_FILL = """
def fill(path):
    written = 0
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(b"x" * 4096)
        except OSError as error:
            return [errno.errorcode[error.errno], written]
def crowd(folder):
    made = 0
    try:
        while True:
            open(f"{folder}/{made}", "x").close()
            made += 1
    except OSError as error:
        return [errno.errorcode[error.errno], made]
"""


@pytest.mark.row("F-04", "F-07")
def test_a_full_tmpfs_refuses_more() -> None:
    """A write beyond the size fails with ENOSPC, and so does a file beyond the number of files."""
    policy = capsule.Policy(mounts=(Mount.tmpfs("/data", "1M"), Mount.tmpfs("/many", "1M")))
    full, crowded = ask(_FILL + 'tell([fill("/data/file"), crowd("/many")])', policy)
    assert full == ["ENOSPC", 1 << 20]
    assert crowded[0] == "ENOSPC"
    assert 256 < crowded[1] <= 512


@needs("overlay")
@pytest.mark.row("F-07")
def test_a_directory_for_each_file_fits() -> None:
    """What a tmpfs or overlay has room for by its size has as many directories, too."""
    code = """
def pair(folder):
    for number in range(200):
        os.mkdir(f"{folder}/{number}")
        with open(f"{folder}/{number}/file", "w") as file:
            file.write("x")
    return len(os.listdir(folder))
tell([pair("/data"), pair("/tree")])
"""
    with shared_directory() as directory:
        overlay = Mount.overlay(directory, at="/tree", size="1M")
        policy = capsule.Policy(mounts=(Mount.tmpfs("/data", "1M"), overlay))
        assert ask(code, policy) == [200, 200]


@pytest.mark.slow
def test_the_default_places_can_be_filled_and_no_more() -> None:
    """/dev/shm takes its 512 MB and no more."""
    assert ask(_FILL + 'tell(fill("/dev/shm/file"))') == ["ENOSPC", 512 << 20]


@pytest.mark.slow
@needs("overlay")
@pytest.mark.parametrize("at", ["/tmp", "/tree"])
def test_an_archive_of_400_000_files_unpacks(at: str) -> None:
    """Where the size is enough for their pages, all of them and their directories have room."""
    code = """
import io, tarfile, threading
ours, theirs = os.pipe()
def pack():
    with os.fdopen(theirs, "wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for number in range(400_000):
            entry = tarfile.TarInfo(f"{number // 20}/{number}")
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
threading.Thread(target=pack).start()
pid = os.posix_spawn("/bin/tar", ["tar", "-xf", "-", "-C", given["at"]], {}, file_actions=[
    (os.POSIX_SPAWN_DUP2, ours, 0), (os.POSIX_SPAWN_CLOSE, theirs)])
status = os.waitpid(pid, 0)[1]
tell([status, sum(len(files) for _, _, files in os.walk(given["at"]))])
"""
    with shared_directory() as directory:
        mount = Mount.overlay(directory, at=at, size="2G") if at == "/tree" else Mount.tmpfs(at, "2G")
        assert ask(code, given={"at": at}, mounts=[mount]) == [0, 400_000]


# --- mounts -------------------------------------------------------------------------------------

_MOUNTS = """
def parse(line):
    words = line.split()
    dash = words.index("-")
    return {"at": words[4], "options": words[5].split(","), "tags": words[6:dash],
            "type": words[dash + 1]}
tell([parse(line) for line in open("/proc/self/mountinfo")])
"""


@pytest.mark.row("B-08")
def test_every_mount_is_nosuid_and_nodev() -> None:
    """No mount honours set-uid bits, none outside of /dev honours device nodes, none propagates."""
    with shared_directory() as directory:
        policy = capsule.Policy(
            mounts=(Mount.read_write(directory, at="/data"), Mount.tmpfs("/scratch"))
        )
        mounts = ask(_MOUNTS, policy)
    for mount in mounts:
        assert "nosuid" in mount["options"], mount
        assert mount["tags"] == [], mount
        if mount["at"] != "/dev" and (not mount["at"].startswith("/dev/") or mount["at"] == "/dev/shm"):
            assert "nodev" in mount["options"], mount


def test_few_mounts_are_writable() -> None:
    """All is read-only but the private places, /proc, whose dangerous parts are covered, and --rw."""
    with shared_directory() as directory:
        policy = capsule.Policy(
            mounts=(Mount.read_write(directory, at="/data"), Mount.read_only(directory, at="/fixed"))
        )
        mounts = ask(_MOUNTS, policy, cwd="/")
    # There only if the Python that asks lies in it.
    writable = {mount["at"] for mount in mounts if "rw" in mount["options"]} - {"/var/tmp"}
    home = os.environ["HOME"]
    assert writable == {"/tmp", home, "/dev/shm", "/dev/pts", "/proc", "/data"}


@pytest.mark.parametrize("place", ["/", "/usr", "/etc", "/run", "/var", "/dev"])
def test_nothing_can_be_made_outside_of_private_places(place: str) -> None:
    """A new file anywhere else fails with EROFS."""
    code = """
try:
    open(given["path"], "x")
except OSError as error:
    outcome = errno.errorcode[error.errno]
open("/tmp/file", "x").close()
tell([outcome, os.path.exists("/tmp/file")])
"""
    assert ask(code, given={"path": f"{place}/new"}) == ["EROFS", True]


def test_read_only_is_more_than_modes() -> None:
    """A file that everybody may write to cannot be opened for writing or touched: EROFS."""
    with shared_directory() as directory:
        file = directory / "file"
        file.touch()
        file.chmod(0o666)
        given = {"path": str(file)}
        policy = capsule.Policy(mounts=(Mount.read_only(directory),))
        assert_denied("open(given['path'], 'a')", errno.EROFS, outside=given, policy=policy)
        act = "os.utime(given['path'])"
        assert_denied(act, errno.EROFS, outside=given, policy=policy)


_IN_LAB = """
import capsule
kind = getattr(capsule.Mount, sys.argv[3])
inner = '''
import errno
for path in ("/data/file", "/data/sub/file", "/data/sub/deep/file"):
    try:
        open(path, "w").close()
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
print(open("/proc/self/mountinfo").read().count(" /data"))
'''
policy = capsule.Policy(mounts=[kind(sys.argv[2], at="/data")])
tell(capsule.run([sys.executable, "-I", "-S", "-c", inner], policy, text=True).check().stdout.split())
"""


@needs("unshare")
@pytest.mark.parametrize(("kind", "outcome"), [("read_only", "EROFS"), ("read_write", "done")])
def test_mounts_below_a_mount_are_as_it_is(kind: str, outcome: str) -> None:
    """Read-only is recursive: mounts below the source, at any depth, come along and are read-only."""
    mounts = """
chmod 777 "$1"
mount -t tmpfs -o mode=777 none "$1/sub"
mkdir -m 777 "$1/sub/deep"
mount -t tmpfs -o mode=777 none "$1/sub/deep"
"""
    with shared_directory() as directory:
        (directory / "sub").mkdir()
        told = lab(mounts, _IN_LAB, directory, kind)
    assert told == [outcome] * 3 + ["3"]


# --- /dev ---------------------------------------------------------------------------------------


@pytest.mark.row("B-18")
def test_dev_holds_harmless_devices_only() -> None:
    """/dev is exactly this, and /dev/pts has no terminal in it."""
    names = "null zero full random urandom tty fd stdin stdout stderr ptmx pts shm"
    assert ask(
        'tell([sorted(os.listdir("/dev")), os.listdir("/dev/pts"), os.listdir("/dev/shm")])'
    ) == [
        sorted(names.split()),
        ["ptmx"],
        [],
    ]


def test_devices_work() -> None:
    """The devices are the kernel's own, not files that look like it."""
    code = """
def refused(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
null = os.open("/dev/null", os.O_RDWR)
zero = os.open("/dev/zero", os.O_RDONLY)
full = os.open("/dev/full", os.O_WRONLY)
tell([os.write(null, b"x"), os.read(null, 1) == b"", os.read(zero, 4) == bytes(4),
      refused(lambda: os.write(full, b"x")), len(set(open("/dev/urandom", "rb").read(64))) > 8,
      len(os.read(os.open("/dev/random", os.O_RDONLY), 4)), refused(lambda: open("/dev/tty"))])
"""
    assert ask(code) == [1, True, True, "ENOSPC", True, 4, "ENXIO"]


@pytest.mark.row("B-18")
def test_no_device_can_be_made() -> None:
    """mknod(2) of a device fails with EPERM, even where files may be made."""
    code = """
import stat
try:
    os.mknod("/tmp/kmem", 0o600 | stat.S_IFCHR, os.makedev(1, 2))
except OSError as error:
    outcome = errno.errorcode[error.errno]
os.mkfifo("/tmp/fifo")
tell([outcome, os.path.exists("/tmp/fifo"), os.path.exists("/tmp/kmem")])
"""
    assert ask(code) == ["EPERM", True, False]


# --- /proc --------------------------------------------------------------------------------------


@pytest.mark.row("B-10", "B-11")
def test_proc_is_of_the_capsule_alone() -> None:
    """Processes of the host are not in it."""
    with sleeper() as other:
        shown = ask('tell([int(name) for name in os.listdir("/proc") if name.isdigit()])')
        assert other.pid not in shown
        assert len(shown) == 2


@pytest.mark.row("B-10")
def test_masked_parts_of_proc_are_empty_or_closed() -> None:
    """What tells of the host reads as nothing, or not at all."""
    code = """
def content(path):
    try:
        return len(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(100))
    except (PermissionError, FileNotFoundError):
        return 0
tell({path: content(path) for path in given["paths"]})
"""
    assert set(ask(code, given={"paths": PROC_MASKED}).values()) == {0}


@pytest.mark.row("B-10")
def test_nothing_of_the_kernel_can_be_changed_through_proc() -> None:
    """No file of /proc beside the processes' own can be opened for writing."""
    code = """
opened, tried = [], 0
for folder, folders, files in os.walk("/proc"):
    if folder == "/proc":
        folders[:] = [name for name in folders if not name.isdigit()]
    for name in files:
        path = f"{folder}/{name}"
        if not os.path.islink(path):
            tried += 1
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                opened.append(path)
            except OSError:
                pass
tell([opened, tried])
"""
    opened, tried = ask(code)
    assert opened == []
    assert tried > 100


@pytest.mark.row("B-10")
def test_sysctls_are_read_only() -> None:
    """A sysctl of a namespace, which belongs to root inside, can be read and not written: EROFS."""
    code = """
path = "/proc/sys/kernel/shmmax"
try:
    os.open(path, os.O_WRONLY)
except OSError as error:
    tell([os.stat(path).st_uid, errno.errorcode[error.errno], int(open(path).read()) > 0,
          os.statvfs(path).f_flag & os.ST_RDONLY])
"""
    owner, outcome, readable, read_only = ask(code)
    assert (readable, read_only) == (True, 1)
    # Before Linux 5.19 it belongs to root of the host, and that is said first.
    assert outcome == ("EROFS" if owner == 0 else "EACCES")


def test_the_plan_tells_what_is_shown_unasked() -> None:
    """Each note of a plan is true: what it names is there, and read-only."""
    notes = capsule.plan([PYTHON]).notes
    for note in notes:
        path, shown, _ = note.partition(" is shown read-only: ")
        assert shown
        code = "tell([os.path.exists(given['path']), os.statvfs(given['path']).f_flag & os.ST_RDONLY])"
        assert ask(code, given={"path": path}) == [True, 1]


def test_a_directory_below_var_tmp_is_at_its_own_path() -> None:
    """/var/tmp is no link to /tmp where something is shown in it."""
    with shared_directory(parent="/var/tmp") as place:
        give(place)
        told = ask("tell([os.getcwd(), os.path.islink('/var/tmp')])", cwd=str(place))
        assert told == [str(place), False]

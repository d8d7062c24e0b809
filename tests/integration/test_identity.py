"""Who the command is, inside and outside."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy
from tests.support import (
    HANG,
    OUTSIDE_GID,
    OUTSIDE_UID,
    REAL_ROOT,
    ask,
    command_of,
    needs,
    shared_directory,
)

WHO = """
def words(name):
    return open(f"/proc/self/{name}").read().split()
tell([os.getresuid(), os.getresgid(), os.getgroups(), words("uid_map"), words("gid_map"),
      words("setgroups")])
"""


def outside_ids(pid: int) -> dict[str, list[str]]:
    """Uid, Gid and Groups of a process, as the host sees them."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {key: value.split() for key, value in pairs if key in ("Uid", "Gid", "Groups")}


def test_root_inside_is_the_caller_outside() -> None:
    """Each map has one line, `0 <outside id> 1`, setgroups is denied, all ids inside are 0."""
    uids, gids, groups, uid_map, gid_map, setgroups = ask(WHO)
    assert (uids, gids) == ([0, 0, 0], [0, 0, 0])
    assert uid_map == ["0", str(OUTSIDE_UID), "1"]
    assert gid_map == ["0", str(OUTSIDE_GID), "1"]
    assert setgroups == ["deny"]
    # Groups of the caller that the map lacks cannot be given up without privilege: they show as
    # nobody's. Root's are dropped.
    assert set(groups) <= ({0} if REAL_ROOT else {0, 65534})


def test_the_host_sees_the_caller() -> None:
    """Seen from outside, real, effective, saved and file-system ids are those of the map."""
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        ids = outside_ids(command_of(process))
        assert ids["Uid"] == [str(OUTSIDE_UID)] * 4
        assert ids["Gid"] == [str(OUTSIDE_GID)] * 4
        if REAL_ROOT:
            assert ids["Groups"] == []


@needs("real root")
def test_init_of_real_root_is_nobody_too() -> None:
    """No process of a capsule that root starts keeps an id of root."""
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        assert outside_ids(process.pid)["Uid"] == ["65534"] * 4
        assert outside_ids(process.pid)["Gid"] == ["65534"] * 4


@pytest.mark.parametrize(("uid", "gid"), [(1000, 1000), (0, 7), (7, 0), (4294967294, 4294967294)])
def test_another_identity_inside(uid: int, gid: int) -> None:
    """`uid` and `gid` choose the ids inside; the ids outside stay."""
    uids, gids, _, uid_map, gid_map, _ = ask(WHO, uid=uid, gid=gid)
    assert (uids, gids) == ([uid] * 3, [gid] * 3)
    assert uid_map == [str(uid), str(OUTSIDE_UID), "1"]
    assert gid_map == [str(gid), str(OUTSIDE_GID), "1"]


def test_the_identity_has_a_name() -> None:
    """The generated passwd and group know who the command is, with a home that it owns."""
    code = """
import grp, pwd
me = pwd.getpwuid(os.getuid())
tell([me.pw_name, grp.getgrgid(os.getgid()).gr_name, me.pw_dir == os.environ["HOME"],
      os.environ["USER"], os.stat(me.pw_dir).st_uid, oct(os.stat(me.pw_dir).st_mode)])
"""
    assert ask(code) == ["root", "root", True, "root", 0, "0o40700"]
    assert ask(code, uid=5, gid=6) == ["user", "user", True, "user", 5, "0o40700"]


# --- the caller's own ids ---------------------------------------------------------------------


def test_own_ids_and_names_inside() -> None:
    """uid, gid and both names are those on the host: of what root calls nobody's."""
    code = """
import grp, pwd
me = pwd.getpwuid(os.getuid())
tell([os.getresuid(), os.getresgid(), me.pw_name, grp.getgrgid(os.getgid()).gr_name,
      me.pw_dir == os.environ["HOME"], os.environ["USER"], os.stat(me.pw_dir).st_uid,
      open("/proc/self/uid_map").read().split(), pwd.getpwuid(0).pw_name])
"""
    user = pwd.getpwuid(OUTSIDE_UID).pw_name
    group = grp.getgrgid(OUTSIDE_GID).gr_name
    uid = str(OUTSIDE_UID)
    assert ask(code, keep_id=True) == [
        *([OUTSIDE_UID] * 3, [OUTSIDE_GID] * 3, user, group),
        *(True, user, OUTSIDE_UID, [uid, uid, "1"], "root"),
    ]


@pytest.mark.parametrize(
    "script",
    [
        "cd /tmp; tar xf $0/a.tar",
        "cp -a $0/a.tar /tmp/b.tar",
        "test $(id -u) != 0; chown $(id -u) /tmp",
    ],
)
def test_what_refuses_to_be_root_with_one_id(script: str, place: Path) -> None:
    """As root tar and cp give files to their owners, which are not there; as itself they do not."""
    (place / "f").touch()
    words = ["tar", "--owner=1001", "--group=1001", "-cf", "a.tar", "f"]
    subprocess.run(words, cwd=place, check=True, timeout=HANG)
    os.chmod(place / "a.tar", 0o644)
    if REAL_ROOT:
        os.chown(place / "a.tar", 1001, 1001)
    command = ["sh", "-ec", script, str(place)]
    policy = Policy(mounts=[Mount.read_only(place)])
    assert capsule.run(command, policy, keep_id=True).returncode == 0
    if "tar xf" in script or "id -u" in script:
        assert capsule.run(command, policy).returncode != 0


@needs("postgres")
def test_postgres_with_own_ids() -> None:
    """It refuses to be root."""
    command = ["sh", "-c", "PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); initdb -D /tmp/db"]
    assert b"cannot be run as root" in capsule.run(command).stderr
    assert capsule.run(command, keep_id=True).returncode == 0


@pytest.mark.parametrize("other", [{"uid": 5}, {"gid": 5}, {"id_map": "auto"}])
def test_own_ids_and_others_exclude_each_other(other: dict[str, Any]) -> None:
    """Which field says otherwise is said."""
    with pytest.raises(capsule.PolicyError, match=f"{next(iter(other))} says otherwise") as caught:
        Policy(keep_id=True, **other)
    assert caught.value.field == "keep_id"


def test_no_other_id_can_be_taken() -> None:
    """setuid(2) and chown(2) to an id that is not mapped fail with EINVAL; to one's own they work."""
    code = """
def outcome(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
open("/tmp/file", "w").close()
tell([outcome(os.setuid, 1), outcome(os.setgid, 1), outcome(os.setgroups, [0]),
      outcome(os.chown, "/tmp/file", 1, 1), outcome(os.chown, "/tmp/file", 0, 0),
      outcome(os.setuid, 0)])
"""
    assert ask(code) == ["EINVAL", "EINVAL", "EPERM", "EINVAL", "done", "done"]


# --- host root ------------------------------------------------------------------------------


@needs("unprivileged")
def test_host_root_is_refused_to_others() -> None:
    """Who is not root cannot ask for the host's root: PolicyError, before anything starts."""
    with pytest.raises(capsule.PolicyError, match="host-root is for root only") as caught:
        capsule.run(["true"], id_map="host-root")
    assert (caught.value.field, caught.value.exit_code) == ("id_map", 2)


@needs("real root")
def test_host_root_only_by_name() -> None:
    """Root that names it is root outside too, still without a capability."""
    code = WHO.replace(
        "tell([", "status = open('/proc/self/status').read()\ntell(['CapEff:\\t' + '0' * 16 in status,"
    )
    no_capability, uids, _, _, uid_map, *_ = ask(code, id_map=capsule.IdMap.HOST_ROOT)
    assert (no_capability, uids, uid_map) == (True, [0, 0, 0], ["0", "0", "1"])


# --- whole ranges -----------------------------------------------------------------------------


@needs("no subids")
def test_auto_without_a_range_is_a_host_error() -> None:
    """Asking for a range where the host gives none names the table and the command that adds one."""
    with pytest.raises(capsule.HostError, match=r"/etc/subuid gives uid \d+ no range") as caught:
        capsule.run(["true"], id_map="auto")
    assert caught.value.hint is not None
    assert "usermod --add-subuids" in caught.value.hint
    assert caught.value.exit_code == 125


# The host's tables stay as they are: these lie over them in a mount namespace of the test's own.
_TABLES = """
set -e
mount --bind "$1/subuid" /etc/subuid
mount --bind "$1/subgid" /etc/subgid
shift
exec "$@"
"""

_AUTO = """
import json, sys
sys.path.insert(0, sys.argv[1])
import capsule

code = '''
import errno, json, os
def outcome(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def owner_after_chown(id):
    open("/tmp/file", "w").close()
    try:
        return outcome(os.chown, "/tmp/file", id, id), os.stat("/tmp/file").st_uid
    finally:
        os.unlink("/tmp/file")
def words(name):
    return open("/proc/self/" + name).read().split()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
told = {
    "maps": [words("uid_map"), words("gid_map")],
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "chown": [owner_after_chown(id) for id in (0, 1, 33, 1000, 65534)],
    "capabilities": [status["Cap" + name].strip() for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
    "init": [
        outcome(open, "/proc/1/environ"), outcome(open, "/proc/1/mem"),
        outcome(os.listdir, "/proc/1/fd"), outcome(os.readlink, "/proc/1/root"),
    ],
    "host": [
        outcome(open, "/etc/passwd", "a"), outcome(open, "/proc/sys/kernel/shmmax", "w"),
        outcome(os.chroot, "/"), outcome(os.mknod, "/tmp/null", 0o20666, os.makedev(1, 3)),
    ],
    "setuid": outcome(os.setuid, 33),
}
print(json.dumps(told | {"setuid": [told["setuid"], *os.getresuid()]}))
'''
id = int(sys.argv[2])
result = capsule.run([sys.executable, "-I", "-c", code], id_map="auto", text=True, uid=id, gid=id)
sys.exit(result.stderr or print(result.stdout))
"""


def _system_python() -> str:
    """A Python that other users can run, too."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        test = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        if os.path.exists(path) and subprocess.run(test).returncode == 0:
            return path
    return sys.executable


def _run_with_tables(table: str, user: list[str], inside: int) -> Any:
    """Run _AUTO with tables of subordinate ids of its own."""
    with shared_directory() as directory:
        # A copy: where the package lies, others may not come.
        shutil.copytree(os.path.dirname(capsule.__file__), directory / "capsule")
        for name in ("subuid", "subgid"):
            (directory / name).write_text(table)
        python = [_system_python(), "-I", "-B", "-c", _AUTO, str(directory), str(inside)]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", _TABLES, "sh", str(directory), *user, *python],
            capture_output=True,
            timeout=HANG,
            cwd="/",
            env={"PATH": os.defpath, "HOME": "/nonexistent"},
        )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


_AS_USER = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]


@needs("real root", "unshare", "setpriv", "newuidmap")
@pytest.mark.parametrize("inside", [0, 1, 1000, 65536])
def test_auto_maps_the_whole_range_of_a_user(inside: int) -> None:
    """With newuidmap(1) and a range, root inside is the caller, and `uid` picks any id of the range."""
    told = _run_with_tables("1000:300000:65536\n", _AS_USER, inside)
    assert told["maps"] == [["0", "1000", "1", "1", "300000", "65536"]] * 2
    assert told["ids"] == [[inside] * 3, [inside] * 3, []]


@needs("real root", "unshare")
@pytest.mark.parametrize("inside", [0, 1000])
def test_auto_of_real_root_maps_the_range_and_not_root(inside: int) -> None:
    """Real root with a range gets that range alone: root inside is its first id."""
    told = _run_with_tables("root:300000:65536\n", [], inside)
    assert told["maps"] == [["0", "300000", "65536"]] * 2
    assert told["ids"] == [[inside] * 3, [inside] * 3, []]


CALLERS = [("1000:300000:65536\n", _AS_USER), ("root:300000:65536\n", [])]


@needs("real root", "unshare", "setpriv", "newuidmap")
@pytest.mark.parametrize(("table", "user"), CALLERS, ids=["user", "root"])
def test_root_over_a_range_can_use_it(table: str, user: list[str]) -> None:
    """chown(2) and setuid(2) to any id of the range work; nothing else that needs root does."""
    told = _run_with_tables(table, user, 0)
    assert told["chown"] == [["done", id_] for id_ in (0, 1, 33, 1000, 65534)]
    assert told["setuid"] == ["done", 33, 33, 33]
    # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID
    over_ids = f"{0b11111011:016x}"
    assert told["capabilities"] == ["0" * 16, over_ids, over_ids, over_ids, "0" * 16]
    assert told["init"] == ["EACCES"] * 4
    assert told["host"] == ["EROFS", "EROFS", "EPERM", "EPERM"]


@needs("real root", "unshare", "setpriv", "newuidmap")
@pytest.mark.parametrize(("table", "user"), CALLERS, ids=["user", "root"])
def test_others_over_a_range_have_no_capability(table: str, user: list[str]) -> None:
    """Any other id of the range is as powerless as without one."""
    told = _run_with_tables(table, user, 1000)
    assert {outcome for outcome, _ in told["chown"]} <= {"EPERM", "done"}
    assert told["chown"][0][0] == "EPERM"
    assert told["setuid"][0] == "EPERM"
    assert told["capabilities"] == ["0" * 16] * 5
    assert told["init"] == ["EACCES"] * 4

"""Landlock in a run: what it refuses, and what programs do that goes on working."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

import capsule
from capsule import Mount, Network, Policy, api
from capsule.confine import landlock
from capsule.launcher import steps as s
from capsule.planner.plan import Plan
from tests.support import (
    CAPSULE,
    HANG,
    PYTHON,
    ask,
    assert_denied,
    give,
    needs,
    probe_args,
    shared_directory,
)

pytestmark = needs("landlock")
ABI = min(capsule.probe().landlock_abi, landlock.NEWEST)

# Somebody under the ruleset may not send a signal to init: so it is in force.
IN_FORCE = "os.kill(1, 0)"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of whom the command is on the host."""
    with shared_directory() as path:
        yield give(path)


def told(**options: Any) -> str:
    """What `protections` says."""
    return capsule.run(["true"], **options).protections["landlock"]


# --- what is in force -----------------------------------------------------------------------------


def test_the_newest_version_is_used() -> None:
    """By default, and where it is required; `protections` names it, and what it lacks."""
    assert told().startswith(f"ABI {ABI}: files as they are shown, no change of mounts")
    assert ("lacks" in told()) is (ABI < landlock.OF_SCOPES)
    assert told(landlock=ABI) == told()
    assert told(landlock="off") == "off: asked for"
    assert told(seccomp="nest").startswith("none: mounts can be made inside")


def test_nothing_can_be_made_outside_of_what_is_writable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two walls keep a tree read-only: its mount (EROFS), and where that fails the rules (EACCES)."""
    act = "open(given['new'], 'x').close()"
    policy = Policy(mounts=[Mount.read_only(folder, "/shown")])
    outside, inside = {"new": str(folder / "outside")}, {"new": "/shown/inside"}
    assert_denied(act, errno.EROFS, outside=outside, inside=inside, policy=policy)
    # The mount made writable behind the ruleset's back, as a bug might: the rules are those of before.
    real = vars(api)["make_plan"]

    def writable(*args: Any, **named: Any) -> Plan:
        plan: Plan = real(*args, **named)
        steps = (
            s.Tree(step[0], step[1] & ~s.READ_ONLY, step[2]) if step[:1] == (str(folder),) else step
            for step in plan.steps
        )
        return plan.replace(steps=tuple(steps))

    monkeypatch.setattr(api, "make_plan", writable)
    (folder / "outside").unlink()
    assert_denied(act, errno.EACCES, outside=outside, inside=inside, policy=policy)
    assert ask(act + "\ntell('made')", policy, inside, landlock="off") == "made"


def test_nothing_is_executed_where_it_must_not(folder: Path) -> None:
    """noexec is a rule, too: the program of a mount that is not to be executed has no right to be."""
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    act = "os.waitpid(os.posix_spawn(given['at'] + '/program', ['x'], {}), 0)"
    policy = Policy(mounts=[Mount.read_only(folder, "/shown", noexec=True)])
    assert_denied(
        act, errno.EACCES, outside={"at": str(folder)}, inside={"at": "/shown"}, policy=policy
    )
    strict = Policy(mounts=[Mount.tmpfs("/x", noexec=True)])
    assert capsule.run(["sh", "-c", "cp /bin/true /tmp && /tmp/true"], strict).ok


@needs("landlock scopes")
def test_many_descriptors_leave_it_in_force() -> None:
    """Whatever numbers the caller's descriptors have, none takes the ruleset's place."""
    null = os.open("/dev/null", os.O_RDONLY)
    fds = [os.dup(null) for _ in range(60)]
    try:
        fds += [null]
        held = "len(os.listdir('/proc/self/fd'))"
        act = f"try:\n    {IN_FORCE}\nexcept OSError as error:\n    tell([error.errno, {held}])"
        inside = ask(act, pass_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
    # Its own, the directory's, and the three of everybody.
    assert inside == [errno.EPERM, len(fds) + 4]


# --- what goes on working -------------------------------------------------------------------------

_RENAMES = """
for name in ("a", "b"):
    os.makedirs(given["at"] + "/" + name)
open(given["at"] + "/a/file", "w").close()
def attempt(act, *paths):
    try:
        act(*(given["at"] + path for path in paths))
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
tell([
    attempt(os.link, "/a/file", "/b/link"), attempt(os.rename, "/a/file", "/b/file"),
    attempt(os.rename, "/b/file", "/b/other"), attempt(os.rename, "/b", "/a/b"),
])
"""


@pytest.mark.parametrize("at", ["/tmp/x", "/shown"])
@pytest.mark.row("E-13")
def test_renaming_between_directories(at: str, folder: Path) -> None:
    """Files and directories move and are linked to from ABI 2 on; before, EXDEV between directories."""
    policy = Policy(mounts=[Mount.read_write(folder, "/shown")])
    done = ["done"] * 4 if ABI >= 2 else ["EXDEV", "EXDEV", "ENOENT", "EXDEV"]
    assert ask(_RENAMES, policy, {"at": at}) == done


@pytest.mark.row("E-13")
def test_renaming_with_the_first_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of ABI 1 refuses it, and `protections` says so; within one directory all is as ever."""
    first = capsule.probe().replace(landlock_abi=1)
    monkeypatch.setattr(api, "presume", lambda **_: first)
    assert ask(_RENAMES, given={"at": "/tmp/x"}) == ["EXDEV", "EXDEV", "ENOENT", "EXDEV"]
    assert "fails (EXDEV, before ABI 2)" in told()
    assert capsule.run(["sh", "-c", "cd /tmp; mkdir a b; echo x >a/f; mv a/f b/g; cat b/g"]).ok


@pytest.mark.parametrize("abi", range(1, ABI + 1))
@pytest.mark.row("E-13")
def test_every_version_that_the_kernel_has(abi: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of an older version are taken by a newer kernel, and a program runs with them."""
    older = capsule.probe().replace(landlock_abi=abi)
    monkeypatch.setattr(api, "presume", lambda **_: older)
    script = "cd /tmp; echo a >f; : >f; mkdir d; ln -s f l; mkfifo p; rm -r f d l p; echo x >/dev/null"
    result = capsule.run(["sh", "-c", script])
    assert result.ok, result.stderr
    assert result.protections["landlock"].startswith(f"ABI {abi}: ")


def test_a_descriptor_is_opened_anew(folder: Path) -> None:
    """By its name in /proc, for what it is open for, and for no more."""
    path = folder / "data"
    path.write_text("content\n")
    give(path)
    script = "cat /dev/stdin; echo out >>/dev/stdout; echo err >>/dev/stderr; echo no >>/proc/self/fd/0"
    with open(path) as stdin, open(folder / "out", "a") as out, open(folder / "err", "a") as err:
        for one in ("out", "err"):
            give(folder / one)
        capsule.run(["sh", "-c", script], stdin=stdin, stdout=out, stderr=err)
    assert (folder / "out").read_text() == "content\nout\n"
    assert (folder / "err").read_text().startswith("err\n")
    assert path.read_text() == "content\n"
    with open(path) as stdin:
        writes = "open(f'/proc/self/fd/{0}', 'a').write('more')"
        act = f"try:\n    {writes}\n    tell('done')\nexcept OSError as error:\n    tell(error.errno)"
        assert ask(act, stdin=stdin) == errno.EACCES
        assert ask(act, stdin=stdin, landlock="off") == "done"


def test_a_directory_is_handed_over(folder: Path) -> None:
    """What the caller opened and names is the command's, with all that is in it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        act = """
inside = os.open("made", os.O_RDWR | os.O_CREAT, dir_fd=given["fd"])
os.write(inside, b"by the command")
os.rename("made", "moved", src_dir_fd=given["fd"], dst_dir_fd=given["fd"])
tell("done")
"""
        assert ask(act, given={"fd": fd}, pass_fds=(fd,)) == "done"
    finally:
        os.close(fd)
    assert (folder / "moved").read_text() == "by the command"


def test_devices_and_files_in_memory() -> None:
    """A pty of its own, terminals' ioctls, memfds that are executed, files that have no name."""
    act = """
import fcntl, termios
master, slave = os.openpty()
again = os.open(os.ttyname(slave), os.O_RDWR)
fcntl.ioctl(again, termios.TIOCGWINSZ, bytes(8))
os.write(os.open("/dev/null", os.O_WRONLY), b"x")
program = os.memfd_create("program")
os.write(program, open("/bin/true", "rb").read())
nameless = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
# With a descriptor of a directory, this follows the link; link(2) does not.
os.link(f"/proc/self/fd/{nameless}", "named", dst_dir_fd=os.open("/tmp", 0), follow_symlinks=True)
os.truncate("/tmp/named", 5)
if os.fork() == 0:
    os.execv(f"/proc/self/fd/{program}", ["true"])
tell([os.wait()[1], os.stat("/tmp/named").st_size, len(os.read(os.open("/dev/urandom", 0), 4))])
"""
    assert ask(act) == [0, 5, 4]


# --- TCP ----------------------------------------------------------------------------------------

_CONNECT = """
import socket
import subprocess
with socket.socket() as client:
    client.connect(("127.0.0.1", given["port"]))
"""
_BIND = """
import socket
import subprocess
with socket.socket() as server:
    server.bind(("127.0.0.1", given["port"]))
"""


@needs("landlock ports")
def test_ports_of_tcp() -> None:
    """With the host's network, what is not named is refused: EACCES; what is named is not."""
    with (
        socket.create_server(("127.0.0.1", 0)) as named,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        ports = named.getsockname()[1], other.getsockname()[1]
        policy = Policy(network=Network.HOST, tcp_connect=[ports[0]])
        assert_denied(_CONNECT, errno.EACCES, outside={"port": ports[1]}, policy=policy)
        assert ask(f"{_CONNECT}\ntell('connected')", policy, {"port": ports[0]}) == "connected"
        assert_denied(_BIND, errno.EACCES, outside={"port": 0}, policy=policy)
        free = Policy(network=Network.HOST)
        assert ask(f"{_CONNECT}\ntell('connected')", free, {"port": ports[1]}) == "connected"
        nothing = Policy(network=Network.HOST, tcp_bind=[])
        assert_denied(_CONNECT, errno.EACCES, outside={"port": ports[0]}, policy=nothing)
    bound = Policy(network=Network.HOST, tcp_bind=[ports[0]])
    assert ask(f"{_BIND}\ntell('bound')", bound, {"port": ports[0]}) == "bound"
    said = told(network="host", tcp_connect=[443, 80])
    assert re.search(r"TCP: connect 80 443, no bind", said)


# --- by the flags of the command line --------------------------------------------------------------


def ask_by_flags(code: str, given: dict[str, Any], *flags: str) -> Any:
    """What a probe tells from inside of a capsule that the command line makes."""
    command = [CAPSULE, "run", *flags, "--", *probe_args(code, given)]
    done = subprocess.run(command, capture_output=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _attempt(act: str) -> str:
    body = indent(act, "    ")
    return f"try:\n{body}\n    tell('done')\nexcept OSError as error:\n    tell(error.errno)"


@needs("landlock ports")
@pytest.mark.parametrize(("flag", "act"), [("--tcp-connect", _CONNECT), ("--tcp-bind", _BIND)])
def test_the_ports_of_a_flag(flag: str, act: str) -> None:
    """The one that it names can be used, another cannot: EACCES."""
    attempt = _attempt(act)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = {"--tcp-connect": server, "--tcp-bind": free}[flag].getsockname()[1]
        if flag == "--tcp-bind":
            free.close()
        for named, outcome in ((port, "done"), (1 if port != 1 else 2, errno.EACCES)):
            flags = ("--net", "host", flag, str(named))
            assert ask_by_flags(attempt, {"port": port}, *flags) == outcome


@needs("landlock scopes")
def test_the_flag_that_does_without_it() -> None:
    """A signal to init is refused by the rules, and by nothing else."""
    attempt = _attempt(IN_FORCE)
    for flags, outcome in (((), errno.EPERM), (("--landlock", "off"), "done")):
        assert ask_by_flags(attempt, {}, *flags) == outcome
    assert ask_by_flags("tell('alive')", {}, "--landlock", str(ABI)) == "alive"


# --- under another ruleset ------------------------------------------------------------------------

# Restricts itself, with a rule that allows everything beneath the root, and goes on as another program.
_UNDER = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
rights = int(sys.argv[1])
ruleset = libc.syscall(444, struct.pack("QQQ", rights, 0, 0 if rights else 1), 24, 0)
root = os.open("/", os.O_PATH)
assert ruleset >= 0
assert not rights or libc.syscall(445, ruleset, 1, struct.pack("=Qi", rights, root), 0) == 0
libc.prctl(38, 1, 0, 0, 0)
assert libc.syscall(446, ruleset, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


def under(rights: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, run by somebody who has restricted himself so."""
    command = [PYTHON, "-c", _UNDER, str(rights), CAPSULE, *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_ruleset_about_files_lets_no_capsule_be_made() -> None:
    """It lets no mount be changed: refused, with the reason, by the command and by doctor."""
    rights = landlock.handled(ABI)
    done = under(rights, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "a Landlock ruleset around Capsule forbids it" in done.stderr
    found = under(rights, "doctor").stdout
    assert "a Landlock ruleset around Capsule, in all likelihood" in found
    assert "start Capsule outside of the sandbox that runs it" in found


@needs("landlock scopes")
def test_another_ruleset_is_no_obstacle() -> None:
    """Rulesets stack: one about abstract sockets alone leaves the capsule its own."""
    done = under(0, "--", "sh", "-c", "kill -0 1 || echo denied")
    assert (done.returncode, done.stdout) == (0, "denied\n")

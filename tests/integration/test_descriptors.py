"""Which descriptors the command holds: 0 to 2 and those that are named, whatever the caller holds."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import capsule
from tests.support import HANG, PYTHON, ask, assert_denied, nothing_left, probe_args

_HELD = """
def kind(fd):
    return os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
tell({fd: kind(fd) for fd in range(3000) if os.path.islink(f"/proc/self/fd/{fd}")})
"""


def held(**options: Any) -> dict[int, str]:
    """The command's descriptors and their kinds."""
    told = ask(_HELD, **options)
    return {int(fd): kind for fd, kind in told.items()}


@pytest.fixture
def many() -> Iterator[list[int]]:
    """A thousand descriptors of many kinds in the caller, none of them close-on-exec."""
    with contextlib.ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def keep(fd: int) -> int:
            os.set_inheritable(fd, True)
            stack.callback(os.close, fd)
            return fd

        kinds = [
            os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            os.open("/etc", os.O_PATH),
            os.open("/dev/null", os.O_RDWR),
            os.memfd_create("any"),
            os.pidfd_open(os.getpid()),
            os.eventfd(0),
            *os.pipe(),
            *(each.detach() for each in socket.socketpair()),
        ]
        fds = [keep(fd) for fd in kinds]
        fds += [keep(os.dup(fds[n % len(fds)])) for n in range(1000)]
        yield fds


@pytest.mark.row("B-04")
def test_three_descriptors_and_no_more() -> None:
    """Input is /dev/null, output and errors are pipes, and there is nothing else."""
    assert held() == {0: "/dev/null", 1: "pipe", 2: "pipe"}


@pytest.mark.usefixtures("many")
@pytest.mark.row("B-04")
def test_a_thousand_descriptors_of_the_caller_stay_outside() -> None:
    """Files, directories, sockets, pidfds, memory: none of the caller's is inherited."""
    assert held() == {0: "/dev/null", 1: "pipe", 2: "pipe"}


@pytest.mark.row("B-04")
def test_descriptors_above_a_lowered_limit_stay_outside() -> None:
    """A descriptor whose number is above RLIMIT_NOFILE is closed all the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = fcntl.fcntl(1, fcntl.F_DUPFD, 900)
    resource.setrlimit(resource.RLIMIT_NOFILE, (high - 1, hard))
    try:
        assert held() == {0: "/dev/null", 1: "pipe", 2: "pipe"}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(high)


_CLOSED = """
import json, os, sys
import capsule
closed = json.loads(sys.argv[1])
out = os.dup(1)
for fd in closed:
    os.close(fd)
held = ["sh", "-c", "for fd in /proc/$$/fd/*; do readlink $fd; done; cat; echo said >&2"]
results = [capsule.run(held, input=b"given"), capsule.run(held, stdin=capsule.INHERIT)]
still = [fd for fd in closed if os.path.lexists(f"/proc/self/fd/{fd}")]
told = [[r.stdout.decode(), r.stderr.decode()] for r in results]
os.write(out, json.dumps([told, still]).encode())
"""


@pytest.mark.parametrize("closed", [[0], [1], [0, 1], [0, 1, 2], [2]])
@pytest.mark.row("B-04")
def test_closed_standard_descriptors_of_the_caller(closed: list[int]) -> None:
    """A caller without 0, 1 or 2 changes nothing for the command, and gets none of ours there."""
    done = subprocess.run(
        [PYTHON, "-c", _CLOSED, json.dumps(closed)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    ((given, said), (inherited, _)), still = json.loads(done.stdout)
    kinds = [line.partition(":")[0] for line in given.splitlines()]
    assert kinds == ["pipe", "pipe", "pipe", "given"]
    assert said == "said\n"
    assert inherited.splitlines()[0] == "/dev/null"
    assert still == []


# --- named ones ---------------------------------------------------------------------------------


@contextlib.contextmanager
def at_number(number: int, content: bytes) -> Iterator[int]:
    """A readable file of the caller under that number, if it is free."""
    memory = os.memfd_create("content")
    os.write(memory, content)
    os.lseek(memory, 0, os.SEEK_SET)
    assert not os.path.lexists(f"/proc/self/fd/{number}") or memory == number
    if memory != number:
        os.dup2(memory, number, inheritable=False)
        os.close(memory)
    try:
        yield number
    finally:
        os.close(number)


def free_numbers(count: int, start: int = 3) -> list[int]:
    """Numbers from *start* on that no descriptor of this process has."""
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    return [number for number in range(start, start + 2000) if number not in taken][:count]


_READ = """
tell({fd: os.read(fd, 100).decode() for fd in given["fds"]})
"""


@pytest.mark.parametrize("start", [3, 8, 9, 10, 11, 20, 200, 1000])
@pytest.mark.parametrize("count", [1, 7])
def test_named_descriptors_keep_their_numbers(start: int, count: int) -> None:
    """pass_fds gives the command just these, under the caller's numbers, the launcher's own too."""
    numbers = free_numbers(count, start)
    with contextlib.ExitStack() as stack:
        for number in numbers:
            stack.enter_context(at_number(number, f"file {number}".encode()))
        told = ask(_READ, given={"fds": numbers}, pass_fds=numbers)
        assert told == {str(number): f"file {number}" for number in numbers}
        for number in numbers:
            os.lseek(number, 0, os.SEEK_SET)
        assert set(held(pass_fds=reversed(numbers))) == {0, 1, 2, *numbers}


_IN_A_CLEAN_PROCESS = """
import json, os, sys
import capsule
numbers = json.loads(sys.argv[1])
out = os.dup(1)
os.dup2(out, 100)
for number in numbers:
    memory = os.memfd_create("content")
    os.write(memory, b"file %d" % number)
    os.lseek(memory, 0, 0)
    if memory != number:
        os.dup2(memory, number)
        os.close(memory)
script = "for fd in " + " ".join(map(str, numbers)) + "; do cat /proc/self/fd/$fd; echo; done"
result = capsule.run(["sh", "-c", script], pass_fds=numbers)
failed = None
try:
    capsule.run(["/no/such/program"], pass_fds=numbers)
except capsule.SetupError as error:
    failed = error.exit_code
os.write(100, json.dumps([result.stdout.decode(), result.stderr.decode(), failed]).encode())
"""


@pytest.mark.parametrize("numbers", [[3], [4], [3, 4, 5, 6, 7, 8, 9], list(range(3, 40))])
def test_the_launchers_own_numbers_can_be_named(numbers: list[int]) -> None:
    """3 to 9, where the launcher keeps its own, are the command's; and errors are told all the same."""
    done = subprocess.run(
        [PYTHON, "-c", _IN_A_CLEAN_PROCESS, json.dumps(numbers)], capture_output=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    output, errors, failed = json.loads(done.stdout)
    assert output.splitlines() == [f"file {number}" for number in numbers], errors
    assert failed == 127


def test_a_named_socket_works_both_ways() -> None:
    """The command and the caller talk over a descriptor of any kind."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        code = """
import socket
with socket.socket(fileno=given["fd"]) as peer:
    tell(peer.recv(100).decode())
    peer.sendall(b"answer")
"""
        ours.sendall(b"question")
        fd = theirs.fileno()
        assert ask(code, given={"fd": fd}, pass_fds=[fd]) == "question"
        assert ours.recv(100) == b"answer"
        theirs.close()
        assert ours.recv(1) == b"", "somebody still holds the other end"


def test_the_callers_descriptors_stay_as_they_are() -> None:
    """Passing a descriptor changes neither its close-on-exec flag nor the set of the caller's."""
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with nothing_left():
        capsule.run(["true"], pass_fds=[read, write])
        assert (os.get_inheritable(read), os.get_inheritable(write)) == (False, True)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("fd", "reason"), [(0, "is standard"), (2, "is standard"), (987, "is not open")]
)
def test_descriptors_that_cannot_be_named(fd: int, reason: str) -> None:
    """0 to 2 have parameters of their own, and a closed one is a mistake: PolicyError."""
    with nothing_left(), pytest.raises(capsule.PolicyError, match=reason) as caught:
        capsule.run(["true"], pass_fds=[fd])
    assert (caught.value.field, caught.value.value) == ("pass_fds", fd)


@pytest.mark.row("B-05")
def test_no_descriptor_reaches_the_supervisor() -> None:
    """The command cannot open anything of the supervisor by /proc: ENOENT."""
    assert_denied(
        "os.listdir(f'/proc/{given[\"pid\"]}/fd')", errno.ENOENT, outside={"pid": os.getpid()}
    )


@pytest.mark.row("B-05")
def test_words_on_every_descriptor_forge_nothing() -> None:
    """A command that writes to every number it can think of does not change its own result."""
    code = """
import struct
for fd in range(3, 300):
    for junk in (struct.pack("=2i", 3, 1), struct.pack("=12q", 4, *[0] * 11), b"x"):
        try:
            os.write(fd, junk)
        except OSError:
            pass
sys.exit(42)
"""
    result = capsule.run(probe_args(code))
    assert (result.outcome, result.returncode) == (capsule.Outcome.EXITED, 42)

"""Rows F that need a scene of their own: threads without end, children that nobody waits for, locks."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

import capsule
from capsule import Limits, Mount, Outcome, Policy
from tests.support import (
    HANG,
    ask,
    ask_outside,
    assert_denied,
    descendants,
    give,
    needs,
    probe_args,
    shared_directory,
)

# Of all processes and threads inside, where no limit is asked for.
MOST_PIDS = 2048

# Threads that wait, until there can be no more.
_THREADS = """
import threading
gate, count = threading.Event(), 0
threading.stack_size(65536)
for _ in range(given["most"]):
    try:
        threading.Thread(target=gate.wait, daemon=True).start()
    except RuntimeError:
        break
    count += 1
tell(count)
"""


@needs("counted processes")
@pytest.mark.row("F-01")
def test_f01_threads_count_as_processes() -> None:
    """Threads stop at the bound of processes; outside as many as were asked for can be made."""
    assert ask_outside(_THREADS, {"most": 2500}) == 2500
    assert ask(_THREADS, given={"most": 2500}) < MOST_PIDS


# Children that end at once, and daemons by way of a child in the middle; nobody waits for any.
_FLOOD = """
import time
made = 0
for n in range(given["count"]):
    try:
        pid = os.fork()
    except BlockingIOError:
        break
    made += 1
    if pid == 0:
        if n % 10 == 0:
            os.setsid()
            try:
                os.fork()
            except BlockingIOError:
                pass
        os._exit(0)
def parent(name):
    try:
        return open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
    except OSError:
        return ""
tell([made, sum(parent(name) == "1" for name in os.listdir("/proc") if name.isdigit())])
"""


@needs("counted processes")
@pytest.mark.row("F-02")
def test_f02_children_that_nobody_waits_for_count_and_go() -> None:
    """Zombies fill up the bound and no more; with the capsule they are gone, and init keeps none."""
    before = descendants(os.getpid())
    made, of_init = ask(_FLOOD, given={"count": 5000})
    assert MOST_PIDS / 2 < made < MOST_PIDS
    assert of_init < 50
    assert descendants(os.getpid()) == before


@pytest.mark.slow
@pytest.mark.row("F-02")
def test_f02_fifty_thousand_short_children() -> None:
    """A shell's worth of short children, each waited for or not, leaves no zombie and does not hang."""
    code = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(50000):
    while True:
        try:
            pid = os.fork()
        except BlockingIOError:
            continue
        break
    if pid == 0:
        os._exit(0)
tell("done")
"""
    result = capsule.run(probe_args(code), timeout=HANG * 10)
    assert (result.stdout, result.outcome) == (b'"done"', Outcome.EXITED)


@pytest.mark.row("F-11")
def test_f11_a_tree_that_stops_and_continues_itself_without_end() -> None:
    """A storm of SIGSTOP and SIGCONT among processes that take no other signal: the deadline holds."""
    code = """
import signal, itertools
for number in range(1, 65):
    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, signal.SIG_IGN)
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        while True:
            pass
    pids.append(pid)
os.write(1, b"ready")
for pid in itertools.cycle(pids):
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
"""
    before = descendants(os.getpid())
    result = capsule.run(probe_args(code), timeout=1)
    assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, b"ready")
    assert descendants(os.getpid()) == before


@pytest.mark.row("F-19")
def test_f19_no_lease_that_holds_the_host_up() -> None:
    """A lease on a file that the host opens is refused; outside it can be had by the file's owner."""
    with shared_directory() as place:
        path = place / "file"
        path.touch()
        give(path)
        act = "import fcntl\nfcntl.fcntl(os.open(given['path'], os.O_RDONLY), 1024, fcntl.F_RDLCK)"
        policy = Policy(mounts=[Mount.read_only(place)])
        assert_denied(act, errno.EPERM, outside={"path": str(path)}, policy=policy)


@pytest.mark.row("F-19")
def test_f19_locks_are_felt_unless_strict() -> None:
    """KNOWN: flock(2) on a file that is shown is one with the host's; the strict profile refuses it."""
    code = """
import fcntl
file = os.open(given["path"], os.O_RDONLY)
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    tell("locked")
except OSError as error:
    tell(errno.errorcode[error.errno])
"""
    with shared_directory() as place:
        (place / "file").touch()
        mounts, given = [Mount.read_only(place)], {"path": str(place / "file")}
        assert ask(code, Policy(mounts=mounts), given) == "locked"
        assert ask(code, Policy(mounts=mounts, seccomp="strict"), given) == "EPERM"
        with (place / "file").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert ask(code, Policy(mounts=mounts), given) == "EAGAIN"


@pytest.mark.row("F-08")
def test_f08_both_streams_full_and_nobody_reads_one() -> None:
    """Streams that are filled in turns, in pieces larger than a pipe, lose nothing, and none waits."""
    code = """
for n in range(20):
    os.write(1, b"o" * 200000)
    os.write(2, b"e" * 200000)
"""
    result = capsule.run(probe_args(code), timeout=HANG)
    assert (len(result.stdout), len(result.stderr)) == (4000000, 4000000)
    line = capsule.run(["head", "-c", "30000000", "/dev/zero"], timeout=HANG)
    assert (line.outcome, len(line.stdout)) == (Outcome.OUTPUT_LIMIT, 16 << 20)


@pytest.mark.row("F-04")
def test_f04_files_in_memory_end_at_the_limit_of_a_file() -> None:
    """A memfd is bounded by the size of a file, each: EFBIG; without the limit it can be larger."""
    act = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = os.memfd_create("x")
os.ftruncate(file, 1 << 21)
"""
    assert_denied(act, errno.EFBIG, policy=Policy(limits=Limits(file_size=1 << 20)))

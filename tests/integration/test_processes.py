"""Signals, ends of all kinds, and commands that do not want to end."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import capsule
from capsule import Outcome
from tests.support import (
    HANG,
    await_line,
    command_of,
    descendants,
    nothing_left,
    probe_args,
    stat,
)

# --- exit statuses --------------------------------------------------------------------------


def test_every_exit_status_is_the_programs_own() -> None:
    """0 to 255 come back as they are: 2, 124, 125, 126 and 127 too are the program's result."""
    for status in range(256):
        result = capsule.run(["sh", "-c", f"exit {status}"])
        assert (result.outcome, result.returncode, result.exit_status) == (
            Outcome.EXITED,
            status,
            status,
        )
        assert result.ok == (status == 0)


_DEADLY = [
    number
    for number in signal.valid_signals()
    if number
    not in (
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
]


def test_every_deadly_signal_is_told_by_its_number() -> None:
    """A command that a signal ends has returncode -N and exit status 128+N."""
    for number in _DEADLY:
        result = capsule.run(["sh", "-c", f"kill -{int(number)} $$"])
        # The kernel tells nobody who sent this one, and the filter's is the usual one.
        outcome = Outcome.FILTERED if number == signal.SIGSYS else Outcome.SIGNALED
        assert (result.outcome, result.returncode) == (outcome, -number)
        assert (result.signal, result.exit_status) == (number, 128 + number)


def test_a_status_of_128_and_more_is_no_signal() -> None:
    """A program that exits with 137 was not killed, and nothing can mistake it."""
    exited, killed = (
        capsule.run(["sh", "-c", "exit 137"]),
        capsule.run(["sh", "-c", "kill -9 $$"]),
    )
    assert (exited.outcome, exited.signal) == (Outcome.EXITED, None)
    assert (killed.outcome, killed.signal) == (Outcome.SIGNALED, 9)
    assert exited.exit_status == killed.exit_status == 137


# --- signals to the command -------------------------------------------------------------------

_TAKES_SIGNALS = """
import signal
numbers = set(signal.valid_signals())
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("ready", flush=True)
while (number := signal.sigwait(numbers)) != signal.SIGRTMIN:
    print(signal.Signals(number).name, flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGCHLD"])
def test_signals_are_passed_on(name: str) -> None:
    """send_signal reaches the command, and the command alone decides what comes of it."""
    with capsule.start(probe_args(_TAKES_SIGNALS)) as process:
        assert await_line(process) == b"ready\n"
        process.send_signal(signal.Signals[name])
        assert await_line(process) == name.encode() + b"\n"
        process.send_signal(signal.SIGRTMIN)
        assert process.wait(HANG).ok


def test_a_signal_from_another_process_of_the_host_is_passed_on() -> None:
    """kill(1) on `Process.pid` from outside is for the command: init does not die of it."""
    with capsule.start(probe_args(_TAKES_SIGNALS)) as process:
        assert await_line(process) == b"ready\n"
        os.kill(process.pid, signal.SIGUSR1)
        assert await_line(process) == b"SIGUSR1\n"
        os.kill(process.pid, signal.SIGRTMIN)
        assert process.wait(HANG).ok


_FAMILY = """
import signal
def tell_of(number, frame):
    os.write(1, name + b"\\n")
signal.signal(signal.SIGUSR1, tell_of)
signal.signal(signal.SIGUSR2, lambda number, frame: os._exit(0))
ours, theirs = os.pipe()
name = b"child" if os.fork() == 0 else b"parent"
if name == b"child":
    os.write(theirs, b"x")
else:
    os.read(ours, 1)
    os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


def test_a_signal_is_for_the_command_or_for_its_group() -> None:
    """Without `group` the command alone gets it, with it every process of its group."""
    with capsule.start(probe_args(_FAMILY)) as process:
        assert await_line(process) == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert await_line(process) == b"parent\n"
        process.send_signal(signal.SIGUSR1, group=True)
        # Had the first signal gone to the child, too, there would be three lines here.
        assert {await_line(process), await_line(process)} == {b"parent\n", b"child\n"}
        process.send_signal(signal.SIGUSR2)
        assert process.wait(HANG).stdout == b""


def _await_state(pid: int, state: str) -> bool:
    """Wait for a state of a process: the kernel tells of a stop to its parent only, which is init."""
    until = time.monotonic() + HANG
    while time.monotonic() < until:
        found = stat(pid)
        if found is not None and found.state == state:
            return True
        time.sleep(0.001)
    return False


def test_stop_and_continue() -> None:
    """SIGSTOP stops the command, which does not end the capsule; SIGCONT lets it go on."""
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        assert process.stdin is not None
        command = command_of(process)
        process.send_signal(signal.SIGSTOP)
        assert _await_state(command, "T")
        assert process.poll() is None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        assert await_line(process) == b"hello\n"
        assert process.wait(HANG).ok


def test_terminate_and_kill() -> None:
    """terminate() is SIGTERM, which the command may survive; kill() ends everything."""
    with capsule.start(["sleep", "1000"]) as process:
        process.terminate()
        assert process.wait(HANG).signal == signal.SIGTERM
    with capsule.start(["sh", "-c", "trap 'echo no' TERM; echo ready; while :; do :; done"]) as process:
        assert await_line(process) == b"ready\n"
        process.terminate()
        assert await_line(process) == b"no\n"
        process.kill()
        result = process.wait(HANG)
    assert (result.outcome, result.returncode) == (Outcome.KILLED, -9)
    assert "by the caller" in result.describe()


def test_signals_after_the_end_do_nothing() -> None:
    """Signals to a capsule that has ended are no error, before and after it was waited for."""
    with capsule.start(["true"]) as process:
        assert process.wait(HANG).ok
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGCONT):
            process.send_signal(number)
        process.kill()
        assert process.wait().outcome is Outcome.EXITED


def test_killed_from_outside() -> None:
    """Somebody else's SIGKILL to init is told as such, and it takes everything along."""
    with capsule.start(["sh", "-c", "sleep 1000 & echo ready; wait"]) as process:
        assert await_line(process) == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
        result = process.wait(HANG)
    assert result.outcome is Outcome.KILLED
    assert "from outside" in result.describe()


# --- commands that do not want to end -----------------------------------------------------------

_UNWILLING = {
    "ignores every signal": "trap '' HUP INT QUIT TERM USR1 USR2; echo ready; while :; do :; done",
    "stops itself": "echo ready; kill -STOP $$",
    "closes its output": "echo ready; exec >&- 2>&- <&-; while :; do :; done",
    "has left its session": "echo ready; exec setsid -f -w sleep 1000",
    "waits for a child that ignores signals": "(trap '' TERM; echo ready; sleep 1000) & wait",
}


@pytest.mark.parametrize("script", _UNWILLING.values(), ids=_UNWILLING.keys())
@pytest.mark.row("F-11")
def test_the_timeout_ends_it_whatever_it_does(script: str) -> None:
    """At the deadline everything inside is killed, and the result keeps what was written."""
    with nothing_left():
        result = capsule.run(["sh", "-c", script], timeout="500ms")
    assert (result.outcome, result.returncode, result.exit_status) == (Outcome.TIMED_OUT, -9, 124)
    assert result.stdout == b"ready\n"
    assert result.usage.wall >= 0.5
    assert result.describe() == "sh: timed out: after 0.5 s"


@pytest.mark.parametrize("script", _UNWILLING.values(), ids=_UNWILLING.keys())
@pytest.mark.row("F-11")
def test_leaving_the_block_ends_it_whatever_it_does(script: str) -> None:
    """So does leaving the `with` block, however the command is held up."""
    with nothing_left(), capsule.start(["sh", "-c", script]) as process:
        assert await_line(process) == b"ready\n"


_LEAVES_BEHIND = {
    "a child that holds the pipes": "sleep 1000 & echo done",
    "a daemon in a session of its own": "setsid -f sleep 1000; echo done",
    "a daemon that ignores signals": "(trap '' HUP TERM INT; exec setsid sleep 1000) & echo done",
    "a child that is stopped": "sleep 1000 & kill -STOP $!; echo done",
    "a child that starts others for ever": "(while :; do sleep 0; done) & echo done",
    "a hundred children": "for i in $(seq 100); do sleep 1000 & done; echo done",
}


@pytest.mark.parametrize("script", _LEAVES_BEHIND.values(), ids=_LEAVES_BEHIND.keys())
@pytest.mark.row("F-13")
def test_when_the_command_ends_the_capsule_ends(script: str) -> None:
    """run() returns when the command does, with its status; who it left behind is dead by then."""
    before = {s.pid for s in descendants(os.getpid())}
    with nothing_left():
        result = capsule.run(["sh", "-c", script], timeout=HANG)
    assert (result.outcome, result.returncode, result.stdout) == (Outcome.EXITED, 0, b"done\n")
    assert {s.pid for s in descendants(os.getpid())} <= before


def test_a_writer_left_behind_cannot_hold_up_the_end() -> None:
    """A background process that fills the pipe without end does not keep run() from returning."""
    result = capsule.run(["sh", "-c", "yes & sleep 0; exit 3"], timeout=HANG)
    assert (result.outcome, result.returncode) == (Outcome.EXITED, 3)


def test_the_command_may_close_its_output_first() -> None:
    """Closed pipes are no end: the status is still the command's."""
    result = capsule.run(["sh", "-c", "echo a; exec >&- 2>&-; read line; exit 7"], input=b"x\n")
    assert (result.returncode, result.stdout) == (7, b"a\n")


@pytest.mark.row("F-14")
def test_a_thread_that_started_a_command_may_end() -> None:
    """The command outlives the thread that started it: its life hangs on the process."""
    started: list[capsule.Process] = []

    def start() -> None:
        started.append(capsule.start(["cat"], stdin=capsule.PIPE))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as process:
        assert process.stdin is not None
        process.stdin.write(b"still here\n")
        process.stdin.flush()
        assert await_line(process) == b"still here\n"
        assert process.wait(HANG).ok

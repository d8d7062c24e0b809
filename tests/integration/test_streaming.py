"""capsule.start: talking to a command while it runs, waiting for it, and letting it go."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import threading
from typing import IO, Any

import pytest

import capsule
from capsule import PIPE, Outcome, Process
from tests.support import HANG, PYTHON, await_end, await_line, nothing_left, stat


def writer(process: Process) -> IO[Any]:
    """The command's standard input."""
    assert process.stdin is not None
    return process.stdin


def reader(process: Process) -> IO[Any]:
    """The command's standard output."""
    assert process.stdout is not None
    return process.stdout


# --- streams ------------------------------------------------------------------------------------


def test_a_dialogue() -> None:
    """Lines go in and out while the command runs; closing stdin ends it."""
    with nothing_left(), capsule.start(["cat"], stdin=PIPE) as process:
        for line in (b"one\n", b"two\n"):
            writer(process).write(line)
            writer(process).flush()
            assert reader(process).readline() == line
        writer(process).close()
        assert reader(process).read() == b""
        result = process.wait()
    assert (result.ok, result.stdout) == (True, b"")


def test_a_dialogue_in_text() -> None:
    """With text=True the streams are of str."""
    with nothing_left(), capsule.start(["cat"], stdin=PIPE, text=True) as process:
        writer(process).write("grün\n")
        writer(process).flush()
        assert reader(process).readline() == "grün\n"
        writer(process).write("rest")
        assert process.wait(HANG).stdout == "rest"


def test_stderr_is_a_stream_of_its_own() -> None:
    """stdout and stderr can be read apart."""
    with capsule.start(["sh", "-c", "echo out; echo err >&2"]) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b"err\n"
        assert reader(process).read() == b"out\n"


def test_lines_can_be_iterated() -> None:
    """A stream ends when the command does."""
    with capsule.start(["seq", "5"]) as process:
        assert [int(line) for line in reader(process)] == [1, 2, 3, 4, 5]
        assert process.wait().ok


def test_the_result_has_what_was_not_read() -> None:
    """What the caller has read is the caller's; wait() gives the rest, in whole."""
    with capsule.start(["sh", "-c", "echo 1; echo 2; read x; echo 3"], stdin=PIPE) as process:
        assert reader(process).readline() == b"1\n"
        writer(process).write(b"\n")
        assert process.wait(HANG).stdout == b"2\n3\n"


def test_no_stream_where_there_is_no_pipe() -> None:
    """What was not started with PIPE is None."""
    options = {"stdout": capsule.DEVNULL, "stderr": capsule.STDOUT}
    with capsule.start(["true"], **options) as process:  # type: ignore[arg-type]
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)


def test_streams_are_the_same_object_each_time() -> None:
    """So that a buffer is never lost."""
    with capsule.start(["cat"], stdin=PIPE) as process:
        assert process.stdin is process.stdin
        assert process.stdout is process.stdout
        assert process.stderr is process.stderr


def test_writing_to_a_command_that_is_gone() -> None:
    """It is a BrokenPipeError for the writer, and no error for wait()."""
    with nothing_left(), capsule.start(["true"], stdin=PIPE) as process:
        assert select.select([process], [], [], HANG)[0]
        with pytest.raises(BrokenPipeError):
            writer(process).write(bytes(1 << 20))
        assert process.wait(HANG).ok


def test_input_of_start_is_written_by_wait() -> None:
    """`input` needs no thread and no writer."""
    with capsule.start(["wc", "-c"], input=bytes(1 << 20)) as process:
        assert process.wait(HANG).stdout.strip() == b"1048576"


def test_wait_reads_what_would_block_the_command() -> None:
    """A command that fills both pipes ends all the same, when it is waited for."""
    script = "head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero; exit 3"
    with capsule.start(["sh", "-c", script]) as process:
        result = process.wait(HANG)
    assert (result.returncode, len(result.stdout), len(result.stderr)) == (3, 1_000_000, 1_000_000)


# --- waiting ------------------------------------------------------------------------------------


def test_communicate_writes_and_reads_at_once() -> None:
    """More than fits into a pipe goes either way; what was written before comes first."""
    big = b"x" * (1 << 20)
    with capsule.start(["cat"], stdin=capsule.PIPE, stdout=capsule.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"first")
        assert process.communicate(big) == (b"first" + big, b"")
        result = process.poll()
        assert result is not None
        assert result.ok
    with capsule.start(["sh", "-c", "cat; echo no >&2"], stdin=capsule.PIPE, text=True) as process:
        assert process.communicate("text\n") == ("text\n", "no\n")
        assert process.communicate() == ("text\n", "no\n")
    with capsule.start(["echo", "x"], stderr=capsule.DEVNULL) as process:
        assert process.communicate() == (b"x\n", None)


def test_communicate_can_give_up_and_go_on() -> None:
    """A time-out loses nothing, neither of the input nor of the output."""
    big = b"y" * (1 << 20)
    with capsule.start(["sh", "-c", "sleep 0.3; cat"], stdin=capsule.PIPE) as process:
        with pytest.raises(TimeoutError):
            process.communicate(big, timeout=0.05)
        assert process.communicate() == (big, b"")


def test_communicate_needs_a_pipe_for_input() -> None:
    """Input for nobody is an error, and so is text for a pipe of bytes."""
    with capsule.start(["cat"]) as process:
        with pytest.raises(ValueError, match="no pipe"):
            process.communicate(b"x")
        assert process.communicate() == (b"", b"")
    with capsule.start(["cat"], stdin=capsule.PIPE) as process:
        with pytest.raises(capsule.PolicyError, match="text=True"):
            process.communicate("x")
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(ValueError, match="no pipe"):
            process.communicate(b"x")


def test_communicate_with_a_command_that_does_not_read() -> None:
    """It has a right not to: no error, no wait."""
    with capsule.start(["true"], stdin=capsule.PIPE) as process:
        assert process.communicate(b"x" * (1 << 20)) == (b"", b"")


def test_poll_tells_whether_it_has_ended() -> None:
    """None while it runs, then the result, the same each time."""
    with capsule.start(["cat"], stdin=PIPE) as process:
        assert process.poll() is None
        writer(process).close()
        assert select.select([process], [], [], HANG)[0]
        result = process.poll()
        assert result is not None
        assert result.ok
        assert process.poll() is result
        assert process.wait() is result


def test_wait_can_give_up() -> None:
    """TimeoutError means that the command goes on, and what it has written is not lost."""
    with capsule.start(["sh", "-c", "echo begun; read x; echo ended"], stdin=PIPE) as process:
        keep = os.dup(writer(process).fileno())
        with pytest.raises(TimeoutError, match="sh still runs"):
            process.wait(0.05)
        with pytest.raises(TimeoutError):
            process.wait(0)
        assert process.poll() is None
        os.write(keep, b"\n")
        assert process.wait(HANG).stdout == b"begun\nended\n"
        os.close(keep)


def test_fileno_is_readable_at_the_end() -> None:
    """The pidfd tells select, poll and event loops; after wait() there is none."""
    with capsule.start(["cat"], stdin=PIPE) as process:
        assert select.select([process], [], [], 0)[0] == []
        writer(process).close()
        assert select.select([process], [], [], HANG)[0] == [process]
        assert "pidfd" in os.readlink(f"/proc/self/fd/{process.fileno()}")
        process.wait()
        with pytest.raises(ValueError, match="has ended"):
            process.fileno()


def test_the_pidfd_speaks_for_everything_inside() -> None:
    """Once it is readable no process of the capsule is left, whoever was there."""
    script = "sleep 1000 & setsid sleep 1000 & echo ready; read x"
    with capsule.start(["sh", "-c", script], stdin=PIPE) as process:
        await_line(process)
        inside = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        inside = [pid for pid in inside if _is_below(pid, process.pid)]
        assert len(inside) >= 3
        writer(process).close()
        assert select.select([process], [], [], HANG)[0]
        assert not any((found := stat(pid)) and found.alive for pid in inside)


def _is_below(pid: int, top: int) -> bool:
    found = stat(pid)
    while found and found.parent > 1 and found.parent != top:
        found = stat(found.parent)
    return found is not None and found.parent == top


# --- letting go -----------------------------------------------------------------------------------


def test_leaving_the_block_kills() -> None:
    """Whatever runs is dead, reaped and closed after the block."""
    with nothing_left():
        with capsule.start(["sleep", "1000"]) as process:
            pid = process.pid
        assert stat(pid) is None


def test_an_exception_in_the_block_kills() -> None:
    """And passes on."""
    with (
        nothing_left(),
        pytest.raises(KeyError, match="mine"),
        capsule.start(["sleep", "1000"], stdin=PIPE),
    ):
        raise KeyError("mine")


def test_a_lost_process_warns_and_is_killed() -> None:
    """Without `with`, losing the last reference is a ResourceWarning, and kills."""
    with nothing_left():
        process = capsule.start(["sleep", "1000"])
        pid = process.pid
        with pytest.warns(ResourceWarning, match="capsule of 'sleep' still runs"):
            del process
        gc.collect()
        assert stat(pid) is None


def test_a_process_may_last_until_the_interpreter_ends() -> None:
    """It is killed then, and there is no complaint of Python's about how."""
    code = "import capsule; process = capsule.start(['sleep', '1000']); print(process.pid)"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert await_end(int(done.stdout))


def test_a_finished_process_may_be_lost() -> None:
    """After wait() there is nothing to warn of."""
    with nothing_left():
        assert capsule.start(["true"]).wait(HANG).ok
        gc.collect()


def test_repr_tells_the_state() -> None:
    """The command, init's pid and how far it is."""
    with capsule.start(["sh", "-c", "read x"], stdin=PIPE) as process:
        assert repr(process) == f"<Process 'sh' pid={process.pid} running>"
        process.wait()
        assert repr(process) == f"<Process 'sh' pid={process.pid} exited>"


def test_kill_from_another_thread() -> None:
    """One thread waits, another one kills: the waiting one gets the result."""
    results: list[capsule.Result] = []
    with capsule.start(["sh", "-c", "echo ready; sleep 1000"]) as process:
        await_line(process)
        thread = threading.Thread(target=lambda: results.append(process.wait(HANG)))
        thread.start()
        process.kill()
        thread.join(HANG)
    assert [result.outcome for result in results] == [Outcome.KILLED]


_INTERRUPTED = """
import os
import capsule
def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()
before = sorted(os.listdir("/proc/self/fd"))
try:
    with capsule.start(["sh", "-c", "trap '' INT TERM; sleep 1000"]) as process:
        os.write(2, b"running\\n")
        process.wait()
except KeyboardInterrupt:
    print(children(), sorted(os.listdir("/proc/self/fd")) == before)
"""


def test_ctrl_c_in_the_caller_ends_the_run() -> None:
    """KeyboardInterrupt passes through wait(), and the block leaves no process and no descriptor."""
    with subprocess.Popen(
        [PYTHON, "-c", _INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as caller:
        assert caller.stderr is not None
        assert caller.stderr.readline() == b"running\n"
        caller.send_signal(signal.SIGINT)
        output, errors = caller.communicate(timeout=HANG)
    assert (output, errors) == (b"[] True\n", b"")


# The handler stands for Ctrl-C, whose moment nobody can choose so finely.
_INTERRUPTED_OFTEN = """
import os, random, signal, sys, time, warnings
import capsule
from capsule.process import base, launch
# Each run makes a base, too, and joins it.
base.OFTEN, launch.FIRST_RUNS = 1, 0
class Interrupt(BaseException):
    pass
def interrupt(number, frame):
    raise Interrupt
def held():
    base.drop_all()
    fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in range(60)
           if os.path.islink(f"/proc/self/fd/{fd}")}
    return fds, open(f"/proc/self/task/{os.getpid()}/children").read().split()
# A process that was dropped between start() and the with block says so, and is ended.
warnings.simplefilter("ignore", ResourceWarning)
# An interrupt that falls into a __del__ is printed by Python, which passes none on from there.
told = sys.unraisablehook
sys.unraisablehook = lambda what: None if what.exc_type is Interrupt else told(what)
signal.signal(signal.SIGALRM, interrupt)
moments, runs, left = random.Random(1), int(sys.argv[1]), []
capsule.run(["true"])
before = held()
for _ in range(runs):
    moment = moments.uniform(0.0002, 0.014)
    try:
        signal.setitimer(signal.ITIMER_REAL, moment)
        capsule.run(["sleep", "0.004"])
        time.sleep(1)
    except Interrupt:
        pass
    after = held()
    if after != before:
        left.append((moment, after))
        before = after
print(len(left), "of", runs, left[:3])
"""


def _interrupt_often(runs: int) -> None:
    command = [PYTHON, "-c", _INTERRUPTED_OFTEN, str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=runs * 0.5)
    assert (done.stdout, done.stderr) == (f"0 of {runs} []\n", "")


def test_an_exception_at_any_moment_leaves_nothing() -> None:
    """A handler that raises, 200 times at random moments of a run, leaves no process, no descriptor."""
    _interrupt_often(200)


@pytest.mark.slow
def test_an_exception_at_many_moments_leaves_nothing() -> None:
    """The same 5,000 times."""
    _interrupt_often(5000)


def test_a_fork_of_the_caller_may_exit() -> None:
    """A child that has the Process object, too, does not end the capsule by ending."""
    with capsule.start(["cat"], stdin=PIPE) as process:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert await_end(pid)
        os.waitpid(pid, 0)
        writer(process).write(b"still here\n")
        writer(process).flush()
        assert reader(process).readline() == b"still here\n"


def test_bad_signals_are_refused() -> None:
    """What is no signal is a ValueError, and reaches nobody."""
    with capsule.start(["cat"], stdin=PIPE) as process:
        for number in (-1, 0, 65, 128 + signal.SIGTERM, 300):
            with pytest.raises(ValueError, match=str(number)):
                process.send_signal(number)
        assert process.wait(HANG).ok

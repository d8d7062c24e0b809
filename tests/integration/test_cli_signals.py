"""Signals that come to the command line."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

import pytest

from tests.integration.command_line import host_variable, in_shell
from tests.support import (
    CAPSULE,
    HANG,
    PYTHON,
    await_end,
    descendants,
    give,
)

# --- signals ------------------------------------------------------------------------------------

FORWARDED = ["SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2"]
READY = b"ready\n"


def started(script: str, *before: str, **options: Any) -> subprocess.Popen[bytes]:
    """A run of a shell script that says `ready` when it is."""
    words = [*before, CAPSULE, "sh", "-c", script]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd="/", **options
    )
    assert process.stdout is not None
    assert read_until(process.stdout, READY) == READY
    return process


def read_until(pipe: IO[bytes], end: bytes) -> bytes:
    """Bytes up to an end, or up to the pipe's."""
    data = b""
    while not data.endswith(end):
        assert select.select([pipe], [], [], HANG)[0], f"nothing came after {data!r}"
        byte = os.read(pipe.fileno(), 1)
        if not byte:
            break
        data += byte
    return data


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """(Status or -signal, what else it wrote, what it said)."""
    out, said = process.communicate(timeout=HANG)
    assert b"Traceback" not in said
    return process.returncode, out, said


@pytest.mark.parametrize("name", FORWARDED)
def test_a_signal_to_the_command_line_ends_both(name: str) -> None:
    """It is passed on, and what it ends inside ends the command line by the same signal."""
    process = started("echo ready; exec sleep 1000")
    process.send_signal(signal.Signals[name])
    assert ended(process) == (-signal.Signals[name], b"", b"")


@pytest.mark.parametrize("name", FORWARDED)
def test_a_command_that_takes_a_signal(name: str) -> None:
    """What the command makes of the signal counts: its own status comes out."""
    process = started(f"trap 'echo got; exit 5' {name[3:]}; echo ready; sleep 1000 & wait")
    process.send_signal(signal.Signals[name])
    assert ended(process) == (5, b"got\n", b"")


def test_no_signal_is_lost() -> None:
    """A signal that comes as soon as the command is there, again and again, is passed on each time."""
    for _ in range(25):
        process = started("trap 'exit 5' USR1; echo ready; sleep 1000 & wait")
        process.send_signal(signal.SIGUSR1)
        assert ended(process) == (5, b"", b"")


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"])
def test_a_signal_that_was_ignored_stays_ignored(name: str) -> None:
    """As under nohup(1): what the caller ignores is not passed on, what follows it is."""
    script = f"trap 'echo no' {name[3:]}; trap 'echo yes; exit 0' USR1; echo ready; sleep 1000 & wait"
    process = started(script, "sh", "-c", f"trap '' {name[3:]}; exec \"$@\"", "sh")
    process.send_signal(signal.Signals[name])
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == (0, b"yes\n", b"")


def test_quit_leaves_no_core() -> None:
    """The command line that dies of SIGQUIT does not dump its memory."""
    process = started(
        "echo ready; exec sleep 1000", "sh", "-c", 'ulimit -c $(ulimit -H -c); exec "$@"', "sh"
    )
    process.send_signal(signal.SIGQUIT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGQUIT
    ended(process)
    assert os.WTERMSIG(status) == signal.SIGQUIT
    assert not os.WCOREDUMP(status)


def test_a_stop_is_a_stop_inside_too() -> None:
    """SIGTSTP stops the command and then the command line; SIGCONT continues both."""
    # A session of its own would be an orphaned process group, which nothing stops.
    process = started("echo ready; exec sleep 1000", process_group=0)
    process.send_signal(signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    # Below init.
    (command,) = (s.pid for s in descendants(process.pid) if s.parent != process.pid)
    await_state(command, "T")
    process.send_signal(signal.SIGCONT)
    await_state(command, "S")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == -signal.SIGTERM


def await_state(pid: int, state: str) -> None:
    """Wait for a process to be in a state; the kernel tells of it to its parent only, which is init."""
    until = time.monotonic() + HANG
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != state:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_kill_ends_everything() -> None:
    """SIGKILL of the command line leaves nobody of the capsule."""
    process = started("setsid sleep 1000 & trap '' TERM; echo ready; wait")
    inside = [s.pid for s in descendants(process.pid)]
    assert len(inside) >= 3
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert all(await_end(pid) for pid in inside)


# --- a signal during the start ------------------------------------------------------------------

# The very script, in an interpreter that has told that it is about to run it.
_TELLING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
path = sys.argv[1]
sys.argv[:] = sys.argv[1:]
script = compile(open(path, "rb").read(), path, "exec")
os.write(1, b"ready\\n")
exec(script, {"__name__": "__main__"})
"""


def _interrupt_the_start(number: int, moment: float) -> None:
    before = {s.pid for s in descendants(os.getpid())}
    script = ("sh", "-c", "setsid sleep 1000 & exec sleep 1000")
    process = subprocess.Popen(
        [PYTHON, "-c", _TELLING, f"{CAPSULE}-python", *script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdout is not None
    assert read_until(process.stdout, READY) == READY
    time.sleep(moment)
    process.send_signal(number)
    assert ended(process) == (-number, b"", b""), f"after {moment:.4f} s"
    for found in descendants(os.getpid()):
        assert found.pid in before or await_end(found.pid), found


@pytest.mark.parametrize(("number", "count"), [(signal.SIGINT, 30), (signal.SIGTERM, 10)])
def test_a_signal_at_any_moment_of_the_start(number: int, count: int) -> None:
    """It ends the command line by that signal, without a word, and nobody is left."""
    moments = random.Random(number)
    for _ in range(count):
        # The whole start takes some 30 ms; a few later ones find the command running.
        _interrupt_the_start(number, moments.uniform(0, 0.05))


def test_ctrl_c_during_the_imports(place: Path) -> None:
    """The script lets SIGINT end it before it imports anything that takes time."""
    (place / "capsule").mkdir()
    (place / "capsule" / "__init__.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    env = host_variable(PYTHONPATH=str(place), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([PYTHON, f"{CAPSULE}-python", "true"], capture_output=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_sigchld_was_ignored() -> None:
    """A parent that ignores SIGCHLD, which a program inherits, changes nothing."""
    code = (
        "import os, signal, sys; signal.signal(17, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [PYTHON, "-c", code, CAPSULE, "sh", "-c", "sleep 0; exit 9"],
        capture_output=True,
        timeout=HANG,
        cwd="/",
    )
    assert (done.returncode, done.stderr) == (9, b"")


def test_standard_input_is_the_commands() -> None:
    """What the command leaves of its input is there for who comes next: Capsule reads none of it."""
    script = '{ "$capsule" sh -c "read x; echo \\$x"; cat; }'
    done = in_shell(script, input=b"one\ntwo\n")
    assert done.stdout == b"one\ntwo\n"


# A file system that takes a tenth of a second for each directory.
_SLOW = """
import os, time
scandir = os.scandir
def slow(directory):
    time.sleep(0.1)
    print("ready", flush=True)
    return scandir(directory)
os.scandir = slow
from capsule.cli.main import entry
entry()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_during_the_survey_ends_it(name: str, place: Path) -> None:
    """A survey that takes minutes holds no signal back, and the command is never started."""
    for number in range(1000):
        (place / f"{number}").mkdir()
    script = f"touch {give(place)}/ran"
    words = [PYTHON, "-c", _SLOW, "--rw", str(place), "--hide", "*.key", "--", "sh", "-c", script]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, cwd="/")
    assert process.stdout is not None
    assert read_until(process.stdout, READY) == READY
    process.send_signal(signal.Signals[name])
    status, _, said = ended(process)
    assert (status, said) == (-signal.Signals[name], b"")
    assert not (place / "ran").exists()

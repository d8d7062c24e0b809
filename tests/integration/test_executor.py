"""Python functions in capsules: results, ends, and workers that do not play by the rules."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import capsule
from capsule import CallFailed, CommandFailed, Garbled, Outcome
from tests.support import PYTHON, await_end, children, give, open_descriptors

HANG = 60


@pytest.fixture(params=[False, True], ids=["one for each", "shared"])
def executor(request: pytest.FixtureRequest) -> Iterator[capsule.Executor]:
    """One of each kind."""
    with capsule.Executor(max_workers=2, share=request.param, timeout=30) as made:
        yield made


def source(executor: capsule.Executor, text: str, **names: Any) -> Any:
    """What source comes to."""
    return executor.submit_source(text, **names).result(HANG)


# --- results ---------------------------------------------------------------------------------------


def test_a_function(executor: capsule.Executor) -> None:
    """Of a module, a lambda, one of this file with what it holds; by submit, map and call."""
    more = 10
    assert executor.submit(pow, 2, 5, mod=7).result(HANG) == 4
    assert executor.submit(lambda x: x + more, 1).result(HANG) == 11
    assert list(executor.map(lambda x, y: [x, y], [1, 2], "ab", timeout=HANG)) == [[1, "a"], [2, "b"]]
    assert executor.call(os.getpid) != os.getpid()


def test_source(executor: capsule.Executor) -> None:
    """The last expression is the result; names come along; so does numpy."""
    assert source(executor, "x = 1\nx + y", y=[2][0]) == 3
    assert source(executor, "x = 1") is None
    assert source(executor, "") is None
    found = source(
        executor, "import numpy\n{'a': numpy.arange(6).reshape(2, 3) * b}", b=numpy.array(1.5)
    )
    assert found["a"].tolist() == [[0, 1.5, 3], [4.5, 6, 7.5]]


def test_an_exception(executor: capsule.Executor) -> None:
    """It is text: type, message and traceback, none of which a terminal obeys."""
    with pytest.raises(CallFailed) as caught:
        source(executor, "def f():\n    raise ValueError('no \\x1b[31m\\u202e')\nf()")
    error = caught.value
    assert error.type == "ValueError"
    assert "in f" in error.traceback
    assert str(error).replace("\n", "").isprintable()
    assert pickle.loads(pickle.dumps(error)).traceback == error.traceback
    for text, kind in (
        ("raise SystemExit(3)", "SystemExit"),
        ("1 +", "SyntaxError"),
        ("x", "NameError"),
    ):
        with pytest.raises(CallFailed) as caught:
            source(executor, text)
        assert caught.value.type == kind


def test_a_result_that_does_not_go_out(executor: capsule.Executor) -> None:
    """It says which type, or how large it is."""
    with pytest.raises(CallFailed, match="type module"):
        source(executor, "import os\nos")
    with capsule.Executor(max_workers=1, result_size="1K") as other:
        with pytest.raises(CallFailed, match="more than the 1024 allowed"):
            source(other, "b'x' * 2000")
        assert source(other, "b'x' * 500") == b"x" * 500


def test_a_large_call_and_a_large_result(executor: capsule.Executor) -> None:
    """Both ways, more than a socket holds."""
    data = os.urandom(5 << 20)
    assert source(executor, "data[::-1]", data=data) == data[::-1]


def test_trusted_results() -> None:
    """Pickles, where the caller says so: any class goes."""
    with capsule.Executor(max_workers=1, trust_results=True) as executor:
        found = source(
            executor, "import fractions, decimal\n[fractions.Fraction(1, 3), decimal.Decimal(1)]"
        )
        assert [type(one).__name__ for one in found] == ["Fraction", "Decimal"]


def test_a_call_that_cannot_be_pickled(executor: capsule.Executor) -> None:
    """It is the request that is wrong."""
    with pytest.raises(capsule.PolicyError, match="pickled"):
        executor.submit(len, threading.Lock()).result(HANG)


WITHOUT = """
import sys
sys.modules["cloudpickle"] = None
import capsule
def mine():
    return 1
with capsule.Executor(max_workers=1) as executor:
    print(executor.submit(pow, 2, 3).result())
    try:
        executor.submit(mine).result()
    except capsule.PolicyError as error:
        print(error.hint)
"""


def test_without_cloudpickle() -> None:
    """What is in modules goes; for the rest it is named."""
    done = subprocess.run([PYTHON, "-c", WITHOUT], capture_output=True, text=True, timeout=HANG)
    assert done.stdout.startswith("8\npip install cloudpickle")
    assert done.stderr == ""


# --- what a call leaves --------------------------------------------------------------------------


def test_each_call_begins_anew() -> None:
    """Of globals, files and threads of one call the next sees nothing."""
    leave = (
        "import builtins, os, threading, time\nbuiltins.mine = 1\nopen('/tmp/mine', 'w').close()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nos.environ['MINE'] = '1'"
    )
    look = (
        "import builtins, os, threading\n[hasattr(builtins, 'mine'), os.path.exists('/tmp/mine'), "
        "threading.active_count(), 'MINE' in os.environ]"
    )
    with capsule.Executor(max_workers=1) as executor:
        source(executor, leave)
        assert source(executor, look) == [False, False, 1, False]
    with capsule.Executor(max_workers=1, share=True) as executor:
        source(executor, leave)
        # Files are shared, memory is not.
        assert source(executor, look) == [False, True, 1, False]


def test_random_numbers_differ() -> None:
    """Forks of one interpreter do not draw the same."""
    with capsule.Executor(max_workers=2, share=True, preload=["random", "numpy.random"]) as executor:
        draw = "import random, numpy.random\n[random.random(), float(numpy.random.random())]"
        first, second = source(executor, draw), source(executor, draw)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_preload() -> None:
    """What is named is imported ahead; what cannot be is what each call says."""
    with capsule.Executor(max_workers=1, preload=["wave"]) as executor:
        assert source(executor, "import sys\n'wave' in sys.modules") is True
    for share in (False, True):
        with capsule.Executor(max_workers=1, preload=["no_such_module"], share=share) as executor:
            for _ in range(2):
                with pytest.raises(CallFailed, match="no_such_module"):
                    source(executor, "1")


# --- limits ---------------------------------------------------------------------------------------


def test_the_time_of_a_call() -> None:
    """It counts from the call on, and ends that call alone."""
    for share in (False, True):
        with capsule.Executor(max_workers=2, timeout=0.5, share=share) as executor:
            assert source(executor, "1") == 1
            threading.Event().wait(0.7)
            assert source(executor, "import time\ntime.sleep(0.1)\n2") == 2
            with pytest.raises(CommandFailed) as caught:
                source(executor, "while True: pass")
            assert caught.value.result.outcome is Outcome.TIMED_OUT
            assert caught.value.result.detail == "after 0.5 s"
            assert source(executor, "3") == 3


def test_limits_of_the_policy() -> None:
    """Output is counted, CPU time as well; the whole result is in the error."""
    with capsule.Executor(max_workers=1, output=1000) as executor:
        with pytest.raises(CommandFailed) as caught:
            source(executor, "while True: print('x' * 100)")
        assert caught.value.result.outcome is Outcome.OUTPUT_LIMIT
    with capsule.Executor(max_workers=1, cpu_time=0.5, allow_degraded=["cpu_time"]) as executor:
        with pytest.raises(CommandFailed) as caught:
            source(executor, "while True: pass")
        assert caught.value.result.outcome is Outcome.CPU_TIME
    with pytest.raises(capsule.PolicyError, match="idle"):
        capsule.Executor(idle=3)
    for workers in (0, True, "2"):
        with pytest.raises(capsule.PolicyError, match="max_workers"):
            capsule.Executor(max_workers=workers)  # type: ignore[arg-type]


def test_it_prints_more_than_a_pipe_holds(executor: capsule.Executor) -> None:
    """Nobody waits for a reader."""
    assert source(executor, "print('x' * (1 << 20))\n1") == 1


SHUT_IN = """
import errno, os
try:
    os.mkdir(path)
    outcome = "done"
except OSError as error:
    outcome = errno.errorcode[error.errno]
with open("/tmp/harmless", "w+") as file:
    alive = file.write("done")
[outcome, alive]
"""


@pytest.mark.parametrize("share", [False, True], ids=["one for each", "shared"])
def test_it_is_shut_in(share: bool, tmp_path: Path) -> None:
    """The policy is that of any capsule: done outside, that very errno inside, and it is alive."""
    path = str(give(tmp_path) / "new")
    os.mkdir(path)
    os.rmdir(path)
    mounts = [capsule.Mount.read_only(str(tmp_path))]
    with capsule.Executor(max_workers=1, share=share, mounts=mounts) as executor:
        assert source(executor, SHUT_IN, path=path) == ["EROFS", 4]


def test_as_many_at_once_as_asked_for() -> None:
    """Two of two wait for each other; two of one would wait for ever."""
    meet = (
        "import os, time\nopen(f'/tmp/{me}', 'w').close()\nend = time.monotonic() + patience\n"
        "while not os.path.exists(f'/tmp/{other}') and time.monotonic() < end: time.sleep(0.01)\n"
        "os.path.exists(f'/tmp/{other}')"
    )
    for workers, patience, met in ((2, HANG, [True, True]), (1, 0.3, [False, True])):
        with capsule.Executor(max_workers=workers, share=True) as executor:
            names = ({"me": "a", "other": "b"}, {"me": "b", "other": "a"})
            futures = [executor.submit_source(meet, patience=patience, **one) for one in names]
            assert [future.result(HANG) for future in futures] == met


def test_another_interpreter(tmp_path: Path) -> None:
    """The one that is named runs the calls."""
    with capsule.Executor(max_workers=1) as executor:
        assert source(executor, "import sys\nsys.executable") == PYTHON
    link = tmp_path / "other-python"
    link.symlink_to(os.path.realpath(PYTHON))
    with capsule.Executor(max_workers=1, python=str(link)) as executor:
        assert source(executor, "import sys\nsys.executable") == str(link)


# --- hostile ---------------------------------------------------------------------------------------

# Finds the channel: of a worker by its argument, of a fork as its only socket.
CHANNEL = """
import json, os, pickle, socket, stat, struct, sys, time
fds = [int(fd) for fd in os.listdir("/proc/self/fd")]
def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
channel = socket.socket(fileno=max(filter(is_socket, fds)))
def send(text, blob=b"", sizes=None):
    channel.sendall(struct.pack("=QQ", *(sizes or (len(text), len(blob)))) + text + blob)
class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/capsule-was-here",)
"""
HOSTILE = {
    "garbage": ("channel.sendall(os.urandom(100_000))", (Garbled,)),
    "10 GB": ("send(b'', sizes=(10 << 30, 0))", (Garbled,)),
    "10 GB sent": ("while True: channel.sendall(b'\\0' * 7 + b'\\x7f' + b'x' * 100_000)", (Garbled,)),
    "a pickle": ("send(b'', pickle.dumps(Evil()))", (Garbled,)),
    "a pickle as value": (
        (
            "blob = pickle.dumps(Evil())\n"
            "value = {'$': 'pickle', 'at': [0, len(blob)]}\n"
            "send(json.dumps({'id': '0', 'value': value}).encode(), blob)"
        ),
        (Garbled,),
    ),
    "silence": ("time.sleep(60)", (CommandFailed,)),
    "a closed channel": ("channel.close()\ntime.sleep(60)", (CallFailed,)),
    "half an answer": ("send(b'{', sizes=(100, 0))\nchannel.close()\nos._exit(0)", (CallFailed,)),
    "another call's": ("send(json.dumps({'id': '00' * 8, 'value': 1}).encode())", (Garbled,)),
    "no answer's shape": ("send(b'[1]')", (Garbled,)),
    "no end of depth": ("send(b'[' * 100_000 + b']' * 100_000)", (Garbled,)),
    "many values": ("send(b'[' + b'1,' * 2_000_000 + b'1]')", (Garbled,)),
    "an error of another shape": ("send(json.dumps({'id': '0', 'error': [1]}).encode())", (Garbled,)),
    "more than one": ("send(b'[1]')\nsend(b'[1]')", (Garbled,)),
    "it kills itself": (
        "import signal\nos.kill(os.getpid(), signal.SIGKILL)",
        (CommandFailed, CallFailed),
    ),
}


@pytest.mark.parametrize("share", [False, True], ids=["one for each", "shared"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_worker(name: str, share: bool) -> None:
    """A clear error for that call, at once or with its time; the rest goes on."""
    act, kinds = HOSTILE[name]
    with capsule.Executor(timeout=2, max_workers=2, share=share) as other:
        beside = other.submit_source("import time\ntime.sleep(0.3)\n'beside'")
        with pytest.raises(kinds) as caught:
            source(other, CHANNEL + act + "\ntime.sleep(60)")
        assert str(caught.value).replace("\n", "").isprintable()
        assert beside.result(HANG) == "beside"
        assert source(other, "'after'") == "after"
    assert not os.path.exists("/tmp/capsule-was-here")


def test_a_shared_interpreter_that_is_killed() -> None:
    """Its calls say so, and the next has another one."""
    with capsule.Executor(max_workers=2, share=True, timeout=30) as executor:
        assert source(executor, "1") == 1
        with pytest.raises((CommandFailed, CallFailed)):
            source(
                executor,
                "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)",
            )
        assert source(executor, "2") == 2


def test_an_interpreter_that_is_killed_while_it_waits() -> None:
    """The call that finds it says so, and the next has another one."""
    with capsule.Executor(max_workers=1, timeout=30) as executor:
        assert source(executor, "1") == 1
        end = time.monotonic() + HANG
        while not executor._waiting:
            assert time.monotonic() < end
            time.sleep(0.01)
        waiting = executor._waiting[0]._process.pid
        os.kill(waiting, signal.SIGKILL)
        assert await_end(waiting)
        with pytest.raises(CommandFailed) as caught:
            source(executor, "2")
        assert caught.value.result.outcome is Outcome.KILLED
        assert source(executor, "3") == 3


# --- as an executor ---------------------------------------------------------------------------------


def test_on_a_loop(executor: capsule.Executor) -> None:
    """As any executor of concurrent.futures."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, pow, 2, n) for n in range(6)))

    assert asyncio.run(main()) == [1, 2, 4, 8, 16, 32]


def test_shutdown() -> None:
    """What was submitted is done, or cancelled; then nothing more is taken, and nothing is left."""
    capsule.run(["true"])
    before, fds = children(), len(open_descriptors())
    for share in (False, True):
        executor = capsule.Executor(max_workers=1, share=share)
        futures = [executor.submit_source("import time\ntime.sleep(0.2)\n1") for _ in range(4)]
        futures[0].result(HANG)
        executor.shutdown(cancel_futures=True)
        assert any(future.cancelled() for future in futures)
        assert all(future.done() for future in futures)
        with pytest.raises(RuntimeError):
            executor.submit(pow, 2, 3)
        with capsule.Executor(max_workers=3, share=share) as other:
            other.submit(pow, 2, 3)
    assert (children(), len(open_descriptors())) == (before, fds)


PICKLED = """
import pickle, sys
import capsule
executor = capsule.Executor(capsule.Policy(env=(("A", "b"),)), max_workers=1, timeout=30)
calls = [pickle.loads(pickle.dumps(executor.call)) for _ in range(3)]
assert len({id(call.__self__) for call in calls}) == 1 and calls[0].__self__ is not executor
print([call(pow, 2, 3) for call in calls], calls[0](lambda: __import__("os").environ.get("A")))
executor.shutdown()
"""


def test_it_pickles() -> None:
    """In each process that it comes to it is one that all such share; it ends with the process."""
    done = subprocess.run(
        [PYTHON, "-W", "error", "-c", PICKLED], capture_output=True, text=True, timeout=HANG
    )
    assert (done.stdout, done.stderr) == ("[8, 8, 8] b\n", "")


def test_policies_results_and_errors_pickle() -> None:
    """What goes between machines."""
    result = capsule.run(
        ["sh", "-c", "unshare -r true; exit 3"], capsule.Policy(limits=capsule.Limits(timeout=9))
    )
    assert pickle.loads(pickle.dumps(result)) == result
    with pytest.raises(CommandFailed) as caught:
        result.check()
    for error in (
        caught.value,
        capsule.PolicyError("message", field="a", value=1, hint="b"),
        capsule.HostError("message", hint="b"),
        Garbled("message"),
        _setup_error(),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.hint, again.exit_code) == (str(error), error.hint, error.exit_code)


def _setup_error() -> capsule.CapsuleError:
    with pytest.raises(capsule.SetupError) as caught:
        capsule.run(["nowhere"])
    return caught.value

"""capsule.run: what goes in, what comes out, and what the result tells."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import DEVNULL, PIPE, STDOUT, Limits, Mount, Outcome, Policy
from tests.support import CAPSULE, HANG, PYTHON, ask, ask_outside, nothing_left, probe_args

# --- output -------------------------------------------------------------------------------------

_BOTH = ["sh", "-c", "echo out; echo err >&2"]


def test_output_is_captured_as_bytes() -> None:
    """Both streams are captured, each by itself."""
    result = capsule.run(_BOTH)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_stderr_can_join_stdout() -> None:
    """With STDOUT both arrive in the order in which they were written."""
    result = capsule.run(["sh", "-c", "echo 1; echo 2 >&2; echo 3"], stderr=STDOUT)
    assert (result.stdout, result.stderr) == (b"1\n2\n3\n", None)
    result = capsule.run(_BOTH, stdout=DEVNULL, stderr=STDOUT)
    assert (result.stdout, result.stderr) == (None, None)


def test_output_can_be_dropped() -> None:
    """DEVNULL is /dev/null, as in subprocess, whose constants do."""
    result = capsule.run(_BOTH, stdout=DEVNULL, stderr=subprocess.DEVNULL)
    assert (result.stdout, result.stderr) == (None, None)
    names = ("PIPE", "STDOUT", "DEVNULL")
    assert [getattr(capsule, name) for name in names] == [getattr(subprocess, name) for name in names]


def test_output_can_go_to_a_file_or_a_descriptor() -> None:
    """A file object and a number mean the same, and the position goes on from where it was."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, nothing_left():
        out.write(b"before\n")
        out.flush()
        result = capsule.run(_BOTH, stdout=out, stderr=err.fileno())
        assert (result.stdout, result.stderr) == (None, None)
        out.seek(0)
        err.seek(0)
        assert (out.read(), err.read()) == (b"before\nout\n", b"err\n")


def test_output_can_be_inherited() -> None:
    """INHERIT is the caller's own stdin, stdout and stderr."""
    code = """
import capsule
inherit = capsule.INHERIT
capsule.run(["sh", "-c", "cat; echo err >&2"], stdin=inherit, stdout=inherit, stderr=inherit)
"""
    done = subprocess.run([PYTHON, "-c", code], input=b"given\n", capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr) == (b"given\n", b"err\n")


def test_streams_can_be_opened_by_name() -> None:
    """/dev/stdin, /dev/stdout and /dev/stderr work, which scripts use."""
    script = "cat /dev/stdin >/dev/stdout; echo err >/dev/stderr"
    result = capsule.run(["sh", "-c", script], input=b"in")
    assert (result.stdout, result.stderr) == (b"in", b"err\n")


def test_inherited_pipes_can_be_opened_by_name() -> None:
    """Of the command line, too, where they are the caller's: root's are nobody's meanwhile."""
    command = [
        CAPSULE,
        "run",
        "--",
        "sh",
        "-c",
        "cat /dev/stdin; echo a >/dev/stderr; echo b | tee /dev/stderr",
    ]
    done = subprocess.run(command, input=b"in\n", capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr, done.returncode) == (b"in\nb\n", b"a\nb\n", 0)


def test_nothing_written_is_empty_not_none() -> None:
    """A captured stream that stayed empty is b"", or "" as text."""
    result = capsule.run(["true"])
    assert (result.stdout, result.stderr) == (b"", b"")
    result = capsule.run(["true"], text=True)
    assert (result.stdout, result.stderr) == ("", "")


# --- text ---------------------------------------------------------------------------------------


def test_text_is_utf8_with_universal_newlines() -> None:
    """text=True decodes UTF-8, turns \\r\\n and \\r into \\n, and encodes the input."""
    result = capsule.run(["cat"], input="grün\r\nblau\rrot\n", text=True)
    assert result.stdout == "grün\nblau\nrot\n"


def test_bytes_that_are_no_text_raise_nothing() -> None:
    """Undecodable output is replaced: a hostile program cannot raise in the caller."""
    result = capsule.run(["printf", r"a\377\376b\355\240\200"], text=True)
    assert result.stdout.startswith("a\ufffd\ufffdb")


def test_another_encoding() -> None:
    """`encoding` and `errors` choose, and imply text."""
    assert capsule.run(["printf", r"gr\374n"], encoding="latin-1").stdout == "grün"
    assert capsule.run(["cat"], input="grün", encoding="utf-16-le").stdout == "grün"
    assert capsule.run(["printf", r"a\377"], errors="surrogateescape").stdout == "a\udcff"


def test_strict_decoding_raises_and_leaves_nothing() -> None:
    """Who asks for strict decoding gets the exception, after everything is taken down."""
    with nothing_left(), pytest.raises(UnicodeDecodeError):
        capsule.run(["printf", r"a\377"], text=True, errors="strict")


@pytest.mark.parametrize("wrong", [{"encoding": "nonsense"}, {"text": True, "errors": "nonsense"}])
def test_an_unknown_encoding_is_a_policy_error(wrong: dict[str, Any]) -> None:
    """It is found before anything is started."""
    with pytest.raises(capsule.PolicyError, match="nonsense"):
        capsule.run(["true"], **wrong)


# --- input --------------------------------------------------------------------------------------


def test_input_is_empty_unless_given() -> None:
    """The caller's standard input is not the command's."""
    assert capsule.run(["cat"]).stdout == b""
    assert capsule.run(["cat"], stdin=DEVNULL).stdout == b""
    assert capsule.run(["cat"], stdin=PIPE).stdout == b""


def test_input_from_a_file() -> None:
    """A file object or a descriptor is read from its position on."""
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.seek(4)
        assert capsule.run(["cat"], stdin=file).stdout == b"456789"
        os.lseek(file.fileno(), 8, os.SEEK_SET)
        assert capsule.run(["cat"], stdin=file.fileno()).stdout == b"89"


@pytest.mark.row("F-08")
def test_much_input_and_output_at_once() -> None:
    """Input and both outputs, each far larger than a pipe, pass each other without a deadlock."""
    data = os.urandom(1 << 20) * 6
    code = """
while data := os.read(0, 50000):
    for fd in (1, 2):
        rest = data
        while rest:
            rest = rest[os.write(fd, rest):]
"""
    result = capsule.run(probe_args(code), input=data)
    assert result.stdout == data
    assert result.stderr == data


def test_input_that_is_not_read() -> None:
    """A command has a right not to read: no error, no signal to the caller, no hang."""
    with nothing_left():
        data = bytes(10 << 20)
        assert capsule.run(["true"], input=data).ok
        assert capsule.run(["head", "-c", "3"], input=b"abcdef" + data).stdout == b"abc"
        assert capsule.run(["sh", "-c", "exec <&-; echo closed"], input=data).stdout == b"closed\n"


@pytest.mark.parametrize(
    "wrong",
    [{"input": "text"}, {"input": b"x", "stdin": PIPE}, {"input": b"x", "stdin": 0}, {"input": 5}],
)
def test_input_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    """Text for a binary stream, a number, or two inputs at once: PolicyError."""
    with pytest.raises(capsule.PolicyError) as caught:
        capsule.run(["cat"], **wrong)
    assert caught.value.field == "input"


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.row("F-08")
def test_output_beyond_the_limit_ends_the_run() -> None:
    """One byte more than the limit and everything is killed; what is within it is kept."""
    result = capsule.run(["sh", "-c", "printf 0123456789; read x; exit 3"], input=b"x\n", output=10)
    assert (result.outcome, result.returncode, result.truncated) == (Outcome.EXITED, 3, False)
    assert result.stdout == b"0123456789"
    result = capsule.run(["printf", "0123456789x"], output=10)
    assert (result.outcome, result.returncode) == (Outcome.OUTPUT_LIMIT, -9)
    assert (result.truncated, result.stdout) == (True, b"0123456789")
    assert result.describe() == "printf: output limit: more than 10 bytes of output"


def test_the_limit_is_for_both_streams_together() -> None:
    """What is kept of stdout and stderr is, together, exactly the limit."""
    with nothing_left():
        result = capsule.run(["sh", "-c", "yes & yes >&2"], output="1M")
    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert len(result.stdout) + len(result.stderr) == 1 << 20


@pytest.mark.parametrize("options", [{"stdout": DEVNULL}, {"stdout": None}, {"stderr": STDOUT}])
def test_only_what_is_captured_counts(options: dict[str, Any]) -> None:
    """What goes elsewhere has no limit here."""
    result = capsule.run(["sh", "-c", "head -c 100000 /dev/zero; exit 5"], output=100_000, **options)
    assert (result.outcome, result.returncode) == (Outcome.EXITED, 5)


def test_no_limit_of_output() -> None:
    """None is no limit; the default is 16 MiB."""
    script = ["head", "-c", str(17 << 20), "/dev/zero"]
    assert capsule.run(script).outcome is Outcome.OUTPUT_LIMIT
    result = capsule.run(script, Policy(limits=Limits(output=None)))
    assert (result.outcome, len(result.stdout)) == (Outcome.EXITED, 17 << 20)


def test_a_limit_of_nothing() -> None:
    """With 0 any output is too much, and silence is not."""
    assert capsule.run(["true"], output=0).ok
    assert capsule.run(["echo"], output=0).outcome is Outcome.OUTPUT_LIMIT


@pytest.mark.row("F-08")
def test_endless_output_takes_little_memory() -> None:
    """A caller that captures at most 1 MB of an endless stream stays small."""
    code = """
import resource, sys
import capsule
capsule.run(["true"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(20):
    capsule.run(["yes"], output="1M")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, timeout=HANG, text=True)
    assert int(done.stdout) < 16 << 10, "kilobytes"


def test_a_timeout_keeps_the_output_so_far() -> None:
    """The outcome is TIMED_OUT, the exit status 124, and nothing is raised."""
    with nothing_left():
        result = capsule.run(["sh", "-c", "echo begun; sleep 1000"], timeout=0.5, text=True)
    assert (result.outcome, result.exit_status, result.stdout) == (Outcome.TIMED_OUT, 124, "begun\n")


# --- the command's words ------------------------------------------------------------------------


def test_words_arrive_as_they_are() -> None:
    """Each word is one argument, whatever is in it: nothing is split, expanded or decoded."""
    words = [
        "",
        " ",
        "a b",
        "*",
        "$HOME",
        "'",
        '"',
        "new\nline",
        "\\",
        "-x",
        "ä",
        "\udcff\udcfe",
        "\x01",
    ]
    result = capsule.run(
        [PYTHON, "-I", "-c", "import sys; print(ascii(sys.argv[1:]))", *words], text=True
    )
    assert result.stdout == f"{words!a}\n"
    assert result.args[4:] == tuple(words)


def test_words_may_be_bytes_or_paths() -> None:
    """bytes and os.PathLike are words, too."""
    assert capsule.run([b"echo", Path("a/b"), b"\xff"]).stdout == b"a/b \xff\n"


def test_many_words_and_a_large_environment() -> None:
    """300 KB of arguments and as much of environment arrive whole."""
    words = [chr(97 + n % 26) * 100_000 for n in range(3)]
    env = {f"V{n}": word for n, word in enumerate(words)}
    code = "tell([[len(w) for w in sys.argv[2:]], [len(os.environ[f'V{n}']) for n in range(3)]])"
    result = capsule.run([*probe_args(code), *words], env=env)
    assert json.loads(result.stdout) == [[100_000] * 3] * 2


def test_the_result_names_the_given_words() -> None:
    """The arguments in the result are those that the program got."""
    result = capsule.run(["sh", "-c", 'echo "$0" "$@"', "name", "one", "two"], text=True)
    assert result.stdout == "name one two\n"
    assert result.args == ("sh", "-c", 'echo "$0" "$@"', "name", "one", "two")


# --- the result ---------------------------------------------------------------------------------


def test_check_raises_or_returns_the_result() -> None:
    """check() is for who wants an exception; check=True calls it."""
    result = capsule.run(["true"], check=True)
    assert result.check() is result
    for command, text in (
        (["sh", "-c", "echo why >&2; exit 3"], "sh exited with status 3"),
        (["sh", "-c", "kill -TERM $$"], "sh was ended by SIGTERM"),
    ):
        with nothing_left(), pytest.raises(capsule.CommandFailed) as caught:
            capsule.run(command, check=True)
        assert str(caught.value) == text
        assert caught.value.result.args == tuple(command)
    with pytest.raises(capsule.CommandFailed, match=r"sleep: timed out: after 0\.05 s"):
        capsule.run(["sleep", "1000"], timeout="50ms", check=True)


def test_the_result_tells_what_was_in_force() -> None:
    """Namespaces and protections are those of the plan."""
    result, plan = capsule.run(["true"]), capsule.plan(["true"])
    assert (result.namespaces, result.protections) == (plan.namespaces, plan.protections)
    assert {"identity", "processes", "files", "network", "capabilities"} <= set(result.protections)


def test_usage_is_of_the_whole_tree() -> None:
    """CPU time, peak memory and wall time count the command and its children."""
    code = """
import time
child = os.fork()
until = time.process_time() + 0.2
while time.process_time() < until:
    os.getppid()
if child == 0:
    block = bytearray(100 << 20)
    os._exit(0)
os.wait()
"""
    usage = capsule.run(probe_args(code)).check().usage
    assert usage.cpu_user + usage.cpu_system >= 0.35
    assert usage.wall >= 0.2
    assert usage.peak_memory > 100 << 20
    assert usage.minor_faults > 100
    assert usage.voluntary_switches > 0


def test_usage_counts_those_left_behind() -> None:
    """A background process that is killed at the end is counted, too."""
    script = "exec 3<>/tmp/f; (while :; do :; done) & while :; do :; done"
    usage = capsule.run(["sh", "-c", script], timeout=0.3).usage
    assert usage.cpu_user + usage.cpu_system > 0.01


def test_values_survive_pickling() -> None:
    """Policy, Limits, Mount, Result, Plan, Host: equal after a round trip, and hashable."""
    policy = Policy(mounts=(Mount.tmpfs("/a", "1M"),), extra_env={"A": None}, limits=Limits(timeout=5))
    result = capsule.run(["sh", "-c", "echo out; exit 3"], policy)
    for value in (policy, result, result.usage, capsule.plan(["true"], policy), capsule.probe()):
        copy = pickle.loads(pickle.dumps(value))
        assert copy == value
        assert hash(copy) == hash(value)
        assert repr(copy) == repr(value)
        assert type(copy) is type(value)


# --- policies -----------------------------------------------------------------------------------


def test_overrides_change_fields_of_the_policy_and_its_limits() -> None:
    """Keywords are fields; the policy itself stays as it was, and None changes nothing."""
    policy = Policy(hostname="one", limits=Limits(timeout=HANG))
    code = "tell(os.uname().nodename)"
    assert ask(code, policy, hostname="two", timeout=None) == "two"
    assert ask(code, policy) == "one"
    assert capsule.run(["sleep", "1000"], policy, timeout=0.05).outcome is Outcome.TIMED_OUT
    assert policy.limits.timeout == HANG


def test_an_unknown_field_is_refused() -> None:
    """A misspelt keyword is never ignored."""
    with pytest.raises(capsule.PolicyError, match="unknown policy field 'time_out'") as caught:
        capsule.run(["true"], time_out=5)  # type: ignore[call-arg]
    assert caught.value.field == "time_out"


def test_one_policy_serves_many_runs() -> None:
    """Runs share nothing: what one leaves in its private places, the next does not see."""
    policy = Policy()
    for _ in range(3):
        result = capsule.run(["sh", "-c", "ls -A /tmp ~ /dev/shm; touch /tmp/a ~/a /dev/shm/a"], policy)
        assert b"a\n" not in result.check().stdout.replace(b"/", b"")


def test_a_plan_executes_nothing() -> None:
    """plan() gives the steps of a run and starts no process."""
    with nothing_left():
        plan = capsule.plan(["touch", "/tmp/never"], timeout=5)
    text = str(plan)
    assert "execute touch /tmp/never" in text.splitlines()[-1 - len(plan.notes)]
    assert "end everything after 5000 ms" in text


def test_probe_tells_the_truth_about_the_caller() -> None:
    """The facts that decide who the command is are right, and asking again gives the same."""
    host = capsule.probe()
    assert (host.uid, host.gid, host.kernel) == (os.geteuid(), os.getegid(), os.uname().release)
    assert capsule.probe(refresh=True) == host
    assert capsule.probe() is capsule.probe()
    assert capsule.probe(cgroups=True) is capsule.probe(cgroups=True)
    assert capsule.probe().cgroup is None


def test_a_probe_outside_is_no_capsule() -> None:
    """The tests' own controls run on the host: else they would prove nothing."""
    code = "tell([os.getuid(), os.uname().nodename])"
    assert ask_outside(code) == [os.getuid(), os.uname().nodename]
    assert ask(code) == [0, "capsule"]

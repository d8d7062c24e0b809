"""The launcher's reading of plans: a table of malformed ones, and fuzzing."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule.api import look
from capsule.files.found import Survey
from capsule.launcher import spawn
from capsule.launcher import steps as s
from capsule.planner.plan import Terminal, make_plan
from capsule.policy.limits import Limits
from capsule.policy.mounts import Mount
from capsule.policy.policy import Policy
from capsule.process.launch import launch
from capsule.program.command import resolve
from tests.fuzz.mutants import CORPUS
from tests.launcher.build import ALL, FUZZ, HERE, SANITIZE, WARNINGS, build, links_with
from tests.unit.examples import CASES
from tests.unit.wire import kinds

VERSION = "capsule-plan 1"
FEATURES, STOP = ("features", "0"), ("stop", "0")
FORK = ("fork", "0")
EXEC = (*FORK, "exec", "4", "1", "/bin/true", "0", "0")
CAP = 40 << 20
MANY = "18446744073709551615"
LIBFUZZER = ("-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
PLANS = CORPUS / "plan.zip"


def plan(*words: str | tuple[str, ...], version: str = VERSION) -> bytes:
    """Words, or steps of words, each with its NUL, after the version."""
    flat = [version]
    for word in words:
        flat += [word] if isinstance(word, str) else word
    return "\0".join([*flat, ""]).encode()


def padded(size: int) -> bytes:
    """A plan of that size, whose last step is a file of blanks; without an end, so refused."""
    head = plan(("file", "3", "/x", "0"))
    return head + b" " * (size - len(head) - 1) + b"\0"


MALFORMED: dict[str, bytes] = {
    "no step": plan(),
    "no version": plan(STOP)[len(VERSION) + 1 :],
    "empty version": plan(STOP, version=""),
    "other version": plan(STOP, version="capsule-plan 2"),
    "longer version": plan(STOP, version="capsule-plan 10"),
    "version with a blank": plan(STOP, version="capsule-plan 1 "),
    "version alone, no NUL": VERSION.encode(),
    "one NUL": b"\0",
    "one byte": b"x",
    "missing NUL": plan(STOP)[:-1],
    "trailing byte": plan(STOP) + b"x",
    "trailing NUL": plan(STOP) + b"\0",
    "trailing word": plan(STOP, "x"),
    "trailing words": plan(STOP, "x", "0"),
    "cut off after the word": plan("stop"),
    "unknown step": plan(("nope", "0"), STOP),
    "empty word": plan(("", "0"), STOP),
    "other case": plan(("Stop", "0")),
    "part of a word": plan(("sto", "0")),
    "longer word": plan(("stop2", "0")),
    "too few arguments": plan(("identity", "1", "0"), EXEC),
    "too many arguments": plan(("session", "1", "x"), EXEC),
    "an argument too many for a path": plan(("tree", "4", "/usr", "7", "0", "0"), EXEC),
    "no arguments": plan(("uid-map", "0"), STOP),
    "more arguments than words": plan(FORK, ("exec", "9", "1", "/bin/true", "0", "0")),
    "many arguments": plan(FORK, ("exec", MANY, "1", "/bin/true", "0", "0")),
    "count is empty": plan(("stop", "")),
    "count with a sign": plan(("stop", "+0")),
    "count below zero": plan(("stop", "-0")),
    "count with a leading zero": plan(("stop", "00")),
    "count with a blank": plan(("stop", " 0")),
    "count with a tail": plan(("stop", "0x")),
    "count overflows": plan(("stop", "18446744073709551616")),
    "number is empty": plan(("identity", "2", "", "0"), EXEC),
    "number with a leading zero": plan(("identity", "2", "01", "0"), EXEC),
    "number below zero": plan(("identity", "2", "-1", "0"), EXEC),
    "number with a plus": plan(("identity", "2", "+1", "0"), EXEC),
    "number with a tail": plan(("identity", "2", "1", "0 "), EXEC),
    "hexadecimal number": plan(("identity", "2", "0x1", "0"), EXEC),
    "number overflows by one": plan(("identity", "2", "18446744073709551616", "0"), EXEC),
    "number overflows far": plan(("identity", "2", "9" * 30, "0"), EXEC),
    "number of other digits": plan(("identity", "2", "١", "0"), EXEC),
    "relative path": plan(("tree", "3", "usr", "7", "0"), EXEC),
    "empty path": plan(FORK, ("chdir", "1", ""), EXEC[2:]),
    "relative place of a link": plan(("symlink", "2", "/target", "place"), EXEC),
    "no end": plan(("session", "0")),
    "two execs": plan(EXEC, EXEC),
    "no fork": plan(EXEC[2:]),
    "two forks": plan(FORK, EXEC),
    "a fork before init is done": plan(FORK, ("session", "0"), EXEC[2:]),
    "a fork of nothing": plan(FORK, STOP),
    "a fork is the end": plan(FORK),
    "exec is not the last": plan(EXEC, ("no-new-privs", "0")),
    "two stops": plan(STOP, STOP),
    "stop is not the last": plan(STOP, FEATURES),
    "stop and exec": plan(STOP, EXEC),
    "launcher after init": plan(("session", "0"), ("namespaces", "1", "0"), EXEC),
    "init after command": plan(FORK, ("no-new-privs", "0"), ("session", "0"), EXEC[2:]),
    "launcher after command": plan(FORK, ("capabilities", "0"), FEATURES, EXEC[2:]),
    "back to the launcher": plan(FEATURES, ("session", "0"), FEATURES, STOP),
    "stop after command": plan(FORK, ("no-new-privs", "0"), STOP),
    "as large as allowed": padded(CAP),
}
TOO_LARGE = {"empty": b"", "over the cap": padded(CAP + 1), "far over the cap": b"\0" * (CAP * 2)}
GOOD: dict[str, bytes] = {
    "stop": plan(STOP),
    "features": plan(FEATURES, STOP),
    "exec that is never reached": plan(EXEC),
    "a number as large as it gets": plan(("deadline", "1", MANY), EXEC),
    "no words at all to execute": plan(FORK, ("exec", "0")),
}
# What the kernel offers, and that the end is reached.
EXPECTED_RECORDS = {"stop": 1, "features": 2}


# --- the launchers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The launcher with the sanitizers for addresses and undefined behaviour."""
    cc = next((cc for cc in ("gcc", "clang") if links_with(cc, *SANITIZE)), None)
    if cc is None:
        pytest.skip("no compiler here has the sanitizers' libraries")
    place = tmp_path_factory.mktemp("sanitized")
    built = build(place / "capsule-launch", [*ALL, HERE / "sanitize.c"], *SANITIZE, cc=cc)
    return str(built)


@pytest.fixture(params=["shipped", "sanitized"])
def launcher(request: pytest.FixtureRequest) -> str:
    """The launcher that is shipped, and the same with sanitizers."""
    if request.param == "shipped":
        return spawn.LAUNCHER
    return str(request.getfixturevalue("sanitized"))


def launched(data: bytes, launcher: str) -> tuple[bytes, bytes, int, bytes]:
    """(Report, records, exit status, standard error) of a launcher with that plan."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    reading, writing = os.pipe()
    child = spawn.spawn(data, (null, null, writing), launcher=launcher)
    os.close(null)
    os.close(writing)
    try:
        status = spawn.reap(child.pid)
        assert status is not None
        report, records = os.read(child.error, 64), os.read(child.status, 4096)
        return report, records, os.waitstatus_to_exitcode(status), os.read(reading, 65536)
    finally:
        for fd in (child.error, child.status, child.lifeline, reading):
            os.close(fd)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_plan_is_refused(name: str, launcher: str) -> None:
    """The report is (-1, EPROTO): nothing of the plan was done, not even its first step."""
    report = struct.pack("=ii", -1, errno.EPROTO)
    assert launched(MALFORMED[name], launcher) == (report, b"", 125, b"")


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_plan_of_a_wrong_size_is_refused(name: str, launcher: str) -> None:
    """Empty, or over the cap: (-1, E2BIG), without reading it."""
    report = struct.pack("=ii", -1, errno.E2BIG)
    assert launched(TOO_LARGE[name], launcher) == (report, b"", 125, b"")


@pytest.mark.parametrize("name", GOOD)
def test_a_good_plan_is_taken(name: str, launcher: str) -> None:
    """The control: what is well-formed is performed without a report."""
    report, records, status, errors = launched(GOOD[name], launcher)
    assert (report, status, errors) == (b"", 0, b"")
    assert len(records) == 12 * 8 * EXPECTED_RECORDS.get(name, 0)


def test_the_sanitizers_do_report(tmp_path: Path) -> None:
    """The control of the sanitized build: an overflow is seen, and ends the program."""
    cc = next((cc for cc in ("gcc", "clang") if links_with(cc, *SANITIZE)), None)
    if cc is None:
        pytest.skip("no compiler here has the sanitizers' libraries")
    source = tmp_path / "overflow.c"
    source.write_text("int main(int n, char **v) { char a[4] = {0}; (void)v; return a[n + 4]; }\n")
    program = build(tmp_path / "overflow", [source, HERE / "sanitize.c"], *SANITIZE, cc=cc)
    done = subprocess.run([program], capture_output=True, env={}, timeout=20)
    assert done.returncode != 0
    assert b"runtime error" in done.stderr or b"AddressSanitizer" in done.stderr


@pytest.mark.parametrize("old", [False, True], ids=["new kernel", "old kernel"])
def test_a_whole_run_under_the_sanitizers(sanitized: str, tmp_path: Path, old: bool) -> None:
    """A real command in a real capsule, with mounts, ids and a deadline: no report on stderr."""
    tmp_path.chmod(0o777)
    mounts = [
        Mount.read_write(tmp_path, at="/out"),
        Mount.tmpfs("/scratch"),
        Mount.read_only("/usr/lib"),
    ]
    policy = Policy(
        mounts=mounts, cwd="/", uid=1000, gid=1000, limits=Limits(timeout=60), env={"PATH": "/usr/bin"}
    )
    host = capsule.probe()
    command = resolve(["sh", "-c", "echo ran; exec 1>&-; echo done >&2"], policy)
    compiled = make_plan(policy, host.replace(mount_setattr=not old), command, look(policy, command))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    reading, writing = os.pipe()
    try:
        running = launch(compiled, host, command, Survey(), (null, null, writing), launcher=sanitized)
        os.close(writing)
        with open(reading, "rb") as errors:
            assert errors.read() == b"done\n"
        record = spawn.read_record(running.status)
        assert record is not None
        assert record[:2] == (spawn.ENDED, 0)
        spawn.reap(running.pid)
        for fd in (running.pidfd, running.status, running.lifeline):
            os.close(fd)
    finally:
        os.close(null)


# --- fuzzing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with seeds."""
    place = tmp_path_factory.mktemp("seeds")
    write_seeds(place)
    return place


def write_seeds(place: Path) -> None:
    """Write the plans of the examples, and what the table takes for good, into a directory."""
    plans = {name: case.plan().encode() for name, case in CASES.items()}
    plans["probe"] = s.encode((s.Features(), s.Stop()))
    plans["terminal-and-fds"] = (
        CASES["default"]
        ._replace(options={"terminal": Terminal((0,)), "descriptors": ((11, 3),)})
        .plan()
        .encode()
    )
    for name, data in (plans | GOOD).items():
        (place / name.replace(" ", "-")).write_bytes(data)


def dictionary() -> Iterator[str]:
    """The words of steps.def with a count that fits, and numbers at the edges."""
    yield f'"{VERSION}\\x00"'
    for kind in kinds():
        count = 3 if kind.signature == "*" else len(kind.signature)
        yield f'"{kind.word}\\x00{count}\\x00"'
    for word in ("0", "1", "00", MANY, "18446744073709551616", "/", "/x"):
        yield f'"{word}\\x00"'


def test_fuzz_with_mutations(tmp_path: Path, seeds: Path) -> None:
    """Each real plan is accepted; of its variants each is refused or means one thing only."""
    cc = next((cc for cc in ("gcc", "clang") if links_with(cc, *SANITIZE)), None)
    if cc is None:
        pytest.skip("no compiler here has the sanitizers' libraries")
    fuzzer = build(tmp_path / "fuzz", FUZZ, *WARNINGS, *SANITIZE, "-DSTANDALONE", cc=cc)
    files = sorted(map(str, seeds.iterdir()))
    done = subprocess.run([fuzzer, "5000", *files], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 0


def libfuzzer(place: Path, *bounds: str) -> list[str]:
    """Build it with seeds, corpus and dictionary in a directory; return the command to run there."""
    fuzzer = build(place / "fuzz", FUZZ, *WARNINGS, *LIBFUZZER, cc="clang")
    (place / "seeds").mkdir()
    write_seeds(place / "seeds")
    with zipfile.ZipFile(PLANS) as known:
        known.extractall(place / "corpus")
    (place / "words.dict").write_text("\n".join(dictionary()) + "\n")
    fixed = ("-timeout=10", "-max_len=16384", "-dict=words.dict", "-print_final_stats=1")
    return [str(fuzzer), *fixed, *bounds, "corpus", "seeds"]


def test_fuzz_with_coverage(tmp_path: Path) -> None:
    """libFuzzer finds no input that crashes the parser, leaks, or is accepted in two spellings."""
    if not links_with("clang", *LIBFUZZER, "-DNO_MAIN"):
        pytest.skip("clang with libFuzzer is not installed")
    command = libfuzzer(tmp_path, "-seed=1", "-runs=200000", "-max_total_time=20")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "stat::number_of_executed_units" in done.stderr

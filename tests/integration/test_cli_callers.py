"""The command line with odd callers and hostile names, and what it reports to programs."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import capsule
from tests.integration.command_line import (
    HOSTILE,
    both,
    cli,
    executable,
    host_variable,
    in_shell,
    refused,
)
from tests.support import (
    give,
    shared_directory,
)

# --- odd callers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["run", "--help"],
        ["plan", "true"],
        ["doctor"],
        ["--json", "-", "true"],
        ["--output", "1K", "echo", "hi"],
    ],
    ids=" ".join,
)
def test_a_full_disk(words: list[str]) -> None:
    """What cannot be written is said in a line, and the status is 125."""
    with open("/dev/full", "w") as full:
        done = cli(*words, stdout=full)
    assert done.returncode == 125
    assert done.stderr.startswith(b"capsule: ")
    assert b"No space left on device" in done.stderr.splitlines()[0]


def test_a_full_disk_is_the_commands_own_matter() -> None:
    """Output that goes straight through fails for the command, and its status counts."""
    with open("/dev/full", "w") as full:
        done = cli("sh", "-c", "echo hi || exit 7", stdout=full)
    assert done.returncode == 7
    assert b"capsule: " not in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--version"], 141),
        (["run", "--help"], 141),
        (["plan", "true"], 141),
        (["yes"], 141),
        (["--output", "1G", "yes"], 141),
        (["--json", "-", "true"], 125),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_reader_has_gone(words: list[str], status: int) -> None:
    """A closed pipe ends the command line as it ends any program, without a traceback."""
    read, write = os.pipe()
    os.close(read)
    try:
        assert cli(*words, stdout=write).returncode == status
    finally:
        os.close(write)


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_standard_streams(closed: str) -> None:
    """Inside, what the caller has closed is /dev/null; the status is the same as with it open."""
    inside = "for n in 0 1 2; do readlink /proc/self/fd/$n; done >/out/fds; ls /proc/self/fd >>/out/fds"
    with shared_directory() as place:
        words = f'--rw "$1:/out" sh -c "{inside.replace("$", chr(92) + "$")}"'
        for more in ("", "--output 1M", "--timeout 20s"):
            done = in_shell(f'"$capsule" {more} {words} {closed}', str(give(place)))
            assert done.returncode == 0
            streams = (place / "fds").read_text().splitlines()
            for number, word in enumerate(("<&-", ">&-", "2>&-")):
                # What --output counts goes through a pipe in any case.
                wanted = "pipe:" if number and more == "--output 1M" else "/dev/null"
                if word in closed.split() and number != 1:
                    assert streams[number].startswith(wanted), streams


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    ("words", "status"),
    [("--version", 0), ("--help", 0), ("plan true", 0), ("true", 0), ("nosuch", 127), ("--nope", 2)],
)
def test_closed_streams_change_no_status(words: str, status: int, closed: str) -> None:
    """What cannot be said is not said; the status is what it would have been."""
    done = in_shell(f'"$capsule" {words} {closed}')
    assert done.returncode == status


def test_the_report_is_not_what_a_closed_stream_becomes(place: Path) -> None:
    """With all streams closed, what the command writes to any descriptor does not get into --json."""
    report = place / "report"
    script = "for n in 0 1 2 3 4 5 6 7 8 9; do echo forged >&\\$n; done"
    done = in_shell(f'"$capsule" --json "$1" sh -c "{script}" <&- >&- 2>&-', str(report))
    assert done.returncode in (0, 1, 2)
    told = json.loads(report.read_text())
    assert told["outcome"] == "exited"
    assert "forged" not in report.read_text().replace(script.replace("\\", ""), "")


def test_the_working_directory_is_gone(place: Path) -> None:
    """What counts from a deleted directory is refused; what does not is not."""
    gone = 'cd "$1" && rmdir "$1" && shift && exec "$capsule" "$@"'
    for words in (["true"], ["--ro", "x", "--chdir", "/", "true"], ["--root", "x", "true"]):
        (place / "here").mkdir()
        done = in_shell(gone, str(place / "here"), *words)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"the working directory" in done.stderr
        assert b"gone" in done.stderr
        assert b"hint: change to a directory that exists" in done.stderr
        assert (b"--chdir" in done.stderr) == (words == ["true"])
    (place / "here").mkdir()
    assert in_shell(gone, str(place / "here"), "--chdir", "/usr", "pwd").stdout == b"/usr\n"


def test_few_descriptors() -> None:
    """A limit of open files that is too low is one clear message. The shell itself takes 13."""
    for limit in (13, 14, 16, 20, 24):
        done = in_shell(f'ulimit -n {limit}; exec "$capsule" true')
        if done.returncode:
            assert done.returncode == 125
            assert done.stderr.startswith(b"capsule: ")
            assert b"raise ulimit -n" in done.stderr


# --- hostile names ------------------------------------------------------------------------------


def assert_harmless(data: bytes) -> None:
    """No byte moves a cursor, and no name has made a line of its own."""
    text = data.decode("utf-8", "surrogateescape")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), text
    assert not any(line.startswith("b") for line in text.splitlines()), text


@pytest.mark.parametrize(
    "words",
    [
        [HOSTILE],
        [f"/{HOSTILE}"],
        [f"--{HOSTILE}"],
        [f"-{HOSTILE}"],
        ["-q" + HOSTILE, "true"],
        ["--ro", f"/{HOSTILE}", "true"],
        ["--ro", f"/usr:/usr/{HOSTILE}", "true"],
        ["--rw", HOSTILE, "true"],
        ["--tmpfs", HOSTILE, "true"],
        ["--tmpfs", f"/x:{HOSTILE}", "true"],
        ["--root", HOSTILE, "true"],
        ["--chdir", f"/{HOSTILE}", "true"],
        ["--json", f"/{HOSTILE}/x", "true"],
        ["--hostname", HOSTILE, "true"],
        ["--uid", HOSTILE, "true"],
        ["--net", HOSTILE, "true"],
        ["--env", f"={HOSTILE}", "true"],
        ["--timeout", HOSTILE, "true"],
        ["--output", HOSTILE, "true"],
        ["doctor", HOSTILE],
    ],
    ids=lambda words: words[0].partition("\n")[0],
)
def test_a_hostile_name_in_a_message(words: list[str]) -> None:
    """Control characters and newlines in names are shown escaped, whatever the message is about."""
    for env in (None, host_variable(PYTHONIOENCODING="ascii")):
        done = cli(*words, env=env)
        assert done.returncode in (2, 125, 127)
        assert done.stderr.startswith(b"capsule: ")
        assert_harmless(done.stderr)


def test_a_hostile_name_in_a_report(place: Path) -> None:
    """So they are in a plan and in what -v and -vv say; --json holds them as they are."""
    program = executable(place / HOSTILE, "#!/bin/sh\nexec sleep 1000\n")
    for env in (None, host_variable(PYTHONIOENCODING="ascii:strict")):
        plan = cli("plan", program, "é", HOSTILE, cwd=place, env=env)
        assert plan.returncode == 0
        assert_harmless(plan.stdout)
        for flag in ("-v", "-vv"):
            done = cli(flag, "--timeout", "50ms", program, HOSTILE, cwd=place, env=env)
            assert done.returncode == 124
            assert_harmless(done.stderr)
        told = json.loads(cli("--json", "-", "true", HOSTILE, "é", env=env).stdout)
        assert told["args"] == ["true", in_json(HOSTILE), "é"]


def in_json(word: str) -> object:
    """A word as --json writes it: text, or base64 of what is no text."""
    data = os.fsencode(word)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


# --- --json -------------------------------------------------------------------------------------


def report_of(*words: str, status: int) -> dict[str, Any]:
    """What --json - writes, which is all there is on standard output."""
    done = cli("--json", "-", *words)
    assert done.returncode == status
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_whole_result(place: Path) -> None:
    """A file gets every field of the result, and the output goes where it went without it."""
    for spelling in both("--json", f"{place}/report"):
        done = cli(*spelling, "sh", "-c", "echo out; echo err >&2; exit 3")
        assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
        told = json.loads((place / "report").read_text())
        fields = {*capsule.Result.__value_fields__, "signal", "exit_status"}
        assert set(told) == fields
        assert told["args"] == ["sh", "-c", "echo out; echo err >&2; exit 3"]
        assert (told["outcome"], told["returncode"], told["exit_status"]) == ("exited", 3, 3)
        assert (told["stdout"], told["stderr"], told["truncated"]) == (None, None, False)
        assert set(told["usage"]) == set(capsule.Usage.__value_fields__)
        assert told["usage"]["wall"] > 0
        assert "net" in told["namespaces"]
        assert told["protections"]["no_new_privs"] == "set"


def test_the_output_is_in_the_report() -> None:
    """With - the command's output is in the document, and standard output holds nothing else."""
    told = report_of("sh", "-c", "echo out é; echo err >&2", status=0)
    assert (told["stdout"], told["stderr"]) == ("out é\n", "err\n")
    told = report_of("printf", r"\377\000\033", status=0)
    assert base64.b64decode(told["stdout"]["base64"]) == b"\xff\0\x1b"
    assert told["stderr"] == ""


@pytest.mark.parametrize(
    ("words", "status", "outcome", "number"),
    [
        (["sh", "-c", "kill -9 $$"], 137, "signaled", 9),
        (["--timeout", "50ms", "sleep", "1000"], 124, "timed out", 9),
        (["--output", "10", "yes"], 137, "output limit", 9),
        (["true"], 0, "exited", None),
    ],
)
def test_how_it_ended_is_in_the_report(
    words: list[str], status: int, outcome: str, number: int | None
) -> None:
    """The outcome says for certain what the status only hints at."""
    told = report_of(*words, status=status)
    assert (told["outcome"], told["signal"], told["exit_status"]) == (outcome, number, status)
    assert told["truncated"] == (outcome == "output limit")
    if told["truncated"]:
        assert told["stdout"] == "y\n" * 5


@pytest.mark.parametrize(
    ("words", "status", "kind"),
    [
        (["nosuch"], 127, "SetupError"),
        (["/usr"], 126, "SetupError"),
        (["--ro", "/nowhere", "true"], 125, "SetupError"),
        (["--uid", "x", "true"], 2, "PolicyError"),
        ([""], 2, "PolicyError"),
    ],
)
def test_an_error_is_a_report_too(words: list[str], status: int, kind: str) -> None:
    """If the command was not run, the document says why and what to do."""
    error = report_of(*words, status=status)
    assert error["outcome"] is None
    told = error["error"]
    assert (told["type"], told["exit_status"]) == (kind, status)
    said = cli(*words).stderr.decode()
    assert told["message"] in said
    assert told["hint"] is None or told["hint"] in said
    assert (told["errno"] is not None) == (told["step"] is not None) == (kind == "SetupError")


def test_a_report_that_cannot_be_written(place: Path) -> None:
    """A file that cannot be opened stops the run; one that cannot be written to is status 125."""
    give(place)
    touch = ["--rw", str(place), "touch", f"{place}/ran"]
    assert "Is a directory" in refused(2, "--json", str(place), *touch)
    assert not (place / "ran").exists()
    done = cli("--json", "/dev/full", *touch)
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr == b"capsule: cannot write the result to /dev/full: No space left on device\n"
    assert (place / "ran").exists()
    # The command's own failure is not hidden by it.
    assert cli("--json", "/dev/full", "nosuch").returncode == 127

"""The command line: each option from inside, exit statuses, reports, signals, odd callers."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import capsule
from tests.support import (
    CAPSULE,
    HANG,
    OUTSIDE_UID,
    PYTHON,
    REAL_ROOT,
    await_end,
    closed_place,
    descendants,
    give,
    needs,
    shared_directory,
)

Done = subprocess.CompletedProcess[bytes]
# Moves the cursor, breaks the line, sets the window's title, is not UTF-8.
HOSTILE = "a\nb\x1b[31m\x1b]0;x\x07\udcff\x9b"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the command may read."""
    with shared_directory() as directory:
        yield directory


def cli(*words: str, **options: Any) -> Done:
    """Run the command. Whatever it is asked, it shows no traceback."""
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
        "cwd": "/", "timeout": HANG, **options,
    }  # fmt: skip
    done = subprocess.run([CAPSULE, *words], **settings)
    assert b"Traceback" not in (done.stderr or b""), done.stderr.decode()
    return done


def in_shell(script: str, *words: str, **options: Any) -> Done:
    """Run a shell script in which $capsule is the command."""
    settings: dict[str, Any] = {"capture_output": True, "cwd": "/", "timeout": HANG, **options}
    env = {**os.environ, "capsule": CAPSULE}
    done = subprocess.run(["sh", "-c", script, "sh", *words], env=env, **settings)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def shown(*words: str, **options: Any) -> str:
    """What a run prints that ends with 0 and says nothing on standard error."""
    done = cli(*words, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def refused(status: int, *words: str, **options: Any) -> str:
    """The message of a run that does not start: three parts, each on a line, nothing on stdout."""
    done = cli(*words, **options)
    assert (done.returncode, done.stdout) == (status, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("capsule: ")
    assert lines[1].startswith("  ")
    assert lines[1].endswith("The command was not run.")
    assert all(line.startswith("  hint: ") for line in lines[2:])
    assert len(lines) <= 3
    return done.stderr.decode()


def host_variable(**variables: str) -> dict[str, str]:
    """The environment with these variables."""
    return {**os.environ, **variables}


# --- help and version -------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("verb", ["", "run", "plan", "doctor"])
def test_help_is_one_screen(verb: str, flag: str) -> None:
    """At most 60 lines of 80 columns on standard output, status 0."""
    lines = shown(*filter(None, [verb, flag])).splitlines()
    assert 3 <= len(lines) <= 60
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: capsule {verb}".rstrip())
    if not verb:
        assert all(any(word in line for line in lines) for word in ("run", "plan", "doctor"))


def test_version() -> None:
    """--version is the package's."""
    assert shown("--version") == f"capsule {capsule.__version__}\n"


def test_no_word_at_all() -> None:
    """Without a word the usage is on standard error, and the status is that of a mistake."""
    done = cli()
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: capsule")


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [[], ["run"], ["--"], ["run", "--"], ["-q"], ["-q", "--"]])
def test_without_a_verb_it_is_run(before: list[str]) -> None:
    """`capsule COMMAND` runs it, with or without options and `--`."""
    assert shown(*before, "echo", "hi") == "hi\n"


def test_a_command_with_the_name_of_a_verb(place: Path) -> None:
    """The verb itself, or `--`, makes a program that is called `plan` or `run` a command."""
    for name in ("plan", "run", "doctor"):
        (place / name).write_text(f"#!/bin/sh\necho my {name}\n")
        (place / name).chmod(0o755)
        env = host_variable(PATH=f"{place}:{os.environ['PATH']}")
        assert shown("run", name, env=env) == shown("--", name, env=env) == f"my {name}\n"


def test_the_words_of_the_command_are_its_own() -> None:
    """After its name no word is interpreted, and every byte of each reaches it."""
    words = ["--ro", "--help", "-v", "--", "", " ", "*", "$HOME", "a\nb", "\udcff"]
    done = cli("printf", r"%s\0", *words)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


# --- options, seen from inside ----------------------------------------------------------------


def both(flag: str, value: str) -> tuple[list[str], list[str]]:
    """An option in its two spellings."""
    return [flag, value], [f"{flag}={value}"]


def test_ro(place: Path) -> None:
    """--ro shows a file or directory, at its own path or another, and nothing can write to it."""
    (give(place) / "file").write_text("text\n")
    for spelling in (*both("--ro", str(place)), *both("--ro", f"{place}:/input/here")):
        at = spelling[-1].rpartition(":")[2].removeprefix("--ro=")
        script = f"cat {at}/file; echo x 2>&1 >{at}/new; echo $?"
        done = cli(*spelling, "sh", "-c", script)
        assert done.stdout.startswith(b"text\n")
        assert b"Read-only file system" in done.stdout + done.stderr
    assert shown("--ro", f"{place}/file:/tmp/x", "cat", "/tmp/x") == "text\n"
    assert shown("--ro", "file:/tmp/x", "cat", "/tmp/x", cwd=place) == "text\n"
    assert os.listdir(place) == ["file"]


def test_rw(place: Path) -> None:
    """--rw shows a directory, and what is written there is on the host, as the caller's."""
    give(place)
    for number, spelling in enumerate((*both("--rw", str(place)), *both("--rw", f"{place}:/out"))):
        at = "/out" if ":" in spelling[-1] else str(place)
        shown(*spelling, "sh", "-c", f"echo {number} >{at}/{number}")
        assert (place / str(number)).read_text() == f"{number}\n"
        assert (place / str(number)).stat().st_uid == OUTSIDE_UID


def test_tmpfs(place: Path) -> None:
    """--tmpfs is an empty writable directory of 64 MiB, or of the size that is given."""
    script = 'ls -A "$0"; echo x >"$0/x"; stat -f -c "%T %S %b" "$0"'
    for value, size in ((str(place), 64 << 20), (f"{place}:1M", 1 << 20), ("/new/place:8192", 8192)):
        for spelling in both("--tmpfs", value):
            kind, block, blocks = shown(*spelling, "sh", "-c", script, value.partition(":")[0]).split()
            assert (kind, int(block) * int(blocks)) == ("tmpfs", size)
    assert os.listdir(place) == []


def test_root(place: Path) -> None:
    """--root shows a directory as the whole root, read-only, and nothing of the host's."""
    (place / "marker").write_text("mine\n")
    system = capsule.probe().system
    for path, target in system:
        if target is not None:
            (place / path[1:]).symlink_to(target)
    shows = [f"--ro={path}" for path, target in system if target is None]
    for spelling in both("--root", str(place)):
        done = cli(*spelling, *shows, "sh", "-c", "cat /marker; pwd; ls /etc; echo x >/new")
        assert done.stdout == b"mine\n/\n"
        assert b"/etc" in done.stderr
        assert b"Read-only file system" in done.stderr


def test_chdir() -> None:
    """--chdir is the working directory; without it, it is the caller's where that can be shown."""
    for spelling in both("--chdir", "/usr/bin"):
        assert shown(*spelling, "pwd") == "/usr/bin\n"
    assert shown("--chdir", "bin", "sh", "-c", "pwd -P", cwd="/usr") == "/usr/bin\n"
    assert shown("pwd", cwd="/usr/lib") == "/usr/lib\n"


def test_uid_and_gid() -> None:
    """--uid and --gid are the ids inside, 0 if not given."""
    assert shown("sh", "-c", "id -u; id -g") == "0\n0\n"
    for uid, gid in itertools.product(both("--uid", "1234"), both("--gid", "77")):
        assert shown(*uid, *gid, "sh", "-c", "id -u; id -g") == "1234\n77\n"


def test_uid_map_caller() -> None:
    """--uid-map caller, the default, maps one id: the caller's, or nobody's if that is root."""
    for words in ([], *both("--uid-map", "caller")):
        assert shown(*words, "cat", "/proc/self/uid_map").split() == ["0", str(OUTSIDE_UID), "1"]


@needs("no subids")
def test_uid_map_auto_without_a_range() -> None:
    """--uid-map auto where the caller has no range is an error that names the remedy."""
    for spelling in both("--uid-map", "auto"):
        assert "usermod --add-subuids" in refused(125, *spelling, "true")


def test_uid_map_host_root() -> None:
    """--uid-map host-root is for root alone, who is then root outside too."""
    for spelling in both("--uid-map", "host-root"):
        if REAL_ROOT:
            assert shown(*spelling, "cat", "/proc/self/uid_map").split() == ["0", "0", "1"]
        else:
            assert "host-root is for root only" in refused(2, *spelling, "true")


def test_hostname() -> None:
    """--hostname is the host's name inside, `capsule` if not given."""
    assert shown("cat", "/proc/sys/kernel/hostname") == "capsule\n"
    for spelling in both("--hostname", "box-1"):
        assert shown(*spelling, "cat", "/proc/sys/kernel/hostname") == "box-1\n"


def test_env() -> None:
    """-e and --env set a variable or pass the caller's on; one that the caller lacks stays unset."""
    env = host_variable(FROM_CALLER="given on", UNNAMED="x")
    for set_ in (["-eA=1"], ["-e", "A=1"], ["--env", "A=1"], ["--env=A=1"]):
        for pass_ in (["-eFROM_CALLER"], ["--env", "FROM_CALLER"]):
            told = shown(*set_, *pass_, "-e", "EMPTY=", "-e", "NOWHERE", "env", env=env).splitlines()
            assert {"A=1", "FROM_CALLER=given on", "EMPTY="} <= set(told)
            assert not any(line.startswith(("NOWHERE", "UNNAMED")) for line in told)


def test_inherit_env() -> None:
    """--inherit-env passes everything on; without it, only what is harmless."""
    env = host_variable(TOKEN="secret")
    assert "TOKEN=secret" not in shown("env", env=env).splitlines()
    assert "TOKEN=secret" in shown("--inherit-env", "env", env=env).splitlines()


def test_net() -> None:
    """--net host is the host's network; none, the default, is another one."""
    here = os.readlink("/proc/self/ns/net")
    for spelling in both("--net", "host"):
        assert shown(*spelling, "readlink", "/proc/self/ns/net") == f"{here}\n"
    for words in ([], *both("--net", "none")):
        assert shown(*words, "readlink", "/proc/self/ns/net") != f"{here}\n"


@pytest.mark.parametrize("value", ["50ms", "0.05s", "0.05", ".05"])
def test_timeout(value: str) -> None:
    """--timeout kills everything after a time in any of its spellings: status 124, and a message."""
    for spelling in both("--timeout", value):
        done = cli(*spelling, "sh", "-c", "trap '' TERM; echo begun; while :; do :; done")
        assert (done.returncode, done.stdout) == (124, b"begun\n")
        assert done.stderr == b"capsule: timed out: after 0.05 s; raise it with --timeout\n"


@pytest.mark.parametrize(("value", "size"), [("1000", 1000), ("1K", 1024), ("1KB", 1000), ("0", 0)])
def test_output(value: str, size: int) -> None:
    """--output lets so many bytes of both streams through, to the byte, and then kills everything."""
    for spelling in both("--output", value):
        done = cli(*spelling, "sh", "-c", "yes & yes >&2")
        assert done.returncode == 137
        output, _, message = done.stderr.rpartition(b"capsule: ")
        assert len(done.stdout) + len(output) == size
        assert message == b"output limit: more than %d bytes of output; raise it with --output\n" % size
    if size:
        assert len(cli("--output", value, "head", "-c", str(size), "/dev/zero").stdout) == size


def test_quiet() -> None:
    """-q keeps quiet about how a run ended, not about one that did not begin."""
    for flag in ("-q", "--quiet"):
        done = cli(flag, "--timeout", "50ms", "sleep", "1000")
        assert (done.returncode, done.stderr) == (124, b"")
        assert "no directory of PATH has nosuch" in refused(127, flag, "nosuch")


def test_verbose(place: Path) -> None:
    """-v prints the steps before and the end after, on standard error; stdout is the command's."""
    plan = shown("plan", "sh", "-c", "echo out; exit 3", cwd=place)
    for flag in ("-v", "--verbose"):
        done = cli(flag, "sh", "-c", "echo out; exit 3", cwd=place)
        assert (done.returncode, done.stdout) == (3, b"out\n")
        said = done.stderr.decode()
        assert said.startswith(plan)
        end = said.removeprefix(plan).splitlines()
        assert end[0].startswith("capsule: sh exited with status 3; wall ")
        assert "capsule: no_new_privs: set" in end
        assert all(line.startswith("capsule: ") for line in end)


def test_the_last_of_an_option_counts() -> None:
    """A later option overrides an earlier one; of two mounts at one place the later is seen."""
    assert shown("--uid", "1", "--uid", "2", "id", "-u") == "2\n"
    assert shown("--ro", "/etc/passwd:/x", "--tmpfs", "/x", "sh", "-c", "cd /x && pwd") == "/x\n"


# --- plan -------------------------------------------------------------------------------------

IN_THE_PLAN = {
    ("--ro", "/usr/bin:/seen"): r"attach .*/usr/bin.* /seen|attach .*/seen",
    ("--rw", "/usr/bin:/seen"): r"take /usr/bin from the host \(nosuid, nodev\)",
    ("--tmpfs", "/seen:1M"): r"mount a 1M tmpfs at /seen",
    ("--root", "/usr"): r"take /usr/bin from the host",
    ("--chdir", "/seen"): r"change to the directory /seen",
    ("--uid", "77"): r"77 \d+ 1",
    ("--gid", "77"): r"77 \d+ 1",
    ("--hostname", "seen"): r"hostname.* seen",
    ("--env", "SEEN=secret"): None,
    ("--timeout", "77ms"): r"after 77 ms",
    ("--net", "host"): r"enter new namespaces: mount, cgroup, uts, ipc, user, pid$",
}


@pytest.mark.parametrize("option", IN_THE_PLAN, ids=lambda option: option[0])
def test_an_option_is_seen_in_the_plan(option: tuple[str, str]) -> None:
    """`plan` shows what each option changes, in both spellings, and never a variable's value."""
    pattern = IN_THE_PLAN[option]
    without = shown("plan", "true")
    for spelling in both(*option):
        with_ = shown("plan", *spelling, "true")
        assert "secret" not in with_
        if pattern is not None:
            assert re.search(pattern, with_, re.MULTILINE), with_
            assert not re.search(pattern, without, re.MULTILINE), without


def test_plan_executes_nothing(place: Path) -> None:
    """The command of a plan is not run, need not be there, and nothing of its view is looked at."""
    give(place)
    text = shown("plan", "--rw", str(place), "touch", f"{place}/file")
    assert text.splitlines()[-1].lstrip("0123456789 ").startswith(("execute touch", "note: "))
    assert os.listdir(place) == []
    assert "execute nosuch" in shown("plan", "nosuch")


def test_the_words_of_run_are_words_of_plan() -> None:
    """Every option of `run` may stay when the verb becomes `plan`."""
    words = ["--json", "-", "-q", "-v", "--output", "1K", "--timeout", "5s", "-eA", "true"]
    assert shown("plan", *words).splitlines()[-1].endswith("execute true")


def test_a_step_has_its_number_in_the_plan() -> None:
    """An error's step is that line of the plan."""
    words = ["--chdir", "/nowhere", "true"]
    told = re.search(r"step (\d+) of (\d+)", refused(125, *words))
    assert told is not None
    lines = [line for line in shown("plan", *words).splitlines() if not line.startswith("note: ")]
    assert lines[int(told[1]) - 1].split(None, 1) == [told[1], "change to the directory /nowhere"]
    assert len(lines) == int(told[2])


# --- exit statuses ----------------------------------------------------------------------------

_MANY = """
import json, sys
from capsule.cli.main import main
commands = json.loads(sys.argv[1])
print(json.dumps([main(["sh", "-c", command]) for command in commands]))
"""


def statuses(commands: list[str]) -> list[int]:
    """What `main` returns for each command, in one process."""
    done = subprocess.run(
        [PYTHON, "-c", _MANY, json.dumps(commands)], stdout=subprocess.PIPE, timeout=3 * HANG, cwd="/"
    )
    assert done.returncode == 0
    found: list[int] = json.loads(done.stdout)
    return found


def test_every_status_is_the_commands_own() -> None:
    """All of 0 to 255 come out as they are."""
    assert statuses([f"exit {status}" for status in range(256)]) == list(range(256))


@pytest.mark.parametrize("status", [0, 1, 2, 124, 125, 126, 127, 128, 130, 143, 255])
def test_a_status_means_nothing_to_capsule(status: int) -> None:
    """Also those that Capsule uses itself, without a word about them."""
    done = cli("sh", "-c", f"exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_a_signal_is_128_and_its_number() -> None:
    """A command that a signal ends is a status of 128+N, for every signal that ends one."""
    harmless = {"CHLD", "CONT", "URG", "WINCH", "STOP", "TSTP", "TTIN", "TTOU"}
    deadly = [
        int(n) for n in signal.valid_signals() if n not in {signal.Signals[f"SIG{h}"] for h in harmless}
    ]
    assert statuses([f"kill -{number} $$" for number in deadly]) == [128 + n for n in deadly]


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "KILL", "SEGV", "PIPE"])
def test_a_signal_inside_does_not_kill_the_caller(name: str) -> None:
    """The process itself exits with 128+N: it dies of a signal only if one came to it as well."""
    done = cli("sh", "-c", f"kill -{name} $$")
    assert (done.returncode, done.stderr) == (128 + signal.Signals[f"SIG{name}"], b"")


def executable(path: Path, text: str | bytes, mode: int = 0o755) -> str:
    """A file to be executed."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return str(path)


def test_found_but_not_executable_is_126(place: Path) -> None:
    """A file without x, a directory, text without #!, a script whose interpreter is missing."""
    assert "is there but is not executable" in refused(
        126, executable(place / "plain", "#!/bin/sh\n", 0o644), cwd=place
    )
    refused(126, str(place), cwd=place)
    refused(126, "/usr")
    assert "neither a program of this CPU nor a script" in refused(
        126, executable(place / "text", "echo hi\n"), cwd=place
    )
    assert "the interpreter that it names" in refused(
        126, executable(place / "script", "#!/nowhere/interpreter\n"), cwd=place
    )
    refused(126, executable(place / "cpu", b"\x7fELF" + b"\xff" * 60), cwd=place)
    refused(126, executable(place / "empty", ""), cwd=place)


def test_not_found_is_127(place: Path) -> None:
    """A name that no directory of PATH has, and a path where nothing is."""
    assert "no directory of PATH has nosuch" in refused(127, "nosuch")
    for path in ("/nowhere/nosuch", f"{place}/nosuch", "./nosuch", "-"):
        refused(127, "--", path, cwd=place)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "no command given"),
        (["--nope", "true"], "unknown option --nope"),
        (["run", "-x", "true"], "unknown option -x"),
        (["--ro"], "--ro needs a value"),
        (["-q=1", "true"], "--quiet takes no value"),
        ([""], "args: "),
        (["--output", "1X", "true"], "output: not a size: '1X'"),
        (["--output=", "true"], "output: not a size: ''"),
        (["--tmpfs", "/x:1e3", "true"], "--tmpfs: not a size: '1e3'"),
        (["--timeout", "30s1m", "true"], "timeout: not a time: '30s1m'"),
        (["--timeout", "0", "true"], "timeout: not a time: '0'"),
        (["--timeout", "-1s", "true"], "timeout: not a time: '-1s'"),
        (["--uid", "root", "true"], "uid: not an id: 'root'"),
        (["--uid", "4294967295", "true"], "uid: not an id"),
        (["--gid", "9" * 5000, "true"], "gid: not an id"),
        (["--net", "all", "true"], "network: not one of none, host"),
        (["--uid-map", "x", "true"], "id_map: not one of"),
        (["--hostname", "a/b", "true"], "hostname: not "),
        (["--env", "=1", "true"], "extra_env: not "),
        (["--ro", "", "true"], "mounts: not a path: ''"),
        (["--ro", "/x:/..", "true"], "mounts: contains '..'"),
        (["--json", "/nowhere/file", "true"], "--json: cannot write /nowhere/file: No such file"),
        (["doctor", "--nope"], "unknown option --nope"),
        (["doctor", "extra"], "extra"),
        (["plan"], "no command given"),
        (["plan", "--nope", "true"], "unknown option --nope"),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, list) else "",
)
def test_a_mistake_of_the_caller_is_2(words: list[str], message: str) -> None:
    """A wrong command line is refused with its fault, before anything is started."""
    assert message in refused(2, *words).splitlines()[0]


def test_what_cannot_be_set_up_is_125(place: Path) -> None:
    """A path that is not there, or may not be opened, is Capsule's failure, with the remedy."""
    assert f"{place}/nosuch does not exist" in refused(125, "--ro", f"{place}/nosuch", "true")
    assert "show it with --ro or --rw" in refused(125, "--chdir", "/nowhere", "true")


@needs("closed place")
def test_a_directory_that_may_not_be_read() -> None:
    """What the caller may not search, Capsule may not either."""
    path = f"{closed_place()}/inner"
    assert f"you may not open {path}" in refused(125, "--ro", f"{path}:/x", "true")


# --- odd callers ------------------------------------------------------------------------------


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


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"]


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


# --- hostile names ----------------------------------------------------------------------------


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
    """So they are in a plan and in what -v says; --json holds them as they are."""
    program = executable(place / HOSTILE, "#!/bin/sh\nexec sleep 1000\n")
    for env in (None, host_variable(PYTHONIOENCODING="ascii:strict")):
        plan = cli("plan", program, "é", HOSTILE, cwd=place, env=env)
        assert plan.returncode == 0
        assert_harmless(plan.stdout)
        done = cli("-v", "--timeout", "50ms", program, HOSTILE, cwd=place, env=env)
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


# --- --json -----------------------------------------------------------------------------------


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


# --- signals ----------------------------------------------------------------------------------

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


# --- a signal during the start ----------------------------------------------------------------

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

"""The command line: each option from inside, plans, exit statuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

import capsule
from tests.integration.command_line import both, cli, executable, host_variable, refused, shown
from tests.support import (
    HANG,
    OUTSIDE_UID,
    PYTHON,
    REAL_ROOT,
    closed_place,
    give,
    needs,
)

# --- help and version ---------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("verb", ["", "run", "plan", "doctor"])
def test_help_is_one_screen(verb: str, flag: str) -> None:
    """At most 70 lines of 80 columns on standard output, status 0."""
    lines = shown(*filter(None, [verb, flag])).splitlines()
    assert 3 <= len(lines) <= 70
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


# --- words --------------------------------------------------------------------------------------


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


# --- options, seen from inside ------------------------------------------------------------------


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


@pytest.mark.parametrize("value", ["500ms", "0.5s", "0.5", ".5"])
def test_timeout(value: str) -> None:
    """--timeout kills everything after a time in any of its spellings: status 124, and a message."""
    for spelling in both("--timeout", value):
        done = cli(*spelling, "sh", "-c", "trap '' TERM; echo begun; while :; do :; done")
        assert (done.returncode, done.stdout) == (124, b"begun\n")
        assert done.stderr == b"capsule: timed out: after 0.5 s; raise it with --timeout\n"


@pytest.mark.parametrize("kind", ["--tmpfs", pytest.param("--overlay", marks=needs("overlay"))])
def test_size(place: Path, kind: str) -> None:
    """--size bounds what the file option before it can hold; without it, there is room for more."""
    at = str(give(place)) if kind == "--overlay" else "/scratch"
    script = "head -c 2M /dev/zero >big; status=$?; echo alive; exit $status"
    assert shown(kind, at, "--chdir", at, "sh", "-c", script) == "alive\n"
    for spelling in both("--size", "1M"):
        done = cli(kind, at, *spelling, "--chdir", at, "sh", "-c", script)
        assert (done.returncode, done.stdout) == (1, b"alive\n")
        assert b"No space left on device" in done.stderr


def test_protect(place: Path) -> None:
    """--protect makes a name read-only in a writable tree; without it, it can be written to."""
    (give(place) / "mine").write_text("old\n")
    give(place / "mine")
    script = "echo new >mine; status=$?; echo alive >other; exit $status"
    words = ("--rw", str(place), "--chdir", str(place))
    for spelling in both("--protect", "mine"):
        done = cli(*words, *spelling, "sh", "-c", script)
        assert done.returncode != 0
        assert b"Read-only file system" in done.stderr
        assert (place / "mine").read_text() == "old\n"
        assert (place / "other").read_text() == "alive\n"
    assert cli(*words, "sh", "-c", script).returncode == 0
    assert (place / "mine").read_text() == "new\n"


def test_system() -> None:
    """With --system needed there is the program and what it needs, and no other."""
    script = "echo /usr/bin/*"
    assert " /usr/bin/env " in shown("sh", "-c", script)
    for spelling in both("--system", "needed"):
        assert " /usr/bin/env " not in shown(*spelling, "sh", "-c", script)


@pytest.mark.parametrize("value", ["200ms", "0.2"])
def test_cpu_time(value: str) -> None:
    """--cpu-time ends what has used so much; who sleeps that long has not."""
    allow = ("--allow-degraded", "cpu-time")
    for spelling in both("--cpu-time", value):
        done = cli(*spelling, *allow, "sh", "-c", "echo begun; while :; do :; done")
        assert (done.returncode, done.stdout) == (124, b"begun\n")
        assert b"CPU time used up: after 0.2 s of CPU time; raise it with --cpu-time" in done.stderr
        assert shown(*spelling, *allow, "sh", "-c", "sleep 0.3; echo slept") == "slept\n"


def test_dev() -> None:
    """--dev shows a device node that is not there by itself."""
    nodes = ("/dev/kmsg", "/dev/fuse", "/dev/loop-control", "/dev/hpet", "/dev/kvm", "/dev/net/tun")
    node = next(path for path in nodes if Path(path).is_char_device())
    assert cli("test", "-e", node).returncode == 1
    for spelling in both("--dev", node):
        assert cli(*spelling, "test", "-c", node).returncode == 0


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
    """-v says what is shown and how it ended, -vv prints all steps before; stdout is the command's."""
    command = ["sh", "-c", "echo out; exit 3"]
    mounts = ["--ro", "/usr/bin:/seen", "--tmpfs", "/more"]
    plan = shown("plan", *mounts, *command, cwd=place)
    view = (
        f"capsule: {place} is shown read-only: the working directory\n"
        "capsule: /seen: read-only of /usr/bin\ncapsule: /more: tmpfs\n"
    )
    said_before = {("-v",): view, ("--verbose",): view, ("-vv",): plan, ("-v", "--verbose"): plan}
    for flags, before in said_before.items():
        done = cli(*flags, *mounts, *command, cwd=place)
        assert (done.returncode, done.stdout) == (3, b"out\n")
        said = done.stderr.decode()
        assert said.startswith(before)
        end = said.removeprefix(before).splitlines()
        assert end[0].startswith("capsule: sh exited with status 3; wall ")
        assert "capsule: no_new_privs: set" in end
        assert all(line.startswith("capsule: ") for line in end)


def test_the_last_of_an_option_counts() -> None:
    """A later option overrides an earlier one; of two mounts at one place the later is seen."""
    assert shown("--uid", "1", "--uid", "2", "id", "-u") == "2\n"
    assert shown("--ro", "/etc/passwd:/x", "--tmpfs", "/x", "sh", "-c", "cd /x && pwd") == "/x\n"


# --- plan ---------------------------------------------------------------------------------------

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


# --- exit statuses ------------------------------------------------------------------------------

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

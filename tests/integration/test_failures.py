"""Every way in which a capsule does not start: the exception, its words, and that nothing is left."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import capsule
from capsule import (
    CapsuleError,
    CommandFailed,
    HostError,
    InternalError,
    Mount,
    PolicyError,
    SetupError,
)
from tests.support import (
    HANG,
    PYTHON,
    await_end,
    descendants,
    needs,
    nothing_left,
    open_descriptors,
    shared_directory,
)

# --- one of each --------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with programs of all kinds that cannot be executed."""
    with shared_directory() as path:
        (path / "text").write_text("no program\n")
        (path / "closed").write_text("#!/bin/sh\n")
        for name, content in {
            "binary": "no program\n",
            "orphan": "#!/no/such/interpreter\n",
            "loop": "#!" + str(path / "loop") + "\n",
        }.items():
            (path / name).write_text(content)
            (path / name).chmod(0o755)
        (path / "folder").mkdir()
        (path / "link").symlink_to("missing")
        (path / "circle").symlink_to("circle")
        yield path


REFUSE = Path(__file__).with_name("refuse.py")


class Case(NamedTuple):
    """A request that must fail, and how."""

    args: Any
    kind: type[CapsuleError]
    code: int
    text: str
    options: dict[str, Any] | None = None
    error: int | None = None


CASES = {
    # The command. PLACE stands for the fixture's path.
    "not found": Case(
        ["no-such-program"], SetupError, 127, "no directory of PATH has", None, errno.ENOENT
    ),
    "no file": Case(["/no/such"], SetupError, 127, "there is no /no/such", None, errno.ENOENT),
    "dangling": Case(["PLACE/link"], SetupError, 127, "there is no", None, errno.ENOENT),
    "not executable": Case(["PLACE/text"], SetupError, 127, "is not executable", None, errno.ENOENT),
    "a directory that is not shown": Case(
        ["PLACE"], SetupError, 127, "is a directory", None, errno.ENOENT
    ),
    "a directory": Case(["/usr"], SetupError, 126, "", None, errno.EACCES),
    "no format": Case(["PLACE/binary"], SetupError, 126, "neither a program", None, errno.ENOEXEC),
    "no interpreter": Case(["PLACE/orphan"], SetupError, 126, "interpreter", None, errno.ENOENT),
    "its own interpreter": Case(["PLACE/loop"], SetupError, 126, "hint", None, errno.ELOOP),
    "too long": Case(["true", "x" * 200_000], SetupError, 126, "longer than", None, errno.E2BIG),
    # Its place and its view.
    "cwd": Case(["true"], SetupError, 125, "show it with --ro", {"cwd": "/no/such"}, errno.ENOENT),
    "cwd is a file": Case(
        ["true"], SetupError, 125, "not a directory", {"cwd": "/etc/passwd"}, errno.ENOTDIR
    ),
    "no source": Case(
        ["true"], SetupError, 125, "does not exist", {"mounts": [Mount.read_only("/no")]}, errno.ENOENT
    ),
    "file over directory": Case(
        ["true"],
        SetupError,
        125,
        "a file can only be put over a file",
        {"mounts": [Mount.read_only("/etc/passwd", at="/usr/share")]},
        errno.EINVAL,
    ),
    "directory over file": Case(
        ["true"],
        SetupError,
        125,
        "a directory over a directory",
        {"mounts": [Mount.read_only("/usr/share", at="/usr/bin/env")]},
    ),
    "tmpfs over file": Case(
        ["true"],
        SetupError,
        125,
        "a file stands",
        {"mounts": [Mount.tmpfs("/usr/bin/env")]},
        errno.ENOTDIR,
    ),
    "inside a host directory": Case(
        ["true"], SetupError, 125, "would have to be made", {"mounts": [Mount.tmpfs("/usr/no/such")]}
    ),
    # The request.
    "a string": Case("true", PolicyError, 2, "pass a list of words"),
    "nothing": Case([], PolicyError, 2, "not a command"),
    "an empty word": Case([""], PolicyError, 2, "an empty command"),
    "a NUL": Case(["true", "a\0b"], PolicyError, 2, "a NUL byte"),
    "a number": Case(["sleep", 5], PolicyError, 2, "not all words are text"),
    "field": Case(["true"], PolicyError, 2, "unknown policy field 'memroy'", {"memroy": 1}),
    "timeout": Case(
        ["true"], PolicyError, 2, "timeout: not a time: '5 parsecs'", {"timeout": "5 parsecs"}
    ),
    "no time": Case(["true"], PolicyError, 2, "timeout: not a time: 0", {"timeout": 0}),
    "output": Case(["true"], PolicyError, 2, "output: not a size: '1X'", {"output": "1X"}),
    "negative size": Case(["true"], PolicyError, 2, "output: not a size: -1", {"output": -1}),
    "network": Case(["true"], PolicyError, 2, "not one of none, host: 'bridge'", {"network": "bridge"}),
    "uid": Case(["true"], PolicyError, 2, "uid: not an id", {"uid": -1}),
    "gid": Case(["true"], PolicyError, 2, "gid: not an id", {"gid": 2**32 - 1}),
    "hostname": Case(["true"], PolicyError, 2, "hostname: not a hostname", {"hostname": "a b"}),
    "env": Case(["true"], PolicyError, 2, "env: not a variable's name: 'A=B'", {"env": {"A=B": "1"}}),
    "env value": Case(["true"], PolicyError, 2, "env: not a variable of text", {"env": {"A": "\0"}}),
    "mounts": Case(["true"], PolicyError, 2, "mounts: not a sequence of Mount", {"mounts": ["/data"]}),
    "root": Case(["true"], PolicyError, 2, "root: cannot read /no/such", {"root": "/no/such"}),
    "stdout": Case(["true"], PolicyError, 2, "stdout: descriptor 987 is not open", {"stdout": 987}),
    "stdin": Case(["true"], PolicyError, 2, "stdin: descriptor 987 is not open", {"stdin": 987}),
    "pass_fds": Case(["true"], PolicyError, 2, "pass_fds: descriptor 987", {"pass_fds": [987]}),
    "two inputs": Case(["true"], PolicyError, 2, "exclude each other", {"input": b"", "stdin": 0}),
}


def failure(case: Case, place: Path) -> CapsuleError:
    """What is raised for a case."""
    args = case.args
    if isinstance(args, list):
        args = [word.replace("PLACE", str(place)) if isinstance(word, str) else word for word in args]
    with pytest.raises(case.kind) as caught:
        capsule.run(args, **(case.options or {}))
    assert type(caught.value) is case.kind
    return caught.value


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_failure_says_what_and_what_to_do(case: Case, place: Path) -> None:
    """The class, the exit code and the words; three parts; no descriptor and no process is left."""
    with nothing_left():
        error = failure(case, place)
    text = str(error)
    assert case.text in text
    assert error.exit_code == case.code
    lines = text.splitlines()
    assert len(lines) in (2, 3)
    assert lines[0] == error.message
    assert lines[1].endswith("The command was not run.")
    assert error.hint is None or lines[2:] == [f"  hint: {error.hint}"]
    if isinstance(error, SetupError):
        assert error.hint is not None
        assert re.fullmatch(r"  step \d+ of \d+\. The command was not run\.", lines[1])
        assert case.error is None or error.errno == case.error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_failure_survives_pickling(case: Case, place: Path) -> None:
    """All that it tells is there after a round trip."""
    error = failure(case, place)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.hint, copy.exit_code) == (str(error), error.hint, error.exit_code)
    if isinstance(error, SetupError):
        assert isinstance(copy, SetupError)
        ours = (error.errno, error.filename, error.step, error.index, error.strerror)
        assert (copy.errno, copy.filename, copy.step, copy.index, copy.strerror) == ours


def test_the_exceptions_are_also_the_usual_ones() -> None:
    """SetupError is an OSError, PolicyError a ValueError, and all are CapsuleError."""
    assert issubclass(SetupError, OSError)
    assert issubclass(PolicyError, ValueError)
    for kind in (PolicyError, HostError, SetupError, CommandFailed, InternalError):
        assert issubclass(kind, CapsuleError)
    with pytest.raises(OSError, match="no-such-program") as caught:
        capsule.run(["no-such-program"])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "no-such-program")
    assert caught.value.strerror == os.strerror(errno.ENOENT)


def test_a_failed_step_is_one_of_the_plan(place: Path) -> None:
    """The error names the very step of the plan, by its place in it."""
    error = failure(CASES["no source"], place)
    assert isinstance(error, SetupError)
    plan = capsule.plan(["true"], mounts=[Mount.read_only("/no")])
    assert plan.steps[error.index] == error.step
    assert error.step.describe() in str(error)
    assert str(plan).splitlines()[error.index].strip().startswith(f"{error.index + 1} ")


def test_a_secret_in_the_environment_is_in_no_message() -> None:
    """Neither an error, nor a plan, nor their repr shows the value of a variable."""
    policy = capsule.Policy(extra_env={"TOKEN": "s3cret"})
    plan = capsule.plan(["true"], policy)
    with pytest.raises(SetupError) as failed:
        capsule.run(["no-such-program"], policy)
    with pytest.raises(PolicyError) as refused:
        capsule.run(["true"], env={"TOKEN": "s3cret\0"})
    for text in (str(plan), str(failed.value), str(refused.value), repr(refused.value)):
        assert "s3cret" not in text


_HOSTILE = ["new\nline", "\x1b[2J", "\udcff\udcfe", "\x9b31m", "\u202egnp", "tab\t", "\x7f"]

# PLACE holds a script of that NAME, whose interpreter is missing, and a link to the shell.
_REQUESTS: dict[str, Callable[[str, str], object]] = {
    "source": lambda place, name: capsule.run(["true"], mounts=[Mount.read_only(f"{place}/{name}/x")]),
    "place": lambda _, name: capsule.run(["true"], mounts=[Mount.tmpfs(f"/usr/{name}")]),
    "relative": lambda _, name: Mount.read_only("/", at=name),
    "cwd": lambda _, name: capsule.run(["true"], cwd=f"/{name}"),
    "command": lambda _, name: capsule.run([f"/{name}"]),
    "file": lambda place, name: capsule.run([f"{place}/{name}"]),
    "root": lambda place, name: capsule.run(["true"], root=f"{place}/{name}"),
    "check": lambda place, name: capsule.run([f"{place}/{name}.sh", "-c", "exit 1"], check=True),
}


@pytest.mark.parametrize("name", _HOSTILE)
@pytest.mark.parametrize("request_", _REQUESTS.values(), ids=_REQUESTS.keys())
def test_hostile_names_cannot_break_a_message(
    request_: Callable[[str, str], object], name: str
) -> None:
    """Whatever bytes a name has, a message has its three lines, all of them printable."""
    with shared_directory() as path:
        (path / name).write_text("#!/no/such\n")
        (path / name).chmod(0o755)
        (path / f"{name}.sh").symlink_to("/bin/sh")
        with pytest.raises(CapsuleError) as caught:
            request_(str(path), name)
    lines = str(caught.value).split("\n")
    assert len(lines) <= 3
    assert all(line.isprintable() for line in lines)


# --- a host that refuses --------------------------------------------------------------------------

_WITH_PACKAGE = """
import sys
sys.path.insert(0, sys.argv[1])
import capsule
assert capsule.__file__.startswith(sys.argv[1])
try:
    capsule.run(["true"])
except capsule.CapsuleError as error:
    print(type(error).__name__, error.exit_code)
    print(error)
"""


def with_launcher(content: bytes | None, mode: int = 0o755) -> list[str]:
    """The lines of an error when the package has another launcher, or none."""
    with shared_directory() as path:
        shutil.copytree(os.path.dirname(capsule.__file__), path / "capsule")
        launcher = path / "capsule/launcher/capsule-launch"
        launcher.unlink()
        if content is not None:
            launcher.write_bytes(content)
            launcher.chmod(mode)
        command = [PYTHON, "-I", "-B", "-c", _WITH_PACKAGE, str(path)]
        done = subprocess.run(command, capture_output=True, timeout=HANG, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "the launcher is missing"),
        (b"#!/bin/sh\nexit 0\n", "ended without a report"),
        (b"#!/bin/sh\nprintf junk >&4; printf junk >&5\n", "cut off"),
        (b"#!/bin/sh\nhead -c 96 /dev/zero >&5\n", "a record of kind 0"),
    ],
)
def test_a_launcher_that_is_broken_is_an_internal_error(content: bytes | None, text: str) -> None:
    """A launcher that is missing or talks nonsense is Capsule's own defect, and is told as such."""
    head, message, not_run, hint = with_launcher(content)
    assert head == "InternalError 125"
    assert text in message
    assert not_run == "  The command was not run."
    assert hint == "  hint: this is a defect of Capsule: please report it"


def test_a_launcher_that_is_killed_is_no_defect() -> None:
    """Somebody else, or the kernel for want of memory, has killed it: the error says so."""
    head, message, *_ = with_launcher(b"#!/bin/sh\nkill -9 $$\n")
    assert head == "HostError 125"
    assert message == "the launcher or init was killed during the set-up"


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (b"\x7fELF but for no CPU", 0o755, "another CPU"),
        pytest.param(b"#!/bin/sh\n", 0o644, "mounted noexec", marks=needs("unprivileged")),
    ],
)
def test_a_launcher_that_cannot_be_executed_is_a_host_error(
    content: bytes, mode: int, text: str
) -> None:
    """It is the host that refuses to execute it: the error says why that may be."""
    head, message, _, hint = with_launcher(content, mode)
    assert head == "HostError 125"
    assert "the launcher" in message
    assert text in hint


def test_a_failure_leaves_no_process_anywhere(place: Path) -> None:
    """Failures early and late, many times: no descendant of this process and no descriptor is left."""
    before = {s.pid for s in descendants(os.getpid())}, set(open_descriptors().items())
    for _ in range(10):
        for name in ("no source", "inside a host directory", "cwd", "not found", "no format"):
            failure(CASES[name], place)
    assert all(await_end(s.pid) for s in descendants(os.getpid()) if s.pid not in before[0])
    assert ({s.pid for s in descendants(os.getpid())}, set(open_descriptors().items())) == before


@pytest.mark.row("F-22")
def test_a_call_that_is_refused_is_not_the_fault_of_the_launcher_s_file() -> None:
    """A filter around Capsule that forbids pidfd_open(2) says nothing about where the launcher lies."""
    command = [PYTHON, "-c", "import capsule; capsule.run(['true'])"]
    assert subprocess.run(command, capture_output=True, timeout=HANG).returncode == 0
    refused = [PYTHON, str(REFUSE), "pidfd_open=EPERM", "--", *command]
    done = subprocess.run(refused, capture_output=True, timeout=HANG, text=True)
    assert "HostError: cannot start the launcher: Operation not permitted\n" in done.stderr
    assert "forbids pidfd_open(2)" in done.stderr
    assert "noexec" not in done.stderr

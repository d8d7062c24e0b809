"""What is shipped and how it is called (A-08, A-09, A-10): no privilege, no names, no injection."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule import Mount, Policy, PolicyError, SetupError
from tests.attacks.hostdiff import unchanged
from tests.support import CAPSULE, HANG, PYTHON, give, needs, shared_directory

PACKAGE = Path(capsule.__file__).parent
LAUNCHER = PACKAGE / "launcher" / "capsule-launch"


# --- no name on the host that another could have taken before -------------------------------

_MAKES = (
    "creat,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,rename,renameat,renameat2,bind"
)
_TRACED = f"open,openat,openat2,pivot_root,clone,clone3,fork,vfork,{_MAKES}"
_CHILD = re.compile(r"^(?:clone|clone3|fork|vfork)\(.* = (\d+)$")


def made_on_the_host(scratch: Path, command: list[str]) -> list[str]:
    """The calls that make a name in the file system before the old root is let go."""
    done = subprocess.run(
        [
            "strace",
            "-ff",
            "-ttt",
            "-qq",
            "-e",
            f"trace={_TRACED}",
            "-o",
            str(scratch / "trace"),
            *command,
        ],
        capture_output=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    calls = {path.suffix[1:]: _calls(path) for path in scratch.glob("trace.*")}
    # A child that is made after pivot_root is told of by its number inside, and so not found here.
    waiting, made = [min(calls, key=lambda pid: calls[pid][0])], []
    while waiting:
        lines = [line for _, line in calls.pop(waiting.pop(), [])]
        at = next((n for n, line in enumerate(lines) if line.startswith("pivot_root(")), len(lines))
        waiting += [found[1] for line in lines[:at] if (found := _CHILD.match(line))]
        made += [line for line in lines[:at] if _makes(line)]
    return made


def _calls(path: Path) -> list[tuple[str, str]]:
    """(Time, call) of one process."""
    halves = (line.partition(" ") for line in path.read_text(errors="replace").splitlines())
    return [(time, call) for time, _, call in halves]


def _makes(line: str) -> bool:
    word = line.partition("(")[0]
    return word in _MAKES.split(",") or (word.startswith("open") and "O_CREAT" in line)


@needs("strace")
def test_a08_no_name_is_made_on_the_host() -> None:
    """A run makes no file, directory, link or socket on the host, so none can lie ready for it."""
    with shared_directory() as scratch, shared_directory() as top:
        give(top)
        (scratch / "traces").mkdir()
        options = [
            "--ro",
            f"{top}:/a",
            "--overlay",
            f"{top}:/b",
            "--tmpfs",
            "/c",
            "--dir",
            "/d",
            "--no-cwd",
        ]
        command = [
            PYTHON,
            "-B",
            f"{CAPSULE}-python",
            "run",
            *options,
            "--",
            "sh",
            "-c",
            "echo >/tmp/x; mkdir /b/new",
        ]
        assert made_on_the_host(scratch / "traces", command) == []


@needs("strace")
def test_a08_control_the_trace_sees_who_makes_a_name() -> None:
    """The control: a scratch directory and a file in it are seen, by the process and by its child."""
    with shared_directory() as scratch:
        (scratch / "traces").mkdir()
        script = f'mkdir {scratch}/own; sh -c "echo >{scratch}/own/file"'
        assert len(made_on_the_host(scratch / "traces", ["sh", "-c", script])) == 2


# --- nothing privileged is shipped, and the environment has no say --------------------------


def _privileged(path: Path) -> bool:
    found = path.lstat()
    if stat.S_IMODE(found.st_mode) & 0o6000:
        return True
    try:
        return bool(os.getxattr(path, "security.capability", follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def test_a09_nothing_has_privilege() -> None:
    """No file of the package or the command is set-id or has capabilities; else it would be seen."""
    commands = [Path(CAPSULE), Path(f"{CAPSULE}-python")]
    assert [path for path in [*PACKAGE.rglob("*"), *commands] if _privileged(path)] == []
    with shared_directory() as top:
        (top / "file").touch()
        (top / "file").chmod(0o4755)
        assert _privileged(top / "file")


def test_a09_the_launcher_needs_no_loader() -> None:
    """The launcher names no interpreter, so that no LD_ variable is read; a shell names one."""
    assert _interpreter(LAUNCHER) is False
    assert _interpreter(Path(os.path.realpath("/bin/sh"))) is True


def _interpreter(path: Path) -> bool:
    """Whether an ELF file has PT_INTERP; elf(5)."""
    data = path.read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return any(struct.unpack_from("<I", data, start + n * size)[0] == 3 for n in range(count))


@needs("gcc")
def test_a09_a_preloaded_library_is_loaded_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """LD_PRELOAD and LD_AUDIT reach a program outside; neither launcher, init nor command loads it."""
    with shared_directory() as top:
        source = "#include <unistd.h>\n__attribute__((constructor)) static void f(void)"
        (top / "x.c").write_text(f'{source} {{ if (write(2, "LOADED", 6)) _exit(9); }}\n')
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", top / "x.so", top / "x.c"], check=True)
        monkeypatch.setenv("LD_PRELOAD", str(top / "x.so"))
        monkeypatch.setenv("LD_AUDIT", str(top / "x.so"))
        outside = subprocess.run(["/bin/true"], capture_output=True)
        assert b"LOADED" in outside.stderr
        result = capsule.run(
            ["sh", "-c", "echo $LD_PRELOAD$LD_AUDIT; true"], mounts=[Mount.read_only(top)]
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, b"\n", b"")


HOSTILE = {
    "GCONV_PATH": "/tmp/x", "LOCPATH": "/tmp/x", "NLSPATH": "/tmp/%N", "LANGUAGE": "../../x",
    "GLIBC_TUNABLES": "glibc.malloc.check=3", "MALLOC_TRACE": "/tmp/x", "LD_LIBRARY_PATH": "/tmp/x",
    "LD_DEBUG": "all", "LD_BIND_NOW": "1", "TMPDIR": "/no/such", "IFS": "/", "ENV": "/tmp/x",
    "BASH_ENV": "/tmp/x", "PYTHONSTARTUP": "/tmp/x", "CAPSULE": "--rw=/", "SHELL": "/tmp/x",
    "BASH_FUNC_ls%%": "() { echo hijacked; }", "RES_OPTIONS": "debug", "TZDIR": "/tmp",
}  # fmt: skip


def test_a09_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that steer loaders, shells and libraries change neither the plan nor what comes out."""

    def told() -> tuple[str, bytes, bytes]:
        result = capsule.run(["sh", "-c", "ls -d /usr; pwd; env | grep -c ."], cwd="/")
        return str(capsule.plan(["sh", "-c", "true"], cwd="/")), result.stdout, result.stderr

    # LANGUAGE is passed on: in both cases, so that the count is the same.
    monkeypatch.setenv("LANGUAGE", "en")
    before = told()
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    assert os.environ["LD_DEBUG"] == "all"
    assert told() == before


# --- no word is taken for what it is not ----------------------------------------------------


def _cli(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [CAPSULE, *words],
        capture_output=True,
        timeout=HANG,
        cwd="/",
    )


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory with a file that the capsule must not see."""
    with shared_directory() as path:
        (path / "secret").write_text("canary")
        yield path


def test_a10_options_behind_the_command_are_its_own(top: Path) -> None:
    """What follows `--` or the command is never an option: neither --rw nor --root nor --profile."""
    words = ["--rw", str(top), "--root=/", "--profile", "dev", "-e", "A=1", "--", "-h"]
    for begin in (["run", "--"], ["run"], []):
        done = _cli(*begin, "echo", *words)
        assert (done.returncode, done.stdout.decode().split()) == (0, words)
    script = 'cat "$2/secret"'
    assert (
        _cli("run", "--ro", str(top), "--", "sh", "-c", script, "sh", "--rw", str(top)).stdout
        == b"canary"
    )
    done = _cli("run", "--", "sh", "-c", script, "sh", "--ro", str(top))
    assert done.stdout == b""
    assert done.returncode != 0


@pytest.mark.parametrize("name", ["--rw", "--root=/", "-e", "--", "-", "--help", "-v"])
def test_a10_a_command_may_be_called_as_an_option_is(name: str) -> None:
    """Behind `--` a word that looks like an option is the command's name: not found, 127."""
    done = _cli("run", "--", name)
    assert done.returncode == 127, done
    with pytest.raises(SetupError) as caught:
        capsule.run([name], cwd="/")
    assert caught.value.exit_code == 127


def test_a10_no_shell_sees_a_word(top: Path) -> None:
    """Words with what a shell would act on arrive as they are; NUL is refused."""
    give(top)
    words = [
        "$(touch x)",
        "`touch x`",
        ";touch x",
        "|touch x",
        "a\nb",
        "*",
        "~",
        "'",
        '"',
        "\\",
        "{a,b}",
        "",
    ]
    with unchanged(top, tables=False):
        policy = Policy(mounts=(Mount.read_write(top),), cwd=str(top))
        result = capsule.run(["printf", "%s\\0", *words], policy)
    assert result.stdout.decode().split("\0")[:-1] == words
    with pytest.raises(PolicyError):
        capsule.run(["echo", "a\0--rw"])


@pytest.mark.parametrize(
    "words",
    [
        ["--ro"], ["--ro", ""], ["--tmpfs", "/x:1M,uid=0"], ["--tmpfs", "x"], ["--dir", "x"],
        ["--symlink", "/x"], ["--file", "/x"], ["--rx", "/"], ["--ro", "/usr:relative"],
        ["--noexec"], ["--keep", "/x"], ["--ro", "/usr:/../x"], ["--env", "=x"], ["--hide", ""],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a10_an_option_that_makes_no_sense_runs_nothing(words: list[str]) -> None:
    """An option's value that cannot be meant ends with 2 or 125, and the command did not run."""
    done = _cli("run", *words, "--", "echo", "ran")
    assert done.returncode in (2, 125), done
    assert done.stdout == b""

"""The table of hints: each row is reached, says what to do, and is pinned here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capsule.files.found import Found, Survey
from capsule.host.host import version
from capsule.launcher import network
from capsule.launcher import steps as s
from capsule.policy.mounts import Mount
from capsule.process import hints
from capsule.process.hints import HINTS, exit_code_for, hint_for, host_error_for
from capsule.program import elf
from capsule.program.command import Command
from tests.unit.examples import COMMAND, HOST, ROOT_HOST


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The settings of a host that forbids nothing; a test puts in what it needs."""
    found: dict[str, str] = {}
    monkeypatch.setattr(hints, "read_text", lambda path: found.get(path, ""))
    return found


# An example of each kind of step that has a row; its path is what the hint has to name.
EXAMPLES: dict[type[s.Step], s.Step] = {
    s.Namespaces: s.Namespaces(0x10000000),
    s.DropGroups: s.DropGroups(),
    s.LandlockRestrict: s.LandlockRestrict(),
    s.Keyring: s.Keyring(),
    s.Setrlimit: s.Setrlimit(14, 1, 2, "rtprio", "1", "2"),
    s.Seccomp: s.Seccomp("default: some of all"),
    s.UidMap: s.UidMap("0 1000 1"),
    s.GidMap: s.GidMap("0 1000 1"),
    s.DenySetgroups: s.DenySetgroups(),
    s.MapHelper: s.MapHelper("/usr/bin/newuidmap", "0 1000 1"),
    s.Private: s.Private(),
    s.Tree: s.Tree("/some/path", 7, s.NO_LINKS),
    s.Device: s.Device("/some/path", 1, 3, 11),
    s.Proc: s.Proc(),
    s.Identity: s.Identity(0, 0),
    s.PivotRoot: s.PivotRoot(4096, 16),
    s.Attach: s.Attach(0, "/some/path", "it"),
    s.Tmpfs: s.Tmpfs("/some/path", 4096, 1, 0o755, 6, 0, 0),
    s.Directory: s.Directory("/some/path", 0o755),
    s.Symlink: s.Symlink("target", "/some/path"),
    s.File: s.File("/some/path", 0o644, "text"),
    s.Content: s.Content("/some/path", 0o644, "00ff"),
    s.Hide: s.Hide("/some/path", 7, 0),
    s.Overlay: s.Overlay("/some/path", 0, s.Overlay.NONE, 4096, 16, 6),
    network.AnyAddress: network.AnyAddress("c6120001", "198.18.0.1"),
    network.Listen: network.Listen(1, "00" * 16, 443, "::", "stream"),
    s.Terminal: s.Terminal(7, 24, 80),
    s.Descriptor: s.Descriptor(11, 3),
    s.Chdir: s.Chdir("/some/path"),
    s.Exec: s.Exec(("/bin/x",), ("x",), ()),
    # Stands for every step that has no row of its own for an errno.
    s.Step: s.Hostname("box"),
}


def row_id(row: object) -> str:
    """A readable name for a row."""
    if isinstance(row, tuple):
        return f"{row[0].__name__}-{errno.errorcode[row[1]]}"
    return ""


@pytest.mark.parametrize("row", HINTS, ids=row_id)
def test_a_row_is_reached(row: tuple[type[s.Step], int]) -> None:
    """The step and the errno lead to this row's own sentence, on one line and without a full stop."""
    kind, error = row
    step = EXAMPLES[kind]
    hint = hint_for(step, error, HOST, COMMAND, Survey())
    own = HINTS[row]
    assert hint == (own(step) if callable(own) else own)
    assert hint is not None
    assert hint.isprintable()
    assert hint == hint.strip()
    assert not hint.endswith(".")


def test_rows_of_a_path_name_it() -> None:
    """Each row that is made for a path has it in its sentence."""
    for (kind, _), hint in HINTS.items():
        if callable(hint):
            assert "/some/path" in hint(EXAMPLES[kind])


def test_a_mapped_tree_is_a_tree() -> None:
    """It has the hints of one."""
    step = s.MappedTree("/some/path", 7, s.NO_LINKS, "1000 65534 1", "1000 65534 1")
    assert hint_for(step, errno.ENOENT, ROOT_HOST, COMMAND, Survey()) == hint_for(
        EXAMPLES[s.Tree], errno.ENOENT, ROOT_HOST, COMMAND, Survey()
    )


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENODEV, errno.ENOSYS])
def test_a_host_without_overlays(error: int) -> None:
    """That is the host's fault: the kernel is named, what it would take, and an alternative."""
    refused = host_error_for(EXAMPLES[s.Overlay], error, HOST)
    assert refused is not None
    assert "Linux 6.1.0" in refused.message
    assert "5.11" in str(refused.hint)
    assert "--rw" in str(refused.hint)
    assert host_error_for(EXAMPLES[s.Overlay], errno.ENOENT, HOST) is None
    assert host_error_for(EXAMPLES[s.Tree], error, HOST) is None


def test_an_old_kernel_makes_no_overlay_that_is_kept_either() -> None:
    """Before 5.11 EPERM cannot come from the directory that keeps the layer; later it can."""
    kept = s.Overlay("/w", 0, 1, 0, 0, 6)
    assert host_error_for(kept, errno.EPERM, HOST) is None
    old = host_error_for(kept, errno.EPERM, HOST.replace(kernel="5.10.0-32-amd64"))
    assert old is not None
    assert "Linux 5.10.0-32-amd64" in old.message


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("5.10.0-32-amd64", (5, 10, 0)),
        ("6.1", (6, 1)),
        ("6.6.87.2-x", (6, 6, 87, 2)),
        ("7.0rc1", (7, 0)),
    ],
)
def test_the_version_of_a_release(release: str, numbers: tuple[int, ...]) -> None:
    """Numbers up to what is none."""
    assert version(release) == numbers


def test_an_unknown_errno_has_no_hint() -> None:
    """Where nothing better than the errno is known, nothing is made up."""
    assert hint_for(s.Hostname("x"), errno.EXFULL, HOST, COMMAND, Survey()) is None


MISSING = COMMAND.replace(found=None, args=("nosuch",), paths=("/usr/bin/nosuch",))
PATH_MISSING = COMMAND.replace(found=None, args=("./nosuch",), paths=("/home/ada/nosuch",))


@pytest.mark.parametrize(
    ("command", "error", "host", "says"),
    [
        (MISSING, errno.ENOENT, HOST, "PATH has nosuch"),
        (PATH_MISSING, errno.ENOENT, HOST, "there is no ./nosuch"),
        (COMMAND, errno.ENOENT, HOST, "/usr/bin/make is there, but the interpreter"),
        (MISSING, errno.EACCES, HOST, "chmod +x"),
        (COMMAND, errno.EACCES, ROOT_HOST, "unprivileged user"),
        (COMMAND, errno.EACCES, HOST, "may not be executed"),
    ],
)
def test_a_command_that_does_not_start(command: Command, error: int, host: object, says: str) -> None:
    """Not found, no interpreter, not executable: told apart by what was found on the host."""
    step = s.Exec(command.paths, command.args, ())
    assert isinstance(host, type(HOST))
    assert says in str(hint_for(step, error, host, command, Survey()))


@pytest.mark.parametrize(
    ("step", "error", "command", "code"),
    [
        (s.Exec(("/x",), ("x",), ()), errno.ENOENT, MISSING, 127),
        (s.Exec(("/x",), ("x",), ()), errno.ENOENT, None, 127),
        (s.Exec(("/x",), ("x",), ()), errno.ENOENT, COMMAND, 126),
        (s.Exec(("/x",), ("x",), ()), errno.EACCES, COMMAND, 126),
        (s.Exec(("/x",), ("x",), ()), errno.EACCES, MISSING, 126),
        (s.Exec(("/x",), ("x",), ()), errno.ENOEXEC, COMMAND, 126),
        (s.Chdir("/x"), errno.ENOENT, MISSING, 125),
        (s.Namespaces(0), errno.EPERM, COMMAND, 125),
    ],
)
def test_exit_codes(step: s.Step, error: int, command: Command | None, code: int) -> None:
    """127: the command was not found. 126: it cannot be executed. 125: Capsule failed."""
    assert exit_code_for(step, error, command) == code


# --- what the policy itself brought about --------------------------------------------------------


# A command, and what a survey found.
Target = tuple[Command, Survey]


def surveyed(found: str, *mounts: Mount, hidden: tuple[tuple[str, bool], ...] = ()) -> Target:
    """A command that lies there, under these mounts."""
    survey = Survey(found=tuple(Found(mount, mount.source) for mount in mounts), hidden=hidden)
    return COMMAND.replace(found=found, args=(found,), paths=(found,)), survey


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, str]:
    """(A script, its interpreter, which is a link to a file elsewhere), without a link above them."""
    top = tmp_path.resolve()
    (top / "real").mkdir()
    (top / "bin").mkdir()
    (top / "real" / "shell").write_text("#!")
    (top / "real" / "shell").chmod(0o755)
    (top / "bin" / "sh").symlink_to("../real/shell")
    (top / "script").write_text(f"#!{top}/bin/sh -e\n")
    return f"{top}/script", f"{top}/bin/sh"


def exec_hint(target: Target, error: int = errno.ENOENT) -> str:
    """The hint where such a command does not start."""
    command, survey = target
    return str(hint_for(s.Exec(command.paths, command.args, ()), error, HOST, command, survey))


def test_a_program_that_the_policy_covers(program: tuple[str, str]) -> None:
    """A hide over the program, its interpreter or what that leads to is named with what it covers."""
    script, shell = program
    top = os.path.dirname(script)
    for at, what in (
        (script, f"the program {script}"),
        (f"{top}/bin", f"the interpreter {shell}"),
        (f"{top}/real", f"the interpreter {shell}"),
    ):
        for error in (errno.ENOENT, errno.EACCES):
            hint = exec_hint(surveyed(script, Mount.hide(at)), error)
            assert hint.startswith(f"the policy's hide at {at} covers {what}: ")
            assert "--ro" in hint
    assert "tmpfs at" in exec_hint(surveyed(script, Mount.tmpfs(top)))
    hidden = surveyed(script, hidden=((shell, False),))
    assert exec_hint(hidden).startswith(f"the policy's hide of {shell} covers the interpreter")


def test_a_program_that_is_shown_is_not_covered(program: tuple[str, str]) -> None:
    """What shows the same, or is given on top, covers nothing: then the usual hint counts."""
    script, _ = program
    top = os.path.dirname(script)
    above = Mount.hide(os.path.dirname(top))
    for mounts in ((Mount.read_only(top),), (above, Mount.read_write(top)), ()):
        assert "the interpreter that it names" in exec_hint(surveyed(script, *mounts))
    other = Mount.read_only("/dev", top)
    assert exec_hint(surveyed(script, other)).startswith(f"the policy's read-only at {top} covers")
    hint = exec_hint(surveyed(script, Mount.read_only(top, noexec=True)), errno.EACCES)
    assert hint.startswith(f"the policy's read-only at {top}, which is noexec, covers the program")


def test_the_dynamic_loader_is_looked_for_too() -> None:
    """Of a program of this host that names a loader, a hide over that is the reason."""
    image = elf.read(os.path.realpath("/bin/sh"))
    if image is None or not image.interpreter:
        pytest.skip("/bin/sh of this host is linked statically")
    hint = exec_hint(surveyed("/bin/sh", Mount.hide(image.interpreter)))
    assert f"covers the dynamic loader {image.interpreter}" in hint


def kept_hint(keep: Path, error: int) -> str:
    """The hint where an overlay fails whose layer is kept there."""
    mount = Mount.overlay("/data", keep=keep)
    survey = Survey(found=(Found(mount, "/data", keep=str(keep)),))
    fresh = hint_for(s.Overlay("/data", 0, s.Overlay.NONE, 4096, 1, 6), error, HOST, COMMAND, survey)
    assert str(keep) not in str(fresh)
    return str(hint_for(s.Overlay("/data", 0, 1, 0, 0, 6), error, HOST, COMMAND, survey))


@pytest.mark.parametrize("error", [errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EIO])
def test_a_layer_that_is_kept_is_named(error: int, tmp_path: Path) -> None:
    """Where an overlay fails whose layer is kept, the hint has the path of that directory."""
    (tmp_path / "upper").mkdir()
    assert kept_hint(tmp_path, error).endswith(f"; its layer is kept in {tmp_path}")


@pytest.mark.parametrize("name", ["upper", "work"])
def test_what_stands_in_the_place_of_a_layer_is_named(name: str, tmp_path: Path) -> None:
    """A file, a pipe or a link where a layer has its directory is the reason, and named itself."""
    part = tmp_path / name
    makers: tuple[Callable[[Path], None], ...] = (
        Path.touch,
        os.mkfifo,
        lambda path: path.symlink_to("/"),
    )
    for make in makers:
        make(part)
        assert kept_hint(tmp_path, errno.ENOTDIR).startswith(f"{part} is no directory: remove it")
        part.unlink()


def test_a_relative_place_is_shown_in_its_right_form() -> None:
    """A source that is missing and has a colon may be PATH:AT with an AT that is relative."""
    hint = hint_for(s.Tree("/home/ada/data:rel", 7, 0), errno.ENOENT, HOST, COMMAND, Survey())
    assert str(hint).endswith("a place inside is written from the root: /home/ada/data:/rel")
    hint = hint_for(s.Tree("/a:b/data", 7, 0), errno.ENOENT, HOST, COMMAND, Survey())
    assert "from the root" not in str(hint)


@pytest.mark.parametrize(
    ("name", "value", "blamed", "binds_root"),
    [
        ("kernel.unprivileged_userns_clone", "0", {errno.EPERM}, False),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", {errno.EPERM, errno.EACCES}, False),
        ("user.max_user_namespaces", "0", {errno.ENOSPC}, True),
    ],
)
def test_a_setting_is_blamed_for_its_own_errors(
    settings: dict[str, str], name: str, value: str, blamed: set[int], binds_root: bool
) -> None:
    """On Ubuntu the setting stays as it is where a profile lets the launcher through."""
    settings[f"/proc/sys/{name.replace('.', '/')}"] = f"{value}\n"
    step = s.Namespaces(0x10000000)
    for error in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EAGAIN, errno.ENOMEM, errno.EUSERS):
        for host in (HOST, ROOT_HOST):
            hint = hint_for(step, error, host, None, Survey()) or ""
            told = error in blamed and (binds_root or host is HOST)
            assert hint.startswith(f"{name} is {value}: ") is told, (error, host)
            assert name == "user.max_user_namespaces" or (name in hint) is told

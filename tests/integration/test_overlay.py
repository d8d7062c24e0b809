"""Overlays: writable inside, untouched outside; what was changed, read, kept and applied."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy
from capsule.changes.layer import open_layer
from capsule.changes.values import Action, Change
from tests.support import (
    REAL_ROOT,
    ask,
    ask_outside,
    assert_denied,
    give,
    lab,
    needs,
    probe_args,
    shared_directory,
)

AT = "/project"


pytestmark = needs("overlay")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of the host with a few files, which the capsule's outside ids own."""
    with shared_directory() as path:
        for name in ("file", "other", "sub/inner", "sub/deep/file", "gone/file"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(f"{name} of the host")
            for each in (path, (path / name).parent, path / name):
                give(each)
        give(path / "sub")
        yield path


@pytest.fixture
def keep() -> Iterator[Path]:
    """A directory that keeps layers; of the caller's own."""
    with shared_directory() as path:
        path.chmod(0o700)
        yield path
        # The kernel's own directory in a work directory is closed even to its owner.
        for work in path.glob("**/work/work"):
            work.chmod(0o700)


def snapshot(top: Path) -> dict[str, tuple[Any, ...]]:
    """All of a tree that a program could change: what, whose, when, which bytes."""
    found = {}
    for folder, _, files in os.walk(os.fsencode(top)):
        for path in [folder, *(os.path.join(folder, name) for name in files)]:
            info = os.lstat(path)
            data = b""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    data = file.read()
            facts = info.st_mode, info.st_uid, info.st_gid, info.st_ino, info.st_nlink
            found[os.fsdecode(path)] = (*facts, info.st_mtime_ns, info.st_ctime_ns, data)
    return found


def shell(script: str, *mounts: Mount, **options: Any) -> capsule.Result:
    """What came of a script that succeeded."""
    args = ["sh", "-ec", script]
    result = capsule.run(args, Policy(mounts=mounts, cwd=AT), text=True, **options)
    assert result.ok, (result.describe(), result.stderr)
    return result


def told(result: capsule.Result) -> list[tuple[str, str, str]]:
    """(Path below AT, action, type) of each change."""
    assert result.changes_complete
    return [(c.path.removeprefix(f"{AT}/"), c.action.value, c.type) for c in result.changes]


# --- the host's stays ---------------------------------------------------------------------------

_WORK = """
echo more >> file; rm other; rm -r gone; mkdir gone; echo new > gone/new; mv sub/inner sub/moved
mkdir added; echo text > added/file; chmod 700 sub; ln -s /etc/passwd added/link; mkfifo added/pipe
"""


@needs("overlay deletes")
def test_the_host_sees_nothing_and_the_changes_are_told(directory: Path) -> None:
    """Everything that can be done to a tree is done: not a byte nor a time of the host's changes."""
    before = snapshot(directory)
    result = shell(_WORK + "cat file gone/new; ls", Mount.overlay(directory, AT))
    assert snapshot(directory) == before
    assert result.stdout == "file of the hostmore\nnew\nadded\nfile\ngone\nsub\n"
    assert told(result) == [
        ("added", "added", "directory"),
        ("added/file", "added", "file"),
        ("added/link", "added", "symlink"),
        ("added/pipe", "added", "fifo"),
        ("file", "modified", "file"),
        ("gone/file", "deleted", "file"),
        ("gone/new", "added", "file"),
        ("other", "deleted", "file"),
        ("sub", "modified", "directory"),
        ("sub/inner", "deleted", "file"),
        ("sub/moved", "added", "file"),
    ]
    size = len("file of the hostmore\n")
    assert Change(f"{AT}/file", Action.MODIFIED, "file", 0o644, size) in result.changes


def test_the_same_work_without_an_overlay_is_seen(directory: Path) -> None:
    """The control: in a writable tree the host's does change."""
    before = snapshot(directory)
    result = shell(_WORK, Mount.read_write(directory, AT))
    assert snapshot(directory) != before
    assert (result.changes, result.changes_complete) == ((), True)


def test_nothing_is_told_of_what_was_only_read(directory: Path) -> None:
    """Reading, opening for writing without a write, and changing something back are no changes."""
    result = shell("cat file; : >> other; chmod 600 file; chmod 644 file", Mount.overlay(directory, AT))
    assert told(result) == []


def test_each_run_begins_anew(directory: Path) -> None:
    """A layer in memory ends with its capsule."""
    mount = Mount.overlay(directory, AT)
    assert told(shell("echo 1 > new", mount)) == [("new", "added", "file")]
    assert told(shell("test ! -e new", mount)) == []


def test_two_overlays_of_one_directory(directory: Path) -> None:
    """Each has its own layer, and its own changes."""
    policy = Policy(mounts=(Mount.overlay(directory, "/one"), Mount.overlay(directory, "/two")))
    result = capsule.run(
        ["sh", "-c", "echo 1 > /one/a; rm /two/file; cat /one/file"], policy, text=True
    )
    assert result.stdout == "file of the host"
    assert [(c.path, c.action) for c in result.changes] == [
        ("/one/a", Action.ADDED), ("/two/file", Action.DELETED)
    ]  # fmt: skip


def test_an_overlay_at_its_own_path(directory: Path) -> None:
    """Without a place it stands where it stands on the host, and the paths are the host's."""
    policy = Policy(mounts=(Mount.overlay(directory),), cwd="/")
    result = capsule.run(["rm", f"{directory}/file"], policy)
    assert [c.path for c in result.changes] == [f"{directory}/file"]
    assert (directory / "file").exists()


@pytest.mark.row("E-06")
def test_an_overlay_is_no_way_around_permissions(directory: Path) -> None:
    """A file of the host that the caller may not read cannot be read through an overlay: EACCES."""
    closed = directory / "closed"
    closed.write_text("secret")
    closed.chmod(0)
    os.chown(closed, 0, 0) if REAL_ROOT else None
    policy = Policy(mounts=(Mount.overlay(directory, AT),))
    code = """
def attempt(path):
    try:
        return open(path).read()
    except OSError as error:
        return errno.errorcode[error.errno]
tell([attempt("/project/closed"), attempt("/project/file")])
"""
    assert ask(code, policy) == ["EACCES", "file of the host"]


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.row("F-07")
def test_the_layer_has_a_size(directory: Path) -> None:
    """Beyond it a write fails with ENOSPC; outside, and inside up to it, it does not."""
    act = """
with open(given["at"] + "/large", "wb") as file:
    file.write(bytes(given["bytes"]))
os.unlink(given["at"] + "/large")
"""
    policy = Policy(mounts=(Mount.overlay(directory, AT, size="1M"),))
    outside = {"at": str(directory), "bytes": 2 << 20}
    assert_denied(
        act, errno.ENOSPC, outside=outside, inside={"at": AT, "bytes": 2 << 20}, policy=policy
    )
    code = f"exec({act!r}); tell('done')"
    assert ask(code, policy, {"at": AT, "bytes": 1 << 19}) == "done"


@pytest.mark.row("F-07")
def test_the_layer_has_no_room_for_endless_files(directory: Path) -> None:
    """Empty files are bounded as well: ENOSPC, and then the capsule ends as usual."""
    code = """
count = 0
try:
    while count < 100_000:
        open(f"/project/{count}", "w").close()
        count += 1
except OSError as error:
    tell([errno.errorcode[error.errno], count > 10])
"""
    assert ask(code, Policy(mounts=(Mount.overlay(directory, AT, size="1M"),))) == ["ENOSPC", True]


def test_a_new_directory_cannot_be_executed_from_if_so_told(directory: Path) -> None:
    """`noexec` holds for what was written: EACCES, and by default it does run."""
    script = "printf '#!/bin/sh\\necho ran\\n' > run; chmod +x run; ./run || test $? = 126"
    assert shell(script, Mount.overlay(directory, AT)).stdout == "ran\n"
    assert shell(script, Mount.overlay(directory, AT, noexec=True)).stdout == ""


@pytest.mark.row("E-06")
def test_no_set_id_program_and_no_device(directory: Path) -> None:
    """The overlay is nosuid and nodev, whatever is written to it."""
    code = """
line = next(line for line in open("/proc/self/mountinfo") if line.split()[4] == "/project")
tell(sorted({"nosuid", "nodev"} & set(line.split()[5].split(","))))
"""
    assert ask(code, Policy(mounts=(Mount.overlay(directory, AT),))) == ["nodev", "nosuid"]


def test_the_table_of_mounts_tells_no_path_of_the_host(directory: Path, keep: Path) -> None:
    """Neither where the lower directory lies nor where the layer is kept."""
    policy = Policy(mounts=(Mount.overlay(directory, AT, keep=keep / "layer"),), cwd="/")
    table = ask("tell(open('/proc/self/mountinfo').read())", policy)
    assert " /project " in table
    assert directory.name not in table
    assert keep.name not in table


# --- names --------------------------------------------------------------------------------------

NAMES = [
    b"a:b",
    b"a,b",
    b"back\\slash",
    b"a\\:b,c\\\\",
    b"new\nline",
    b"invalid\xff\xfe",
    b" ",
    b"\\054",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_directory_may_have_any_name(directory: Path, keep: Path, name: bytes) -> None:
    """What options of a mount would have to escape, in the lower one's path and the kept layer's."""
    lower = os.fsencode(directory) + b"/" + name
    os.mkdir(lower)
    give(Path(os.fsdecode(lower)))
    with open(lower + b"/file", "w") as file:
        file.write("found")
    for layer in (None, os.fsdecode(os.fsencode(keep) + b"/" + name)):
        mount = Mount.overlay(os.fsdecode(lower), AT, keep=layer)
        result = shell("cat file; echo new > new", mount)
        assert result.stdout == "found"
        assert told(result) == [("new", "added", "file")]
    assert os.listdir(lower) == [b"file"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_it_may_have_any_name(directory: Path, name: bytes) -> None:
    """Added, told, read."""
    code = "os.chdir(b'/project'); open(os.fsencode(given['name']), 'w').write('text'); tell(1)"
    text = os.fsdecode(name)
    policy = Policy(mounts=(Mount.overlay(directory, AT),))
    with capsule.start(probe_args(code, {"name": text}), policy) as process:
        result = process.wait()
        assert told(result) == [(text, "added", "file")]
        assert process.layers[AT].read(result.changes[0].path) == b"text"


# --- reading ------------------------------------------------------------------------------------


def test_what_was_written_can_be_read_after_the_end(directory: Path) -> None:
    """Within the block; by the path inside or relative; what was not changed is not in the layer."""
    args = ["sh", "-c", "mkdir out; echo text > out/file; rm other"]
    policy = Policy(mounts=(Mount.overlay(directory, AT),), cwd=AT)
    with capsule.start(args, policy) as process:
        assert process.wait().ok
        layer = process.layers[AT]
        assert layer.read("out/file") == layer.read("/project/out/file") == b"text\n"
        for name in ("file", "other"):
            with pytest.raises(FileNotFoundError):
                layer.read(name)
    with pytest.raises(ValueError, match="closed"):
        layer.read("out/file")
    assert process.layers == {}


def test_a_planted_link_is_not_followed(directory: Path) -> None:
    """In the place of a file or of a directory, before and in an apply: what it names stays closed."""
    with shared_directory() as elsewhere:
        secret = elsewhere / "secret"
        secret.write_text("secret")
        give(elsewhere)
        give(secret)
        script = (
            f"ln -s {secret} file-link; ln -s {elsewhere} directory-link; rm file; ln -s {secret} file"
        )
        policy = Policy(mounts=(Mount.overlay(directory, AT),), cwd=AT)
        with capsule.start(["sh", "-c", script], policy) as process:
            result = process.wait()
            assert {c.type for c in result.changes} == {"symlink"}
            layer = process.layers[AT]
            for name in ("file-link", "directory-link/secret", "file"):
                with pytest.raises(OSError, match=r"symlink|Not a directory") as caught:
                    layer.open(name)
                assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
            assert layer.apply() == ()
        assert secret.read_text() == "secret"
        # The control: the same link on the host does lead there.
        os.symlink(secret, directory / "control")
        assert (directory / "control").read_text() == "secret"


def test_hostile_trees_are_told_and_gone(directory: Path) -> None:
    """Closed directories, deep nesting, many entries: told up to the bounds, nothing is left."""
    code = """
os.chdir("/project")
os.makedirs("closed/in"); open("closed/in/file", "w").close()
os.chmod("closed/in/file", 0); os.chmod("closed/in", 0); os.chmod("closed", 0)
for _ in range(5000):
    os.mkdir("d"); os.chdir("d")
tell("made")
"""
    policy = Policy(mounts=(Mount.overlay(directory, AT),))
    result = capsule.run(probe_args(code), policy)
    assert result.stdout == b'"made"'
    assert not result.changes_complete
    assert {"/project/closed/in/file", "/project/d/d/d"} < {c.path for c in result.changes}


# --- keeping ------------------------------------------------------------------------------------


def test_a_kept_layer_goes_on_where_it_was(directory: Path, keep: Path) -> None:
    """The next run sees it, and the changes are those of all runs; the host's directory has none."""
    before = snapshot(directory)
    mount = Mount.overlay(directory, AT, keep=keep / "layer")
    first = [("file", "deleted", "file"), ("one", "added", "file")]
    assert told(shell("echo 1 > one; rm file", mount)) == first
    result = shell("cat one; test ! -e file; echo 2 > two", mount)
    assert result.stdout == "1\n"
    assert told(result) == [*first, ("two", "added", "file")]
    assert snapshot(directory) == before


def test_where_no_layer_can_be_kept(directory: Path, keep: Path) -> None:
    """A directory that cannot be made is named, with what to do; it is not the launcher's fault."""
    for path in ("/proc/nothing", "/proc/nothing/layer", f"{keep}/no/layer"):
        mount = Mount.overlay(directory, AT, keep=path)
        with pytest.raises(capsule.PolicyError, match=f"upper layer in {path}: ") as caught:
            capsule.run(["true"], mounts=(mount,), cwd="/")
        assert caught.value.hint
        assert "launcher" not in str(caught.value)


def test_a_kept_layer_can_be_opened_later_and_applied(directory: Path, keep: Path) -> None:
    """Some changes, then all; afterwards the host's directory is as the overlay was."""
    mount = Mount.overlay(directory, AT, keep=keep / "layer")
    shell("mkdir a; echo 1 > a/one; echo 2 > two; rm -r gone; echo new > file", mount)
    with open_layer(keep / "layer", directory, AT) as layer:
        found, complete = layer.changes()
        assert complete
        assert [c.path for c in layer.apply(c for c in found if c.path == f"{AT}/a/one")] == [
            "/project/a", "/project/a/one"
        ]  # fmt: skip
        assert {path.name for path in directory.iterdir()} == {"a", "file", "other", "sub", "gone"}
        layer.apply()
        assert layer.changes() == ((), True)
    assert {path.name for path in directory.iterdir()} == {"a", "file", "other", "sub", "two"}
    assert (directory / "file").read_text() == "new\n"


def test_a_layer_that_a_capsule_uses_is_not_opened(directory: Path, keep: Path) -> None:
    """Nor does a capsule begin while one is open; one after the other they do."""
    mount = Mount.overlay(directory, AT, keep=keep / "layer")
    policy = Policy(mounts=(mount,), cwd=AT)
    with capsule.start(["cat"], policy, stdin=capsule.PIPE) as process:
        with pytest.raises(capsule.PolicyError, match="another capsule, or an open layer, uses"):
            open_layer(keep / "layer", directory, AT)
        assert process.wait().ok
    layer = open_layer(keep / "layer", directory, AT)
    with layer, pytest.raises(capsule.PolicyError, match="another capsule, or an open layer, uses"):
        capsule.run(["true"], policy)
    assert capsule.run(["true"], policy).ok


def test_a_hidden_file_is_in_no_tree_that_shows_it(directory: Path) -> None:
    """Where it lies, in a mount of the directory above it and in an overlay; the one beside it is."""
    script = "cat /w/sub/inner /s/inner /o/sub/inner; cat /w/file /s/deep/file /o/file"
    shown = Mount.read_only(directory, "/w"), Mount.read_only(directory / "sub", "/s")
    policy = Policy(mounts=(*shown, Mount.overlay(directory, "/o")))
    control = capsule.run(["sh", "-ec", script], policy, text=True)
    assert control.stdout.count("sub/inner of the host") == 3
    hiding = policy.replace(mounts=(*policy.mounts, Mount.hide("/w/sub/inner")))
    result = capsule.run(["sh", "-ec", script], hiding, text=True)
    assert result.ok
    assert result.stdout == "file of the hostsub/deep/file of the hostfile of the host"


@needs("real root")
def test_what_root_applies_is_not_roots(directory: Path, keep: Path) -> None:
    """It belongs to the owner of the directory that it is made in."""
    shell("echo 1 > one", Mount.overlay(directory, AT, keep=keep / "layer"))
    with open_layer(keep / "layer", directory, AT) as layer:
        layer.apply()
    assert (directory / "one").stat().st_uid == directory.stat().st_uid != 0


@needs("overlay deletes")
def test_what_a_trusted_tool_would_execute_is_never_applied(directory: Path) -> None:
    """It is told and marked; the rest is applied, also of what a directory around it loses."""
    hooks = directory / "repo" / ".git" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "pre-commit").write_text("ours")
    for path in (directory / "repo", hooks.parent, hooks, hooks / "pre-commit"):
        give(path)
    script = """
mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit; echo evil > .envrc; echo fine > README
rm -r repo; echo 'gitdir: elsewhere' > sub/.git
"""
    policy = Policy(mounts=(Mount.overlay(directory, AT),), cwd=AT)
    with capsule.start(["sh", "-ec", script], policy) as process:
        result = process.wait()
        assert result.ok
        marked = {c.path.removeprefix("/project/") for c in result.changes if c.protected}
        assert marked == {".git/hooks", ".git/hooks/pre-commit", ".envrc", "sub/.git"}
        process.layers[AT].apply()
    assert (directory / "README").read_text() == "fine\n"
    assert (hooks / "pre-commit").read_text() == "ours"
    for name in (".git/hooks", ".envrc", "sub/.git"):
        assert not (directory / name).exists()


def test_a_link_in_the_place_of_a_kept_layer_is_refused(directory: Path, keep: Path) -> None:
    """What another program may have put there is not written through; a directory there is used."""
    with shared_directory() as elsewhere:
        give(elsewhere)
        os.symlink(elsewhere, keep / "upper")
        with pytest.raises(capsule.CapsuleError):
            shell("echo 1 > one", Mount.overlay(directory, AT, keep=keep))
        assert not any(elsewhere.iterdir())
        (keep / "upper").unlink()
        assert told(shell("echo 1 > one", Mount.overlay(directory, AT, keep=keep)))


# --- what is refused ----------------------------------------------------------------------------


@needs("unshare")
def test_a_directory_with_a_mount_in_it_is_refused(directory: Path) -> None:
    """What is mounted there could not be shown: the message says what to do. Without it, it starts."""
    code = """
import capsule
from capsule import Mount, Policy
def attempt():
    try:
        policy = Policy(mounts=(Mount.overlay(sys.argv[2], "/project"),), cwd="/")
        return capsule.run(["true"], policy).returncode
    except capsule.CapsuleError as error:
        return [type(error).__name__, getattr(error, "errno", None), str(error), error.hint]
tell(attempt())
"""
    assert lab("true", code, directory) == 0
    name, number, text, hint = lab('mount -t tmpfs none "$1/sub"', code, directory)
    assert (name, number) == ("SetupError", errno.EINVAL)
    assert "overlay" in text
    assert "mount" in hint


def test_only_a_directory_can_lie_below(directory: Path) -> None:
    """A file as the source of an overlay is the caller's mistake; a missing one, too."""
    for name in ("file", "missing"):
        with pytest.raises(capsule.CapsuleError) as caught:
            capsule.run(["true"], Policy(mounts=(Mount.overlay(directory / name, AT),)))
        assert name in str(caught.value)
    optional = Mount.overlay(directory / "missing", AT, optional=True)
    assert capsule.run(["test", "!", "-e", AT], Policy(mounts=(optional,))).ok


def test_nothing_of_an_overlay_is_left(directory: Path) -> None:
    """The host's table of mounts is as before, also when the command could not be started."""
    before = Path("/proc/self/mountinfo").read_text()
    mount = Mount.overlay(directory, AT)
    shell("echo 1 > one", mount)
    with pytest.raises(capsule.SetupError):
        capsule.run(["/project/other"], Policy(mounts=(mount,)))
    assert Path("/proc/self/mountinfo").read_text() == before
    assert ask_outside("tell(os.path.exists('/.layers'))") is False
    assert subprocess.run(["ls", directory / "one"], capture_output=True).returncode != 0

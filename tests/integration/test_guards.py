"""What a writable tree hands to trusted tools: read-only if it is there, set aside if it is new."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import capsule
from capsule import HostError, Mount, Policy, PolicyError
from tests.integration.working_tree import aside, put, shell, working_tree, writable
from tests.support import HANG, ask, assert_denied, await_line, shared_directory


@pytest.fixture
def tree() -> Iterator[Path]:
    """A working tree with a repository in it."""
    with working_tree() as path:
        yield path


# --- what is there ------------------------------------------------------------------------------

_PROTECTED = """
open(given['tree'] + '/.git/hooks/pre-commit', 'a')
open(given['tree'] + '/.git/hooks/new', 'w')
os.unlink(given['tree'] + '/.git/hooks/pre-commit')
open(given['tree'] + '/.git/config', 'a')
os.chmod(given['tree'] + '/.envrc', 0o755)
os.truncate(given['tree'] + '/src/.vscode/x', 0)
"""


@pytest.mark.parametrize("act", _PROTECTED.strip().splitlines())
def test_what_is_protected_is_read_only(tree: Path, act: str) -> None:
    """It can be read and not changed: EROFS. Beside it the tree is writable."""
    with shared_directory() as copy:
        shutil.copytree(tree, copy / "tree")
        outside = {"tree": f"{copy}/tree"}
        assert_denied(
            act, errno.EROFS, outside=outside, inside={"tree": str(tree)}, policy=writable(tree)
        )
    assert (tree / ".git/hooks/pre-commit").read_text() == "old"
    assert ask("tell(open('.envrc').read())", writable(tree)) == "old"
    shell("echo new > .git/HEAD; echo new > src/code; rm src/code", writable(tree))
    assert (tree / ".git/HEAD").read_text() == "new\n"


_REPLACED = """
os.rename('.git/hooks', '.git/other')
os.rename('.git', 'other')
os.rename('src', 'other')
os.rename('.envrc', 'other')
os.unlink('.envrc')
os.rename('new', '.envrc')
os.rename('.git/HEAD', '.git/config')
os.rename('src/.vscode', 'src/other')
"""


@pytest.mark.parametrize("act", _REPLACED.strip().splitlines())
def test_what_is_protected_cannot_be_replaced(tree: Path, act: str) -> None:
    """Neither it nor a directory above it can be moved, removed or replaced: EBUSY."""
    put(tree / "new", "new")
    known = {
        path: (tree / path).stat().st_ino for path in (".git/hooks", ".git/config", ".envrc", "src")
    }
    act = f"os.chdir(given['tree']); {act}"
    with shared_directory() as copy:
        shutil.copytree(tree, copy / "tree")
        outside = {"tree": f"{copy}/tree"}
        assert_denied(
            act, errno.EBUSY, outside=outside, inside={"tree": str(tree)}, policy=writable(tree)
        )
    assert {path: (tree / path).stat().st_ino for path in known} == known


def test_no_link_reaches_what_is_protected(tree: Path) -> None:
    """A symbolic link leads to the read-only place; a hard link to it cannot be made."""
    code = """
os.symlink(".git/config", "link")
told = []
for act in (lambda: open("link", "a"), lambda: os.link(".envrc", "hard")):
    try:
        act()
        told.append("done")
    except OSError as error:
        told.append(errno.errorcode[error.errno])
os.link("src/code", "src/hard")
tell(told)
"""
    put(tree / "src/code", "code")
    assert ask(code, writable(tree)) == ["EROFS", "EXDEV"]


def test_what_a_protected_link_leads_to_in_the_tree_is_read_only(tree: Path) -> None:
    """A start-up file that is kept elsewhere in the tree is protected there."""
    put(tree / "dotfiles/bashrc", "old")
    (tree / ".bashrc").symlink_to("dotfiles/bashrc")
    with shared_directory() as copy:
        shutil.copytree(tree, copy / "tree", symlinks=True)
        assert_denied(
            "open(given['tree'] + '/dotfiles/bashrc', 'a')",
            errno.EROFS,
            outside={"tree": f"{copy}/tree"},
            inside={"tree": str(tree)},
            policy=writable(tree),
        )
    shell("echo new > dotfiles/other", writable(tree))


def test_names_can_be_left_writable_and_others_protected(tree: Path) -> None:
    """`unprotect` one by one or all, `protect` at any depth."""
    policy = writable(tree, unprotect=(".envrc",), protect=("code",))
    put(tree / "src/code", "old")
    assert aside(shell("echo new > .envrc", policy)) == {}
    assert (tree / ".envrc").read_text() == "new\n"
    act = "open(given['tree'] + '/src/code', 'a')"
    with shared_directory() as copy:
        shutil.copytree(tree, copy / "tree")
        outside = {"tree": f"{copy}/tree"}
        assert_denied(act, errno.EROFS, outside=outside, inside={"tree": str(tree)}, policy=policy)
    result = shell(
        "echo new > .git/config; mv .git/hooks .git/h; mkdir .idea", policy.replace(unprotect=("all",))
    )
    assert aside(result) == {}
    assert (tree / ".git/config").read_text() == "new\n"


def test_what_is_named_itself_is_writable(tree: Path) -> None:
    """A mount of the protected path says that it is meant; what else is protected stays so."""
    policy = writable(tree)
    policy = policy.replace(mounts=(*policy.mounts, Mount.read_write(tree / "src/.vscode")))
    script = "echo new > src/.vscode/x; ! { echo new > .envrc; } 2>/dev/null"
    assert aside(shell(script, policy)) == {}
    assert (tree / "src/.vscode/x").read_text() == "new\n"
    assert (tree / ".envrc").read_text() == "old"


def test_the_other_mounts_stay_as_they_are(tree: Path) -> None:
    """In a tree that is not writable nothing is looked for, and nothing can be made."""
    policy = Policy(mounts=(Mount.read_only(tree),), cwd=str(tree))
    assert shell("! mkdir .idea 2>/dev/null", policy).set_aside == ()


def test_a_protected_path_that_is_too_long_is_refused(tree: Path) -> None:
    """The kernel could not mount over it. At a shorter place it is protected."""
    names = ["d" * 200] * 17
    folder = os.open(tree, os.O_PATH)
    for name in [*names, *["e" * 180] * 4]:
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_PATH, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open(".envrc", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)
    long = os.path.join(tree, *names)
    with pytest.raises(PolicyError, match="longer than 4095 bytes") as caught:
        capsule.plan(["true"], Policy(mounts=(Mount.read_write(long),), show_cwd=False))
    assert caught.value.field == "mounts"
    plan = capsule.plan(["true"], Policy(mounts=(Mount.read_write(long, at="/short"),)))
    inside = "/".join(["/short", *["e" * 180] * 4, ".envrc"])
    # Deeper than the fixture can go.
    subprocess.run(["rm", "-rf", tree / names[0]], check=True, timeout=HANG)
    assert f"bind {inside} over itself" in str(plan)


def test_without_descriptors_nothing_starts(tree: Path) -> None:
    """What could not be seen would not be protected: the tree and the remedy are named."""
    policy = writable(tree)
    capsule.plan(["true"], policy)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2, hard))
    try:
        with pytest.raises(HostError, match="Too many open files") as caught:
            capsule.plan(["true"], policy)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(tree) in caught.value.message


# --- what is new --------------------------------------------------------------------------------


def test_what_is_new_is_set_aside(tree: Path) -> None:
    """Renamed beside its old place, without permission to execute; the work stays."""
    script = """
mkdir -p .idea sub/deep/.git/hooks
echo 'evil' > .idea/runConfigurations.xml
echo '#!/bin/sh' > sub/deep/.git/hooks/pre-commit
echo 'all:' > sub/Makefile
printf 'curl' > sub/.envrc
chmod +x sub/.envrc sub/deep/.git/hooks/pre-commit
"""
    result = shell(script, writable(tree))
    assert aside(result) == {
        f"{tree}/.idea": (f"{tree}/.idea.capsule-aside-1", ".idea"),
        f"{tree}/sub/.envrc": (f"{tree}/sub/.envrc.capsule-aside-1", ".envrc"),
        f"{tree}/sub/deep/.git/hooks": (f"{tree}/sub/deep/.git/hooks.capsule-aside-1", ".git/hooks"),
    }
    assert sorted(os.listdir(tree)) == [".envrc", ".git", ".idea.capsule-aside-1", "src", "sub"]
    assert stat.S_IMODE((tree / "sub/.envrc.capsule-aside-1").stat().st_mode) == 0o644
    assert stat.S_IMODE((tree / ".idea.capsule-aside-1").stat().st_mode) == 0o600
    assert (tree / "sub/.envrc.capsule-aside-1").read_text() == "curl"
    assert (tree / "sub/Makefile").read_text() == "all:\n"


def test_a_repository_elsewhere_is_set_aside(tree: Path) -> None:
    """A file or link .git, one that says where git finds the rest, and a bare repository."""
    script = """
mkdir -p a b bare/objects bare/refs
echo 'gitdir: ../bare' > a/.git
ln -s ../bare b/.git
echo ../bare > .git/commondir
echo 'ref: refs/heads/main' > bare/HEAD
echo '[core] fsmonitor = evil' > bare/config
"""
    assert {(path, guard) for path, (_, guard) in aside(shell(script, writable(tree))).items()} == {
        (f"{tree}/a/.git", ".git"),
        (f"{tree}/b/.git", ".git"),
        (f"{tree}/.git/commondir", ".git/commondir"),
        (f"{tree}/bare/config", ".git/config"),
    }


def test_nothing_outside_of_the_tree_is_touched(tree: Path) -> None:
    """Links to the host's files in the place of protected names are renamed, and not followed."""
    with shared_directory() as outside:
        (outside / "fish").mkdir()
        (outside / "fish/config.fish").write_text("the host's")
        (outside / "fish/config.fish").chmod(0o755)
        script = f"ln -s {outside} .config; ln -s {outside}/fish/config.fish .bashrc"
        assert set(aside(shell(script, writable(tree)))) == {f"{tree}/.config", f"{tree}/.bashrc"}
        assert os.readlink(tree / ".bashrc.capsule-aside-1") == f"{outside}/fish/config.fish"
        assert stat.S_IMODE((outside / "fish/config.fish").stat().st_mode) == 0o755
        assert sorted(path.name for path in outside.rglob("*")) == ["config.fish", "fish"]


def test_an_earlier_name_is_not_overwritten(tree: Path) -> None:
    """The next run takes the next number."""
    for number in (1, 2):
        result = shell("printf new > .mcp.json", writable(tree))
        assert result.set_aside[0].moved_to == f"{tree}/.mcp.json.capsule-aside-{number}"
    assert (tree / ".mcp.json.capsule-aside-1").read_text() == "new"


@pytest.mark.parametrize("end", ["kill -9 $$", "exit 3", "kill -9 -1; exit 4"])
def test_it_is_set_aside_however_the_command_ends(tree: Path, end: str) -> None:
    """It kills itself, fails, or tries to kill all others."""
    result = capsule.run(["sh", "-c", f"mkdir .idea; {end}"], writable(tree), timeout=HANG)
    assert not result.ok
    assert set(aside(result)) == {f"{tree}/.idea"}
    assert not (tree / ".idea").exists()


def test_it_is_set_aside_after_a_start_too(tree: Path) -> None:
    """When the process has been waited for, or at the latest when the block ends."""
    with capsule.start(["sh", "-c", "mkdir .idea"], writable(tree)) as process:
        result = process.wait()
    assert set(aside(result)) == {f"{tree}/.idea"}
    with capsule.start(["sh", "-c", "mkdir .fleet; echo; exec sleep 60"], writable(tree)) as process:
        await_line(process)
    assert not (tree / ".fleet").exists()
    assert (tree / ".fleet.capsule-aside-1").exists()


# --- git itself ---------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commits_work_inside(tree: Path) -> None:
    """git writes objects, refs and the index; hooks and configuration stay, and nothing is new."""
    shutil.rmtree(tree / ".git")
    policy = writable(tree, env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"}, unprotect=("all",))
    shell("git init -q -b main .; git config user.name A; git config user.email a@example.org", policy)
    script = (
        "git add src; git commit -qm one; git checkout -qb other; git commit -q --allow-empty -m two"
    )
    result = shell(f"{script}; git log --format=%s", policy.replace(unprotect=()))
    assert result.stdout == b"two\none\n"
    assert aside(result) == {}
    refused = capsule.run(["git", "config", "core.fsmonitor", "evil"], policy.replace(unprotect=()))
    assert refused.returncode != 0
    assert "evil" not in (tree / ".git/config").read_text()

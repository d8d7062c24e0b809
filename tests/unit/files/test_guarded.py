"""The protected names: which count, what they match, and how they are found in a tree."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from capsule import PolicyError
from capsule.files import guarded, guards
from capsule.files.guards import check_places, match, within
from capsule.policy.protected import TABLE, Guard, in_force, named
from tests.support import needs

ALL = in_force((), ())


def look(
    tree: Path,
    chosen: Iterable[Guard] = ALL,
    depth: int = guards.GUARD_DEPTH,
    most: int = guards.GUARD_ENTRIES,
) -> guarded.View:
    """What the guards find in a tree."""
    top = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        return guarded.look(top, within(chosen, str(tree)), depth=depth, most=most)
    finally:
        os.close(top)


def found(tree: Path, chosen: Iterable[Guard] = ALL, **bounds: Any) -> dict[str, str]:
    """Path to guard of what is found."""
    return {sight.path: sight.guard for sight in look(tree, chosen, **bounds).found}


def make(tree: Path, *names: str) -> None:
    """Make empty files, and directories of names that end in a slash."""
    for name in names:
        path = tree / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the caller's."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path


# --- the table ----------------------------------------------------------------------------------


def test_the_table_is_well_formed() -> None:
    """Each name is given once, is a normal relative path, and has a reason of one line."""
    names = [guard.name for guard in TABLE]
    assert len(set(names)) == len(names)
    for guard in TABLE:
        assert os.path.normpath(guard.name) == guard.name
        assert not guard.name.startswith(("/", ".."))
        assert guard.why
        assert guard.why.isprintable()
        assert not (guard.anywhere and guard.home)
        assert not guard.at


_EXECUTED = """
.git/hooks/pre-commit .git/config deep/below/.git/config.worktree .envrc a/.envrc .vscode/tasks.json
x/.claude/settings.json .mcp.json .husky/_/h capsule.toml .bashrc .config/systemd/user/x.service
.ssh/authorized_keys .local/bin/ls .git/modules/lib/hooks/post-checkout .git/modules/a/b/config
s/.git/worktrees/w/commondir
"""
_WORK = """
Makefile package.json conftest.py setup.py .venv/bin/python bin/tool CLAUDE.md .git .git/HEAD .git/index
.git/objects/ab/cd .git/refs/heads/config .git/modules/lib/HEAD .gitignore .github/workflows/x.yml
src/.bashrc rootfs/.ssh/x .npmrc .cargo/config.toml .config .config/other .envrc.example x.envrc envrc
.GIT/hooks .Envrc
"""


@pytest.mark.parametrize("path", _EXECUTED.split())
def test_what_is_executed_later_is_protected(path: str) -> None:
    """The names that other tools obey match, and so does what lies below them."""
    assert match(path, ALL) is not None


@pytest.mark.parametrize("path", _WORK.split())
def test_the_work_itself_is_not_protected(path: str) -> None:
    """What is run because somebody asks for it, commits, and names that differ do not match."""
    assert match(path, ALL) is None


def test_a_file_or_link_in_the_place_of_a_repository_is_protected() -> None:
    """It leads git elsewhere; the directory is what commits change."""
    assert match("sub/.git", ALL, "directory") is None
    for kind in ("file", "symlink", "fifo"):
        guard = match("sub/.git", ALL, kind)
        assert guard is not None
        assert guard.name == ".git"


def test_a_link_above_a_protected_name_is_protected() -> None:
    """It would make what the name leads to lie elsewhere."""
    assert match(".config", ALL, "symlink") is not None
    assert match(".config", ALL, "file") is None
    assert match("sub/.config", ALL, "symlink") is None


# --- protect and unprotect ----------------------------------------------------------------------


def test_names_can_be_left_out_and_added() -> None:
    """One by one, or all of the table; what the policy adds counts at any depth and stays."""
    assert match(".envrc", in_force((), (".envrc",))) is None
    assert match(".vscode/x", in_force((), (".envrc",))) is not None
    assert in_force((), ("all",)) == ()
    own = in_force(("deploy/secret.sh",), ("all",))
    assert [guard.name for guard in own] == ["deploy/secret.sh"]
    assert match("a/b/deploy/secret.sh", own) is own[0]


def test_a_name_of_the_table_can_be_kept_when_all_is_left_out() -> None:
    """It is the table's guard again, with all that this one means."""
    (only,) = in_force((".git/hooks",), ("all",))
    assert only in TABLE
    assert match(".git/modules/x/hooks/y", (only,)) is only


def test_a_policy_widens_a_name_of_the_table() -> None:
    """One that counts at the top alone is found anywhere then; .git is meant as a directory too."""
    widened = in_force((".bashrc", ".git"), ())
    assert match("a/b/.bashrc", widened) is not None
    assert match("a/.git/index", widened) is not None
    assert named(guard.name for guard in widened) == widened


def test_an_unknown_name_to_leave_out_is_an_error_that_lists_the_names() -> None:
    """A typo must not leave a name protected that was meant to be writable, or the other way round."""
    with pytest.raises(PolicyError, match=r"not a protected name: \.envrcs") as caught:
        in_force((), (".envrcs",))
    assert caught.value.field == "unprotect"
    assert caught.value.hint is not None
    assert ".envrc" in caught.value.hint
    assert "all" in caught.value.hint


def test_too_many_places_and_too_long_ones_are_refused() -> None:
    """Each is a mount, the directories above too; a path longer than the kernel takes is named."""
    check_places(f"/tree/{number}" for number in range(2048))
    check_places(["/" + "\u00e4" * 2047])
    with pytest.raises(PolicyError, match="the directories above them: 2049; at most 2048") as many:
        check_places(f"/tree/{number}" for number in range(2049))
    with pytest.raises(PolicyError, match="longer than 4095 bytes: /\u00e4") as long:
        check_places(["/tree", "/" + "\u00e4" * 2048])
    assert (many.value.field, long.value.field) == ("mounts", "mounts")
    assert "unprotect" in (many.value.hint or "")
    assert "--rw" in (long.value.hint or "")


# --- what counts in one tree --------------------------------------------------------------------


def test_home_names_count_in_the_callers_home_alone(home: Path) -> None:
    """Wherever a tree holds it, or is part of it; a project has its own bin."""
    project = home / "project"
    make(home, "bin/", ".npmrc", "project/bin/", "project/.npmrc", ".config/pip/", ".config/fish/")
    assert found(home) == {
        "bin": "bin",
        ".npmrc": ".npmrc",
        ".config/pip": ".config/pip",
        ".config/fish": ".config/fish",
    }
    assert found(project) == {}
    assert found(home / ".config") == {"pip": ".config/pip", "fish": ".config/fish"}
    above = found(home.parent)
    assert above["home/bin"] == "bin"
    assert above["home/.config/fish"] == ".config/fish"
    assert "home/project/bin" not in above


def test_a_tree_that_is_itself_protected_was_named_itself(home: Path) -> None:
    """Nothing in it is; but of a tree above the protected name that name still is."""
    make(home, "project/.git/hooks/h", "project/.git/HEAD", ".config/fish/config.fish")
    assert found(home / "project/.git") == {"hooks": ".git/hooks"}
    assert found(home / "project/.git/hooks") == {}
    assert found(home / ".config/fish") == {}


def test_capsule_itself_is_protected_where_it_lies_in_a_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python's prefix, whatever that is called, and its own package; it can be left out."""
    make(tmp_path, "project/tools/lib/site-packages/x", "src/capsule/policy/protected.py")
    monkeypatch.setattr("sys.prefix", str(tmp_path / "project/tools"))
    monkeypatch.setattr(guards, "_PACKAGE", str(tmp_path / "src/capsule"))
    assert found(tmp_path) == {"project/tools": "capsule-itself", "src/capsule": "capsule-itself"}
    assert found(tmp_path / "project") == {"tools": "capsule-itself"}
    assert found(tmp_path / "project/tools") == {}
    assert found(tmp_path, in_force((), ("capsule-itself",))) == {}
    assert match("capsule-itself", ALL) is None


def test_the_repositories_in_one_that_is_the_tree_are_protected() -> None:
    """An overlay of .git itself has submodules' hooks in it."""
    inner = within(ALL, "/srv/project/.git")
    assert match("hooks/pre-commit", inner) is not None
    assert match("modules/lib/hooks/post-checkout", inner) is not None
    assert match("modules/lib/HEAD", inner) is None
    assert match("hooks/pre-commit", within(ALL, "/srv/project")) is None


# --- what is found ------------------------------------------------------------------------------


def test_names_are_found_at_the_top_and_below(tmp_path: Path) -> None:
    """Each with what stands there."""
    make(tmp_path, ".git/hooks/h", ".git/config", "a/b/c/d/.envrc", "a/b/c/d/e/.envrc", "x/.bashrc")
    make(tmp_path, ".bashrc", "sub/.vscode/tasks.json")
    (tmp_path / "sub/.git").write_text("gitdir: elsewhere")
    seen = look(tmp_path)
    assert {sight.path: sight.guard for sight in seen.found} == {
        ".git/hooks": ".git/hooks",
        ".git/config": ".git/config",
        ".bashrc": ".bashrc",
        "sub/.vscode": ".vscode",
        "sub/.git": ".git",
        "a/b/c/d/.envrc": ".envrc",
    }
    info = (tmp_path / "sub/.git").stat()
    (pointer,) = (sight for sight in seen.found if sight.path == "sub/.git")
    assert (pointer.identity, pointer.kind) == (f"{info.st_dev}:{info.st_ino}", "file")
    assert (seen.depth, seen.closed) == (guards.GUARD_DEPTH, ())


def test_repositories_without_the_name_are_found(tmp_path: Path) -> None:
    """Those of submodules, of linked working trees, and bare ones: git obeys them as well."""
    modules = ".git/modules/libs/one"
    make(tmp_path, f"{modules}/HEAD", f"{modules}/hooks/h", f"{modules}/refs/heads/config")
    make(tmp_path, f"{modules}/modules/two/HEAD", f"{modules}/modules/two/config")
    make(tmp_path, ".git/worktrees/w/HEAD", ".git/worktrees/w/commondir", ".git/objects/hooks")
    make(tmp_path, "srv/x/HEAD", "srv/x/objects/", "srv/x/refs/", "srv/x/config", "srv/y/config")
    assert found(tmp_path) == {
        f"{modules}/hooks": ".git/hooks",
        f"{modules}/modules/two/config": ".git/config",
        ".git/worktrees/w/commondir": ".git/commondir",
        "srv/x/config": ".git/config",
    }


def test_links_are_found_and_not_followed(tmp_path: Path) -> None:
    """One with a protected name, and one above such a name; what they lead to is not looked at."""
    make(tmp_path, "elsewhere/fish/config.fish", "elsewhere/.envrc")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / ".envrc").symlink_to("../elsewhere/.envrc")
    (tree / ".config").symlink_to("../elsewhere")
    (tree / "linked").symlink_to("../elsewhere")
    seen = {sight.path: (sight.identity, sight.kind) for sight in look(tree).found}
    assert seen == {
        ".envrc": (f"link:../elsewhere/.envrc\0{tmp_path}/elsewhere/.envrc", "symlink"),
        ".config": (f"link:../elsewhere\0{tmp_path}/elsewhere", "symlink"),
    }


def test_many_entries_end_the_look_at_a_whole_level(tmp_path: Path) -> None:
    """The levels seen completely are said; what lies at the top is found however much lies there."""
    make(tmp_path, ".git/hooks/h", "a/b/.envrc", *(f"a/file{number}" for number in range(20)))
    assert found(tmp_path, most=1) == {".git/hooks": ".git/hooks"}
    assert look(tmp_path, most=1).depth == -1
    assert look(tmp_path, most=1).notes("/tree") == (
        "/tree has too many entries: only its top looked through for protected names",
    )
    cut = look(tmp_path, most=15)
    assert cut.depth == 0
    assert "only 1 of 5 levels" in cut.notes("/tree")[0]
    assert found(tmp_path, most=30)["a/b/.envrc"] == ".envrc"


def test_depth_bounds_the_look(tmp_path: Path) -> None:
    """No deeper than asked for; with -1 only what is looked up directly."""
    make(tmp_path, ".envrc", "a/.envrc", "a/b/.envrc")
    assert set(found(tmp_path, depth=1)) == {".envrc", "a/.envrc"}
    assert set(found(tmp_path, depth=0)) == {".envrc"}
    assert set(found(tmp_path, depth=-1)) == {".envrc"}


@needs("unprivileged")
def test_what_cannot_be_looked_into_is_said(tmp_path: Path) -> None:
    """One that can be searched but not listed hides nothing."""
    make(tmp_path, "closed/.envrc", "searchable/.envrc")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "searchable").chmod(0o311)
    try:
        seen = look(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
        (tmp_path / "searchable").chmod(0o700)
    assert [sight.path for sight in seen.found] == ["searchable/.envrc"]
    assert set(seen.closed) == {"closed", "searchable"}
    assert "cannot look for protected names in /tree/closed" in seen.notes("/tree")


def test_names_of_any_bytes_and_deep_trees_are_looked_through(tmp_path: Path) -> None:
    """Newlines, bytes that are no UTF-8, and a path longer than the kernel takes in one."""
    odd = os.fsencode(tmp_path) + b"/new\nline\xff"
    os.mkdir(odd)
    os.mkdir(odd + b"/.vscode")
    assert list(found(tmp_path)) == [os.fsdecode(b"new\nline\xff/.vscode")]
    deep = os.open(tmp_path, os.O_PATH)
    name = "d" * 200
    for _ in range(50):
        os.mkdir(name, dir_fd=deep)
        below = os.open(name, os.O_PATH, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    assert look(tmp_path).depth == guards.GUARD_DEPTH


def test_names_that_fold_to_a_protected_one_are_looked_up() -> None:
    """Whether they are one says the file system: a name of other case is a candidate, no more."""
    for name in (".git", ".GIT", ".Git", ".g\u200cit"):
        assert guarded._folded(name) == ".git"
    assert guarded._folded(".\u212airo") == ".kiro"
    assert guarded._folded(".gits") != ".git"


def test_another_case_is_another_name_where_the_file_system_says_so(tmp_path: Path) -> None:
    """On a tree that tells them apart .GIT/hooks is nobody's."""
    make(tmp_path, "sub/.GIT/hooks/h", "sub/.ENVRC")
    if (tmp_path / "sub/.envrc").exists():
        pytest.skip("this file system folds case")
    assert found(tmp_path) == {}

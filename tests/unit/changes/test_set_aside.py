"""What is new under a protected name when a capsule has ended: set aside, and nothing else touched."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from capsule.changes import set_aside as aftermath
from capsule.changes.set_aside import set_aside
from capsule.changes.values import SetAside
from capsule.files import guarded
from capsule.files.found import Watch
from capsule.policy.protected import Guard, in_force
from tests.support import closed_place, needs
from tests.unit.trees import hook, mode, open_all, tree_of, watch


@pytest.fixture(autouse=True)
def _open_again(tmp_path: Path) -> Iterator[None]:
    """What was set aside can be removed."""
    yield
    open_all(tmp_path)


# --- what is set aside --------------------------------------------------------------------------


def test_a_new_file_is_renamed_and_not_executable(tmp_path: Path) -> None:
    """Its content stays; the result says where it was, where it is, and which name it had."""
    before = watch(tmp_path)
    hook(tmp_path / "deep/er/.envrc", "curl evil").chmod(0o6755)
    moved, notes = set_aside(before)
    new = tmp_path / "deep/er/.envrc.capsule-aside-1"
    assert moved == (SetAside(f"{tmp_path}/deep/er/.envrc", str(new), ".envrc"),)
    assert notes == ()
    assert os.listdir(tmp_path / "deep/er") == [new.name]
    assert (new.read_text(), mode(new)) == ("curl evil", 0o644)


def test_a_new_directory_cannot_be_looked_into(tmp_path: Path) -> None:
    """What lies in it stays as it is: nobody reaches it by its name."""
    before = watch(tmp_path)
    hook(tmp_path / ".git/hooks/pre-commit")
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main")
    moved, _ = set_aside(before)
    new = tmp_path / ".git/hooks.capsule-aside-1"
    assert [(one.path, one.moved_to, one.guard) for one in moved] == [
        (f"{tmp_path}/.git/hooks", str(new), ".git/hooks")
    ]
    assert mode(new) == 0o600
    new.chmod(0o700)
    assert mode(new / "pre-commit") == 0o755
    assert (tmp_path / ".git/HEAD").read_text() == "ref: refs/heads/main"


def test_what_was_there_at_the_start_stays(tmp_path: Path) -> None:
    """With its inode and mode, whatever was done to other files."""
    for name in (".git/hooks/pre-commit", ".envrc", "sub/.vscode/tasks.json", ".git/config"):
        hook(tmp_path / name)
    (tmp_path / "sub/.git").write_text("gitdir: ../.git/modules/sub")
    (tmp_path / ".config").symlink_to("elsewhere")
    before, known = watch(tmp_path), tree_of(tmp_path)
    hook(tmp_path / ".git/objects/ab/cd")
    (tmp_path / "sub/Makefile").write_text("all:")
    assert set_aside(before) == ((), ())
    after = tree_of(tmp_path)
    assert {path: after[path] for path in known} == known


@pytest.mark.parametrize("name", [".envrc", ".vscode"])
def test_what_was_replaced_is_set_aside(tmp_path: Path, name: str) -> None:
    """Something else of that name is not what was known."""
    old = hook(tmp_path / "kept" / name)
    here = tmp_path / name
    old.rename(here)
    before = watch(tmp_path)
    hook(tmp_path / "other").rename(here)
    ((moved,), _) = set_aside(before)
    assert (moved.path, moved.moved_to) == (str(here), f"{here}.capsule-aside-1")


def test_a_link_that_leads_elsewhere_than_before_is_set_aside(tmp_path: Path) -> None:
    """Its text counts, and what it led to is not touched."""
    target = hook(tmp_path / "target")
    (tmp_path / ".envrc").symlink_to("harmless")
    (tmp_path / ".bashrc").symlink_to("target")
    before = watch(tmp_path)
    (tmp_path / ".envrc").unlink()
    (tmp_path / ".envrc").symlink_to("target")
    ((moved,), _) = set_aside(before)
    assert os.readlink(moved.moved_to) == "target"
    assert (mode(target), os.readlink(tmp_path / ".bashrc")) == (0o755, "target")


def test_a_link_above_a_protected_name_is_set_aside_itself(tmp_path: Path) -> None:
    """The directory that it leads to, outside of the tree, is not touched."""
    outside = tmp_path / "outside"
    hook(outside / "fish/config.fish")
    hook(outside / "hooks/pre-commit")
    tree = tmp_path / "tree"
    tree.mkdir()
    before, known = watch(tree), tree_of(outside)
    (tree / ".config").symlink_to(outside)
    (tree / ".git").symlink_to("../outside")
    moved, _ = set_aside(before)
    assert {one.path for one in moved} == {f"{tree}/.config", f"{tree}/.git"}
    assert not os.path.lexists(tree / ".config")
    assert os.readlink(tree / ".config.capsule-aside-1") == str(outside)
    assert tree_of(outside) == known


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o777)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [_fifo, _socket])
def test_special_files_are_only_renamed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A FIFO that nobody writes to keeps nobody waiting."""
    before = watch(tmp_path)
    make(tmp_path / ".envrc")
    kind = stat.S_IFMT((tmp_path / ".envrc").lstat().st_mode)
    ((moved,), _) = set_aside(before)
    assert moved.error == ""
    assert stat.S_IFMT(os.lstat(moved.moved_to).st_mode) == kind
    assert os.listdir(tmp_path) == [".envrc.capsule-aside-1"]


def test_a_file_without_permissions_is_set_aside(tmp_path: Path) -> None:
    """Neither its mode nor that of a directory keeps it where it is."""
    before = watch(tmp_path)
    hook(tmp_path / ".envrc").chmod(0o111)
    hook(tmp_path / ".vscode/tasks.json")
    (tmp_path / ".vscode").chmod(0)
    moved, _ = set_aside(before)
    assert [one.error for one in moved] == ["", ""]
    assert mode(tmp_path / ".envrc.capsule-aside-1") == 0
    assert mode(tmp_path / ".vscode.capsule-aside-1") == 0o600


def test_names_left_out_stay_and_added_ones_do_not(tmp_path: Path) -> None:
    """The policy's names count at the end as at the start."""
    before = watch(tmp_path, in_force(("run.sh", ".git"), (".envrc",)))
    hook(tmp_path / ".envrc")
    hook(tmp_path / "sub/run.sh")
    hook(tmp_path / "sub/.git/index")
    moved, _ = set_aside(before)
    assert sorted((one.path, one.guard) for one in moved) == [
        (f"{tmp_path}/sub/.git", "**/.git"),
        (f"{tmp_path}/sub/run.sh", "run.sh"),
    ]
    assert (tmp_path / ".envrc").exists()


def test_a_name_within_what_is_set_aside_goes_with_it(tmp_path: Path) -> None:
    """One report of it is enough."""
    before = watch(tmp_path, in_force((".vscode/tasks.json",), ()))
    hook(tmp_path / ".vscode/tasks.json")
    moved, _ = set_aside(before)
    assert [one.path for one in moved] == [f"{tmp_path}/.vscode"]


# --- new names ----------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """The first free number counts, whatever stands under the others: links that lead nowhere, too."""
    before = watch(tmp_path)
    hook(tmp_path / ".envrc", "new")
    (tmp_path / ".envrc.capsule-aside-1").write_text("old")
    (tmp_path / ".envrc.capsule-aside-2").mkdir()
    (tmp_path / ".envrc.capsule-aside-3").symlink_to("nowhere")
    ((moved,), _) = set_aside(before)
    assert moved.moved_to == f"{tmp_path}/.envrc.capsule-aside-4"
    assert (tmp_path / ".envrc.capsule-aside-1").read_text() == "old"
    assert os.readlink(tmp_path / ".envrc.capsule-aside-3") == "nowhere"
    assert sorted(os.listdir(tmp_path)) == [f".envrc.capsule-aside-{n}" for n in range(1, 5)]


@pytest.mark.parametrize("name", [".envrc", ".vscode"])
def test_where_all_numbers_are_taken_nobody_can_foresee_the_name(tmp_path: Path, name: str) -> None:
    """Whoever fills the names that can be known in advance keeps nothing where it is."""
    before = watch(tmp_path)
    hook(tmp_path / name / "x" if name == ".vscode" else tmp_path / name)
    for number in range(1, 1001):
        hook(tmp_path / f"{name}.capsule-aside-{number}/full")
    known = tree_of(tmp_path)
    ((moved,), notes) = set_aside(before)
    assert (moved.error, notes) == ("", ())
    assert re.fullmatch(
        r"\.capsule-aside-[0-9a-f]{32}", moved.moved_to.removeprefix(f"{tmp_path}/{name}")
    )
    old = {path: what for path, what in known.items() if path.partition("/")[0] != name}
    Path(moved.moved_to).chmod(0o700)
    assert old.items() <= tree_of(tmp_path).items()
    assert not (tmp_path / name).exists()


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    """The new name is one that the file system takes."""
    name = "n" * 255
    before = watch(tmp_path, in_force((name,), ()))
    hook(tmp_path / name)
    ((moved,), _) = set_aside(before)
    assert (moved.error, os.listdir(tmp_path)) == ("", ["n" * 239 + ".capsule-aside-1"])


def test_paths_of_any_bytes_are_set_aside(tmp_path: Path) -> None:
    """A newline, and what is no UTF-8, in the directory's name."""
    before = watch(tmp_path)
    odd = os.fsencode(tmp_path) + b"/new\nline\xff"
    os.mkdir(odd)
    hook(Path(os.fsdecode(odd)) / ".envrc")
    ((moved,), _) = set_aside(before)
    assert os.fsencode(moved.moved_to) == odd + b"/.envrc.capsule-aside-1"
    assert os.path.exists(moved.moved_to)


# --- what cannot be done ------------------------------------------------------------------------


def test_what_cannot_be_renamed_is_said() -> None:
    """With the kernel's reason: here that nobody may make a file where it is."""
    before = Watch("/sys/kernel", "/sys/kernel", ("uevent_seqnum",), depth=-1)
    ((moved,), _) = set_aside(before)
    assert (moved.path, moved.moved_to) == ("/sys/kernel/uevent_seqnum", "")
    assert moved.error in ("Permission denied", "Read-only file system")


@needs("unprivileged", "closed place")
def test_what_cannot_be_looked_into_is_noted() -> None:
    """A directory of somebody else's: the caller cannot open it up."""
    place = closed_place() or ""
    note = f"cannot look for protected names in {place}"
    assert set_aside(Watch(place, place, (".envrc",))) == ((), (note,))


def test_a_tree_that_is_gone_is_noted(tmp_path: Path) -> None:
    """On one line; so is one in whose place a link stands: it is not followed."""
    tree = tmp_path / "tr\nee"
    tree.mkdir()
    before = watch(tree)
    tree.rename(tmp_path / "elsewhere")
    moved, (note,) = set_aside(before)
    assert (moved, note.endswith("/tr\\nee: No such file or directory")) == ((), True)
    tree.symlink_to("elsewhere")
    hook(tmp_path / "elsewhere/.envrc")
    moved, (note,) = set_aside(before)
    assert (moved, note.endswith("Not a directory")) == ((), True)


def test_what_vanishes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may write to the tree: what is gone need not be reported."""
    before = watch(tmp_path)
    hook(tmp_path / ".envrc")
    monkeypatch.setattr(aftermath, "look", _then((tmp_path / ".envrc").unlink))
    assert set_aside(before) == ((), ())
    assert os.listdir(tmp_path) == []


def test_a_link_swapped_in_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the place of the directory that holds the name, nor of the name itself."""
    outside = tmp_path / "outside"
    hook(outside / ".envrc")
    tree = tmp_path / "tree"
    tree.mkdir()
    before, known = watch(tree), tree_of(outside)
    hook(tree / "sub/.envrc")
    hook(tree / ".envrc")

    def swap() -> None:
        (tree / "sub").rename(tree / "moved")
        (tree / "sub").symlink_to("../outside")
        (tree / ".envrc").unlink()
        (tree / ".envrc").symlink_to("../outside/.envrc")

    monkeypatch.setattr(aftermath, "look", _then(swap))
    moved, _ = set_aside(before)
    assert tree_of(outside) == known
    assert {one.path: one.error for one in moved} == {
        f"{tree}/.envrc": "",
        f"{tree}/sub/.envrc": "Not a directory",
    }
    assert os.readlink(tree / ".envrc.capsule-aside-1") == "../outside/.envrc"


def _then(act: Callable[[], None]) -> Callable[..., guarded.View]:
    """A look, and what somebody else does right after it."""

    def look(top: int, guards: Sequence[Guard], **bounds: Any) -> guarded.View:
        view = guarded.look(top, guards, **bounds)
        act()
        return view

    return look


# --- bounds -------------------------------------------------------------------------------------


def test_many_files_hide_nothing(tmp_path: Path) -> None:
    """A tree that was looked through at the start is so at the end, though more lies in it now."""
    before = watch(tmp_path, most=10)
    for number in range(50):
        (tmp_path / f"file{number}").touch()
    hook(tmp_path / "sub/.envrc")
    moved, notes = set_aside(before)
    assert ([one.guard for one in moved], notes) == ([".envrc"], ())


def test_what_was_not_seen_at_the_start_is_not_taken_for_new(tmp_path: Path) -> None:
    """A large tree is looked through no deeper than before, even if it is small by now."""
    hook(tmp_path / "sub/dir/.envrc")
    for number in range(20):
        (tmp_path / f"sub/file{number}").touch()
    before = watch(tmp_path, most=10)
    assert before.depth == 0
    for number in range(20):
        (tmp_path / f"sub/file{number}").unlink()
    hook(tmp_path / ".envrc")
    moved, _ = set_aside(before)
    assert [one.path for one in moved] == [f"{tmp_path}/.envrc"]
    assert (tmp_path / "sub/dir/.envrc").exists()


def test_too_many_entries_at_the_end_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies at the top is found all the same."""
    monkeypatch.setattr(aftermath, "ENTRIES_AFTER", 10)
    before = watch(tmp_path)
    for number in range(20):
        (tmp_path / f"sub{number}").mkdir()
    hook(tmp_path / ".git/hooks/h")
    moved, (note,) = set_aside(before)
    assert [one.guard for one in moved] == [".git/hooks"]
    assert "too many entries" in note


def test_so_many_names_are_reported_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is counted: the result of a hostile run stays small, and decoys hide nothing."""
    monkeypatch.setattr(aftermath, "MOST_ASIDE", 3)
    before = watch(tmp_path)
    for number in range(5):
        hook(tmp_path / f"sub{number}/.envrc")
    moved, (note,) = set_aside(before)
    assert len(moved) == 3
    assert note == f"{tmp_path}: 2 more new protected names were set aside"
    assert list(tmp_path.glob("*/.envrc")) == []


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Whatever was found and could not be moved."""
    before = watch(tmp_path)
    for name in (".git/hooks/h", ".git/config", ".envrc", "sub/.vscode/x"):
        hook(tmp_path / name)
    held = os.listdir("/proc/self/fd")
    moved, _ = set_aside(before)
    assert len(moved) == 4
    assert os.listdir("/proc/self/fd") == held

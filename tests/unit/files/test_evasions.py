"""What a command may do so that a new protected name is overlooked, or cannot be set aside."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capsule import HostError
from capsule.changes.set_aside import set_aside
from capsule.files import guarded
from capsule.files.guards import within
from capsule.files.trees import links as leads
from capsule.files.trees.cursor import LIST, Way
from tests.unit.trees import ALL, hook, mode, open_all, tree_of, watch


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A tree with something beside it."""
    path = tmp_path / "tree"
    path.mkdir()
    yield path
    path.chmod(0o700)
    open_all(tmp_path)


# --- closed directories -------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [0o000, 0o111, 0o311, 0o444, 0o555])
@pytest.mark.parametrize("folder", ["", "sub", "sub/deep"])
def test_a_closed_directory_of_the_callers_hides_nothing(tree: Path, folder: str, closed: int) -> None:
    """It is opened up for that moment, and has its mode again; what is open is not touched."""
    (tree / "sub/deep").mkdir(parents=True)
    (tree / "open").mkdir()
    before = watch(tree)
    hook(tree / folder / ".envrc")
    hook(tree / folder / ".vscode/tasks.json")
    was = (tree / "open").stat().st_ctime_ns
    (tree / folder).chmod(closed)
    moved, notes = set_aside(before)
    assert (mode(tree / folder), notes) == (closed, ())
    (tree / folder).chmod(0o700)
    assert (tree / "open").stat().st_ctime_ns == was
    assert sorted((one.guard, one.error) for one in moved) == [(".envrc", ""), (".vscode", "")]
    names = {".envrc.capsule-aside-1", ".vscode.capsule-aside-1"}
    assert names <= set(os.listdir(tree / folder))
    assert {".envrc", ".vscode"}.isdisjoint(os.listdir(tree / folder))


def test_closed_directories_on_the_way_are_opened_up_together(tree: Path) -> None:
    """One in the other, the top itself, and one above a protected name of several parts."""
    before = watch(tree)
    hook(tree / "a/b/.git/hooks/pre-commit")
    hook(tree / ".config/fish/config.fish")
    closed = [tree / path for path in (".config", "a/b/.git", "a/b", "a", ".")]
    for path in closed:
        path.chmod(0)
    moved, notes = set_aside(before)
    modes = []
    for path in reversed(closed):
        modes.append(mode(path))
        path.chmod(0o700)
    assert (modes, notes) == ([0] * 5, ())
    assert {one.path for one in moved} == {f"{tree}/.config/fish", f"{tree}/a/b/.git/hooks"}
    assert [one.error for one in moved] == ["", ""]


def test_the_first_look_opens_nothing_up(tree: Path) -> None:
    """The caller closed it, and nothing was in it that a command has made."""
    hook(tree / "closed/.envrc")
    (tree / "closed").chmod(0)
    was = (tree / "closed").stat().st_ctime_ns
    watch(tree)
    assert (tree / "closed").stat().st_ctime_ns == was


def test_a_way_gives_the_modes_back_if_it_ends_nowhere(tree: Path) -> None:
    """Also where it fails, and a link is none."""
    (tree / "sub").mkdir()
    (tree / "sub/link").symlink_to(".")
    (tree / "sub").chmod(0)
    top = os.open(tree, os.O_PATH)
    held = os.listdir("/proc/self/fd")
    try:
        for name, code in (("missing", errno.ENOENT), ("link", errno.ENOTDIR)):
            with pytest.raises(OSError, match=os.strerror(code)):
                Way(top, f"sub/{name}", open_up=True)
            assert mode(tree / "sub") == 0
        with Way(top, "sub", LIST, open_up=True):
            assert mode(tree / "sub") in (0o500, 0 if os.geteuid() != tree.stat().st_uid else 0o500)
        assert mode(tree / "sub") == 0
        assert os.listdir("/proc/self/fd") == held
    finally:
        os.close(top)


# --- links --------------------------------------------------------------------------------------


def follows(tree: Path, links: dict[str, str], *made: str) -> set[str]:
    """What is set aside when these links were there, and a command then made these files."""
    for name, text in links.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(text)
    before = watch(tree)
    for path in made:
        hook(tree / path)
    known = tree_of(tree)
    moved, notes = set_aside(before)
    assert ([one.error for one in moved], notes) == ([""] * len(moved), ())
    gone = {os.path.relpath(one.path, tree) for one in moved}
    # What they lead to stays as it is.
    assert {path: known[path] for path in known if path not in gone}.items() <= tree_of(tree).items()
    return gone


@pytest.mark.parametrize(
    ("links", "made"),
    [
        ({".envrc": "envlocal"}, "envlocal"),
        ({".envrc": "./conf//../conf/x"}, "conf/x"),
        ({".husky": "scripts/husky"}, "scripts/husky/pre-commit"),
        ({"sub/.envrc": "../conf/envrc"}, "conf/envrc"),
        ({".envrc": "one", "one": "two/three", "two": "four"}, "four/three"),
        ({".envrc": "../tree/envlocal"}, "envlocal"),
        ({".config": "dotfiles"}, "dotfiles/fish/config.fish"),
        ({".git": "elsewhere"}, "elsewhere/hooks/pre-commit"),
    ],
)
def test_what_is_made_where_a_protected_link_leads(
    tree: Path, links: dict[str, str], made: str
) -> None:
    """The link is set aside: it led to nothing, and now to what the command has made."""
    (name,) = (link for link in links if link.rpartition("/")[2].startswith("."))
    assert follows(tree, links, made) == {name}


def test_an_absolute_link_into_the_tree_is_followed(tree: Path) -> None:
    """By the tree's own path."""
    assert follows(tree, {".envrc": f"{tree}/envlocal"}, "envlocal") == {".envrc"}


@pytest.mark.parametrize(
    "text", ["../beside", "envlocal", "loop", "file/x", "a/" * 2047, "here/../" * 500]
)
def test_a_link_that_leads_where_it_led_stays(tree: Path, text: str) -> None:
    """Out of the tree, to nothing, in a circle, through a file, far."""
    (tree / "loop").symlink_to("loop")
    (tree / "file").touch()
    (tree / "here").mkdir()
    assert follows(tree, {".envrc": text}, "something", "../beside") == set()


def test_a_link_that_has_lost_what_it_led_to_stays(tree: Path) -> None:
    """It does no harm; and what is put there by the next command is new again."""
    old = hook(tree / "envlocal")
    (tree / ".envrc").symlink_to("envlocal")
    before = watch(tree)
    old.unlink()
    assert set_aside(before) == ((), ())
    before = watch(tree)
    hook(old)
    ((moved,), _) = set_aside(before)
    assert moved.path == f"{tree}/.envrc"


@pytest.mark.parametrize("other", ["file", "link", "outside"])
def test_what_a_link_in_between_is_replaced_by(tree: Path, other: str) -> None:
    """A link that a protected one leads on to has no protected name itself, but counts."""
    hook(tree / "envlocal")
    hook(tree / "other")
    (tree / ".envrc").symlink_to("between")
    (tree / "between").symlink_to("envlocal")
    before = watch(tree)
    (tree / "between").unlink()
    if other == "file":
        hook(tree / "between")
    else:
        (tree / "between").symlink_to("other" if other == "link" else "../outside")
    ((moved,), _) = set_aside(before)
    assert (moved.path, moved.error) == (f"{tree}/.envrc", "")
    assert os.readlink(moved.moved_to) == "between"


def test_a_closed_directory_hides_nothing_behind_a_link(tree: Path) -> None:
    """It is opened up as on any way."""
    (tree / ".envrc").symlink_to("conf/envrc")
    before = watch(tree)
    hook(tree / "conf/envrc")
    (tree / "conf").chmod(0)
    ((moved,), notes) = set_aside(before)
    assert (moved.path, mode(tree / "conf"), notes) == (f"{tree}/.envrc", 0, ())


def test_long_ways_of_links_end(tree: Path) -> None:
    """A link's way costs so much and no more, and all together: who makes them can make them long."""
    (tree / "d").symlink_to("./" * 2000 + ".")
    (tree / "x").symlink_to("d/" * 1000)
    (tree / "here").mkdir()
    (tree / "y").symlink_to("here/../" * 500)
    top = os.open(tree, os.O_PATH)
    try:
        links = leads.Links(top, str(tree), open_up=False)
        assert links.follow(".envrc", "x") == ""
        assert links.follow(".envrc", "y/y/y/y/y/y") == "\0E2BIG"
    finally:
        os.close(top)


# --- what is not seen for want of something -----------------------------------------------------


@contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Let this process open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _filled(tree: Path) -> None:
    hook(tree / "a/b/.git/hooks/x")
    hook(tree / "envlocal")


def test_without_descriptors_nothing_passes_for_seen(tree: Path) -> None:
    """However many are left: all is found, or it is said that there are too few."""
    (tree / ".envrc").symlink_to("conf/envrc")
    hook(tree / "conf/envrc")
    _filled(tree)
    guards = within(ALL, str(tree))
    top = os.open(tree, os.O_PATH)
    told: list[object] = []
    try:
        for left in range(8):
            with descriptors_left(left):
                try:
                    told.append({sight.path for sight in guarded.look(top, guards).found})
                except OSError as error:
                    told.append(error.errno)
    finally:
        os.close(top)
    everything = {".envrc", "a/b/.git/hooks"}
    assert all(one in (errno.EMFILE, everything) for one in told)
    assert errno.EMFILE in told
    assert everything in told


def test_a_tree_that_cannot_be_looked_through_ends_the_start(tree: Path) -> None:
    """What is not seen would not be protected. A tree that is not there is for its step to say."""
    _filled(tree)
    guards = within(ALL, str(tree))
    for left in range(3):
        with descriptors_left(left), pytest.raises(HostError, match="Too many open files") as caught:
            guarded.first_look(str(tree), guards)
        assert str(tree) in caught.value.message
        assert "ulimit -n" in (caught.value.hint or "")
    status = tree.stat()
    looked = guarded.first_look(str(tree), guards)
    assert looked is not None
    assert looked[1] == (status.st_dev, status.st_ino)
    assert [sight.path for sight in looked[0].found] == ["a/b/.git/hooks"]
    assert guarded.first_look(f"{tree}/missing", guards) is None


def test_without_descriptors_the_end_is_not_silent(tree: Path) -> None:
    """It is noted that the tree was not looked through, or what stays is in the result."""
    before = watch(tree)
    _filled(tree)
    top = os.open(tree, os.O_PATH)
    try:
        for left in range(8):
            with descriptors_left(left):
                moved, notes = set_aside(before, top=top)
            assert moved or notes
            if notes:
                assert notes[0].endswith("Too many open files")
            if moved and not moved[0].error:
                break
        assert not (tree / "a/b/.git/hooks").exists()
    finally:
        os.close(top)


def test_what_lies_deeper_than_was_looked_is_noted(tree: Path) -> None:
    """At the end, if it was not so at the start: what is below is neither protected nor set aside."""
    before = watch(tree)
    (tree / "a/b/c/d/e").mkdir(parents=True)
    hook(tree / "a/b/c/d/e/.envrc")
    hook(tree / "a/b/c/d/.envrc")
    moved, (note,) = set_aside(before)
    assert [one.path for one in moved] == [f"{tree}/a/b/c/d/.envrc"]
    assert note == f"{tree} is deeper: only its first 5 levels looked through for protected names"


def test_a_tree_that_was_too_large_is_looked_through_no_further_in_the_end(tree: Path) -> None:
    """The plan has told how far that is."""
    for number in range(20):
        hook(tree / f"sub/file{number}")
    before = watch(tree, most=10)
    hook(tree / "sub/.envrc")
    assert (set_aside(before), before.depth) == (((), ()), 0)

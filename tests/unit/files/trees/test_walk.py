"""Walking through trees that somebody else may write to."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capsule.files.trees.walk import Entry, TooMany, entries, open_beneath, stat_beneath
from tests.support import needs, open_descriptors

IS_ROOT = os.geteuid() == 0
PATH_MAX = 4096


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed however deep and closed it is."""
    top = tmp_path / "tree"
    top.mkdir()
    yield top
    # Python's own removal calls itself once a level.
    subprocess.run(["chmod", "-R", "u+rwx", str(top)], check=True)
    subprocess.run(["rm", "-rf", str(top)], check=True)


def make_chain(top: str, depth: int, name: str = "d") -> None:
    """Make a directory in a directory in a directory."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def paths(top: Path, most: int = 1000, deepest: int | None = None) -> list[str]:
    """The paths of all entries, in order."""
    return [entry.path for entry in entries(str(top), most=most, deepest=deepest)]


def test_names_every_kind(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of file is named as what it is, and a FIFO is not opened."""
    (tree / "directory").mkdir()
    (tree / "file").touch()
    (tree / "symlink").symlink_to("/")
    os.mkfifo(tree / "fifo")
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found = {entry.name: entry.kind for entry in entries(str(tree), most=10)}
    assert found == {name: name for name in ("directory", "file", "symlink", "fifo", "socket")}
    assert {e.kind for e in entries("/dev", most=5000, deepest=1) if e.name == "null"} == {"device"}


def test_comes_breadth_first(tree: Path) -> None:
    """All of one level comes before all of the next, and links are not followed."""
    for name in ("a/b/c", "d/e", "f"):
        (tree / name).mkdir(parents=True)
    (tree / "f" / "link").symlink_to(tree)
    found = list(entries(str(tree), most=100))
    assert [entry.depth for entry in found] == [1, 1, 1, 2, 2, 2, 3]
    assert sorted(entry.path for entry in found) == ["a", "a/b", "a/b/c", "d", "d/e", "f", "f/link"]


def test_goes_as_deep_as_it_is_told(tree: Path) -> None:
    """At most that many levels, and only into what the caller wants entered."""
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "skip/x").mkdir(parents=True)
    assert sorted(paths(tree, deepest=1)) == ["a", "skip"]
    assert sorted(paths(tree, deepest=2)) == ["a", "a/b", "skip", "skip/x"]
    wanted = entries(str(tree), most=10, enter=lambda path: path != "skip")
    assert sorted(entry.path for entry in wanted) == ["a", "a/b", "a/b/c", "skip"]


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b"a:b,c\\d", b"-rf", b" ", b"x" * 255])
def test_any_name_goes(tree: Path, name: bytes) -> None:
    """A name of any bytes comes out as os.fsdecode gives it, and leads back to the file."""
    os.makedirs(os.fsencode(tree) + b"/" + name + b"/" + name)
    word = os.fsdecode(name)
    assert paths(tree) == [word, f"{word}/{word}"]
    top = os.open(tree, os.O_PATH)
    assert stat.S_ISDIR(stat_beneath(top, f"{word}/{word}").st_mode)
    os.close(top)


def test_stops_after_so_many(tree: Path) -> None:
    """So many entries are given and one more is an error; exactly so many are none."""
    for number in range(10):
        (tree / str(number)).touch()
    assert len(paths(tree, most=10)) == 10
    found: list[Entry] = []
    with pytest.raises(TooMany, match="more than 9 entries"):
        found.extend(entries(str(tree), most=9))
    assert len(found) == 9


def test_the_top_of_a_large_tree_comes_first(tree: Path) -> None:
    """A level is given in full before any of its directories is looked into, however large."""
    (tree / "a").mkdir()
    for number in range(200):
        (tree / "a" / str(number)).touch()
    (tree / "z").touch()
    seen: list[Entry] = []
    with pytest.raises(TooMany):
        seen.extend(entries(str(tree), most=100))
    assert {"a", "z"} <= {entry.path for entry in seen}


def test_goes_through_ten_thousand_levels(tree: Path) -> None:
    """A path much longer than PATH_MAX is walked to its end with few descriptors."""
    make_chain(str(tree), 10_000)
    before = open_descriptors()
    deepest = None
    most_open = 0
    for entry in entries(str(tree), most=20_000):
        deepest = entry
        if entry.depth % 500 == 0:
            most_open = max(most_open, len(os.listdir("/proc/self/fd")) - len(before))
    assert deepest is not None
    assert deepest.depth == 10_000
    assert len(deepest.path) > 4 * PATH_MAX
    assert most_open <= 40
    assert open_descriptors() == before
    top = os.open(tree, os.O_PATH)
    os.close(open_beneath(top, deepest.path, os.O_PATH))
    os.close(top)


def test_goes_through_many_branches(tree: Path) -> None:
    """More branches than descriptors that stay open: each is still walked to its end."""
    for number in range(60):
        (tree / str(number)).mkdir()
        make_chain(str(tree / str(number)), 20)
    assert len(paths(tree, most=10_000)) == 60 * 21


def test_gives_up_on_a_tree_made_to_be_slow(tree: Path) -> None:
    """Many branches that are all very deep are too many, whatever their number of entries."""
    for number in range(40):
        (tree / str(number)).mkdir()
        make_chain(str(tree / str(number)), 250)
    with pytest.raises(TooMany):
        paths(tree, most=11_000)


def test_an_unreadable_directory_is_given_as_closed(tree: Path) -> None:
    """A directory of mode 000 is given once, not entered, and stops nothing; root enters it."""
    (tree / "closed/inside").mkdir(parents=True)
    (tree / "open/inside").mkdir(parents=True)
    (tree / "closed").chmod(0)
    found = {entry.path: entry.closed for entry in entries(str(tree), most=10)}
    assert found["open/inside"] is False
    assert found["closed"] is not IS_ROOT
    assert ("closed/inside" in found) is IS_ROOT


@needs("unprivileged")
def test_a_directory_that_closes_meanwhile_is_given_again(tree: Path) -> None:
    """Closed between its listing and its turn, it is given a second time, as closed."""
    (tree / "a/inside").mkdir(parents=True)
    walk = entries(str(tree), most=10)
    assert not next(walk).closed
    (tree / "a").chmod(0)
    again = next(walk)
    assert (again.path, again.closed) == ("a", True)
    assert list(walk) == []


def test_a_directory_that_becomes_a_link_is_not_entered(tree: Path, tmp_path: Path) -> None:
    """Replaced by a link between its listing and its turn, nothing of the link's target is given."""
    secret = tmp_path / "secret"
    (secret / "treasure").mkdir(parents=True)
    (tree / "a").mkdir()
    walk = entries(str(tree), most=10)
    assert next(walk).path == "a"
    (tree / "a").rmdir()
    (tree / "a").symlink_to(secret)
    assert list(walk) == []


def test_a_directory_that_vanishes_is_left_out(tree: Path) -> None:
    """What is removed before its turn is no error."""
    (tree / "a").mkdir()
    (tree / "b/c").mkdir(parents=True)
    walk = entries(str(tree), most=10)
    assert {next(walk).path, next(walk).path} == {"a", "b"}
    (tree / "a").rmdir()
    assert [entry.path for entry in walk] == ["b/c"]


def test_links_swapped_while_it_walks(tree: Path, tmp_path: Path) -> None:
    """Whatever is exchanged for a link meanwhile, at no time anything outside of the tree is given."""
    secret = tmp_path / "secret"
    (secret / "x/treasure").mkdir(parents=True)
    (tree / "a/x/inside").mkdir(parents=True)
    link, aside = tree / "link", tree / "aside"
    link.symlink_to(secret)
    done = threading.Event()
    flips = 0

    def flip() -> None:
        nonlocal flips
        while not done.is_set():
            os.rename(tree / "a", aside)
            os.rename(link, tree / "a")
            os.rename(tree / "a", link)
            os.rename(aside, tree / "a")
            flips += 1

    flipper = threading.Thread(target=flip)
    flipper.start()
    top = os.open(tree, os.O_PATH)
    inside = 0
    try:
        for _ in range(1500):
            found = [entry.path for entry in entries(str(tree), most=100)]
            assert not any("treasure" in path for path in found)
            inside += any("inside" in path for path in found)
            try:
                stat_beneath(top, "a/x/treasure")
                raise AssertionError("the link was followed")
            except (FileNotFoundError, NotADirectoryError):
                pass
    finally:
        done.set()
        flipper.join()
        os.close(top)
    assert flips
    assert inside


def test_the_top_may_be_a_descriptor(tree: Path) -> None:
    """A descriptor, of O_PATH too, stays open and names the tree whatever happens to its path."""
    (tree / "a").mkdir()
    top = os.open(tree, os.O_PATH)
    assert [entry.path for entry in entries(top, most=10)] == ["a"]
    assert [entry.path for entry in entries(top, most=10)] == ["a"]
    os.close(top)


def test_the_top_may_be_no_link(tree: Path) -> None:
    """A link as the top, or a missing one, is an error and not an empty tree."""
    (tree / "link").symlink_to("/")
    with pytest.raises(NotADirectoryError):
        paths(tree / "link")
    with pytest.raises(FileNotFoundError):
        paths(tree / "missing")


def test_an_abandoned_walk_leaves_nothing_open(tree: Path) -> None:
    """Whoever stops in the middle of a tree keeps no descriptor of it."""
    make_chain(str(tree), 50)
    before = open_descriptors()
    walk = entries(str(tree), most=100)
    for _ in range(20):
        next(walk)
    assert open_descriptors() != before
    del walk
    assert open_descriptors() == before


def test_opens_beneath_without_links(tree: Path) -> None:
    """No link is followed on the way nor at the end, and no path leads out."""
    (tree / "d").mkdir()
    (tree / "d/file").write_text("inside")
    (tree / "link").symlink_to("d")
    (tree / "d/last").symlink_to("file")
    os.mkfifo(tree / "fifo")
    top = os.open(tree, os.O_PATH)
    before = open_descriptors()
    fd = open_beneath(top, "d/file", os.O_RDONLY)
    assert os.read(fd, 99) == b"inside"
    assert not os.get_inheritable(fd)
    os.close(fd)
    os.close(open_beneath(top, "fifo", os.O_RDONLY | os.O_NONBLOCK))
    os.close(open_beneath(top, "", os.O_RDONLY))
    with pytest.raises(NotADirectoryError):
        open_beneath(top, "link/file", os.O_RDONLY)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        open_beneath(top, "d/last", os.O_RDONLY)
    assert stat.S_ISLNK(stat_beneath(top, "d/last").st_mode)
    assert stat.S_ISDIR(stat_beneath(top, "").st_mode)
    for path in ("..", "d/../d", "/etc", "d//file", "d/", "."):
        with pytest.raises(ValueError, match="not a path in a tree"):
            open_beneath(top, path, os.O_RDONLY)
    assert open_descriptors() == before
    os.close(top)

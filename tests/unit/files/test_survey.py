"""What is found out about the sources of a policy's mounts, and what is refused."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capsule import IdMap, Mount, PolicyError
from capsule.files import sockets
from capsule.files.found import Found, Survey
from capsule.files.lookup import follow, trusts_root
from capsule.policy.mounts import CONTENT_SIZE
from tests.support import needs
from tests.unit.files.lab import IS_ROOT, dead_socket, hidden, linked, look, refusal, repository

# --- sources ------------------------------------------------------------------------------------


def test_no_mounts_find_nothing(lab: Path) -> None:
    """Without mounts, and a working directory of plain files, there is nothing to say."""
    (lab / "file").touch()
    (lab / "link").symlink_to("file")
    (lab / "directory").mkdir()
    assert look(cwd=lab) == Survey()
    assert look() == Survey()


def test_finds_what_a_source_is(lab: Path) -> None:
    """A directory and a file, with their owner."""
    (lab / "file").touch()
    found = look(Mount.read_only(lab, "/a"), Mount.read_write(lab / "file", "/b")).found
    owner = os.geteuid(), (lab / "file").stat().st_gid
    assert [(one.path, one.is_directory) for one in found] == [(str(lab), True), (f"{lab}/file", False)]
    assert {one.owner for one in found} == {owner}


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b"a:b,c\\d", b" ", b"x*[y]?"])
def test_any_name_goes(lab: Path, name: bytes) -> None:
    """A source of any name is found under that name."""
    os.mkdir(os.fsencode(lab) + b"/" + name)
    path = f"{lab}/{os.fsdecode(name)}"
    (one,) = look(Mount.read_write(path)).found
    assert (one.path, one.is_directory) == (path, True)


@pytest.mark.parametrize("make", [Mount.read_only, Mount.read_write, Mount.overlay, Mount.device])
def test_a_missing_source_is_left_to_its_step(lab: Path, make: Any) -> None:
    """What is not there is found under its own path, so that the step that opens it says so."""
    for path in (f"{lab}/no/such", f"{lab}/file/below"):
        (lab / "file").touch()
        (one,) = look(make(path)).found
        assert (one.path, one.is_directory) == (path, False)


@pytest.mark.parametrize(
    "make", [Mount.read_only, Mount.read_write, Mount.overlay, Mount.device, Mount.file]
)
def test_a_missing_optional_source_is_left_out(lab: Path, make: Any) -> None:
    """What is not there and optional is left out with a note; the rest is found."""
    found = look(make(lab / "missing", "/x", optional=True), Mount.read_only(lab))
    assert [one.path for one in found.found] == [str(lab)]
    assert found.notes == (f"{lab}/missing does not exist and is left out",)


@needs("unprivileged")
def test_an_unreadable_source_is_not_missing(lab: Path) -> None:
    """What the caller may not see is no reason to leave out an optional mount."""
    (lab / "closed/inside").mkdir(parents=True)
    (lab / "closed").chmod(0)
    (one,) = look(Mount.read_only(lab / "closed/inside", optional=True)).found
    assert (one.path, one.is_directory) == (f"{lab}/closed/inside", False)


def test_a_link_is_refused(lab: Path) -> None:
    """A link that an earlier program may have made is not followed, wherever in the path it is."""
    (lab / "real/inside").mkdir(parents=True)
    (lab / "link").symlink_to("real")
    # Root's own links count as the caller's where its command may act as root.
    policy: dict[str, Any] = {"id_map": IdMap.HOST_ROOT} if IS_ROOT else {}
    for path in ("link", "link/inside"):
        said = refusal(Mount.read_write(lab / path), **policy)
        real = f"{lab}/real/inside" if path != "link" else f"{lab}/real"
        assert f"{lab}/link is a symbolic link to real" in said
        assert "an earlier program may have put it there" in said
        assert f"HINT name {real} itself if you mean it" in said
    assert look(Mount.read_write(lab / "real"), **policy).found[0].path == f"{lab}/real"


def test_a_link_of_roots_is_followed() -> None:
    """A link in a directory that only root can write to cannot have been planted."""
    link = next((p for p in ("/var/run", "/bin", "/lib", "/var/lock") if os.path.islink(p)), None)
    if link is None:
        pytest.fail("this host has none of the usual links")
    place = follow(link, "mounts: x", trusted=True)
    assert (place.path, place.last_link) == (os.path.realpath(link), link)
    with pytest.raises(PolicyError, match="is a symbolic link"):
        follow(link, "mounts: x", trusted=False)


@needs("real root")
def test_a_link_of_roots_in_anothers_directory_is_refused(lab: Path) -> None:
    """Who owns a directory above can move a link of root's that lies in it."""
    (lab / "real").mkdir()
    (lab / "link").symlink_to("real")
    os.chmod(lab.parent, 0o755)
    assert trusts_root(0, host_root=False)
    os.chown(lab, 1, 1)
    assert "is a symbolic link" in refusal(Mount.read_only(lab / "link"))
    os.chown(lab, 0, 0)
    lab.chmod(0o777)
    assert "is a symbolic link" in refusal(Mount.read_only(lab / "link"))


def test_a_chain_of_links_ends(lab: Path) -> None:
    """A link to itself is an error of the source, and not a search without end."""
    assert trusts_root(1000, host_root=False)
    assert not trusts_root(0, host_root=True)
    (lab / "loop").symlink_to("loop")
    with pytest.raises(PolicyError, match="is a symbolic link to loop"):
        follow(str(lab / "loop"), "mounts: x", trusted=False)


@pytest.mark.parametrize("make", [Mount.read_only, Mount.read_write])
def test_a_device_is_refused_as_a_file(make: Any) -> None:
    """A device node is shown by ``device`` alone, which finds its numbers."""
    assert "is a device HINT show it with device (--dev)" in refusal(make("/dev/null"))
    (one,) = look(Mount.device("/dev/null")).found
    assert (one.device, one.is_directory) == ((1, 3), False)


def test_a_device_is_one(lab: Path) -> None:
    """A file or a directory elsewhere is no device; a directory below /dev may hold some."""
    (lab / "file").touch()
    assert "is not a device" in refusal(Mount.device(lab / "file", "/dev/x"))
    assert "is not a directory below /dev" in refusal(Mount.device(lab, "/dev/x"))
    for place in ("/dev/pts", "/dev/shm"):
        assert "is not a directory below /dev" in refusal(Mount.device(place, "/dev/other"))
    folders = [one.path for one in os.scandir("/dev") if one.is_dir(follow_symlinks=False)]
    same = [path for path in folders if os.stat(path).st_dev == os.stat("/dev").st_dev]
    for place in same:
        if all(not entry.is_file(follow_symlinks=False) for entry in os.scandir(place)):
            (one,) = look(Mount.device(place, "/dev/other")).found
            assert (one.device, one.is_directory) == (None, True)


def test_a_fifo_does_not_block(lab: Path) -> None:
    """A FIFO is shown without being opened, and is no file to copy."""
    os.mkfifo(lab / "fifo")
    (one,) = look(Mount.read_write(lab / "fifo")).found
    assert not one.is_directory
    assert "is not a regular file" in refusal(Mount.file(lab / "fifo", "/x"))


def test_reads_a_file(lab: Path) -> None:
    """The bytes of a file, and those of content."""
    (lab / "file").write_bytes(b"\0\xff\n")
    found = look(Mount.file(lab / "file", "/x"), Mount.content(b"\x01", "/y")).found
    assert [one.data for one in found] == [b"\0\xff\n", b"\x01"]


def test_reads_no_more_than_fits(lab: Path) -> None:
    """All copied files together fit in the limit to the byte; one byte more names size and remedy."""
    file = lab / "file"
    file.write_bytes(bytes(CONTENT_SIZE))
    assert len(look(Mount.file(file, "/x")).found[0].data) == CONTENT_SIZE
    said = refusal(Mount.file(file, "/x"), Mount.content(b"1", "/y"))
    assert f"has {CONTENT_SIZE} bytes" in said
    assert "8 MiB" in said
    assert "read_only (--ro)" in said
    (lab / "a").write_bytes(bytes(CONTENT_SIZE // 2 + 1))
    assert "bytes" in refusal(Mount.file(lab / "a", "/x"), Mount.file(lab / "a", "/y"))
    assert "is not a regular file" in refusal(Mount.file("/dev/zero", "/x"))


def test_a_file_to_copy_must_be_there(lab: Path) -> None:
    """There is no step that could say so later: a missing file is refused at once."""
    assert "No such file" in refusal(Mount.file(lab / "missing", "/x"))
    assert "is not a regular file" in refusal(Mount.file(lab, "/x"))


@needs("unprivileged")
def test_a_file_to_copy_must_be_readable(lab: Path) -> None:
    """What the caller may not read is not copied."""
    (lab / "file").touch(mode=0)
    assert "Permission denied" in refusal(Mount.file(lab / "file", "/x"))


# --- sockets ------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(path: Path) -> Iterator[None]:
    """A socket in use under its own path."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield


@pytest.mark.parametrize("make", [Mount.read_only, Mount.read_write, Mount.overlay])
def test_a_directory_with_a_socket_in_use_is_refused(lab: Path, make: Any) -> None:
    """Below a source, of whatever depth, it is refused by name; once nobody listens, it is hidden."""
    (lab / "a/b").mkdir(parents=True)
    with serving(lab / "a/b/agent.sock"):
        said = refusal(make(lab))
    assert "sockets lie in it: a/b/agent.sock" in said
    assert "service behind it" in said
    assert f"name the socket itself: {lab}/a/b/agent.sock" in said
    found = look(make(lab))
    assert hidden(found, lab) == ["a/b/agent.sock"]
    assert found.notes[-1] == f"hidden in {lab}: a/b/agent.sock"
    (lab / "a/b/agent.sock").unlink()
    assert look(make(lab)).hidden == ()


def test_a_socket_that_is_named_is_shown(lab: Path) -> None:
    """The socket itself, and its directory if the socket is named besides or hidden."""
    with serving(lab / "s"):
        named = Mount.read_write(lab / "s")
        assert look(named).found[0].path == f"{lab}/s"
        assert len(look(Mount.read_only(lab), named).found) == 2
        assert len(look(Mount.read_only(lab), Mount.hide(lab / "s")).found) == 2
        assert hidden(look(Mount.read_only(lab), Mount.hide("?")), lab) == ["s"]
        assert "sockets" in refusal(Mount.read_only(lab), Mount.read_only(lab / "s", "/elsewhere"))
    # Dead as it is, it is shown where it was named, and only there.
    assert look(Mount.read_only(lab), named).hidden == ()


def test_an_optional_mount_that_is_missing_covers_nothing(lab: Path) -> None:
    """What is left out hides no socket that lies at its place."""
    (lab / "d").mkdir()
    with serving(lab / "d/s"):
        over = Mount.read_only(lab / "missing", str(lab / "d"), optional=True)
        assert "d/s" in refusal(Mount.read_only(lab), over)
        assert look(Mount.read_only(lab), Mount.tmpfs(str(lab / "d"))).found


def test_sockets_of_git(lab: Path) -> None:
    """Nobody named it, and git's own daemon may listen there."""
    holder = repository(lab / "m/.git")
    tree = linked(lab, holder)
    with serving(holder / "ipc"):
        found = look(cwd=tree)
    assert hidden(found, lab) == ["m/.git/ipc"]
    assert found.found[0].mount == Mount.read_only(str(holder))


def test_a_socket_in_use_is_found_wherever_it_is(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what is looked through, the kernel's table names it."""
    monkeypatch.setattr(sockets, "SOCKET_ENTRIES", 1)
    deep = lab / "a/b/c"
    deep.mkdir(parents=True)
    monkeypatch.chdir("/")
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(f"{deep}/s")
        except OSError:
            pytest.fail("the path of the test is longer than a socket's address")
        assert "a/b/c/s" in refusal(Mount.read_only(lab))
    # Nobody uses it any more, and nobody looks so far.
    notes = look(Mount.read_only(lab)).notes
    assert "was not searched for sockets as a whole" in notes[0]


def test_sockets_of_the_working_directory_are_hidden(lab: Path) -> None:
    """What is shown unasked shows no socket: those at its top are hidden with a note."""
    dead_socket(lab / "b.sock")
    dead_socket(lab / "a.sock")
    os.mkfifo(lab / "fifo")
    for mounts in ((), (Mount.tmpfs("/x"),)):
        found = look(*mounts, cwd=lab)
        assert found.hidden == ((f"{lab}/a.sock", False), (f"{lab}/b.sock", False))
        assert found.notes == (f"hidden in {lab}: a.sock, b.sock",)
    named = look(Mount.read_write(lab / "a.sock"), cwd=lab)
    assert named.hidden == ((f"{lab}/b.sock", False),)


def test_a_socket_in_use_deep_in_the_working_directory_is_hidden(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's table names it, whatever characters are in its name."""
    (lab / "a").mkdir()
    monkeypatch.chdir("/")
    with contextlib.ExitStack() as stack:
        names = [b"plain", b"new\nline", b"\xff", b" end "]
        for name in names:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(os.fsencode(lab) + b"/a/" + name)
        found = look(cwd=lab)
    assert hidden(found, lab) == sorted(f"a/{os.fsdecode(name)}" for name in names)
    # The note says nothing to a terminal.
    assert all(note.isprintable() for note in found.notes)


@pytest.mark.parametrize("name", ["s.sock", " s", "\ns", " /s"])
def test_a_socket_with_a_relative_name_is_hidden(
    lab: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The kernel's table does not say where it lies: the working directory is looked through."""
    (lab / "a/b/ ").mkdir(parents=True)
    monkeypatch.chdir(lab / "a/b")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        monkeypatch.chdir("/")
        found = look(cwd=lab)
        assert found.hidden == ((f"{lab}/a/b/{name}", False),)
        assert len(found.notes) == 1
        monkeypatch.setattr(sockets, "SOCKET_ENTRIES", 1)
        assert "was not searched for sockets as a whole" in look(cwd=lab).notes[0]


def test_a_socket_behind_a_link_is_refused(lab: Path) -> None:
    """The name of a link is not the name of a socket."""
    dead_socket(lab / "s")
    (lab / "link").symlink_to("s")
    assert "symbolic link" in refusal(Mount.read_write(lab / "link"))


def test_a_root_with_a_socket_in_use_is_refused(lab: Path) -> None:
    """A directory as the whole root shows no service of the host's by accident."""
    (lab / "run").mkdir()
    (lab / "tmp").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{lab}/tmp/s")
        assert look(root=str(lab)) == Survey(root=str(lab))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{lab}/run/s")
        assert "root: " in refusal(root=str(lab))


# --- protected names ----------------------------------------------------------------------------


def guarded(found: Survey, top: Path) -> dict[str, bool]:
    """What is protected, as paths from a directory, and whether read-only."""
    return {os.path.relpath(one.at, top): one.read_only for one in found.guarded}


def work_tree(top: Path) -> None:
    """What git makes, as far as it matters."""
    (top / ".git/hooks").mkdir(parents=True)
    (top / ".git/config").touch()
    (top / ".git/objects").mkdir()


def test_protects_what_is_there(lab: Path) -> None:
    """Protected paths are read-only, those above them cannot be renamed, parents come first."""
    work_tree(lab)
    work_tree(lab / "sub")
    (lab / ".envrc").touch()
    found = look(Mount.read_write(lab, "/w"))
    assert guarded(found, Path("/w")) == {
        ".git": False, ".envrc": True, "sub": False,
        ".git/hooks": True, ".git/config": True, "sub/.git": False,
        "sub/.git/hooks": True, "sub/.git/config": True,
    }  # fmt: skip
    depths = [one.at.count("/") for one in found.guarded]
    assert depths == sorted(depths)
    (watch,) = found.watched
    assert (watch.at, watch.path) == ("/w", str(lab))
    identity = (lab / ".envrc").stat()
    assert dict(watch.known)[".envrc"] == f"{identity.st_dev}:{identity.st_ino}"
    assert ".git/hooks" in watch.names


@pytest.mark.parametrize("make", [Mount.read_only, Mount.overlay])
def test_protects_only_writable_trees(lab: Path, make: Any) -> None:
    """What cannot be written to, or is thrown away, needs no protection."""
    work_tree(lab)
    found = look(make(lab))
    assert (found.guarded, found.watched) == ((), ())


def test_what_is_named_itself_is_not_protected(lab: Path) -> None:
    """A mount at a protected path, or above it, was meant; the start is remembered all the same."""
    work_tree(lab)
    found = look(Mount.read_write(lab), Mount.read_write(lab / ".git/hooks"))
    assert guarded(found, lab) == {".git": False, ".git/config": True}
    assert ".git/hooks" in dict(found.watched[0].known)
    assert guarded(look(Mount.read_write(lab / ".git/hooks")), lab) == {}


def test_a_part_of_a_protected_path_is_no_way_around(lab: Path) -> None:
    """A repository's .git as the source is protected like the repository."""
    work_tree(lab)
    found = look(Mount.read_write(lab / ".git"))
    assert guarded(found, lab) == {".git/hooks": True, ".git/config": True}


def test_the_caller_decides_what_is_protected(lab: Path) -> None:
    """Names can be left out and added; a wrong one is refused even if nothing is writable."""
    work_tree(lab)
    (lab / "deploy").mkdir()
    (lab / "deploy/run.sh").touch()
    rw = Mount.read_write(lab)
    assert ".git/hooks" not in guarded(look(rw, unprotect=[".git/hooks"]), lab)
    nothing = look(rw, unprotect=["all"])
    assert (nothing.guarded, nothing.watched) == ((), ())
    only = look(rw, unprotect=["all"], protect=["run.sh"])
    assert guarded(only, lab) == {"deploy": False, "deploy/run.sh": True}
    with pytest.raises(PolicyError, match=re.escape("not a protected name: .no")):
        look(unprotect=[".no"])


def test_what_is_protected_is_protected_in_every_tree(lab: Path) -> None:
    """A writable mount of a directory above or below is another way to it; nothing else is closed."""
    work_tree(lab / "a/b")
    (lab / "a/.bashrc").touch()
    found = look(Mount.read_write(lab, "/w"), Mount.read_write(lab / "a", "/a"))
    assert guarded(found, Path("/")) == {
        "a/.bashrc": True, "a/b": False, "a/b/.git": False,
        "a/b/.git/config": True, "a/b/.git/hooks": True,
        "w/a": False, "w/a/.bashrc": True, "w/a/b": False, "w/a/b/.git": False,
        "w/a/b/.git/config": True, "w/a/b/.git/hooks": True,
    }  # fmt: skip
    hooks = Mount.read_write(lab / "a/b/.git/hooks", "/hooks")
    places = guarded(look(Mount.read_write(lab, "/w"), hooks), Path("/"))
    assert [place for place in places if place.startswith("hooks")] == []


def test_a_link_in_the_place_of_a_protected_path_is_only_remembered(lab: Path) -> None:
    """A link cannot be bound over itself; its text tells later whether it was replaced."""
    (lab / ".envrc").symlink_to("elsewhere")
    found = look(Mount.read_write(lab))
    assert found.guarded == ()
    assert found.watched[0].known == ((".envrc", "link:elsewhere"),)


def test_found_is_a_value() -> None:
    """What was found compares and hashes, as the key of a plan that is remembered."""
    mount = Mount.tmpfs("/x")
    assert {Found(mount): 1}[Found(mount)] == 1

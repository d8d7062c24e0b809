"""What the hides of a policy cover."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from capsule import Mount, System
from capsule.files import hides as hiding
from tests.support import needs
from tests.unit.files.lab import hidden, look, refusal

# --- hides by name ------------------------------------------------------------------------------


def test_hides_what_is_named(lab: Path) -> None:
    """A file or a directory below a mount, where the mount puts it."""
    (lab / "d").mkdir()
    (lab / "f").touch()
    found = look(Mount.read_only(lab, "/x"), Mount.hide("/x/d"), Mount.hide("/x/f")).found
    assert [(one.mount.at, one.is_directory) for one in found[1:]] == [("/x/d", True), ("/x/f", False)]


def test_a_missing_place_to_hide_is_refused(lab: Path) -> None:
    """A wrong name would hide nothing: refused unless optional."""
    shown = Mount.read_only(lab, "/x")
    assert "hide /x/no: it is not there" in refusal(shown, Mount.hide("/x/no"))
    assert "not there" in refusal(Mount.hide("/no/such/place"))
    assert "not there" in refusal(Mount.tmpfs("/x"), Mount.hide("/x/no"))
    assert len(look(shown, Mount.hide("/x/no", optional=True)).found) == 1
    # Capsule's own places: the command may find something there or not.
    (one,) = look(Mount.hide("/tmp/capsule-no-such-place")).found
    assert one.mount.optional


def test_a_link_cannot_be_hidden(lab: Path) -> None:
    """What it leads to could still be reached under its own name."""
    (lab / "d").mkdir()
    (lab / "d/secret").touch()
    (lab / "link").symlink_to("d")
    (lab / "last").symlink_to("d/secret")
    for path, real in (("last", "d/secret"), ("link/secret", "d/secret")):
        said = refusal(Mount.read_only(lab), Mount.hide(f"{lab}/{path}"))
        assert f"a symbolic link leads from there to {lab}/{real}" in said


def test_hides_a_place_of_the_hosts_programs() -> None:
    """What is there on the host is covered if it is there inside."""
    (one,) = look(Mount.hide("/usr/bin")).found
    assert (one.is_directory, one.mount.optional) == (True, True)


# --- hides by pattern ---------------------------------------------------------------------------


def test_patterns_hide_at_any_depth(lab: Path) -> None:
    """Files and directories, in mounts and in the working directory; what is hidden is not entered."""
    for name in ("a", "a/b", "secrets", "secrets/secrets"):
        (lab / name).mkdir()
    for name in (".env", "a/.env", "a/b/.env", "a/b/x.key", "secrets/.env", ".envrc"):
        (lab / name).touch()
    hides = [Mount.hide(".env"), Mount.hide("b/*.key"), Mount.hide("secret[s]")]
    for mounts, cwd in (([Mount.read_only(lab)], None), ([], lab)):
        found = look(*mounts, *hides, cwd=cwd)
        assert hidden(found, lab) == [".env", "a/.env", "a/b/.env", "a/b/x.key", "secrets"]
        assert dict(found.hidden)[f"{lab}/secrets"]
        assert not dict(found.hidden)[f"{lab}/.env"]


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b"a:b\\c", b"[x]*?"])
def test_patterns_hide_any_name(lab: Path, name: bytes) -> None:
    """A name of any bytes is matched and hidden under that name."""
    os.makedirs(os.fsencode(lab) + b"/" + name + b"/.env")
    found = look(Mount.read_write(lab), Mount.hide(".env"))
    assert hidden(found, lab) == [f"{os.fsdecode(name)}/.env"]


def test_absolute_patterns_mean_places_inside(lab: Path) -> None:
    """Where the mount puts it, and nowhere else."""
    (lab / "a").mkdir()
    for name in ("x.key", "a/x.key"):
        (lab / name).touch()
    shown = Mount.read_only(lab, "/w")
    assert look(shown, Mount.hide("/w/*.key")).hidden == (("/w/x.key", False),)
    assert look(shown, Mount.hide("/w/a/*.key")).hidden == (("/w/a/x.key", False),)
    assert len(look(shown, Mount.hide("/w/**/*.key")).hidden) == 2
    elsewhere = f"{lab}/*.key"
    if not elsewhere.startswith(("/tmp/", "/var/", "/run/")):
        assert look(shown, Mount.hide(elsewhere)).hidden == ()
    assert look(shown, Mount.hide("/no/*.key")).hidden == ()
    assert look(Mount.hide("/usr/bi[n]")).hidden == (("/usr/bin", True),)


def test_a_pattern_without_a_match_is_noted(lab: Path) -> None:
    """Who wrote it may have meant something."""
    found = look(Mount.read_only(lab), Mount.hide("*.key"))
    note = "hide *.key: nothing matches, so nothing is hidden by it"
    assert (found.hidden, found.notes) == ((), (note,))


@pytest.mark.parametrize("pattern", ["/*", "/*.key", "/etc/*", "/tmp/*/x", "/proc/**", "/us[r]"])
def test_a_pattern_that_means_capsules_own_places_is_refused(lab: Path, pattern: str) -> None:
    """No matches are looked for there, and to hide nothing would not be told; the hint says what is."""
    shown = Mount.read_only(lab, "/w")
    assert "HINT name each path itself, or write a pattern" in refusal(shown, Mount.hide(pattern))
    # It need not match anything.
    look(shown, Mount.hide(pattern, optional=True))


@pytest.mark.parametrize("pattern", ["/**/*.key", "/w/*", "/etc/ss[l]/no*", "/*/*.key", "/[w]", ".env"])
def test_a_pattern_that_can_match_what_is_shown_is_taken(lab: Path, pattern: str) -> None:
    """Whether or not it does match, and in a relative one whether or not anything is shown."""
    assert look(Mount.read_only(lab, "/w"), Mount.hide(pattern)).notes
    assert look(Mount.hide("*.key")).notes == (
        "hide *.key: nothing matches, so nothing is hidden by it",
    )


def test_a_place_of_capsules_own_that_is_not_on_the_host_is_noted() -> None:
    """Something may be there inside or not; it need not be meant."""
    place = "/tmp/capsule-no-such-place"
    assert look(Mount.hide(place)).notes == (f"hide {place}: it is not there on the host",)
    assert look(Mount.hide(place, optional=True)).notes == ()


# --- what is shown twice ------------------------------------------------------------------------


def twice(lab: Path) -> None:
    """A directory with a secret in a directory of its own."""
    (lab / "a/keys").mkdir(parents=True)
    (lab / "a/secret").touch()
    (lab / "a/keys/one").touch()


@pytest.mark.parametrize("hide", ["/w/a/secret", "a/secre[t]", "/w/a/s*"])
def test_what_is_hidden_is_hidden_in_every_tree(lab: Path, hide: str) -> None:
    """At whichever place another mount shows the same file, before or after the hide."""
    twice(lab)
    shown, other = Mount.read_only(lab, "/w"), Mount.read_write(lab / "a", "/b")
    for mounts in ([shown, other, Mount.hide(hide)], [shown, Mount.hide(hide), other]):
        found = look(*mounts)
        places = {place for place, _ in found.hidden} | {
            one.mount.at for one in found.found if one.mount.kind.value == "hide"
        }
        assert places == {"/w/a/secret", "/b/secret"}
        assert any(note == "hidden, too, because it is the same: /b/secret" for note in found.notes)


def test_a_hidden_directory_is_hidden_in_every_tree(lab: Path) -> None:
    """A mount in it that was given later stands where it was put, in the other tree, too."""
    twice(lab)
    one = Mount.read_only(lab / "a/keys/one", "/b/keys/one")
    mounts = [Mount.read_only(lab, "/w"), Mount.read_only(lab / "a", "/b")]
    assert look(*mounts, Mount.hide("/w/a/keys")).hidden == (("/b/keys", True),)
    found = look(*mounts, Mount.hide("/w/a/keys"), one).found
    assert ("/b/keys", "hide") in [(f.mount.at, f.mount.kind.value) for f in found]
    assert found[-1].mount.at == "/b/keys/one"


def test_what_is_named_itself_is_not_hidden_elsewhere(lab: Path) -> None:
    """A mount of what is hidden, or of a part of it, was meant; so was one that covers it."""
    twice(lab)
    shown, hides = Mount.read_only(lab, "/w"), [Mount.hide("/w/a/secret"), Mount.hide("/w/a/keys")]
    for named in ("a/secret", "a/keys", "a/keys/one"):
        assert look(shown, *hides, Mount.read_only(lab / named, "/b")).hidden == ()
    covering = Mount.read_only(lab / "a", "/b"), Mount.tmpfs("/b/keys"), Mount.content(b"", "/b/secret")
    assert look(shown, *covering, *hides).hidden == ()


def test_the_hosts_programs_at_another_place() -> None:
    """What is hidden there is hidden at its own place, and the reverse."""
    with os.scandir("/usr/share") as entries:
        name = next(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    shown = Mount.read_only("/usr/share", "/s")
    own, other = f"/usr/share/{name}", f"/s/{name}"
    assert look(shown, Mount.hide(other)).hidden == ((own, True),)
    assert look(shown, Mount.hide(own)).hidden == ((other, True),)
    assert look(shown, Mount.tmpfs("/usr"), Mount.hide(other)).hidden == ()
    assert look(shown, Mount.hide(other), system=System.NEEDED).hidden == ()


@needs("real root")
def test_a_second_mount_of_the_host_is_the_same(lab: Path) -> None:
    """A directory is known by device and inode, under whichever of its paths it is shown."""
    twice(lab)
    (lab / "second").mkdir()
    subprocess.run(["mount", "--bind", str(lab / "a"), str(lab / "second")], check=True)
    try:
        shown = Mount.read_only(lab / "a", "/w")
        found = look(shown, Mount.read_only(lab / "second", "/b"), Mount.hide("/w/secret"))
        assert found.hidden == (("/b/secret", False),)
        lower = Mount.overlay(lab / "second", "/b")
        assert "which is writable" in refusal(Mount.read_write(lab / "a"), lower)
    finally:
        subprocess.run(["umount", str(lab / "second")], check=True)


def test_a_hidden_file_with_other_names_is_noted(lab: Path) -> None:
    """It can be read under those; a file of one name, and a directory, are as they should be."""
    (lab / "secret").touch()
    os.link(lab / "secret", lab / "other")
    (lab / "single").touch()
    (lab / "d").mkdir()
    shown = Mount.read_only(lab, "/w")
    for hide in ("/w/secret", "secre[t]"):
        (note,) = look(shown, Mount.hide(hide)).notes
        assert note.startswith("hide: hard links: ")
        assert note.endswith(f": {lab}/secret")
    assert look(shown, Mount.hide("single"), Mount.hide("/w/d")).notes == ()


def test_of_a_pattern_and_a_mount_the_later_one_counts(lab: Path) -> None:
    """A mount after the pattern stands at or in what is hidden; one before it is left out."""
    (lab / "keys").mkdir()
    (lab / "keys/one").touch()
    shown, one, hide = Mount.read_only(lab), Mount.read_only(lab / "keys/one"), Mount.hide("key[s]")
    after = look(shown, hide, one)
    assert [(f.mount.at, f.mount.kind.value) for f in after.found] == [
        (str(lab), "read_only"), (f"{lab}/keys", "hide"), (f"{lab}/keys/one", "read_only"),
    ]  # fmt: skip
    assert after.hidden == ()
    before = look(shown, one, hide)
    assert [f.mount.at for f in before.found] == [str(lab)]
    assert hidden(before, lab) == ["keys"]
    assert any("hidden by a pattern" in note for note in before.notes)
    exact = look(shown, Mount.hide("on[e]"), one)
    assert (len(exact.found), exact.hidden) == (2, ())


def test_a_mount_is_searched_where_it_is_shown(lab: Path) -> None:
    """What another mount stands over is not there; what a missing optional one would is."""
    (lab / "d").mkdir()
    (lab / "d/.env").touch()
    shown, hide = Mount.read_only(lab), Mount.hide(".env")
    assert look(shown, Mount.tmpfs(f"{lab}/d"), hide).hidden == ()
    missing = Mount.read_only(lab / "no", f"{lab}/d", optional=True)
    assert hidden(look(shown, missing, hide), lab) == ["d/.env"]


def test_a_pattern_hides_what_a_link_leads_to(lab: Path) -> None:
    """The link is only a name: the file is covered where it is shown under its own."""
    (lab / "real").touch()
    (lab / ".env").symlink_to("real")
    (lab / "dangling.env").symlink_to("nowhere")
    found = look(Mount.read_only(lab), Mount.hide("*.env"))
    assert hidden(found, lab) == ["real"]
    assert found.notes == (f"{lab}/real is hidden, because {lab}/.env is a link to it",)


def test_too_much_to_search_is_refused(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree that is too large to search is not shown half searched."""
    for number in range(30):
        (lab / f"{number}.key").touch()
    mounts = Mount.read_only(lab), Mount.hide("*.key")
    assert len(look(*mounts).hidden) == 30
    monkeypatch.setattr(hiding, "MOST_HIDDEN", 29)
    assert "match more than 29 files" in refusal(*mounts)
    monkeypatch.setattr(hiding, "MOST_ENTRIES", 29)
    assert "more than 29 files" in refusal(Mount.read_only(lab), Mount.hide("*.no"))


def test_a_tree_too_deep_to_search_is_refused(lab: Path) -> None:
    """A file whose path is too long to be mounted over would stay visible."""
    fd = os.open(lab, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert "its path is too long" in refusal(Mount.read_write(lab), Mount.hide(".env"))
    assert look(Mount.read_write(lab)).found


@needs("unprivileged")
def test_a_closed_directory_is_not_searched(lab: Path) -> None:
    """Where the command could open it, it is refused; where it cannot, there is nothing to hide."""
    (lab / "closed").mkdir(mode=0)
    said = refusal(Mount.read_write(lab), Mount.hide(".env"))
    assert f"cannot look through {lab}/closed: it cannot be read" in said
    assert look(Mount.read_only(lab), Mount.hide(".env")).hidden == ()
    (lab / "closed").chmod(0o111)
    notes = look(Mount.read_only(lab), Mount.hide(".env")).notes
    assert f"{lab}/closed cannot be read: what lies in it is not hidden" in notes

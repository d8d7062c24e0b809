"""What the caller shows besides the default view, and a root of the caller's own."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy
from tests.support import (
    OUTSIDE_GID,
    OUTSIDE_UID,
    ask,
    assert_denied,
    closed_place,
    give,
    needs,
    shared_directory,
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the capsule may write to, if it is shown so, with a file in it."""
    with shared_directory() as path:
        (path / "file").write_text("content")
        (path / "below").mkdir()
        for each in (path, path / "file", path / "below"):
            give(each)
        yield path


# --- read-only and read-write -------------------------------------------------------------------


def test_read_only_shows_and_protects(directory: Path) -> None:
    """Content is there; writing, making, linking and changing fail with EROFS."""
    policy = Policy(mounts=(Mount.read_only(directory),))
    assert ask("tell(open(given['path']).read())", policy, {"path": f"{directory}/file"}) == "content"
    for act in (
        "open(given['path'] + '/file', 'a')",
        "open(given['path'] + '/new', 'w')",
        "os.mkdir(given['path'] + '/made'); os.rmdir(given['path'] + '/made')",
        "os.link(given['path'] + '/file', given['path'] + '/link'); os.unlink(given['path'] + '/link')",
        "os.chmod(given['path'] + '/file', 0o644)",
    ):
        assert_denied(act, errno.EROFS, outside={"path": str(directory)}, policy=policy)


def test_a_mount_can_stand_at_another_place(directory: Path) -> None:
    """`at` is made where nothing stands, with the directories above; the source's name is not there."""
    policy = Policy(mounts=(Mount.read_only(directory, at="/data/set/one"),), cwd="/")
    code = """
tell([os.listdir("/data"), sorted(os.listdir("/data/set/one")), os.path.exists(given["path"])])
"""
    assert ask(code, policy, {"path": str(directory)}) == [["set"], ["below", "file"], False]


def test_read_write_writes_on_the_host(directory: Path) -> None:
    """What is written inside is there outside, and belongs to the capsule's outside ids."""
    policy = Policy(mounts=(Mount.read_write(directory, at="/out"),))
    ask("open('/out/new', 'w').write('made inside'); tell(os.unlink('/out/file'))", policy)
    made = directory / "new"
    assert made.read_text() == "made inside"
    assert (made.stat().st_uid, made.stat().st_gid) == (OUTSIDE_UID, OUTSIDE_GID)
    assert not (directory / "file").exists()


@needs("real root")
def test_read_write_gives_no_rights_of_root(directory: Path) -> None:
    """What only root may write stays closed inside, although root started the capsule: EACCES."""
    os.chown(directory / "file", 0, 0)
    (directory / "file").chmod(0o644)
    policy = Policy(mounts=(Mount.read_write(directory),))
    given = {"path": f"{directory}/file"}
    assert_denied("open(given['path'], 'a')", errno.EACCES, outside=given, policy=policy)


def test_a_single_file_can_be_shown(directory: Path) -> None:
    """A file is a mount, too, and its neighbours stay out of sight."""
    policy = Policy(
        mounts=(
            Mount.read_only(directory / "file", at="/in"),
            Mount.read_write(directory / "file", at="/out"),
        )
    )
    code = "open('/out', 'a').write('+'); tell([open('/in').read(), os.path.exists(given['path'])])"
    assert ask(code, policy, {"path": f"{directory}/below"}, cwd="/") == ["content+", False]


def test_mounts_may_lie_in_each_other(directory: Path) -> None:
    """The inner one counts for what is below it. It is given after the outer, which would hide it."""
    outer, inner = Mount.read_only(directory), Mount.read_write(directory / "below")
    code = """
open(given["path"] + "/below/new", "w").close()
try:
    open(given["path"] + "/new", "w")
except OSError as error:
    tell([errno.errorcode[error.errno], os.listdir(given["path"] + "/below")])
"""
    told = ask(code, Policy(mounts=(outer, inner)), {"path": str(directory)})
    assert told == ["EROFS", ["new"]]
    with pytest.raises(capsule.PolicyError, match="given before it"):
        Policy(mounts=(inner, outer))


def test_a_tmpfs_over_a_mount_hides_it(directory: Path) -> None:
    """A tmpfs is empty, writable and gone afterwards; what it covers stays as it was."""
    (directory / "below/secret").touch()
    policy = Policy(mounts=(Mount.read_only(directory), Mount.tmpfs(str(directory / "below"))))
    code = """
before = os.listdir(given["path"])
open(given["path"] + "/new", "w").close()
tell([before, os.listdir(given["path"])])
"""
    given = {"path": str(directory / "below")}
    assert ask(code, policy, given) == [[], ["new"]]
    assert ask(code, policy, given) == [[], ["new"]]
    assert os.listdir(directory / "below") == ["secret"]


def test_a_mount_replaces_a_part_of_the_default_view(directory: Path) -> None:
    """A mount at a place of the default view stands there instead."""
    policy = Policy(mounts=(Mount.read_only(directory, at="/etc/ssl"), Mount.tmpfs("/usr/share", "1M")))
    assert ask("tell([sorted(os.listdir('/etc/ssl')), os.listdir('/usr/share')])", policy) == [
        ["below", "file"],
        [],
    ]


def test_a_link_that_a_program_can_have_made_is_not_followed(directory: Path) -> None:
    """A source behind such a link is refused, with the name to give instead."""
    (directory / "link").symlink_to("below")
    (directory / "below/it").touch()
    with pytest.raises(capsule.PolicyError, match="symbolic link") as caught:
        capsule.run(["true"], mounts=[Mount.read_only(directory / "link", at="/data")])
    assert f"name {directory}/below itself" in str(caught.value)
    policy = Policy(mounts=(Mount.read_only(directory / "below", at="/data"),))
    assert ask("tell(os.listdir('/data'))", policy) == ["it"]


def test_a_link_of_the_systems_own_is_followed() -> None:
    """A link that only root can have made means what it leads to."""
    links = [f"/etc/{name}" for name in sorted(os.listdir("/etc")) if os.path.islink(f"/etc/{name}")]
    link = next(path for path in links if os.path.isfile(path) and os.access(path, os.R_OK))
    policy = Policy(mounts=(Mount.read_only(link, at="/data/it"),))
    told = ask("tell(len(open('/data/it', 'rb').read()))", policy)
    assert told == os.path.getsize(link)


def test_no_place_is_made_in_a_directory_of_the_host(directory: Path) -> None:
    """A place that would have to be made inside a mount fails, and nothing is made on the host."""
    mounts = (Mount.read_write(directory, at="/data"), Mount.tmpfs("/data/missing"))
    with pytest.raises(capsule.SetupError) as caught:
        capsule.run(["true"], Policy(mounts=mounts))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/data/missing")
    assert "would have to be made inside a directory of the host" in str(caught.value)
    assert sorted(os.listdir(directory)) == ["below", "file"]


def test_a_link_in_a_mount_leads_nowhere_outside(directory: Path) -> None:
    """A place that lies behind a planted link is searched in the capsule, never on the host."""
    with shared_directory() as victim:
        give(victim)
        (directory / "link").symlink_to(victim)
        (directory / "up").symlink_to("../../../.." + str(victim))
        for name in ("link", "up"):
            mounts = (Mount.read_write(directory, at="/data"), Mount.tmpfs(f"/data/{name}/made"))
            with pytest.raises(capsule.SetupError) as caught:
                capsule.run(["true"], Policy(mounts=mounts))
            assert caught.value.errno == errno.ENOENT
        assert os.listdir(victim) == []


def test_a_source_that_is_missing_is_named() -> None:
    """A source that does not exist fails its step with ENOENT and names the path."""
    with pytest.raises(capsule.SetupError) as caught:
        capsule.run(["true"], mounts=[Mount.read_only("/no/such/place")])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/no/such/place")
    assert caught.value.hint is not None
    assert "/no/such/place does not exist on this host" in caught.value.hint


@needs("closed place")
def test_a_source_that_the_caller_may_not_search_stays_closed() -> None:
    """Sources are opened with no more rights than the caller has: EACCES, as without Capsule."""
    source = f"{closed_place()}/below"
    with pytest.raises(PermissionError):
        os.stat(source)
    with pytest.raises(capsule.SetupError) as caught:
        capsule.run(["true"], mounts=[Mount.read_only(source, at="/data")])
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, source)


@pytest.mark.parametrize(
    "name",
    ["with space", "new\nline", "back\\slash", "täst", "\udcff\udcfe", "a,b:c", "-rf", "\x1b[2J"],
)
def test_a_path_may_have_any_name(directory: Path, name: str) -> None:
    """A path may hold any byte but NUL: it arrives as it is."""
    source = directory / name
    source.mkdir()
    (source / "it").touch()
    mounts = (Mount.read_only(source, at=f"/data/{name}"), Mount.tmpfs(f"/scratch/{name}"))
    result = capsule.run(["ls", f"/data/{name}"], Policy(mounts=mounts))
    assert (result.returncode, result.stdout) == (0, b"it\n")


# --- a root of the caller's own -----------------------------------------------------------------

PROGRAMS = ("sh", "ls", "cat", "id")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A small root file system: a few programs of the host and the libraries that they name."""
    with shared_directory() as path:
        (path / "usr/bin").mkdir(parents=True)
        (path / "bin").symlink_to("usr/bin")
        (path / "etc").mkdir()
        (path / "etc/motd").write_text("hello\n")
        for name in PROGRAMS:
            program = os.path.realpath(shutil.which(name) or name)
            shutil.copy(program, path / "usr/bin" / name)
            listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
            for library in re.findall(r"/\S+", listed):
                place = path / library.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, place)
        yield path


def inside(root: Path, script: str, **options: Any) -> list[str]:
    """What a shell says in that root."""
    policy = Policy(root=str(root), extra_env={"PATH": "/bin"})
    result = capsule.run(["sh", "-c", script], policy, text=True, **options)
    assert result.ok, (result.describe(), result.stderr)
    return str(result.stdout).split()


@needs("ldd")
def test_a_root_replaces_the_hosts_programs(root: Path) -> None:
    """The root holds what the directory holds, and Capsule's /proc, /dev, /tmp and home."""
    libraries = {name for name in os.listdir(root) if name.startswith("lib")}
    assert set(inside(root, "ls /")) == {"bin", "dev", "etc", "proc", "root", "tmp", "usr"} | libraries
    assert inside(root, "ls /etc; cat /etc/motd; ls /bin") == ["motd", "hello", *sorted(PROGRAMS)]
    assert inside(root, "id -u; cd; echo ~ *") == ["0", "/root", "*"]


@needs("ldd")
def test_a_root_is_read_only(root: Path) -> None:
    """Nothing can be written to it, whoever owns the directory; /tmp and the home can be."""
    for path in (root, root / "etc", root / "etc/motd"):
        path.chmod(0o777)
    script = """
for place in /new /etc/new /etc/motd; do (echo x >$place) 2>/dev/null && echo wrote $place; done
echo x >/tmp/new && echo x >~/new && ls /tmp ~
"""
    assert inside(root, script) == ["/root:", "new", "/tmp:", "new"]
    assert (root / "etc/motd").read_text() == "hello\n"
    assert os.listdir(root / "etc") == ["motd"]


@needs("ldd")
def test_a_root_takes_mounts_and_a_working_directory(root: Path, directory: Path) -> None:
    """Mounts go on top of it, and the command starts in / or where it is told."""
    (root / "data").mkdir(exist_ok=True)
    mounts = [Mount.read_only(directory, at="/data"), Mount.tmpfs("/etc/made/here")]
    policy = Policy(root=str(root), mounts=mounts[:1], extra_env={"PATH": "/bin"})
    result = capsule.run(["ls"], policy, cwd="/data", text=True)
    assert result.stdout.split() == ["below", "file"]
    assert inside(root, "cat /proc/self/cwd/etc/motd") == ["hello"]
    with pytest.raises(capsule.SetupError, match="mount a 64M tmpfs at /etc/made/here"):
        capsule.run(["ls"], policy.replace(mounts=mounts[1:]))


@needs("ldd")
def test_a_program_that_the_root_lacks_is_not_found(root: Path) -> None:
    """A program of the host does not count: 127."""
    with pytest.raises(capsule.SetupError) as caught:
        capsule.run(["env"], Policy(root=str(root), extra_env={"PATH": "/bin"}))
    assert (caught.value.errno, caught.value.exit_code) == (errno.ENOENT, 127)


def test_links_in_a_root_lead_nowhere_outside() -> None:
    """A root whose directories are links to places of the host shows none of them."""
    with shared_directory() as root, shared_directory() as victim:
        (victim / "secret").touch()
        give(victim)
        for name in ("dev", "proc", "tmp", "home", "usr"):
            (root / name).symlink_to(victim)
        with pytest.raises(capsule.SetupError) as caught:
            capsule.run(["/usr/secret"], Policy(root=str(root)))
        assert (type(caught.value.step).__name__, caught.value.errno) == ("Exec", errno.ENOENT)
        assert os.listdir(victim) == ["secret"]


def test_a_root_that_is_missing_is_a_policy_error() -> None:
    """A root that cannot be read is refused before anything starts."""
    with pytest.raises(capsule.PolicyError, match="root: cannot read /no/such/root") as caught:
        capsule.run(["true"], root="/no/such/root")
    assert caught.value.field == "root"

"""In a home that is shown as a whole, well-known secrets are hidden unless a mount names them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import capsule
from capsule import Mount
from capsule.files.secrets import SECRETS
from tests.support import CAPSULE, HANG, needs

NAMES = [name for names in SECRETS.values() for name in names]
SHOWING = [
    Mount.read_only,
    Mount.read_write,
    pytest.param(Mount.overlay, marks=needs("overlay")),
]
# Of each word: "key" if it can be read, "" if it is an empty file, the error's name if not.
READ = """
import errno, sys
for path in sys.argv[1:]:
    try:
        print(open(path).read().strip() or "empty")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a key of each of two kinds, and a project. Nobody's, who is root's capsule."""
    home = tmp_path / "home"
    for name in (".ssh/id", ".netrc", ".config/gh/hosts.yml", ".config/other", "project/file"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("key\n")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    return home


def read(home: Path, *names: str, mounts: list[Mount]) -> list[str]:
    """What a program reads of files of the home."""
    words = ["/usr/bin/python3", "-c", READ, *(f"{home}/{name}" for name in names)]
    outside = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert set(outside.stdout.split()) == {"key"}
    result = capsule.run(words, mounts=mounts, text=True, cwd="/")
    assert result.ok, result.stderr
    return list(result.stdout.split())


FILES = (".ssh/id", ".netrc", ".config/gh/hosts.yml", ".config/other", "project/file")
HIDDEN = ["ENOENT", "empty", "ENOENT", "key", "key"]


@pytest.mark.parametrize("show", SHOWING, ids=["ro", "rw", "overlay"])
def test_secrets_of_a_whole_home_are_hidden(show: Callable[..., Mount], home: Path) -> None:
    """However it is shown, itself or by a directory above it, also at another place."""
    assert read(home, *FILES, mounts=[show(home)]) == HIDDEN
    assert read(home, *FILES, mounts=[show(home.parent)]) == HIDDEN
    elsewhere = capsule.run(["ls", "/h/.ssh", "/h/project"], mounts=[show(home, "/h")], text=True)
    assert elsewhere.stdout == "/h/.ssh:\n\n/h/project:\nfile\n"


def test_a_mount_that_names_one_shows_it(home: Path) -> None:
    """The secret itself, or something in it; and a directory of a home is no home."""
    whole = Mount.read_write(home)
    mounts = [whole, Mount.read_only(home / ".ssh")]
    assert read(home, *FILES, mounts=mounts) == ["key", *HIDDEN[1:]]
    (home / ".ssh/known_hosts").write_text("key\n")
    part = [whole, Mount.read_only(home / ".ssh/known_hosts")]
    assert read(home, ".ssh/id", ".ssh/known_hosts", mounts=part) == ["ENOENT", "key"]
    assert read(home, *FILES[2:4], mounts=[Mount.read_only(home / ".config")]) == ["key", "key"]
    assert read(home, ".netrc", mounts=[Mount.read_only(home / ".netrc")]) == ["key"]


# In a home: the name of the errno of each way to get at a key.
ROUNDABOUT = """
import ctypes, errno, os, sys
os.chdir(sys.argv[1])
def unmount(name):
    if ctypes.CDLL(None, use_errno=True).umount2(name.encode(), 2):
        raise OSError(ctypes.get_errno(), name)
ways = [
    lambda: os.rename(".ssh", "x"), lambda: os.rename("x", ".ssh"),
    lambda: os.link(".netrc", "y"), lambda: os.remove("y"),
    lambda: os.rename(".netrc", "z"), lambda: os.rename("z", ".netrc"),
    lambda: os.rename(".config", "c"), lambda: open("c/gh/hosts.yml").close(),
    lambda: os.rename("c", ".config"), lambda: os.rmdir(".ssh"),
]
if len(sys.argv) > 2:
    ways += [lambda: unmount(".ssh"), lambda: unmount(".netrc")]
ways.append(lambda: open(".ssh/id").close())
for way in ways:
    try:
        way()
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_it_cannot_be_had_by_another_name(home: Path) -> None:
    """In a writable home it is neither renamed, linked nor uncovered, nor is what is above it a way."""
    if os.geteuid() == 0:
        for folder, _, files in os.walk(home):
            os.chown(folder, 65534, 65534)
            for file in files:
                os.chown(os.path.join(folder, file), 65534, 65534)
    command = ["/usr/bin/python3", "-c", ROUNDABOUT, str(home)]
    outside = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert outside.stdout.split() == [*["done"] * 9, "ENOTEMPTY", "done"], outside.stderr
    result = capsule.run([*command, "unmount"], mounts=[Mount.read_write(home)], cwd="/", text=True)
    assert result.ok, result.stderr
    assert result.stdout.split() == [
        *("EBUSY", "ENOENT", "EXDEV", "ENOENT", "EBUSY", "ENOENT"),
        *("done", "ENOENT", "done", "EBUSY", "EPERM", "EPERM", "ENOENT"),
    ]
    assert (home / ".ssh/id").read_text() == (home / ".netrc").read_text() == "key\n"


@needs("real root", "overlay")
def test_a_home_that_roots_capsule_cannot_enter(home: Path) -> None:
    """A capsule that root started is nobody: there is nothing to cover, and the run is as it was."""
    home.chmod(0o700)
    cat = ["cat", f"{home}/.ssh/id"]
    assert subprocess.run(cat, capture_output=True, timeout=HANG).stdout == b"key\n"
    for mounts in ([Mount.read_only(home.parent)], [Mount.read_only(home)]):
        result = capsule.run(cat, mounts=mounts, cwd="/", text=True)
        assert (result.returncode, "Permission denied" in result.stderr) == (1, True)
    overlay = capsule.run(cat, mounts=[Mount.overlay(home)], cwd="/", text=True)
    assert (overlay.returncode, "No such file" in overlay.stderr) == (1, True)


def test_every_name_of_the_table(home: Path) -> None:
    """Each is found where it is; nothing of it is left where it is not."""
    before = sorted(map(str, home.rglob("*")))
    assert capsule.run(["true"], mounts=[Mount.read_write(home)]).ok
    assert sorted(map(str, home.rglob("*"))) == before
    for name in NAMES:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("key\n")
    present = [name for name in NAMES if (home / name).is_file()]
    assert len(present) > len(NAMES) - 3
    assert set(read(home, *present, mounts=[Mount.read_only(home)])) == {"empty"}


def test_links(home: Path) -> None:
    """What a link leads to is hidden; one that leads to the home, or above it, hides nothing."""
    (home / "dotfiles").mkdir()
    (home / "dotfiles/npmrc").write_text("key\n")
    (home / ".npmrc").symlink_to("dotfiles/npmrc")
    (home / ".aws").symlink_to(home)
    (home / ".kube").symlink_to("nowhere")
    (home / ".azure").symlink_to("/etc")
    names = (".npmrc", "dotfiles/npmrc", "project/file", ".aws/project/file")
    wanted = ["empty", "empty", "key", "key"]
    assert read(home, *names, mounts=[Mount.read_only(home)]) == wanted


def test_it_is_said(home: Path) -> None:
    """By capsule plan and -v; a run without -v is silent."""
    note = f"hidden in {home}: .ssh, .netrc, .config/gh; a mount of one (--ro {home}/.ssh) shows it"
    assert note in capsule.plan(["true"], mounts=[Mount.read_only(home)]).notes
    for options, told in ((["-v"], True), ([], False)):
        command = [CAPSULE, "run", *options, "--ro", str(home), "--", "true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
        assert (note in done.stderr) == told
        assert done.returncode == 0


# --- shown by name -----------------------------------------------------------------------------


def test_a_secret_is_shown_by_its_name(home: Path) -> None:
    """That one alone, or all; in a policy and on the command line."""

    def seen(*names: str) -> list[str]:
        words = ["/usr/bin/python3", "-c", READ, *(f"{home}/{name}" for name in FILES)]
        policy = capsule.Policy(mounts=[Mount.read_only(home)], show_secrets=names, cwd="/")
        return list(capsule.run(words, policy, text=True).stdout.split())

    assert seen() == HIDDEN
    assert seen(".ssh") == ["key", *HIDDEN[1:]]
    assert seen("all") == ["key"] * len(FILES)
    words = ["cat", f"{home}/.netrc"]
    command = [CAPSULE, "run", "--ro", str(home), "--show-secret", ".netrc", "--", *words]
    done = subprocess.run(command, cwd="/", capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr) == (b"key\n", b"")


def test_a_secret_that_is_none_is_refused(home: Path) -> None:
    """With the names that are like it."""
    with pytest.raises(
        capsule.PolicyError, match=r"not one of the secrets in a home: \.sssh"
    ) as caught:
        capsule.run(["true"], mounts=[Mount.read_only(home)], show_secrets=[".sssh"])
    assert caught.value.field == "show_secrets"
    assert ".ssh" in str(caught.value.hint)
    with pytest.raises(capsule.PolicyError):
        capsule.run(["true"], show_secrets=[".sssh"])

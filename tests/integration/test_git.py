"""git in a capsule: in linked working trees, in submodules, in repositories of others."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy
from tests.support import (
    CAPSULE,
    HANG,
    OUTSIDE_GID,
    OUTSIDE_UID,
    REAL_ROOT,
    assert_denied,
    needs,
    overlay_apart,
)

pytestmark = needs("git")

NAMES = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
READS = "git status && git log && git diff && git blame f && git show HEAD:f"
COMMIT = "echo new >>f && git add f && git commit -qm work && git log --format=%s -1"


def git(folder: Path, *words: str) -> str:
    """The host's git, for which it does not matter whose a repository is."""
    options = ("-c", "safe.directory=*", "-c", "protocol.file.allow=always")
    command = ["git", *options, "-C", str(folder), *words]
    environment = {**os.environ, **NAMES}
    return subprocess.check_output(command, env=environment, text=True, timeout=HANG)


def made(path: Path) -> Path:
    """A repository with one commit."""
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "f").write_text("old\n")
    git(path, "add", "f")
    git(path, "commit", "-q", "-m", "first")
    return path


@pytest.fixture
def trees(place: Path) -> dict[str, Path]:
    """A repository `m` of which wt is a linked working tree, and sub a submodule."""
    main = made(place / "m")
    git(main, "worktree", "add", "-q", "../wt")
    git(main, "worktree", "add", "-q", "../other")
    made(place / "up")
    git(main, "submodule", "--quiet", "add", "../up", "sub")
    git(main, "commit", "-q", "-m", "with sub")
    if REAL_ROOT:
        command = ["chown", "-R", f"{OUTSIDE_UID}:{OUTSIDE_GID}", str(place)]
        subprocess.run(command, check=True, timeout=HANG)
    return {"wt": place / "wt", "sub": main / "sub", "m": main}


def inside(tree: Path, script: str, **overrides: Any) -> capsule.Result:
    """A script in a working tree."""
    return capsule.run(["sh", "-ec", script], cwd=tree, text=True, extra_env=NAMES, **overrides)


SHOWN: dict[str, Callable[[Path], list[Mount]]] = {
    "unasked": lambda _: [],
    "ro": lambda tree: [Mount.read_only(tree)],
    "rw": lambda tree: [Mount.read_write(tree)],
    "overlay": lambda tree: [Mount.overlay(tree)],
}


@pytest.mark.parametrize("how", overlay_apart(SHOWN))
@pytest.mark.parametrize("name", ["wt", "sub", "m"])
def test_it_reads(name: str, how: str, trees: dict[str, Path]) -> None:
    """Status, log, diff and blame work, however the working tree is shown."""
    tree = trees[name]
    result = inside(tree, READS, mounts=SHOWN[how](tree))
    assert (result.returncode, result.stderr) == (0, "")
    assert "working tree clean" in result.stdout


@pytest.mark.parametrize("name", ["wt", "sub"])
def test_it_writes_only_if_asked(name: str, trees: dict[str, Path]) -> None:
    """A commit is refused with a hint, and with that option it is there on the host."""
    tree = trees[name]
    mounts = [Mount.read_write(tree)]
    refused = inside(tree, COMMIT, mounts=mounts)
    assert refused.returncode == 128
    assert os.strerror(errno.EROFS) in refused.stderr
    direct = capsule.run(["git", "commit", "--allow-empty", "-qm", "x"], cwd=tree, extra_env=NAMES)
    assert [hint.partition("; ")[2] for hint in direct.hints if hint.startswith("git: ")] == [
        "--git lets the command write to it"
    ]
    result = inside(tree, COMMIT, mounts=mounts, git="write")
    assert (result.stdout, result.stderr, result.returncode) == ("work\n", "", 0)
    assert git(tree, "log", "--format=%s", "-1") == "work\n"
    assert result.set_aside == ()


@pytest.mark.parametrize(("name", "where"), [("wt", "m"), ("m", "m"), ("sub", "m/.git/modules/sub")])
def test_what_git_obeys_stays_as_it_is(name: str, where: str, trees: dict[str, Path]) -> None:
    """Hooks and configuration of a writable repository are read-only; the control is outside of it."""
    policy = Policy(git="write")
    place = trees["m"].parent / where
    holder = place / ".git" if where == "m" else place
    for file in ("config", "hooks/update.sample"):
        act = "open(given['path'], 'a').close()"
        path = {"path": str(holder / file)}
        assert_denied(act, errno.EROFS, outside=path, policy=policy, cwd=trees[name])


def test_what_is_new_there_is_set_aside(trees: dict[str, Path]) -> None:
    """What git would obey, and which objects of others it would read."""
    holder = trees["m"] / ".git"
    names = ("config.worktree", "info/attributes", "objects/info/alternates")
    script = "; ".join(
        f"mkdir -p $(dirname {holder}/{name}); echo x >{holder}/{name}" for name in names
    )
    result = inside(trees["wt"], script, git="write")
    assert result.returncode == 0
    assert sorted(os.path.relpath(one.path, holder) for one in result.set_aside) == sorted(names)
    assert not any((holder / name).exists() for name in names)


def test_other_working_trees_are_not_pruned(trees: dict[str, Path]) -> None:
    """git finds them nowhere inside, and forgets on the host where that is what it sees."""
    result = inside(trees["wt"], "git worktree prune --expire=now", git="write")
    assert os.strerror(errno.EROFS) in result.stderr
    assert (trees["m"] / ".git/worktrees/other/HEAD").exists()
    assert "other" in git(trees["m"], "worktree", "list")


def test_a_plain_repository_in_a_tree_that_is_read_only(trees: dict[str, Path]) -> None:
    """With --git it takes commits, while the files stay as they are."""
    words = ["git", "commit", "-q", "--allow-empty", "-m", "empty"]
    assert capsule.run(words, cwd=trees["m"], extra_env=NAMES).returncode == 128
    result = inside(trees["m"], "git commit -q --allow-empty -m empty; ! touch f", git="write")
    assert result.returncode == 0, result.stderr
    assert git(trees["m"], "log", "--format=%s", "-1") == "empty\n"


def test_on_the_command_line(trees: dict[str, Path]) -> None:
    """--git, its note with -v, and what is said where there is nothing to write to."""

    def told(folder: Path, *words: str) -> tuple[int, str]:
        command = [CAPSULE, "run", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG)
        return done.returncode, done.stderr

    status, text = told(trees["wt"], "--git", "-v", "--", "git", "status")
    assert status == 0
    assert f"capsule: git: {trees['m']}/.git is writable: the repository of {trees['wt']}\n" in text
    (trees["wt"] / "f").write_text("changed\n")
    (trees["wt"] / ".git").write_text("gitdir: /usr\n")
    status, text = told(trees["wt"], "--git", "--", "git", "status")
    assert (status, "leave --git out" in text) == (2, True)
    status, text = told(trees["wt"], "--", "git", "status")
    assert status == 128
    assert f"capsule: git: the repository of {trees['wt']} is not shown: " in text
    assert "capsule: git: the repository" not in told(trees["wt"], "-q", "--", "git", "status")[1]


def test_a_part_of_a_repository(trees: dict[str, Path]) -> None:
    """What the hint names is enough."""
    part = trees["m"] / "part"
    part.mkdir(mode=0o755)
    result = capsule.run(["git", "status"], cwd=part)
    assert result.returncode == 128
    assert result.hints == (
        f"git: {part} is a part of {trees['m']}; --ro {trees['m']} shows all of it",
    )
    mounts = [Mount.read_only(trees["m"])]
    assert capsule.run(["git", "status"], cwd=part, mounts=mounts).returncode == 0


@pytest.mark.parametrize("hidden", ["*.pem", "m/.git"])
def test_what_is_hidden_stays_so(hidden: str, trees: dict[str, Path], place: Path) -> None:
    """A pattern counts in the repository as well, and who hides all of it gets none."""
    (trees["m"] / ".git/key.pem").write_text("key")
    pattern = hidden if "*" in hidden else str(place / hidden)
    path = f"{trees['m']}/.git/key.pem"
    seen = inside(trees["wt"], f"cat {path}")
    assert seen.stdout == "key"
    assert inside(trees["wt"], f"cat {path} || true", mounts=[Mount.hide(pattern)]).stdout == ""


@needs("real root")
@pytest.mark.parametrize("owner", [0, 1000])
@pytest.mark.parametrize("how", ["unasked", "rw"])
@pytest.mark.parametrize("name", ["wt", "m"])
def test_root_in_a_repository(
    name: str, how: str, owner: int, trees: dict[str, Path], place: Path
) -> None:
    """Whoever owns it: git refuses what is of others, which all is for a command that root starts."""
    subprocess.run(["chown", "-R", f"{owner}:{owner}", place], check=True, timeout=HANG)
    tree = trees[name]
    result = inside(tree, READS, mounts=SHOWN[how](tree))
    assert (result.returncode, result.stderr) == (0, "")


# --- what is hidden, and known to git ---------------------------------------------------------------


@pytest.fixture
def secretive(place: Path) -> Path:
    """A repository that has secrets in it, a directory of some among them; and one beside it."""
    tree = made(place / "s")
    (tree / "keys").mkdir()
    for name in (".env", "keys/a", "sub.env"):
        (tree / name).write_text("SECRET=1\n")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "with secrets")
    (tree / "unknown").write_text("SECRET=2\n")
    (tree / "f").write_text("changed\n")
    if REAL_ROOT:
        command = ["chown", "-R", f"{OUTSIDE_UID}:{OUTSIDE_GID}", str(place)]
        subprocess.run(command, check=True, timeout=HANG)
    return tree


@pytest.mark.parametrize("hidden", [".env", "keys", "*.env"])
@pytest.mark.parametrize("words", ["commit -qam work", "stash", "add -A"])
def test_git_never_records_what_is_hidden(hidden: str, words: str, secretive: Path) -> None:
    """It would take an empty file for a change: the repository stays as it is, and a hint says why."""
    pattern = hidden if "*" in hidden else str(secretive / hidden)
    mounts = [Mount.read_write(secretive), Mount.hide(pattern)]
    result = capsule.run(["git", *words.split()], cwd=secretive, mounts=mounts, extra_env=NAMES)
    assert result.returncode != 0
    (hint,) = (hint for hint in result.hints if hint.startswith("git: "))
    assert f"git: {secretive}/.git is read-only, for git knows {secretive}/" in hint
    assert git(secretive, "log", "--format=%s", "-1") == "with secrets\n"
    assert git(secretive, "stash", "list") == ""
    assert "SECRET=1" in git(secretive, "show", ":.env")
    assert (secretive / "f").read_text() == "changed\n"


@pytest.mark.parametrize("hidden", ["unknown", "env"])
def test_git_may_record_beside_what_it_does_not_know(hidden: str, secretive: Path) -> None:
    """What it does not know it cannot record as emptied; a name is not the end of another's."""
    (secretive / "env").touch()
    mounts = [Mount.read_write(secretive), Mount.hide(hidden)]
    result = inside(secretive, "git commit -qam work", mounts=mounts)
    assert (result.returncode, result.stderr) == (0, "")
    assert git(secretive, "log", "--format=%s", "-1") == "work\n"


def test_who_wants_it_recorded_says_so(secretive: Path) -> None:
    """--unprotect .git; and a repository that is asked for by itself is refused."""
    mounts = [Mount.read_write(secretive), Mount.hide(secretive / ".env")]
    done = inside(secretive, "git commit -qam work", mounts=mounts, unprotect=[".git"])
    assert done.returncode == 0
    with pytest.raises(capsule.PolicyError, match="would be recorded as emptied"):
        inside(secretive, "true", mounts=[Mount.hide(secretive / ".env")], git="write")


def test_a_checkout_that_is_half_done_is_told(secretive: Path) -> None:
    """What is protected git leaves as it is, and ends with 0: which that is, and the option."""
    (secretive / ".idea").mkdir()
    for text in ("one", "two"):
        (secretive / ".idea/s.xml").write_text(text)
        git(secretive, "add", "-A")
        git(secretive, "commit", "-q", "-m", text)
    if REAL_ROOT:
        command = ["chown", "-R", f"{OUTSIDE_UID}:{OUTSIDE_GID}", str(secretive)]
        subprocess.run(command, check=True, timeout=HANG)
    mounts = [Mount.read_write(secretive)]
    result = inside(secretive, "git checkout -q HEAD~1", mounts=mounts)
    assert result.ok
    assert (secretive / ".idea/s.xml").read_text() == "two"
    (hint,) = result.hints
    assert f"{secretive}/.idea" in hint
    assert "--unprotect NAME" in hint
    done = inside(secretive, "git checkout -q -f HEAD", mounts=mounts, unprotect=[".idea"])
    assert (done.hints, (secretive / ".idea/s.xml").read_text()) == ((), "one")


# --- what is refused, as a system call ------------------------------------------------------------

WRITES, READS_ONE = "open(given['path'], 'a').close()", "open(given['path']).close()"


@pytest.mark.parametrize(
    ("name", "git", "path"),
    [
        ("wt", "read", "m/.git/HEAD"),
        ("sub", "read", "m/.git/modules/sub/HEAD"),
        ("wt", "write", "m/.git/worktrees/other/HEAD"),
    ],
)
def test_what_is_shown_read_only_is(
    name: str, git: str, path: str, trees: dict[str, Path], place: Path
) -> None:
    """A repository where no more is asked for, and what it has on other trees where it is."""
    outside = {"path": str(place / path)}
    policy = Policy(git=git)  # type: ignore[arg-type]
    assert_denied(WRITES, errno.EROFS, outside=outside, policy=policy, cwd=trees[name])


def test_what_does_not_lead_back_is_not_there(trees: dict[str, Path], place: Path) -> None:
    """A `.git` of a program's making shows it nothing of another repository."""
    private = made(place / "private")
    (trees["wt"] / ".git").write_text(f"gitdir: {private}/.git\n")
    outside = {"path": f"{private}/.git/HEAD"}
    assert_denied(READS_ONE, errno.ENOENT, outside=outside, cwd=trees["wt"])


def test_a_repository_that_knows_what_is_hidden_is_read_only(secretive: Path) -> None:
    """And what is hidden in it is empty."""
    policy = Policy(mounts=[Mount.read_write(secretive), Mount.hide(secretive / ".env")])
    for name in (".git/index", ".git/refs/heads/main"):
        outside = {"path": str(secretive / name)}
        assert_denied(WRITES, errno.EROFS, outside=outside, policy=policy, cwd=secretive)


def test_a_service_in_a_repository_is_out_of_reach(trees: dict[str, Path]) -> None:
    """git's own daemon may listen there, and nobody named it: an empty file lies over its socket."""
    path = trees["m"] / ".git/ipc"
    act = "import socket\nsocket.socket(socket.AF_UNIX).connect(given['path'])"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o777)
        assert_denied(act, errno.EACCES, outside={"path": str(path)}, cwd=trees["wt"])


def test_the_flag_lets_it_write(trees: dict[str, Path]) -> None:
    """Seen from inside, and on the host."""
    path = trees["m"] / ".git/made"
    command = [CAPSULE, "run", "--git", "--", "sh", "-c", f"echo x >{path}; cat {path}"]
    done = subprocess.run(command, cwd=trees["wt"], capture_output=True, timeout=HANG)
    assert (done.stdout, done.stderr, path.read_text()) == (b"x\n", b"", "x\n")

"""Which repository is shown with a working tree, and that none is for a hostile `.git`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from capsule import Mount, Policy, PolicyError
from capsule.files.git.find import repositories
from tests.support import HANG, needs
from tests.unit.files.lab import linked, repository

READ, WRITE = Policy(), Policy(git="write")


def look(tree: Path | str, policy: Policy = READ) -> tuple[tuple[Mount, ...], tuple[str, ...]]:
    """What is found for a working directory that is shown unasked."""
    return repositories(policy, cwd=str(tree), cwd_shown=str(tree), uid=os.geteuid())


def submodule(top: Path, config: str = "[core]\n\tbare = false\n\tworktree = ../../../sub\n") -> Path:
    """A submodule of a repository, as git-submodule(1) makes it."""
    tree = top / "m" / "sub"
    tree.mkdir(parents=True)
    repository(top / "m/.git/modules/sub", config=config)
    (tree / ".git").write_text("gitdir: ../.git/modules/sub\n")
    return tree


def test_the_repository_of_a_linked_working_tree(tmp_path: Path) -> None:
    """Read-only with a note; or writable, but for what git keeps on other working trees."""
    holder = repository(tmp_path / "m/.git")
    tree = linked(tmp_path, holder)
    mounts, notes = look(tree)
    assert mounts == (Mount.read_only(str(holder)),)
    shown = f"git: {holder} is shown read-only: the repository of {tree}"
    assert notes == (f"{shown}; --git lets the command write to it",)
    mounts, notes = look(tree, WRITE)
    assert mounts == (
        Mount.read_write(str(holder)),
        Mount.read_only(f"{holder}/worktrees"),
        Mount.read_write(f"{holder}/worktrees/wt"),
    )
    assert notes == (f"git: {holder} is writable: the repository of {tree}",)


@pytest.mark.parametrize("name", ["m.git", ".bare"])
def test_of_a_bare_repository(name: str, tmp_path: Path) -> None:
    """Known by a name that says so."""
    holder = repository(tmp_path / name)
    assert look(linked(tmp_path, holder))[0] == (Mount.read_only(str(holder)),)


def test_by_relative_paths(tmp_path: Path) -> None:
    """worktree.useRelativePaths, since git 2.48."""
    holder = repository(tmp_path / "m/.git")
    tree = linked(tmp_path, holder, back="../../../../wt/.git\n")
    (tree / ".git").write_text("gitdir: ../m/.git/worktrees/wt\n")
    assert look(tree)[0] == (Mount.read_only(str(holder)),)


@pytest.mark.parametrize(
    "config",
    [
        "[core]\n\tworktree = ../../../sub\n",
        '[Core]\n bare = false\n WorkTree="../../../sub"\n[user]\n worktree = /\n',
        "[core]\nworktree = /\n[x]\n[core] worktree = ../../../sub",
    ],
)
def test_the_repository_of_a_submodule(config: str, tmp_path: Path) -> None:
    """Known by core.worktree, the last one counts."""
    tree = submodule(tmp_path, config)
    assert look(tree)[0] == (Mount.read_only(f"{tmp_path}/m/.git/modules/sub"),)
    assert look(tree, WRITE)[0] == (Mount.read_write(f"{tmp_path}/m/.git/modules/sub"),)


def test_core_worktree_may_stand_in_config_worktree(tmp_path: Path) -> None:
    """extensions.worktreeConfig puts it there."""
    tree = submodule(tmp_path, "[core]\n")
    (tmp_path / "m/.git/modules/sub/config.worktree").write_text("[core]\nworktree=../../../sub\n")
    assert look(tree)[0] == (Mount.read_only(f"{tmp_path}/m/.git/modules/sub"),)


def test_a_link_that_leads_to_what_leads_back(tmp_path: Path) -> None:
    """As `.git` may be a symbolic link, too."""
    tree = tmp_path / "wt"
    tree.mkdir()
    other = repository(tmp_path / "p.git", config="")
    (tree / ".git").symlink_to("../p.git")
    mounts, notes = look(tree)
    assert not mounts
    why = f"nothing in {other} leads back to it; --ro {other} shows it"
    assert notes == (f"git: the repository of {tree} is not shown: {why}",)
    (other / "config").write_text(f"[core]\nworktree = {tree}\n")
    assert look(tree)[0] == (Mount.read_only(str(other)),)


def test_a_plain_repository_needs_nothing(tmp_path: Path) -> None:
    """It lies in what is shown. To be writable in what is read-only, it is shown once more."""
    holder = repository(tmp_path / "m/.git")
    assert look(tmp_path / "m") == ((), ())
    assert look(tmp_path / "m", WRITE)[0] == (Mount.read_write(str(holder)),)
    writable = WRITE.replace(mounts=(Mount.read_write(tmp_path / "m"),))
    assert repositories(writable, cwd="/", cwd_shown=None, uid=os.geteuid()) == ((), ())
    elsewhere = WRITE.replace(mounts=(Mount.read_only(tmp_path / "m", "/there"),))
    mounts, _ = repositories(elsewhere, cwd="/there", cwd_shown=None, uid=os.geteuid())
    assert mounts == (Mount.read_write(str(holder), "/there/.git"),)


def test_a_repository_beside_its_working_tree(tmp_path: Path) -> None:
    """What lies in the same tree is shown with it, and need not lead back."""
    holder = repository(tmp_path / "m/.bare")
    (tmp_path / "m/.git").write_text("gitdir: ./.bare\n")
    assert look(tmp_path / "m") == ((), ())
    assert look(tmp_path / "m", WRITE)[0] == (Mount.read_write(str(holder)),)


# --- a .git of a program's making ---------------------------------------------------------------


def _secret(top: Path) -> str:
    (top / "secret").mkdir()
    (top / "secret/key").write_text("key")
    return f"gitdir: {top}/secret\n"


def _private(top: Path) -> str:
    return f"gitdir: {repository(top / 'private/.git', config='[core]')}\n"


def _of_another(top: Path) -> str:
    linked(top, repository(top / "m/.git"), "other")
    return f"gitdir: {top}/m/.git/worktrees/other\n"


def _whole_project(top: Path) -> str:
    """A project in which an earlier program has made what looks like a repository."""
    admin = repository(top / "project") / "worktrees/x"
    admin.mkdir(parents=True)
    (admin / "gitdir").write_text(f"{top}/tree/.git")
    (admin / "commondir").write_text("../..")
    return f"gitdir: {admin}"


def _common_elsewhere(top: Path) -> str:
    """Which says that its repository is another."""
    repository(top / "private/.git")
    admin = repository(top / "own/.git") / "worktrees/x"
    admin.mkdir(parents=True)
    (admin / "gitdir").write_text(f"{top}/tree/.git")
    (admin / "commondir").write_text(f"{top}/private/.git")
    return f"gitdir: {admin}"


def _through_a_link(top: Path) -> str:
    linked(top, repository(top / "private/.git"), "other")
    (top / "planted").symlink_to(top / "private")
    return f"gitdir: {top}/planted/.git/worktrees/other\n"


def _without_worktrees(top: Path) -> str:
    admin = repository(top / "private/.git") / "x"
    admin.mkdir()
    (admin / "gitdir").write_text(f"{top}/tree/.git")
    (admin / "commondir").write_text("..")
    return f"gitdir: {admin}"


def _objects_are_a_link(top: Path) -> str:
    (top / "private").mkdir()
    admin = top / "own/.git/worktrees/x"
    admin.mkdir(parents=True)
    (top / "own/.git/HEAD").write_text("")
    (top / "own/.git/refs").mkdir()
    (top / "own/.git/objects").symlink_to(top / "private")
    (admin / "gitdir").write_text(f"{top}/tree/.git")
    (admin / "commondir").write_text("../..")
    return f"gitdir: {admin}"


TEXTS: dict[str, Callable[[Path], str]] = {
    "a directory of secrets": _secret,
    "the root": lambda _: "gitdir: /\n",
    "the home": lambda _: f"gitdir: {os.environ.get('HOME', '/root')}",
    "a private repository": _private,
    "that of another working tree": _of_another,
    "a whole project": _whole_project,
    "another's common directory": _common_elsewhere,
    "the way through a link": _through_a_link,
    "not where git puts it": _without_worktrees,
    "objects that are a link": _objects_are_a_link,
    "nothing": lambda _: "gitdir: \n",
    "no words": lambda _: "",
    "other words": lambda top: f"{top}\n",
    "words before it": lambda _: "x gitdir: /\n",
    "a place that is not there": lambda _: "gitdir: /nowhere/.git\n",
    "a NUL": lambda _: "gitdir: /\0/.git\n",
    "bytes of a terminal": lambda _: "gitdir: /\x1b[2J\n/.git\n",
    "a long name": lambda _: f"gitdir: /{'x' * 300}\n",
    "a long path": lambda _: f"gitdir: {'/x' * 3000}\n",
    "upwards": lambda _: "gitdir: ../../../../../../../../../../../\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_leads_to(name: str, tmp_path: Path) -> None:
    """Nothing is shown for it, a note on one line says why, and to be writable it is an error."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / ".git").write_text(TEXTS[name](tmp_path))
    mounts, notes = look(tree)
    assert mounts == ()
    assert len(notes) == 1
    assert notes[0].startswith(f"git: the repository of {tree} is not shown: ")
    assert notes[0].isprintable()
    with pytest.raises(PolicyError, match="is not shown") as caught:
        look(tree, WRITE)
    assert caught.value.field == "git"


def _large(path: Path, text: str) -> None:
    path.write_text(text)
    os.truncate(path, 10 << 30)


KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a loop": lambda path: path.symlink_to(".git"),
    "a file of 10 GB": lambda path: _large(path, ""),
    "a file of words and 10 GB": lambda path: _large(path, "gitdir: /"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to the root": lambda path: path.symlink_to("/"),
    "a link to nothing": lambda path: path.symlink_to("/nowhere"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_neither_file_nor_directory(name: str, tmp_path: Path) -> None:
    """Nobody waits for it, and nothing is shown."""
    KINDS[name](tmp_path / ".git")
    mounts, notes = look(tmp_path)
    assert mounts == ()
    assert [note.partition(" is not shown: ")[0] for note in notes] == [
        f"git: the repository of {tmp_path}"
    ]


@needs("real root")
def test_the_repository_of_somebody_else(tmp_path: Path) -> None:
    """It belongs to who owns the working tree's `.git`: that is who could have made either."""
    tree = linked(tmp_path, repository(tmp_path / "m/.git"))
    assert look(tree)[0]
    os.chown(tree / ".git", 1234, 1234)
    assert look(tree)[0] == ()
    subprocess.run(["chown", "-R", "1234:1234", tmp_path / "m"], check=True, timeout=HANG)
    assert look(tree)[0]


# --- where it is looked for ----------------------------------------------------------------------


def test_a_part_of_a_repository_is_told(tmp_path: Path) -> None:
    """And which option shows all of it; modules above it likewise."""
    repository(tmp_path / "m/.git")
    part = tmp_path / "m/a/b"
    part.mkdir(parents=True)
    assert look(part) == (
        (),
        (f"git: {part} is a part of {tmp_path}/m; --ro {tmp_path}/m shows all of it",),
    )
    modules = tmp_path / "m/a/node_modules"
    modules.mkdir()
    assert look(part)[1][0] == f"node: {modules} is not shown; --ro {modules} shows it"


def test_the_home_of_a_repository_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is a repository itself says nothing about what lies in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    repository(tmp_path / ".git")
    (tmp_path / "a").mkdir()
    assert look(tmp_path / "a") == ((), ())


def test_in_a_directory_of_what_is_shown(tmp_path: Path) -> None:
    """The working directory may lie deep in it."""
    holder = repository(tmp_path / "m/.git")
    tree = linked(tmp_path, holder)
    (tree / "a/b").mkdir(parents=True)
    policy = Policy(mounts=[Mount.read_write(tree)])
    mounts, _ = repositories(policy, cwd=f"{tree}/a/b", cwd_shown=None, uid=os.geteuid())
    assert mounts == (Mount.read_only(str(holder)),)


def test_at_another_place(tmp_path: Path) -> None:
    """An absolute way is found from there, a relative one is not, and that is told."""
    holder = repository(tmp_path / "m/.git")
    tree = linked(tmp_path, holder)
    policy = Policy(mounts=[Mount.read_only(tree, "/there")])
    assert repositories(policy, cwd="/", cwd_shown=None, uid=os.geteuid())[0] == (
        Mount.read_only(str(holder)),
    )
    (tree / ".git").write_text("gitdir: ../m/.git/worktrees/wt\n")
    mounts, notes = repositories(policy, cwd="/", cwd_shown=None, uid=os.geteuid())
    assert mounts == ()
    assert notes == (f"git: it finds no repository at /there: show {tree} at its own path",)


def test_where_something_else_stands(tmp_path: Path) -> None:
    """What the policy puts there counts; what shows the repository already is enough."""
    holder = repository(tmp_path / "m/.git")
    tree = linked(tmp_path, holder)
    covered = Policy(mounts=[Mount.hide(str(holder))])
    mounts, notes = look(tree, covered)
    assert mounts == ()
    assert notes[0].endswith("is not shown: something else is mounted there")
    for same in (Mount.read_only(holder), Mount.read_write(tmp_path / "m"), Mount.overlay(tmp_path)):
        assert look(tree, Policy(mounts=[same])) == ((), ())
    above = WRITE.replace(mounts=[Mount.read_only(tmp_path)])
    assert look(tree, above)[0][0] == Mount.read_write(str(holder))


def test_where_nothing_is_shown_unasked(tmp_path: Path) -> None:
    """Of a root of its own, and of what only what is needed is shown of."""
    tree = linked(tmp_path, repository(tmp_path / "m/.git"))
    for policy in (Policy(root=tmp_path), Policy(system="needed")):
        assert look(tree, policy) == ((), ())
    assert look(tree, Policy(system="needed", git="write"))[0]
    with pytest.raises(PolicyError, match="a root of its own"):
        look(tree, Policy(root=tmp_path, git="write"))


def test_no_repository_at_all_is_told(tmp_path: Path) -> None:
    """Who asks to write to one is not left alone with that."""
    assert look(tmp_path) == ((), ())
    note = f"git: there is no repository in {tmp_path}, nor where a mount leads"
    assert look(tmp_path, WRITE) == ((), (note,))


def test_objects_that_lie_elsewhere_are_told(tmp_path: Path) -> None:
    """`git clone --shared`: nothing leads back from there."""
    holder = repository(tmp_path / "m/.git")
    (holder / "objects/info").mkdir()
    (holder / "objects/info/alternates").write_text("/srv/up/objects\n/srv/b\n")
    note = f"git: objects of {holder} lie in /srv/up/objects, and are shown only where that is (--ro)"
    assert look(tmp_path / "m") == ((), (note,))
    mounts, notes = look(linked(tmp_path, holder))
    assert mounts
    assert note in notes

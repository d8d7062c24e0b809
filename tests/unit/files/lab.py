"""Surveys of a directory that a test makes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capsule import Mount, Policy, PolicyError
from capsule.files.found import Survey
from capsule.files.survey import survey
from tests.support import open_descriptors

IS_ROOT = os.geteuid() == 0


def look(*mounts: Mount, cwd: Path | None = None, **policy: Any) -> Survey:
    """Survey a policy with these mounts; no descriptor may stay open."""
    before = open_descriptors()
    shown = None if cwd is None else str(cwd)
    try:
        return survey(Policy(mounts=mounts, **policy), cwd_shown=shown, shown=(), uid=os.geteuid())
    finally:
        assert open_descriptors() == before


def refusal(*mounts: Mount, **options: Any) -> str:
    """The error's text and hint."""
    with pytest.raises(PolicyError) as caught:
        look(*mounts, **options)
    return f"{caught.value.message} HINT {caught.value.hint}"


def hidden(found: Survey, top: Path) -> list[str]:
    """What patterns hide, as paths from a directory."""
    return [os.path.relpath(place, top) for place, _ in found.hidden]


@contextlib.contextmanager
def listening(path: Path) -> Iterator[None]:
    """A socket that is in use."""
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_PATH)
        try:
            # The path of a test may be longer than a socket's address.
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        yield


def dead_socket(path: Path) -> None:
    """A socket that nobody uses any more."""
    with listening(path):
        pass


def repository(path: Path, **files: str) -> Path:
    """What git takes for a repository, and files in it."""
    for name in ("objects", "refs"):
        (path / name).mkdir(parents=True)
    (path / "HEAD").write_text("ref: refs/heads/main\n")
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def linked(top: Path, holder: Path, name: str = "wt", back: str = "{tree}/.git\n") -> Path:
    """A linked working tree of a repository, as git-worktree(1) makes it."""
    tree, admin = top / name, holder / "worktrees" / name
    tree.mkdir()
    admin.mkdir(parents=True)
    (admin / "gitdir").write_text(back.format(tree=tree))
    (admin / "commondir").write_text("../..\n")
    (admin / "HEAD").write_text("ref: refs/heads/wt\n")
    (tree / ".git").write_text(f"gitdir: {admin}\n")
    return tree

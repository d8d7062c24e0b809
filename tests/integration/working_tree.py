"""A working tree that a capsule may write to, and what was set aside in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import capsule
from capsule import Mount, Policy
from tests.support import HANG, give, shared_directory


@contextmanager
def working_tree() -> Iterator[Path]:
    """A working tree with a repository in it; what is set aside in it can be removed."""
    with shared_directory() as path:
        give(path)
        for name in (".git/hooks/pre-commit", ".git/config", ".git/HEAD", ".envrc", "src/.vscode/x"):
            put(path / name, "old")
        yield path
        path.chmod(0o755)
        for folder, names, _ in os.walk(path):
            for name in names:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)


def put(path: Path, text: str) -> None:
    """Make a file that the capsule may write to, with the directories above it."""
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir()
        give(folder)
    path.write_text(text)
    give(path)


def writable(tree: Path, **changes: Any) -> Policy:
    """A policy with the tree at its own path, writable."""
    return Policy(mounts=(Mount.read_write(tree),), cwd=str(tree)).replace(**changes)


def shell(script: str, policy: Policy) -> capsule.Result:
    """What a script does that succeeds."""
    result = capsule.run(["sh", "-euc", script], policy, timeout=HANG)
    assert result.ok, (result.describe(), result.stderr)
    return result


def aside(result: capsule.Result) -> dict[str, tuple[str, str]]:
    """Path to (new name, guard) of what was set aside without an error."""
    assert [one for one in result.set_aside if one.error] == []
    return {one.path: (one.moved_to, one.guard) for one in result.set_aside}

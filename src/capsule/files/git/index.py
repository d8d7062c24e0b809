"""What is hidden, and known to git: it would record that as emptied, or deleted."""

from __future__ import annotations

import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import above, is_below
from capsule.host.places import kind_of, real_path

from .repository import named_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from capsule.files.found import Found

# Of an index: 100 bytes for each of 640,000 files.
_INDEX = 64 << 20


def known_repositories(
    hidden: Iterable[str], trees: Sequence[Found]
) -> Iterator[tuple[Found, str, str]]:
    """Find the repositories that know what is hidden: git would record that as emptied, or deleted.

    Args:
        hidden: files and directories.
        trees: what is shown writable.

    Returns:
        The tree that a repository lies in, its path there, a note on that it stays as it is.

    Raises:
        PolicyError: one is itself what is shown writable.
    """
    for repository, path in _knowing(hidden).items():
        for one in trees:
            if is_below(one.path, repository):
                raise _known_to_git(path, repository)
            if is_below(repository, one.path):
                why = f"for git knows {path}, which is hidden, and would record it as emptied"
                note = f"git: {repository} is read-only, {why}; --unprotect .git lets it"
                yield one, repository[len(one.path.rstrip("/")) + 1 :], note


def _knowing(hidden: Iterable[str]) -> dict[str, str]:
    """The directory of each repository that knows one of these, and the first that it knows."""
    found: dict[str, str] = {}
    indexes: dict[str, bytes | None] = {}
    for path in hidden:
        for folder in above(os.path.dirname(path)):
            if not kind_of(f"{folder}/.git"):
                continue
            repository = _leads_to(folder)
            if repository not in indexes:
                indexes[repository] = _index(repository)
            if _knows(indexes[repository], os.fsencode(path[len(folder) + 1 :])):
                found.setdefault(repository, path)
            break
    return found


def _leads_to(folder: str) -> str:
    """Where a .git leads, for what it has to say on a file: nothing is shown for it."""
    path = f"{folder}/.git"
    if kind_of(path) != stat.S_IFREG:
        return real_path(path)
    return real_path(os.path.join(folder, named_by(path)))


def _index(repository: str) -> bytes | None:
    """The index, which has the names of what git knows; gitformat-index(5). None if it is not plain."""
    from capsule.files.lookup import read_some

    try:
        data, size = read_some(f"{repository}/index", _INDEX)
    except OSError:
        return b""  # nothing is known yet
    is_plain = data[:8] in (b"DIRC\0\0\0\2", b"DIRC\0\0\0\3") and size <= len(data)
    is_split = any(name.startswith("sharedindex.") for name in os.listdir(repository))
    return data if is_plain and not is_split else None


def _knows(index: bytes | None, name: bytes) -> bool:
    """Return whether an index has a name, or one below it; one that cannot be read has any."""
    if index is None:
        return True
    for end in (b"\0", b"/"):
        start = index.find(name + end)
        while start >= 0:
            length = index.index(b"\0", start) - start
            # Before a name, and before the flags that some have besides, stands its length.
            for flags in (index[start - 2 : start], index[start - 4 : start - 2]):
                if int.from_bytes(flags, "big") & 0xFFF == min(length, 0xFFF):
                    return True
            start = index.find(name + end, start + 1)
    return False


def _known_to_git(path: str, repository: str) -> PolicyError:
    """The error about a repository that alone is shown writable, and a hidden file that it knows."""
    message = f"git: {repository} is to be writable, and knows {path}, which is hidden: it would be "
    message += "recorded as emptied"
    hint = "leave the hide out, or do not let the repository be written to"
    return PolicyError(message, field="git", value="write", hint=hint)

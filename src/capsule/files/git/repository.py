"""The git repository that a working tree is a part of.

Of a linked working tree and of a submodule ``.git`` is a file that leads to a repository elsewhere;
gitrepository-layout(5). Whoever made the tree made that file, an untrusted program maybe. So it is
followed only where what it leads to leads back, which nobody writes who cannot write there.
"""

from __future__ import annotations

import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import is_below, printable
from capsule.base.values import Value
from capsule.host.places import kind_of, known_homes, may_show, real_path
from capsule.policy.mounts import TREES, Mount, MountKind
from capsule.policy.policy import Git, IdMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from capsule.policy.policy import Policy

# A path and a few bytes more; a configuration may be long.
_LINE, _CONFIGURATION = 4200, 1 << 20
# Besides a name that ends in .git: as people call a bare one beside its working trees.
_BARE = ".bare"


class _NotFollowedError(Exception):
    """Why a repository is not shown."""


def look(
    mounts: list[Mount], notes: list[str], policy: Policy, found: tuple[str, str, str], uid: int
) -> None:
    """Look at a working tree: (its path, the top of what is shown, the place of that inside).

    Raises:
        PolicyError: its repository is to be writable, and cannot be shown at all.
    """
    folder, top, at = found
    if not is_below(folder, top):
        notes.append(f"git: {top} is a part of {folder}; --ro {folder} shows all of it")
        return
    is_directory = kind_of(f"{folder}/.git") == stat.S_IFDIR
    if policy.git is Git.WRITE or not is_directory:
        _add(mounts, notes, policy, _Tree(real_path(folder), real_path(top), at), uid)
    if is_directory:
        notes += _borrowed(f"{folder}/.git")


def _borrowed(repository: str) -> Iterator[str]:
    """Yield a note on objects that lie in another repository, of which nothing leads back."""
    path = f"{repository}/objects/info/alternates"
    text = _text(path, _LINE) if kind_of(path) else None
    if text:
        place = text.partition("\n")[0]
        yield f"git: objects of {repository} lie in {place}, and are shown only where that is (--ro)"


class _Tree(Value):
    """A working tree: its path, the top of what is shown with it, and where that is inside."""

    path: str
    top: str
    at: str

    def inside(self, path: str) -> str:
        """The place of something in it or beside it; what is not shown with it has its own path."""
        if not is_below(path, self.top):
            return path
        return self.at.rstrip("/") + path[len(self.top.rstrip("/")) :] or "/"


def _add(mounts: list[Mount], notes: list[str], policy: Policy, tree: _Tree, uid: int) -> None:
    """Add what shows the repository of a working tree, and a note on it."""
    write = policy.git is Git.WRITE
    try:
        directory, repository, is_found = _follow(tree, uid, policy)
        standing = _standing(policy, repository, tree)
    except _NotFollowedError as error:
        message = f"the repository of {printable(tree.path)} is not shown: {error}"
        if write:
            hint = "leave --git out, or name the repository itself with --rw"
            raise PolicyError(f"git: {message}", field="git", value="write", hint=hint) from None
        notes.append(f"git: {message}")
        return
    if not is_found:
        place = tree.inside(tree.path)
        notes.append(f"git: it finds no repository at {place}: show {tree.path} at its own path")
    elif standing is None or (write and standing is MountKind.READ_ONLY):
        mounts += _mounts(tree, directory, repository, write=write)
        notes += _borrowed(repository)
        if write:
            notes.append(f"git: {repository} is writable: the repository of {tree.path}")
        else:
            notes.append(
                f"git: {repository} is shown read-only: the repository of {tree.path}; --git lets the "
                "command write to it"
            )


def _mounts(tree: _Tree, directory: str, repository: str, *, write: bool) -> Iterator[Mount]:
    if not write:
        yield Mount.read_only(repository)
        return
    yield Mount.read_write(repository, tree.inside(repository))
    if directory != repository:
        # git prunes what it has on working trees that it does not find, and inside it finds no other.
        others = os.path.dirname(directory)
        yield Mount.read_only(others, tree.inside(others))
        yield Mount.read_write(directory, tree.inside(directory))


def _standing(policy: Policy, path: str, tree: _Tree) -> MountKind | None:
    """Return as what a path of the host is shown at its place already."""
    place = tree.inside(path)
    holding = [mount for mount in policy.mounts if is_below(place, mount.at)]
    if holding:
        mount = max(holding, key=lambda one: len(one.at))
        if mount.at == place and mount.kind in TREES:
            return MountKind.READ_WRITE  # named itself: it stays as it was asked for
        shows = os.path.normpath(mount.source + place[len(mount.at.rstrip("/")) :])
        if mount.kind not in TREES or real_path(shows) != path:
            raise _NotFollowedError("something else is mounted there")
        return mount.kind
    return MountKind.READ_ONLY if is_below(path, tree.top) else None


def _follow(tree: _Tree, uid: int, policy: Policy) -> tuple[str, str, bool]:
    """(Where .git leads, the repository that this is part of, whether it is found inside at all)."""
    # Only where .git is no directory, or to be written to.
    from capsule.files.lookup import follow, trusts_root

    folder = tree.path
    way, owner = _way(folder, uid)
    try:
        trusted = trusts_root(uid, host_root=policy.id_map is IdMap.HOST_ROOT)
        place = follow(os.path.normpath(os.path.join(folder, way)), "git", trusted=trusted)
    except (PolicyError, OSError) as error:
        raise _NotFollowedError(str(error).partition("\n")[0].removeprefix("git: ")) from None
    directory = place.path
    if place.kind != stat.S_IFDIR:
        raise _NotFollowedError(f"{folder}/.git leads to {directory}, which is no directory")
    is_inside = is_below(directory, tree.top)
    try:
        repository, is_linked = _repository(folder, directory)
    except _NotFollowedError:
        if not is_inside:
            raise
        # What is shown anyway need not lead back.
        repository, is_linked = directory, False
    if not _is_repository(repository, owner) or not _is_of(directory, owner):
        raise _NotFollowedError(f"{repository} is no repository of the same owner")
    if policy.git is Git.WRITE and is_below(folder, repository):
        raise _NotFollowedError(f"the working tree lies in it: {repository}")
    if is_below(repository, tree.top):
        return directory, repository, True
    if not _is_named(repository) or not may_show(repository, known_homes()):
        raise _NotFollowedError(f"{repository} may be more than that; --ro {repository} shows it")
    is_found = tree.inside(folder) == folder or (is_linked and way.startswith("/"))
    return directory, repository, is_found


def _way(folder: str, uid: int) -> tuple[str, int]:
    """(Path that .git leads to, as whose it must be known there)."""
    path = f"{folder}/.git"
    found = os.lstat(path)
    owner = found.st_uid if uid == 0 else uid
    if stat.S_ISDIR(found.st_mode):
        return path, owner
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path), owner
    way = named_by(path)
    if not way:
        raise _NotFollowedError(f"{path} does not name one")
    return way, owner


def named_by(path: str) -> str:
    """The path that a .git names which is a file, or ""."""
    before, _, way = (_text(path, _LINE) or "").partition("gitdir: ")
    return "" if before else way.rstrip("\r\n")


def _repository(folder: str, directory: str) -> tuple[str, bool]:
    """(The repository, whether the tree is a linked one), if it leads back to the working tree."""
    back = _text(f"{directory}/gitdir", _LINE)
    if back:
        leads, name = os.path.split(os.path.normpath(os.path.join(directory, back.rstrip("\r\n"))))
        if real_path(leads) != folder or name != ".git":
            raise _NotFollowedError(f"{directory} is that of another working tree, {leads}")
        common = (_text(f"{directory}/commondir", _LINE) or "").rstrip("\r\n")
        holder = os.path.dirname(directory)
        repository = os.path.dirname(holder)
        if (
            os.path.basename(holder) != "worktrees"
            or os.path.normpath(os.path.join(directory, common)) != repository
        ):
            raise _NotFollowedError(f"{directory} does not lie where git puts it")
        return repository, True
    work_tree = _work_tree(directory)
    if work_tree is None or real_path(os.path.join(directory, work_tree)) != folder:
        more = f"; --ro {directory} shows it" if _is_repository(directory, None) else ""
        raise _NotFollowedError(f"nothing in {directory} leads back to it{more}")
    return directory, False


def _work_tree(directory: str) -> str | None:
    """The value of core.worktree; git-config(1). One with escapes or a comment is not understood."""
    found = None
    for name in ("config", "config.worktree"):
        section = ""
        for line in (_text(f"{directory}/{name}", _CONFIGURATION) or "").split("\n"):
            entry = line.strip()
            if entry.startswith("["):
                section, _, entry = entry[1:].partition("]")
            key, equals, value = entry.partition("=")
            if equals and (section.strip().lower(), key.strip().lower()) == ("core", "worktree"):
                found = value.strip().strip('"')
    return found


def _is_repository(path: str, owner: int | None) -> bool:
    """Return whether git takes a directory for a repository, and whether it is somebody's own."""
    kinds = [kind_of(f"{path}/{name}") for name in ("objects", "refs")]
    has_all = kinds == [stat.S_IFDIR] * 2 and kind_of(f"{path}/HEAD") in (stat.S_IFREG, stat.S_IFLNK)
    return has_all and (owner is None or _is_of(path, owner))


def _is_of(path: str, owner: int) -> bool:
    return os.lstat(path).st_uid == owner


def _is_named(repository: str) -> bool:
    """Return whether its name, or that of one above, says that there is nothing else in it."""
    return any(name.endswith(".git") or name == _BARE for name in repository.split("/"))


def _text(path: str, most: int) -> str | None:
    """The content of a regular file, behind no link; None if there is none, or too much."""
    from capsule.files.lookup import read_some

    try:
        data, _ = read_some(path, most + 1)
    except (OSError, ValueError):
        return None
    text = os.fsdecode(data)
    return None if len(data) > most or "\0" in text else text

"""What a capsule left in a writable tree that a trusted tool would execute: renamed, made inert.

The capsule is dead by then, but another one may write to the same tree meanwhile. So everything is
done by descriptors, no link is followed out of the tree, nothing is opened for reading that is not a
directory, and nothing is ever overwritten. A directory of the caller's own that the command has closed
is opened up for that moment.
"""

from __future__ import annotations

import errno
import os
import stat

from capsule.base.text import printable
from capsule.files.guarded import look
from capsule.files.guards import within
from capsule.files.trees.cursor import WRITE, Way, change_mode, open_directory
from capsule.files.trees.walk import kind_of
from capsule.policy.protected import named

from .values import SetAside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capsule.files.found import Watch
    from capsule.files.guarded import Sight
    from capsule.policy.protected import Guard

# More than at the start: a tree that was small enough then is looked through as far now, although the
# command may have filled it. Files are some tenths of a second's work, directories some seconds'.
ENTRIES_AFTER = 200_000
# So many are named in the result; the rest is counted.
MOST_ASIDE = 1_000
# The command may have taken all the names that it can foresee.
_NUMBERED = 16

_INERT = 0o666
# Longest name of a file; the file systems that have less say ENAMETOOLONG.
_NAME_MAX = 255


def set_aside(
    watch: Watch, guards: Sequence[Guard] | None = None, top: int | None = None
) -> tuple[tuple[SetAside, ...], tuple[str, ...]]:
    """Rename what matches a guard and was not there at the start, and take its x permissions away.

    Args:
        watch: the tree, and what was known of it at the start.
        guards: those of the policy; without them, those that *watch* names.
        top: a descriptor of the tree, which may have been moved; without it, it is opened by its path.

    Returns:
        What was found, whether it could be renamed or not; and notes on what was not looked at.
    """
    try:
        top = open_directory(watch.path) if top is None else os.dup(top)
    except OSError as error:
        note = f"cannot look for protected names in {watch.path}: {os.strerror(error.errno or 0)}"
        return (), (printable(note),)
    try:
        return _set_aside(
            watch, within(named(watch.names) if guards is None else guards, watch.path), top
        )
    except OSError as error:
        note = f"{watch.path} could not be looked through for protected names: {_text(error)}"
        return (), (printable(note),)
    finally:
        os.close(top)


def _set_aside(
    watch: Watch, guards: Sequence[Guard], top: int
) -> tuple[tuple[SetAside, ...], tuple[str, ...]]:
    known = dict(watch.known)
    view = look(top, guards, depth=watch.depth, most=ENTRIES_AFTER, again=(watch.path, known))
    if watch.deeper:
        # As it was at the start, of which the plan tells.
        view = view.replace(deeper=False)
    notes = list(view.notes(watch.path, watch.depth))
    new = [sight for sight in view.found if _is_new(sight, known.get(sight.path, ""))]
    moved = [one for sight in new if (one := _move(top, watch.path, sight))]
    # What stays is what the caller must hear of first.
    moved.sort(key=lambda one: bool(one.moved_to))
    for done, words in ((True, "were set aside"), (False, "stay in it")):
        more = sum(bool(one.moved_to) is done for one in moved[MOST_ASIDE:])
        if more:
            notes.append(f"{watch.path}: {more} more new protected names {words}")
    return tuple(moved[:MOST_ASIDE]), tuple(printable(note) for note in notes)


def _is_new(sight: Sight, was: str) -> bool:
    """Return whether something else stood there at the start, or a link stands for something else now.

    One that leads to nothing any more does no harm. What will be there is for the next run to find.
    """
    return sight.identity not in (was, was.partition("\0")[0])


def _move(top: int, tree: str, sight: Sight) -> SetAside | None:
    """Set one aside; None if it is gone."""
    folder, _, name = sight.path.rpartition("/")
    path = os.path.join(tree, sight.path)
    try:
        with Way(top, folder, WRITE, open_up=True) as way:
            moved = _rename(way.fd, name)
            error_text = _make_inert(way.fd, moved)
    except FileNotFoundError:
        return None
    except OSError as error:
        return SetAside(path, "", sight.guard, _text(error))
    return SetAside(path, os.path.join(tree, folder, moved), sight.guard, error_text)


def _text(error: OSError) -> str:
    return os.strerror(error.errno or 0)


def _rename(holder: int, name: str) -> str:
    """Give it the first free name in its directory, and return that.

    There is no renameat2(RENAME_NOREPLACE) here, and between a look whether a name is free and the
    rename somebody could take it. So the name is first taken, with an empty file or directory, which
    fails if it is not free, and then renamed over: only what was made here is ever replaced. A
    directory that somebody has filled meanwhile cannot be (ENOTEMPTY).

    A name that nobody can foresee needs none of that, and so no space on a disk that is full.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be renamed.
    """
    for number in range(1, _NUMBERED + 1):
        kind = kind_of(os.stat(name, dir_fd=holder, follow_symlinks=False).st_mode)
        free = _aside(name, str(number))
        try:
            _take(holder, free, kind)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            break
        try:
            os.rename(name, free, src_dir_fd=holder, dst_dir_fd=holder)
        except OSError as error:
            _give_back(holder, free, kind)
            # Filled, or replaced by something of another kind: itself, or the name that was taken.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                raise
        else:
            return free
    free = _aside(name, os.urandom(16).hex())
    os.rename(name, free, src_dir_fd=holder, dst_dir_fd=holder)
    return free


def _aside(name: str, chosen: str) -> str:
    """NAME.capsule-aside-N, of a name that would be too long its first part."""
    ending = f".capsule-aside-{chosen}".encode()
    return os.fsdecode(os.fsencode(name)[: _NAME_MAX - len(ending)] + ending)


def _take(holder: int, name: str, kind: str) -> None:
    if kind == "directory":
        os.mkdir(name, 0o700, dir_fd=holder)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=holder))


def _give_back(holder: int, name: str, kind: str) -> None:
    """Remove what `_take` made, unless somebody put something else there."""
    try:
        if kind == "directory":
            os.rmdir(name, dir_fd=holder)
        elif os.stat(name, dir_fd=holder, follow_symlinks=False).st_size == 0:
            os.unlink(name, dir_fd=holder)
    except OSError:
        pass


def _make_inert(holder: int, name: str) -> str:
    """Take away permission to execute a file, or to look into a directory. Why not, or ""."""
    try:
        # O_PATH: needs no permission, waits for nobody at a FIFO, tells no device.
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=holder)
    except OSError as error:
        return f"renamed, but its mode stays: {_text(error)}"
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            change_mode(fd, 0o600)
        elif stat.S_ISREG(mode) and mode & 0o7777 & ~_INERT:
            change_mode(fd, mode & _INERT)
    except OSError as error:
        return f"renamed, but its mode stays: {_text(error)}"
    finally:
        os.close(fd)
    return ""

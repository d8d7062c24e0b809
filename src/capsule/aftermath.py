"""What a capsule left in a writable tree that a trusted tool would execute: renamed, made inert.

The capsule is dead by then, but another one may write to the same tree meanwhile. So everything is
done by descriptors, no link is followed, nothing is opened for reading that is not a directory, and
nothing is ever overwritten.
"""

from __future__ import annotations

import errno
import os
import stat

from .changes import SetAside
from .cursor import open_directory
from .errors import printable
from .guards import named, within
from .sightings import identify, look
from .walk import open_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .guards import Guard
    from .sightings import Sight
    from .survey import Watch

# More than at the start: a tree that was small enough then is looked through as far now, although the
# command may have filled it. Files are some tenths of a second's work, directories some seconds'.
ENTRIES_AFTER = 200_000
# One run leaves at most so many. What is more stays where it is, and a note says so.
MOST_ASIDE = 1_000
_MOST_NAMES = 1_000

_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
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
        placed = within(named(watch.names) if guards is None else guards, watch.path)
        view = look(top, placed, depth=watch.depth, most=ENTRIES_AFTER)
        known = dict(watch.known)
        new = [sight for sight in view.found if known.get(sight.path) != sight.identity]
        notes = list(view.notes(watch.path, watch.depth))
        if len(new) > MOST_ASIDE:
            notes.append(f"{watch.path}: {len(new) - MOST_ASIDE} more new protected names stay in it")
        moved = [_move(top, watch.path, sight) for sight in new[:MOST_ASIDE]]
    finally:
        os.close(top)
    return tuple(one for one in moved if one), tuple(printable(note) for note in notes)


def _move(top: int, tree: str, sight: Sight) -> SetAside | None:
    """Set one aside; None if it is gone."""
    folder, _, name = sight.path.rpartition("/")
    path = os.path.join(tree, sight.path)
    try:
        holder = open_beneath(top, folder, _PASS)
    except FileNotFoundError:
        return None
    except OSError as error:
        return SetAside(path, "", sight.guard, _text(error))
    try:
        moved = _rename(holder, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return SetAside(path, "", sight.guard, _text(error))
    else:
        error_text = _make_inert(holder, moved)
        return SetAside(path, os.path.join(tree, folder, moved), sight.guard, error_text)
    finally:
        os.close(holder)


def _text(error: OSError) -> str:
    return os.strerror(error.errno or 0)


def _rename(holder: int, name: str) -> str:
    """Give it the first free name in its directory, and return that.

    There is no renameat2(RENAME_NOREPLACE) here, and between a look whether a name is free and the
    rename somebody could take it. So the name is first taken, with an empty file or directory, which
    fails if it is not free, and then renamed over: only what was made here is ever replaced. A
    directory that somebody has filled meanwhile cannot be (ENOTEMPTY).

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be renamed.
    """
    for number in range(1, _MOST_NAMES + 1):
        kind = identify(holder, name)[1]
        free = _aside(name, number)
        try:
            _take(holder, free, kind)
        except FileExistsError:
            continue
        try:
            os.rename(name, free, src_dir_fd=holder, dst_dir_fd=holder)
        except OSError as error:
            _give_back(holder, free, kind)
            # Filled, or replaced by something of another kind: itself, or the name that was taken.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                raise
        else:
            return free
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _aside(name: str, number: int) -> str:
    """NAME.capsule-aside-N, of a name that would be too long its first part."""
    ending = f".capsule-aside-{number}".encode()
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
            _change_mode(fd, 0o600)
        elif stat.S_ISREG(mode) and mode & 0o7777 & ~_INERT:
            _change_mode(fd, mode & _INERT)
    except OSError as error:
        return f"renamed, but its mode stays: {_text(error)}"
    finally:
        os.close(fd)
    return ""


def _change_mode(fd: int, mode: int) -> None:
    """fchmod(2), which O_PATH descriptors refuse; their link in /proc leads to that very file."""
    os.chmod(f"/proc/self/fd/{fd}", mode)

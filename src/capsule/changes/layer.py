"""Upper layers of overlays: what a run changed, read where nothing in them can act or lead away."""

from __future__ import annotations

import errno
import os

from capsule.base.text import is_below, printable
from capsule.files.guards import within
from capsule.files.kept import check_marker, open_upper, reserve
from capsule.files.trees.cursor import Cursor, open_directory, open_file
from capsule.policy.protected import in_force

from .apply import Applier
from .compare import Comparison, Protected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import BinaryIO, NoReturn, Self

    from capsule.policy.protected import Guard

    from .values import Change

MOST_CHANGES = 100_000
MOST_READ = 64 << 20


class Layer:
    """The upper layer of an overlay: what was written there, and what it says was deleted.

    Everything in it comes from inside. No method follows a symbolic link, opens anything but regular
    files and directories, or leaves the tree. A directory or file of the caller's own that is closed to
    the caller is opened for as long as it is read.

    Attributes:
        at: the overlay's place inside the capsule.
        source: the directory of the host that it lies over.
    """

    def __init__(
        self,
        upper: int,
        source: str,
        at: str,
        guards: Sequence[Guard] | None = None,
        lock: int = -1,
    ) -> None:
        """Take over an upper layer.

        Args:
            upper: a descriptor of its top, closed by `close`.
            source: path of the lower directory on the host, without a symbolic link in it.
            at: where the overlay stands inside.
            guards: what is never applied, as `protected.in_force` gives it; without it the whole table.
            lock: a descriptor that keeps others from the layer, likewise closed by `close`; or -1.
        """
        self.at = at
        self.source = source
        self._guards = in_force((), ()) if guards is None else tuple(guards)
        self._upper = upper
        self._lower = -1
        self._lock = lock

    def changes(self, most: int = MOST_CHANGES) -> tuple[tuple[Change, ...], bool]:
        """All that this layer changes, ordered by path, and whether that is really all.

        A file that was opened for writing lies in the layer even if it was not written to. It is not
        listed if content and mode are the host's, but that is found out only of files up to 1 MiB, and
        64 MiB in all; larger ones count as modified. Owners, times and extended attributes are not
        compared. What was replaced by something of another type is modified, and has its new type. A
        deleted directory is one change, whatever was in it.

        It is not all if there is more than *most*, if directories cannot be read, or if paths are
        longer than 4,095 bytes.

        Args:
            most: how many entries of the layer are looked at, and how many changes are listed.

        Raises:
            OSError: the layer or the lower directory cannot be opened.
        """
        upper, lower = self._directories()
        with Cursor(upper, open_up=True) as above, Cursor(lower) as below:
            comparison = Comparison(
                above, below, self.at, Protected(within(self._guards, self.source)), most
            )
            complete = comparison.run()
        return tuple(sorted(comparison.changes, key=_path_of)), complete

    def open(self, path: str | os.PathLike[str]) -> BinaryIO:
        """Open a regular file of the layer for reading.

        Args:
            path: as in `Change.path`, or relative to the overlay.

        Raises:
            FileNotFoundError: it is not in the layer: not changed, or deleted.
            OSError: it is no regular file (ELOOP, EISDIR, EINVAL), or lies below what is no directory.
            ValueError: the path lies outside of the overlay, or this is closed.
        """
        names = self._names(path)
        try:
            with Cursor(self._directories(lower=False)[0], open_up=True) as cursor:
                cursor.go(names[:-1])
                file = os.fdopen(open_file(cursor.fd, names[-1] if names else ".", open_up=True), "rb")
        except OSError as error:
            what = "not in the layer" if error.errno == errno.ENOENT else error.strerror
            raise OSError(error.errno, what, os.fspath(path)) from None
        return file

    def read(self, path: str | os.PathLike[str], most: int = MOST_READ) -> bytes:
        """The content of a regular file of the layer.

        Raises:
            OSError: as for `open`, or EFBIG: it has more than *most* bytes.
        """
        with self.open(path) as file:
            data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else b""
            if len(data) > most or os.fstat(file.fileno()).st_size > most:
                raise OSError(errno.EFBIG, f"more than {most} bytes", os.fspath(path))
        return data

    def apply(self, changes: Iterable[Change] | None = None) -> tuple[Change, ...]:
        """Do to the directory on the host what was done to the overlay; all of it, or some changes.

        In order of the paths, thus a directory before what is in it; the modes of directories last.
        A file is written beside its place and renamed over what is there: nobody sees half of one.
        Never applied are: what is protected (a deleted directory is emptied around it), special files,
        symbolic links that are absolute or lead out of the overlay, and set-id and sticky bits. Times,
        owners and attributes are not kept: what is made belongs to the caller, or, if that is root, to
        the owner of what it replaces or of the directory that it is in. No link of the host's directory
        is followed.

        Args:
            changes: which; the directories that these need are made as well.

        Returns:
            What was applied.

        Raises:
            OSError: the first thing that failed; what came before it stays done. E2BIG: there are more
                changes than can be listed; name some.
            ValueError: one of these changes is not, or no longer, in the layer, or is not what it was:
                what it was done to, its type, mode or size are others.
        """
        found, complete = self.changes(10 * MOST_CHANGES if changes is None else MOST_CHANGES)
        if changes is not None:
            found = _select(found, changes)
        elif not complete:
            raise OSError(errno.E2BIG, "more changes than can be listed", self.at)
        upper, lower = self._directories()
        with Cursor(upper, open_up=True) as above, Cursor(lower) as below:
            protected = self._protected()
            applier = Applier(above, below, protected, protected.in_repository)
            return applier.run((change, _below(change.path, self.at)) for change in found)

    def close(self) -> None:
        """Give up the layer. One in memory is gone then."""
        for fd in (self._upper, self._lower, self._lock):
            if fd >= 0:
                os.close(fd)
        self._upper = self._lower = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_upper", -1) >= 0:
            import warnings

            warnings.warn(f"layer of {self.at!r} was not closed", ResourceWarning, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self._upper < 0 else ""
        return f"<Layer {self.at!r} over {self.source!r}{state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a layer holds descriptors: it cannot be pickled or copied")

    def _directories(self, *, lower: bool = True) -> tuple[int, int]:
        if self._upper < 0:
            raise ValueError("the layer is closed")
        if lower and self._lower < 0:
            self._lower = open_directory(self.source)
        return self._upper, self._lower

    def _protected(self) -> Protected:
        return Protected(within(self._guards, self.source))

    def _names(self, path: str | os.PathLike[str]) -> list[str]:
        """The components below the overlay's top."""
        text = os.fsdecode(path)
        relative = text
        if text.startswith("/"):
            if not is_below(text, self.at):
                raise ValueError(f"not in the overlay {self.at}: {text!r}")
            relative = _below(text, self.at)
        names = [name for name in relative.split("/") if name not in ("", ".")]
        if ".." in names:
            raise ValueError(f"'..' in a path: {text!r}")
        return names


def open_layer(
    keep: str | os.PathLike[str],
    source: str | os.PathLike[str],
    at: str | None = None,
    *,
    protect: Sequence[str] = (),
    unprotect: Sequence[str] = (),
) -> Layer:
    """Open the layer that an earlier run kept. Until it is closed, nobody else can use it.

    Args:
        keep: the directory that was given as ``keep``.
        source: the directory of the host that the overlay lay over.
        at: where it stood inside, if not at its own path.
        protect: as in the policy.
        unprotect: as in the policy.

    Raises:
        OSError: there is no layer in *keep*, or no such directory.
        PolicyError: an unknown name in *unprotect*, the layer is not one of *source*, or is in use.
    """
    found = in_force(tuple(protect), tuple(unprotect))
    lower = os.path.realpath(os.fsdecode(source))
    place = os.path.abspath(os.fsdecode(source)) if at is None else os.path.normpath(at)
    kept = os.path.realpath(os.fsdecode(keep))
    what = f"layer of {printable(lower)}"
    lock = _open_list(kept)
    try:
        reserve(lock, kept, what)
        upper = open_upper(kept)
    except BaseException:
        os.close(lock)
        raise
    layer = Layer(upper, lower, place, found, lock)
    try:
        check_marker(lock, kept, lower, what)
    except BaseException:
        layer.close()
        raise
    return layer


def _open_list(path: str) -> int:
    """Open a directory, by its link-free path, as flock(2) wants it."""
    fd = open_directory(path)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _path_of(change: Change) -> str:
    return change.path


def _below(path: str, at: str) -> str:
    return path[len(at.rstrip("/")) :].lstrip("/")


def _select(found: Sequence[Change], wanted: Iterable[Change]) -> tuple[Change, ...]:
    """Those that are wanted, and the new directories that they lie in."""
    there = {change.path: change for change in found}
    paths: set[str] = set()
    for change in wanted:
        now = there.get(change.path)
        if now is None:
            raise ValueError(f"not among the changes of the layer: {change.path!r}")
        # What is protected is never applied, whoever says so.
        if now != change.replace(protected=now.protected):
            raise ValueError(f"not what it was when it was listed: {change.path!r}")
        paths.add(change.path)
    above: set[str] = set()
    for path in paths:
        while (path := os.path.dirname(path)) not in above and path != "/":
            above.add(path)
    return tuple(c for c in found if c.path in paths or (c.path in above and c.type == "directory"))

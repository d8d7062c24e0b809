"""What a run changed: frozen values."""

from __future__ import annotations

from capsule.base.values import Choice, Value


class Action(Choice):
    """What was done to a file."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


class Change(Value):
    """One path that the upper layer of an overlay changes.

    Attributes:
        path: the place inside the capsule, absolute. Names come from inside: any bytes but NUL, those
            that are not UTF-8 as os.fsdecode gives them.
        action: what was done. A directory whose content alone changed is not listed itself.
        type: "file", "directory", "symlink", "fifo", "socket"; of a deletion what was deleted.
        mode: the permission bits that it has now; of a deletion those it had.
        size: bytes of a file or of a link's text, else 0; likewise.
        protected: whether it is one of the paths that a trusted tool would execute: never applied.
    """

    path: str
    action: Action
    type: str
    mode: int = 0
    size: int = 0
    protected: bool = False


class SetAside(Value):
    """A protected path that did not exist at the start and did at the end, in a writable tree.

    Attributes:
        path: where it was on the host.
        moved_to: its new name on the host, without permission to execute or search; or "" if it could
            not be moved.
        guard: the protected name that it matches.
        error: why it could not be moved, or "".
    """

    path: str
    moved_to: str
    guard: str
    error: str = ""

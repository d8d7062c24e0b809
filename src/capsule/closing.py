"""What is done when a capsule has ended: say what overlays changed, set aside what must not stay."""

from __future__ import annotations

import os

from .changes import Change, SetAside
from .errors import PolicyError, printable
from .values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .layers import Layer
    from .plan import Plan
    from .policy import Policy

# Of all overlays together. Each change is a value of some hundred bytes.
MOST_CHANGES = 100_000


class Findings(Value):
    """What was found when all was over; the fields of `Result`."""

    changes: tuple[Change, ...] = ()
    changes_complete: bool = True
    set_aside: tuple[SetAside, ...] = ()
    notes: tuple[str, ...] = ()


class Closing:
    """The upper layers and the writable trees of one capsule.

    Attributes:
        layers: place inside to upper layer.
    """

    def __init__(self, plan: Plan, policy: Policy) -> None:
        """Before the launch: reserve the directories that keep layers.

        Raises:
            PolicyError: another capsule uses one.
        """
        self._policy = policy
        self._overlays = plan.overlays
        self._watched = plan.watched
        self._kept = [kept for _, _, kept in plan.overlays if kept]
        self._locks: list[int] = []
        self.layers: dict[str, Layer] = {}
        try:
            for kept in self._kept:
                self._locks.append(_lock(kept))
                _give(self._locks[-1], plan.owner)
        except BaseException:
            self.close()
            raise

    def receive(self, gifts: tuple[int, ...]) -> None:
        """Take over the descriptors of the layers that init sent; all are closed if this fails."""
        left = list(gifts)
        if not self._overlays:
            return
        from .guards import in_force
        from .layers import Layer, open_kept

        guards = in_force(self._policy.protect, self._policy.unprotect)
        try:
            for at, lower, kept in self._overlays:
                fd = open_kept(kept) if kept else left.pop(0)
                self.layers[at] = Layer(fd, lower, at, guards)
        except BaseException:
            for fd in left:
                os.close(fd)
            self.close()
            raise

    def examine(self) -> Findings:
        """Look at everything once, after the last process is dead."""
        changes: list[Change] = []
        complete = True
        notes: list[str] = []
        for at, layer in self.layers.items():
            try:
                found, all_of_it = layer.changes(most=MOST_CHANGES - len(changes))
            except OSError as error:
                notes.append(f"the changes at {at} cannot be listed: {error.strerror}")
                found, all_of_it = (), False
            changes += found
            complete = complete and all_of_it
        aside: list[SetAside] = []
        for watch in self._watched:
            from .aftermath import set_aside  # only with a writable tree

            moved, remarks = set_aside(watch)
            aside += moved
            notes += remarks
        return Findings(tuple(changes), complete, tuple(aside), tuple(notes))

    def close(self) -> None:
        """Let go of the layers: those in memory are gone then."""
        for layer in self.layers.values():
            layer.close()
        self.layers = {}
        for fd, kept in zip(self._locks, self._kept, strict=False):
            from .layers import make_removable

            make_removable(kept)
            os.close(fd)
        self._locks = []


def _give(kept: int, owner: tuple[int, int] | None) -> None:
    """What root has made for a layer, and nothing else, the command may write to."""
    if owner is not None and os.fstat(kept).st_uid == 0 and not os.listdir(kept):
        os.fchown(kept, *owner)


def _lock(kept: str) -> int:
    """A layer that two overlays write to is undefined; flock(2), which ends with the descriptor."""
    import fcntl

    fd = os.open(kept, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        message = f"mounts: another capsule uses the directory {printable(kept)}, which keeps a layer"
        hint = "wait for its end, or keep the layer in another directory"
        raise PolicyError(message, field="mounts", value=kept, hint=hint) from None
    except BaseException:
        os.close(fd)
        raise
    return fd

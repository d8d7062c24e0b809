"""What is done when a capsule has ended: say what overlays changed, set aside what must not stay."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import printable
from capsule.base.values import Value

from .values import Change, SetAside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.files.found import Watch
    from capsule.planner.plan import Plan
    from capsule.policy.policy import Policy

    from .layer import Layer

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
        """Before the launch: make and reserve the directories that keep layers.

        Raises:
            PolicyError: another capsule uses one, or it keeps something else.
            OSError: one cannot be made.
        """
        self._policy = policy
        self._overlays = plan.overlays
        self._watched = plan.watched
        self._kept: list[str] = []
        self._locks: list[int] = []
        self._tops: list[int] = []
        self.layers: dict[str, Layer] = {}
        from capsule.files.kept import lock, take

        try:
            for _, lower, kept in plan.overlays:
                if kept:
                    self._locks.append(lock(kept, lower))
                    # One that is refused is left as it is, down to the last mode.
                    take(self._locks[-1], kept, lower, plan.owner)
                    self._kept.append(kept)
            for watch in plan.watched:
                self._tops.append(_open_tree(watch))
        except BaseException:
            self.close()
            raise

    def receive(self, gifts: tuple[int, ...]) -> None:
        """Take over the descriptors of the layers that init sent; all are closed if this fails."""
        left = list(gifts)
        if not self._overlays:
            return
        from capsule.files.kept import open_upper
        from capsule.policy.protected import in_force

        from .layer import Layer

        guards = in_force(self._policy.protect, self._policy.unprotect)
        try:
            for at, lower, kept in self._overlays:
                fd = open_upper(kept) if kept else left.pop(0)
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
        for watch, top in zip(self._watched, self._tops, strict=False):
            from .set_aside import set_aside  # only with a writable tree

            moved, remarks = set_aside(watch, top=top)
            aside += moved
            notes += remarks
        return Findings(tuple(changes), complete, tuple(aside), tuple(notes))

    def close(self) -> None:
        """Let go of the layers: those in memory are gone then."""
        for layer in self.layers.values():
            layer.close()
        self.layers = {}
        for kept in self._kept:
            from capsule.files.kept import make_removable

            make_removable(kept)
        self._kept = []
        for fd in self._locks:
            os.close(fd)
        self._locks = []
        for fd in self._tops:
            os.close(fd)
        self._tops = []


def _open_tree(watch: Watch) -> int:
    """A writable tree, held from before the start: the command may move it or put a link in its way."""
    from capsule.files.trees.cursor import open_directory

    try:
        fd = open_directory(watch.path)
    except OSError as error:
        message = f"mounts: {printable(watch.path)}: {error.strerror}"
        hint = "it could be looked at a moment ago: look who writes there, or closes it to you"
        raise PolicyError(message, field="mounts", value=watch.path, hint=hint) from None
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != watch.identity:
        os.close(fd)
        message = f"mounts: {printable(watch.path)} was replaced while it was looked at"
        raise PolicyError(message, field="mounts", value=watch.path, hint="look who writes there")
    return fd

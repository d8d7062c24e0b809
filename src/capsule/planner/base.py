"""A base: what of a plan is the same for many capsules, made once and joined by each; pure.

It is a user and a mount namespace in which no command ever runs: the root with the host's programs,
devices, links and small files, read-only. A capsule joins it, makes namespaces of its own below, for
which the base's mounts are locked (mount_namespaces(7)), and adds what is its own: procfs, tmpfs,
devpts, masks, and trees of the caller's.
"""

from __future__ import annotations

from capsule.base.text import is_below
from capsule.base.values import Value
from capsule.launcher import steps as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Where the covers lie: every capsule has something of its own over it.
COVERS = "/tmp"
_MADE = (s.Symlink, s.Directory, s.File, s.Content)
_MOUNTED = (s.Tmpfs, s.Devpts)
# What a base's capsule cannot do: other ids than the caller's, layers, kernels that remount one by one.
_FOREIGN = (s.DropGroups, s.MappedTree, s.MapHelper, s.Overlay)


class Split(Value):
    """A plan in two parts.

    Attributes:
        base: the plan that makes the base.
        steps: the plan of a capsule that joins it.
        origin: of each of these, which step of the whole plan it is; -1 for one that joins.
        sources: paths of the host that the base shows.
    """

    base: tuple[s.Step, ...]
    steps: tuple[s.Step, ...]
    origin: tuple[int, ...]
    sources: tuple[str, ...]


def split(steps: Sequence[s.Step]) -> Split | None:
    """Part a plan; None if it cannot be."""
    kinds = {type(step) for step in steps}
    if kinds.intersection(_FOREIGN) or s.UidMap not in kinds or s.PivotRoot not in kinds:
        return None
    if any(isinstance(step, s.Remount) and step[2] for step in steps):
        return None
    return _Splitter(steps).split()


def _is_static(taken: s.Step) -> bool:
    """Tell what is shown unasked, read-only: the system's, and what the program needs of elsewhere."""
    plain = s.READ_ONLY | s.NO_SUID | s.NO_DEV
    return isinstance(taken, s.Device) or (
        isinstance(taken, s.Tree) and taken[1] == plain and taken[2] == 0
    )


class _Splitter:
    def __init__(self, steps: Sequence[s.Step]) -> None:
        self._whole = steps
        self._base: list[s.Step] = []
        self._steps: list[s.Step] = []
        self._origin: list[int] = []
        # What is taken, by the number that a step has which attaches it.
        taken = (s.Tree, s.Device, s.Proc)
        self._taken = [(index, step) for index, step in enumerate(steps) if isinstance(step, taken)]
        self._at = {step[0]: str(step[1]) for step in steps if isinstance(step, s.Attach)}
        # Where a capsule has something of its own; what lies below is its own as well.
        self._own = [str(step.path) for step in steps if isinstance(step, _MOUNTED)]
        self._own += [self._at[i] for i, (_, step) in enumerate(self._taken) if not _is_static(step)]
        self._static = [
            _is_static(step) and not self._is_below_own(self._at[i])
            for i, (_, step) in enumerate(self._taken)
        ]

    def _is_below_own(self, path: str) -> bool:
        return any(is_below(path, place) and path != place for place in self._own)

    def _of_base(self, *, static: bool) -> list[tuple[int, s.Step]]:
        """(Index, step) of what is taken by a base, or by a capsule itself."""
        return [
            one for one, is_static in zip(self._taken, self._static, strict=True) if is_static == static
        ]

    def split(self) -> Split | None:
        """Give each step its place."""
        if not all(map(self._has_place, range(len(self._taken)))):
            return None
        if not any(is_below(COVERS, place) for place in self._own):
            return None
        for index, step in enumerate(self._whole):
            self._place(index, step)
        self._base += (s.Remount("/", s.READ_ONLY | s.NO_SUID | s.NO_DEV, 0), s.Hold("/proc"), s.Stop())
        static = self._of_base(static=True)
        sources = tuple(str(step[0]) for _, step in static if isinstance(step, s.Tree))
        return Split(tuple(self._base), tuple(self._steps), tuple(self._origin), sources)

    def _has_place(self, number: int) -> bool:
        """Tell whether a base can have a place, of the same kind, for what a capsule takes."""
        step = self._taken[number][1]
        if self._static[number] or isinstance(step, s.Proc):
            return True
        known = self._is_below_own(self._at[number]) or step[2] & s.DIRECTORY
        return isinstance(step, s.Tree) and bool(known)

    def _run(self, index: int, step: s.Step) -> None:
        self._steps.append(step)
        self._origin.append(index)

    def _place(self, index: int, step: s.Step) -> None:
        if isinstance(step, s.Namespaces):
            wanted = ("user", "mount", "pid")
            self._base.append(s.Namespaces(sum(s.NAMESPACES[name] for name in wanted)))
            self._join()
            self._run(index, step)
        elif isinstance(step, s.UidMap | s.GidMap):
            # The caller's ids, as themselves: so the capsule's map reads as it does without a base.
            outside = step[0].split()[1]
            self._base.append(type(step)(f"{outside} {outside} 1"))
            self._run(index, step)
        elif isinstance(step, s.DenySetgroups | s.Undumpable | s.Session | s.Proc):
            self._base.append(step)
            self._run(index, step)
        elif isinstance(step, s.Private | s.PivotRoot):
            self._base.append(step)
        elif isinstance(step, s.Tree | s.Device):
            if (index, step) in self._of_base(static=True):
                self._base.append(step)
        elif isinstance(step, s.Covers):
            self._base.append(s.Covers(COVERS))
            self._run(index, s.FindCovers(COVERS))
        elif isinstance(step, (s.Attach, *_MADE, *_MOUNTED)):
            self._place_in_view(index, step)
        elif not (isinstance(step, s.Remount) and step[0] == "/"):
            self._run(index, step)

    def _join(self) -> None:
        """Take the caller's trees, of a copy of the host's, before the base's mounts are joined."""
        own = [(index, step) for index, step in self._of_base(static=False) if isinstance(step, s.Tree)]
        self._run(-1, s.JoinUser())
        if own:
            self._run(-1, s.Apart())
        for index, step in own:
            self._run(index, step)
        self._run(-1, s.JoinMounts())

    def _place_in_view(self, index: int, step: s.Step) -> None:
        path = str(step.path)
        if self._is_below_own(path):
            self._run(index, self._numbered(step, static=False))
        elif isinstance(step, s.Attach) and path == "/proc":
            # A proc file system is only given to who sees a whole one: the base's, of no process.
            self._base.append(self._numbered(step, static=True))
            self._run(index, self._numbered(step, static=False))
        elif isinstance(step, _MADE) or (isinstance(step, s.Attach) and self._static[step[0]]):
            self._base.append(self._numbered(step, static=True))
        else:
            self._base.append(s.Directory(path, 0o755))
            self._run(index, self._numbered(step, static=False))

    def _numbered(self, step: s.Step, *, static: bool) -> s.Step:
        """Renumber an attaching step: it counts what the same part of the plan takes."""
        if not isinstance(step, s.Attach):
            return step
        return s.Attach(self._static[: step[0]].count(static), *step[1:])

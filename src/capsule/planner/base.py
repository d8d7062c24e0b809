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
        taken = (s.Tree, s.Device, s.Proc)
        self._taken = [step for step in steps if isinstance(step, taken)]
        self._at = {step[0]: str(step[1]) for step in steps if isinstance(step, s.Attach)}
        # Where a capsule has something of its own; what lies below is its own as well.
        self._own = [str(step.path) for step in steps if isinstance(step, _MOUNTED)]
        self._own += [self._at[i] for i, step in enumerate(self._taken) if not _is_static(step)]
        self._static = [
            _is_static(step) and not self._is_below_own(self._at[i])
            for i, step in enumerate(self._taken)
        ]

    def _is_below_own(self, path: str) -> bool:
        return any(is_below(path, place) and path != place for place in self._own)

    def split(self) -> Split | None:
        """Give each step its place."""
        own: list[s.Step] = []
        for i, one in enumerate(self._taken):
            if self._static[i] or isinstance(one, s.Proc):
                continue
            own.append(one)
            # A base has a place for it, which must be of the same kind.
            if not (self._is_below_own(self._at[i]) or one[2] & s.DIRECTORY):
                return None
        if any(isinstance(step, s.Device) for step in own):
            return None
        for index, step in enumerate(self._whole):
            self._place(index, step, own)
        if not any(is_below(COVERS, place) and place != "/proc" for place in self._own):
            return None
        self._base += (s.Remount("/", s.READ_ONLY | s.NO_SUID | s.NO_DEV, 0), s.Hold("/proc"), s.Stop())
        parts = zip(self._taken, self._static, strict=True)
        sources = tuple(str(one[0]) for one, static in parts if static and isinstance(one, s.Tree))
        return Split(tuple(self._base), tuple(self._steps), tuple(self._origin), sources)

    def _run(self, index: int, step: s.Step) -> None:
        self._steps.append(step)
        self._origin.append(index)

    def _both(self, index: int, step: s.Step) -> None:
        self._base.append(step)
        self._run(index, step)

    def _place(self, index: int, step: s.Step, own: list[s.Step]) -> None:
        if isinstance(step, s.Namespaces):
            wanted = ("user", "mount", "pid")
            self._base.append(s.Namespaces(sum(s.NAMESPACES[name] for name in wanted)))
            self._join(own)
            self._run(index, step)
        elif isinstance(step, s.UidMap | s.GidMap):
            # The caller's ids, as themselves: so the capsule's map reads as it does without a base.
            outside = step[0].split()[1]
            self._base.append(type(step)(f"{outside} {outside} 1"))
            self._run(index, step)
        elif isinstance(step, s.DenySetgroups | s.Undumpable | s.Session | s.Proc):
            self._both(index, step)
        elif isinstance(step, s.Private | s.PivotRoot):
            self._base.append(step)
        elif isinstance(step, s.Tree | s.Device):
            if step not in own:
                self._base.append(step)
        elif isinstance(step, s.Covers):
            self._base.append(s.Covers(COVERS))
            self._run(index, s.FindCovers(COVERS))
        elif isinstance(step, (s.Attach, *_MADE, *_MOUNTED)):
            self._place_in_view(index, step)
        elif not (isinstance(step, s.Remount) and step[0] == "/"):
            self._run(index, step)

    def _join(self, own: list[s.Step]) -> None:
        for step in (s.JoinUser(), *((s.Apart(), *own) if own else ()), s.JoinMounts()):
            self._run(self._whole.index(step) if step in own else -1, step)

    def _place_in_view(self, index: int, step: s.Step) -> None:
        path = str(step.path)
        if self._is_below_own(path):
            self._run(index, self._renumbered(step))
        elif isinstance(step, s.Attach) and path == "/proc":
            # A proc file system is only given to who sees a whole one: the base's, of no process.
            self._base.append(self._base_number(step))
            self._run(index, self._renumbered(step))
        elif isinstance(step, _MADE) or (isinstance(step, s.Attach) and self._static[step[0]]):
            self._base.append(self._base_number(step))
        else:
            self._base.append(s.Directory(path, 0o755))
            self._run(index, self._renumbered(step))

    def _renumbered(self, step: s.Step) -> s.Step:
        """Of what a capsule takes itself, the base's are no part."""
        if not isinstance(step, s.Attach):
            return step
        return s.Attach(step[0] - sum(self._static[: step[0]]), *step[1:])

    def _base_number(self, step: s.Step) -> s.Step:
        if not isinstance(step, s.Attach):
            return step
        return s.Attach(sum(self._static[: step[0]]), *step[1:])

"""The bases that this process holds: made when one is wanted often, checked each time.

Whether there is one changes nothing but the time that a start takes (`planner.base`).
"""

from __future__ import annotations

import os
import select
from _thread import allocate_lock

from capsule.base.descriptors import Descriptors, Kept
from capsule.base.errors import CapsuleError
from capsule.base.values import Value
from capsule.launcher import spawn
from capsule.launcher import steps as s
from capsule.planner.base import split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from capsule.planner.base import Split

    Steps = tuple[s.Step, ...]
    Places = tuple[tuple[str, bool], ...]

# To make one takes as long as five runs with it save. Where it does not last, the next comes later.
OFTEN = 4
_LATER = 6
# Each holds three descriptors and the host's mounts; the oldest makes room.
MOST = 4
# How many views are remembered that cannot be had by one.
REFUSED = 16
# Sources in one directory, from which on it stands for them.
MANY = 3


class Base:
    """Namespaces that are held, and what the host was like when they were made.

    Args:
        user: descriptor of the user namespace.
        mounts: of the mount namespace.
        table: of /proc/self/mountinfo, for which poll(2) reports a change of the host's mounts.
        places: what to look at to know that the sources are what they were; see `places_of`.
        seen: what was seen there before the base was made.
    """

    def __init__(
        self, user: int, mounts: int, table: int, places: Places, seen: tuple[object, ...]
    ) -> None:
        self.user, self.mounts = user, mounts
        self._table = table
        self._places, self._seen = places, seen
        self._kept = Kept((user, mounts, table))
        self._waiting = poll_table(table)
        self._changed = False

    def holds(self) -> bool:
        """Return whether the same would come of it now."""
        if not self._kept.are_ours():
            return False
        try:
            # It is told once only.
            self._changed = self._changed or bool(self._waiting.poll(0))
            return not self._changed and _look(self._places) == self._seen
        except OSError:
            return False

    def close(self) -> None:
        """Let go. What else has these numbers by now is left alone."""
        self._kept.close()


class Joining(Value):
    """How a plan joins a base.

    Attributes:
        key: of the base.
        plan: what the launcher reads.
        origin: which step of the whole plan each of its steps is, -1 for one that joins.
        passed: its descriptors, which are the receiver's to close.
    """

    key: Steps
    plan: bytes
    origin: tuple[int, ...]
    passed: dict[int, int]

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.passed.values():
            os.close(fd)


# Who cannot have it goes without a base: nobody waits for one, and not in a forked child for ever.
_lock = allocate_lock()
# By what makes it: compared, for that is mostly the very same object, and not hashed.
_held: list[tuple[Steps, Base]] = []
_wanted: tuple[Steps, int] = ((), 0)  # the last, and how often in a row there was none
_doubts = 0  # how many were dropped
# Views that could not be had by a base here, though they can without.
_refused: list[Steps] = []
# The last plan but for the command's words, in two parts, and what the launcher reads of the second.
_last: tuple[Steps, Split | None, bytes] = ((), None, b"")


def find(steps: Steps, make: Callable[[Steps], tuple[int, int]]) -> Joining | None:
    """Return how a plan is to join a base, None if it is to go without.

    Args:
        steps: the whole plan.
        make: performs a plan that makes a base; (user namespace, mount namespace).
    """
    if not _lock.acquire(blocking=False):
        return None
    try:
        parted, text = _parted(steps)
        base = None if parted is None or parted.base in _refused else _base(parted, make)
        if parted is None or base is None:
            return None
        # Of its own: another thread may drop the base, and yet another get the numbers.
        with Descriptors() as fds:
            passed = {
                spawn.BASE_USER_FD: fds.own(os.dup(base.user)),
                spawn.BASE_MOUNTS_FD: fds.own(os.dup(base.mounts)),
            }
            fds.keep(passed.values())
        return Joining(parted.base, text + s.encode_more(steps[-1:]), parted.origin, passed)
    except OSError:
        return None  # no descriptor is left for it
    finally:
        _lock.release()


def _base(parted: Split, make: Callable[[Steps], tuple[int, int]]) -> Base | None:
    global _wanted, _doubts  # noqa: PLW0603
    for one in _held:
        if one[0] == parted.base:
            if one[1].holds():
                return one[1]
            _let_go(one)
            _wanted = ((), 0)
            _doubts += 1
            break
    times = _wanted[1] + 1 if _wanted[0] == parted.base else 1
    _wanted = parted.base, times
    return _make(parted, make) if times >= OFTEN << min(_doubts, _LATER) else None


def _parted(steps: Steps) -> tuple[Split | None, bytes]:
    global _last  # noqa: PLW0603
    last = _last
    if last[0] != steps[:-1]:
        parted = split(steps)
        text = b"" if parted is None else s.encode(parted.steps[:-1])
        last = _last = (steps[:-1], parted, text)
    return last[1:]


def refuse(key: Steps) -> None:
    """A plan failed with this base: go without from here on."""
    _refused.append(key)
    del _refused[:-REFUSED]
    for one in _held[:]:
        if one[0] == key:
            _let_go(one)


def drop_all() -> None:
    """Let go of all bases; one that is wanted often is made anew."""
    for one in _held[:]:
        _let_go(one)


def _let_go(one: tuple[Steps, Base]) -> None:
    try:
        _held.remove(one)
    except ValueError:
        return  # another thread was quicker
    one[1].close()


def _make(parted: Split, make: Callable[[Steps], tuple[int, int]]) -> Base | None:
    with Descriptors() as fds:
        # What changes meanwhile is noticed: the table comes first, then the sources, then the base.
        table = fds.own(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
        poll_table(table).poll(0)
        try:
            places = places_of(parted.sources)
            seen = _look(places)
            user, mounts = make(parted.base)
        except (CapsuleError, OSError):
            refuse(parted.base)
            return None
        fds.keep((table,))
    if len(_held) == MOST:
        _let_go(_held[0])
    base = Base(user, mounts, table, places, seen)
    _held.append((parted.base, base))
    return base


def poll_table(table: int) -> select.poll:
    """Polled, it tells whether mounts came or went since it was last; proc_pid_mountinfo(5)."""
    waiting = select.poll()
    waiting.register(table, select.POLLPRI)
    return waiting


def places_of(sources: tuple[str, ...]) -> Places:
    """(What to look at, whether its time of change counts).

    A directory that holds many sources changes with each of them, a link among them aside.
    """
    above = [os.path.dirname(path) for path in sources]
    many = {folder for folder in above if above.count(folder) >= MANY}
    found = {"/": False, **dict.fromkeys(many, True)}
    for path, folder in zip(sources, above, strict=True):
        if folder not in many or os.path.realpath(path) != path:
            found[path] = False
    return tuple(found.items())


def _look(places: Places) -> tuple[object, ...]:
    """Who we are, in which mount namespace, and what lies at these places."""
    seen: list[object] = [os.getpid(), os.geteuid(), os.getegid(), *os.getgroups()]
    seen.append(os.stat("/proc/self/ns/mnt").st_ino)
    seen += look(places)
    return tuple(seen)


def look(places: Places) -> list[object]:
    """Return what lies there.

    Raises:
        OSError: one of them cannot be reached.
    """
    seen: list[object] = []
    for path, changes in places:
        found = os.stat(path)
        seen += (found.st_dev, found.st_ino, changes and found.st_mtime_ns)
    return seen

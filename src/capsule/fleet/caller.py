"""What a capsule takes over from the process that makes it, and so must be as it was when it is used.

A launcher inherits it with its own start; a capsule that was made ahead has what was so then. What a
process cannot see of itself is not here: that it has restricted itself by Landlock, which no file of
/proc tells (`Pool.drop`).
"""

from __future__ import annotations

import os
import threading
import weakref

from capsule.base.descriptors import CHUNK, Descriptors, Kept, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    Snapshot = tuple[object, ...]

# Of proc_pid_status(5), of the thread, from which line to which: the umask; the ids; the
# groups; capabilities, no_new_privs, seccomp, speculation, CPUs and nodes of memory.
_STATUS = (
    (b"\nUmask:", b"\nState:"),
    (b"\nUid:", b"\nFDSize:"),
    (b"\nGroups:", b" \n"),
    (b"\nCapInh:", b"\nvoluntary"),
)
# namespaces(7). All others are new in each capsule, or say so in the lines above.
_NAMESPACES = ("user", "mnt", "net", "pid_for_children", "time_for_children", "cgroup")
_SELF = "/proc/thread-self"
_NAMES = ("status", "limits", "cgroup", "oom_score_adj", "ns")
_POWERLESS = b"\nCapPrm:\t0000000000000000"


class _Files(Kept):
    """What /proc says of a thread, held open for it: to look each up anew takes longer than to read."""

    def __init__(self) -> None:
        flags = os.O_RDONLY | os.O_CLOEXEC
        with Descriptors() as made:
            fds = [made.own(os.open(f"{_SELF}/{name}", flags)) for name in _NAMES]
            super().__init__(fds)
            made.keep(fds)

    __del__ = Kept.close


class Caller:
    """Whoever asks: each thread for itself."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: weakref.WeakSet[_Files] = weakref.WeakSet()

    def _files(self) -> tuple[int, ...]:
        files: _Files | None = getattr(self._own, "files", None)
        if files is None or not files.are_ours():
            files = self._own.files = _Files()
            self._all.add(files)
        return files.fds

    def close(self) -> None:
        """Close what is held open for any thread."""
        for files in list(self._all):
            files.close()

    def snapshot(self) -> Snapshot:
        """Return what is so at this moment, for the thread that asks.

        Raises:
            OSError: /proc does not tell.
        """
        status, limits, cgroup, spared, namespaces = self._files()
        text = os.pread(status, CHUNK, 0)
        # Who has no capability and has not changed its user namespace cannot have changed the others.
        names = _NAMESPACES[: 1 if _POWERLESS in text else None]
        return (
            os.getpid(),
            *[_between(text, *ends) for ends in _STATUS],
            *[_name(name, namespaces) for name in names],
            *map(identity, ("/", ".")),
            os.pread(limits, CHUNK, 0),
            os.pread(cgroup, CHUNK, 0),
            os.pread(spared, CHUNK, 0),
            os.getpriority(os.PRIO_PROCESS, 0),
            os.sched_getscheduler(0),
        )


def _between(text: bytes, begin: bytes, end: bytes) -> bytes:
    at = text.index(begin)
    return text[at : text.index(end, at)]


def _name(name: str, namespaces: int) -> str:
    """Which namespace it is; there is none of a kind that the kernel lacks."""
    try:
        return os.readlink(name, dir_fd=namespaces)
    except FileNotFoundError:
        return ""

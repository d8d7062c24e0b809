"""The only code that starts the launcher: one posix_spawn(3).

posix_spawn, because it costs the same in a process of 2 GB as in a small one and is safe beside other
threads, which fork(2) is not. The launcher's descriptors have fixed numbers, which launcher/util.h
knows too.
"""

from __future__ import annotations

import errno
import os

from capsule.base import signals
from capsule.base.descriptors import Descriptors
from capsule.base.errors import HostError, InternalError
from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Next to the package and nowhere else: no PATH, no environment variable can name another one.
LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "capsule-launch")

PLAN_FD, ERROR_FD, STATUS_FD, LIFELINE_FD, SUPERVISOR_FD, GIFT_FD, CGROUP_FD = range(3, 10)
BASE_USER_FD, BASE_MOUNTS_FD, FIRST_USER_FD = range(10, 13)

STARTED, FEATURES, READY, STOPPED, ENDED, REFUSED, USAGE, ENDING, WAITING = range(1, 10)
ASK_USAGE = 0  # a byte of the lifeline that is no signal
RECORD_SIZE = 12 * 8  # of 64-bit integers
REPORT_SIZE = 2 * 4  # of 32-bit integers


class Child(Value):
    """A launcher that was started, and our ends of its pipes.

    Attributes:
        pid: the launcher's process id; it ends as soon as init is on its way.
        error: reads one report (step, errno), or end of file when the command runs.
        status: reads records.
        lifeline: its end ends the capsule; a byte is a signal to pass on.
    """

    pid: int
    error: int
    status: int
    lifeline: int


def spawn(
    plan: bytes,
    stdio: Sequence[int],
    *,
    passed: Mapping[int, int] | None = None,
    launcher: str = LAUNCHER,
) -> Child:
    """Start the launcher with a plan.

    Args:
        plan: the encoded plan.
        stdio: three descriptors to become 0, 1 and 2.
        passed: further ones: number in the launcher to ours. GIFT_FD is a socket over which init sends
            descriptors, CGROUP_FD the capsule's own cgroup, BASE_USER_FD and BASE_MOUNTS_FD the
            namespaces of a base; from FIRST_USER_FD on they are the command's.
        launcher: the launcher's path.

    Raises:
        HostError: the kernel refuses a process, a pipe or memory, or the launcher cannot be run.
        InternalError: the launcher is missing.
    """
    if signals.get_handler(signals.SIGCHLD) == signals.SIG_IGN:
        # The kernel would reap init before anyone could wait for it.
        hint = "set it back before: signal.signal(signal.SIGCHLD, signal.SIG_DFL)"
        raise HostError("this process ignores SIGCHLD, so a capsule cannot be waited for", hint=hint)
    try:
        with Descriptors() as fds:
            error, error_end = fds.pipe()
            status, status_end = fds.pipe()
            lifeline_end, lifeline = fds.pipe()
            wanted = {
                **dict(enumerate(stdio)),
                PLAN_FD: _plan_file(fds, plan),
                ERROR_FD: error_end,
                STATUS_FD: status_end,
                LIFELINE_FD: lifeline_end,
                SUPERVISOR_FD: fds.own(os.pidfd_open(os.getpid())),
                **(passed or {}),
            }
            pid = os.posix_spawn(
                launcher,
                ["capsule-launch"],
                {},
                file_actions=_moves(wanted),
                # An init that a launcher was killed before telling of is found by its group.
                setpgroup=0,
            )
            fds.keep((error, status, lifeline))
            return Child(pid, error, status, lifeline)
    except OSError as refusal:
        raise _not_executed(refusal, launcher) or cannot_start(refusal) from None


def _not_executed(error: OSError, launcher: str) -> HostError | InternalError | None:
    """Return what is wrong with the launcher's file; None if the error is not about that."""
    if error.filename != launcher:
        return None
    if error.errno == errno.ENOENT:
        return InternalError(f"the launcher is missing: {launcher}")
    if error.errno == errno.EACCES:
        message = f"cannot execute the launcher {launcher}: {error.strerror}"
        hint = "is it on a file system mounted noexec? Install Capsule on one that is not"
        return HostError(message, hint=hint)
    if error.errno == errno.EPERM:
        # glibc falls back to clone(2) for ENOSYS alone.
        hint = "a seccomp filter around Capsule forbids clone3(2) or execve(2): `capsule doctor`"
        return HostError(f"cannot start the launcher: {error.strerror}", hint=hint)
    return None


_FORBIDDEN = (
    "a seccomp filter around Capsule forbids pidfd_open(2) or memfd_create(2): `capsule doctor`"
)


def cannot_start(error: OSError) -> HostError:
    """Return what it means that the kernel gave us no process, descriptor or memory."""
    hint = {
        errno.EBADF: "a descriptor is above this process's limit of open files: raise ulimit -n",
        errno.EMFILE: "too many open files in this process: close some or raise ulimit -n",
        errno.ENFILE: "too many open files on this host: raise the sysctl fs.file-max",
        errno.EAGAIN: "too many processes of this user: raise ulimit -u",
        errno.EFBIG: "a plan goes through a file in memory: raise ulimit -f",
        errno.ENOMEM: "the host is out of memory, or a limit is low: ulimit -v, ulimit -d",
        errno.ENOSYS: _FORBIDDEN,
        errno.EPERM: _FORBIDDEN,
        errno.ENOEXEC: "the launcher is for another CPU: install Capsule for this one",
    }.get(error.errno or 0)
    if error.filename not in (None, LAUNCHER):
        return HostError(f"cannot start: {os.fsdecode(error.filename)}: {error.strerror}", hint=hint)
    return HostError(f"cannot start the launcher: {error.strerror}", hint=hint)


def _plan_file(fds: Descriptors, plan: bytes) -> int:
    memory = fds.own(os.memfd_create("capsule-plan", os.MFD_CLOEXEC))
    while plan:
        # What did not fit at first says why at the next attempt.
        plan = plan[os.write(memory, plan) :]
    return memory


def _moves(wanted: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """File actions that put each descriptor in its place.

    A source that lay among the targets would be overwritten before its turn. So all of them go out of
    the way first; what is left there, the launcher closes.
    """
    taken = {*wanted, *wanted.values()}
    free = [n for n in range(FIRST_USER_FD, FIRST_USER_FD + 3 * len(wanted)) if n not in taken]
    away = [(os.POSIX_SPAWN_DUP2, fd, n) for fd, n in zip(wanted.values(), free, strict=False)]
    back = [(os.POSIX_SPAWN_DUP2, n, to) for to, n in zip(wanted, free, strict=False)]
    return away + back


def read_record(fd: int) -> tuple[int, ...] | None:
    """The next record of a status pipe: (kind, eleven values), or None at the end of file."""
    data = os.read(fd, RECORD_SIZE)
    if not data:
        return None
    if len(data) != RECORD_SIZE:
        raise InternalError("a record of the status pipe is cut off")
    return tuple(memoryview(data).cast("q"))


def end_group(launcher: int) -> None:
    """Kill and reap a launcher, and an init of which it has not told us."""
    try:
        os.killpg(launcher, signals.SIGKILL)
        while True:
            os.waitpid(-launcher, 0)
    except (ProcessLookupError, ChildProcessError):
        # There is no such group, any more or yet: it may have been killed before its execve(2).
        reap(launcher)


def reap(pid: int) -> int | None:
    """Wait for a child and return its wait status; None if somebody else took it."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None

"""What `doctor` tries and the launcher has no step for.

Run as a script, in a process of its own: it enters namespaces, and a seccomp filter around Capsule
may kill who asks. It prints a name before each trial and the errno that came of it after; whoever
reads that sees what was being tried when the process was killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_FS, CLONE_PTRACE, CLONE_NEWNS, CLONE_NEWUSER = 0x200, 0x2000, 0x20000, 0x10000000

BAD = -1


class Call(NamedTuple):
    """A system call that is made with arguments the kernel finds bad, before it looks at anything else.

    Attributes:
        numbers: on x86_64 and on aarch64.
        arguments: the first ones; the rest are 0.
        usual: what kernels that have it may answer. Another answer is a filter's.
        since: the release from which on every kernel has it.
        inside: asked as root of a user namespace: others are refused before they are heard.
    """

    numbers: tuple[int, int]
    arguments: tuple[int, ...]
    usual: tuple[int, ...]
    since: tuple[int, int] = (0, 0)
    inside: bool = False


CALLS = {
    "clone": Call((56, 220), (CLONE_NEWUSER | CLONE_FS,), (errno.EINVAL,)),
    "unshare": Call((272, 97), (CLONE_NEWUSER | CLONE_PTRACE,), (errno.EINVAL,)),
    "mount": Call((165, 40), (BAD, BAD, BAD), (errno.EFAULT,)),
    "umount2": Call((166, 39), (BAD, BAD), (errno.EINVAL,)),
    "memfd_create": Call((319, 279), (BAD,), (errno.EFAULT,), (3, 17)),
    "open_tree": Call((428, 428), (BAD, BAD), (errno.EFAULT,), (5, 2)),
    "fsconfig": Call((431, 431), (BAD,), (errno.EINVAL,), (5, 2)),
    "pidfd_open": Call((434, 434), (BAD,), (errno.EINVAL,), (5, 3)),
    "close_range": Call((436, 436), (1,), (errno.EINVAL,), (5, 9)),
    "openat2": Call((437, 437), (BAD,), (errno.EINVAL,), (5, 6)),
    "mount_setattr": Call((442, 442), (BAD,), (errno.EINVAL,), (5, 12)),
    # Its version, which is no error; EOPNOTSUPP if Landlock was left out at boot. No release is sure
    # to have it built in.
    "landlock_create_ruleset": Call((444, 444), (0, 0, 1), (0, errno.EOPNOTSUPP), (999, 0)),
    "fsopen": Call((430, 430), (BAD,), (errno.EFAULT,), (5, 2), inside=True),
    "fsmount": Call((432, 432), (BAD,), (errno.EBADF,), (5, 2), inside=True),
    "move_mount": Call((429, 429), (BAD, BAD, BAD, BAD), (errno.EFAULT,), (5, 2), inside=True),
    "pivot_root": Call((155, 41), (BAD, BAD), (errno.EFAULT,), inside=True),
}
MACHINES = ("x86_64", "aarch64")

libc = ctypes.CDLL(None, use_errno=True)


def ask(call: Call) -> int:
    """The errno of a call, 0 if it succeeded."""
    number = call.numbers[MACHINES.index(os.uname().machine)]
    padded = [ctypes.c_long(a) for a in (*call.arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return 0 if libc.syscall(ctypes.c_long(number), *padded) >= 0 else ctypes.get_errno()


def check(result: int, name: str) -> None:
    """Make an OSError of a C function's failure."""
    if result < 0:
        raise OSError(ctypes.get_errno(), name)


def enter() -> None:
    """Become root of a new user namespace with a mount namespace."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def answers(*, inside: bool) -> Iterator[tuple[str, int]]:
    """Ask the calls: each name comes with -1 before and its errno after."""
    for name, call in CALLS.items():
        if call.inside is inside and os.uname().machine in MACHINES:
            yield name, -1
            yield name, ask(call)


def trials() -> Iterator[tuple[str, int]]:
    """Ask all; entering is told in the same way as a call."""
    yield from answers(inside=False)
    yield "user namespace", -1
    try:
        enter()
    except OSError as error:
        yield "user namespace", error.errno or errno.EIO
        return
    yield "user namespace", 0
    yield from answers(inside=True)


if __name__ == "__main__":
    for tried, outcome in trials():
        sys.stdout.write(f"{outcome} {tried}\n")
        sys.stdout.flush()

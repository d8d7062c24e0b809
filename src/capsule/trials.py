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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_FS, CLONE_NEWNS, CLONE_NEWUSER = 0x200, 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

# Calls whose number depends on the CPU. The others have one number on all that Capsule is built for.
NUMBERS = {
    "x86_64": {"clone": 56, "mount": 165, "umount2": 166},
    "aarch64": {"clone": 220, "mount": 40, "umount2": 39},
}
BAD = -1
# name: (number, arguments, what kernels that have it may answer, which kernels surely have it). Each
# looks at its arguments before the caller's rights and finds them bad: another answer is a filter's,
# or that of a kernel without it.
CALLS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, int]]] = {
    "clone": (0, (CLONE_NEWUSER | CLONE_FS,), (errno.EINVAL,), (0, 0)),
    "mount": (0, (BAD, BAD, BAD), (errno.EFAULT,), (0, 0)),
    "umount2": (0, (BAD, BAD), (errno.EINVAL,), (0, 0)),
    "open_tree": (428, (BAD, BAD, 0), (errno.EFAULT,), (5, 2)),
    "fsconfig": (431, (BAD,), (errno.EINVAL,), (5, 2)),
    "openat2": (437, (BAD,), (errno.EINVAL,), (5, 6)),
    "mount_setattr": (442, (BAD,), (errno.EINVAL,), (5, 12)),
    # Its version, which is no error; EOPNOTSUPP if Landlock was left out at boot. Any kernel may have
    # been built without it.
    "landlock_create_ruleset": (444, (0, 0, 1), (0, errno.EOPNOTSUPP), (999, 0)),
}

libc = ctypes.CDLL(None, use_errno=True)


def ask(name: str) -> int:
    """The errno of a call with bad arguments, 0 if it succeeded."""
    number, arguments = CALLS[name][:2]
    number = number or NUMBERS[os.uname().machine][name]
    padded = [ctypes.c_long(a) for a in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    ctypes.set_errno(0)
    return 0 if libc.syscall(ctypes.c_long(number), *padded) >= 0 else ctypes.get_errno()


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    words = [None if w is None else w.encode() for w in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode()) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def overlay() -> None:
    """Mount an overlay in a user namespace; change and remove a file of the lower layer through it.

    Raises:
        OSError: one of these is refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("gid_map", f"0 {gid} 1"), ("uid_map", f"0 {uid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Any directory does that is surely there; /proc has served its turn.
    top = "/proc"
    mount("tmpfs", top, "tmpfs", 0, "size=1M")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"{top}/{name}")
    for name in ("changed", "removed"):
        with open(f"{top}/lower/{name}", "w", encoding="ascii") as file:
            file.write("lower")
    layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work,userxattr"
    mount("overlay", f"{top}/merged", "overlay", 0, layers)
    with open(f"{top}/merged/changed", "a", encoding="ascii") as file:
        file.write("upper")
    os.unlink(f"{top}/merged/removed")


def trials() -> Iterator[tuple[str, int]]:
    """Try all: each name comes with -1 before and its errno after."""
    known = NUMBERS.get(os.uname().machine, {})
    for name, (number, *_) in CALLS.items():
        if number or name in known:
            yield name, -1
            yield name, ask(name)
    yield "overlay", -1
    try:
        overlay()
    except OSError as error:
        yield "overlay", error.errno or errno.EIO
    else:
        yield "overlay", 0


if __name__ == "__main__":
    for tried, outcome in trials():
        sys.stdout.write(f"{tried} {outcome}\n")
        sys.stdout.flush()

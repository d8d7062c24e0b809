"""Run a command under a seccomp filter that refuses system calls, as a container has.

    python refuse.py clone=EPERM mount_setattr=ENOSYS landlock_create_ruleset=kill -- COMMAND...

Of clone and unshare only those are refused that ask for a user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06
# Offsets in struct seccomp_data.
NUMBER, FIRST_ARGUMENT = 0, 16
CLONE_NEWUSER = 0x10000000

NUMBERS = {
    "x86_64": {
        "clone": 56, "mount": 165, "memfd_create": 319, "pivot_root": 155, "prctl": 157, "seccomp": 317,
        "setns": 308, "unshare": 272,
    },
    "aarch64": {
        "clone": 220, "mount": 40, "memfd_create": 279, "pivot_root": 41, "prctl": 167, "seccomp": 277,
        "setns": 268, "unshare": 97,
    },
}[os.uname().machine] | {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "pidfd_open": 434, "clone3": 435, "close_range": 436, "openat2": 437, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip

Instruction = tuple[int, int, int, int]


class Filter(ctypes.Structure):
    """A struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def compile_rules(rules: list[str]) -> list[Instruction]:
    """A classic BPF program from words such as ``clone=EPERM``."""
    program: list[Instruction] = [(LOAD, 0, 0, NUMBER)]
    for rule in rules:
        name, _, word = rule.partition("=")
        action = KILL if word == "kill" else ERRNO | getattr(errno, word)
        if name in ("clone", "unshare"):
            body = [(LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_SET, 0, 1, CLONE_NEWUSER)]
        else:
            body = []
        body += [(RETURN, 0, 0, action), *[(RETURN, 0, 0, ALLOW)] * bool(body)]
        program += [(JUMP_EQUAL, 0, len(body), NUMBERS[name]), *body]
    return [*program, (RETURN, 0, 0, ALLOW)]


def install(program: list[Instruction]) -> None:
    """Put this process and all that it executes under the filter, for good."""
    code = b"".join(
        op.to_bytes(2, sys.byteorder) + bytes((yes, no)) + k.to_bytes(4, sys.byteorder)
        for op, yes, no, k in program
    )
    libc = ctypes.CDLL(None, use_errno=True)
    given = Filter(len(program), code)
    refused = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(given)
    )
    if refused:
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    end = sys.argv.index("--")
    install(compile_rules(sys.argv[1:end]))
    os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])

"""Installs filters on itself and becomes a program: ``loader.py FILTER... -- COMMAND ARG...``.

With ``-`` for the command, it makes the calls that standard input lists, one a line: a name for the
answer, the number, the arguments; and prints the errno of each, 0 for success.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 4)
libc.syscall.argtypes = (ctypes.c_long, *[ctypes.c_ulong] * 6)
libc.syscall.restype = ctypes.c_long


def install(code: bytes) -> None:
    """Put a filter on this thread, for good."""
    program = Program(len(code) // 8, code)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def attempt(line: str) -> str:
    """Make one call; the errno that it answers."""
    name, number, *arguments = line.split()
    values = [int(text, 0) for text in arguments]
    ctypes.set_errno(0)
    done = libc.syscall(int(number, 0), *values, *[0] * (6 - len(values)))
    return f"{name} {ctypes.get_errno() if done == -1 else 0}"


def main() -> None:
    """Read the filters, install them, do what was asked."""
    end = sys.argv.index("--")
    for path in sys.argv[1:end]:
        with open(path, "rb") as file:
            install(file.read())
    command = sys.argv[end + 1 :]
    if command != ["-"]:
        os.execvp(command[0], command)
    for line in sys.stdin:
        print(attempt(line), flush=True)


if __name__ == "__main__":
    main()

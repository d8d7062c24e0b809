"""System calls by number, for probes that are made inside and outside."""

from __future__ import annotations

import platform
from typing import Any

import pytest

from capsule.confine.seccomp import numbers
from tests.support import (
    assert_denied,
)

MACHINE = platform.machine()
NUMBERS = numbers.numbers(MACHINE)
x86_64 = pytest.mark.skipif(MACHINE != "x86_64", reason="this is about x86_64")

# Where a call is let through, the kernel stumbles over these: nothing happens.
BAD_POINTER, BAD_FD = 8, 0xFFFFFFF
HIGH = 0x123 << 32
SIGCHLD = 17
NEW = {
    "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip
NEWTIME, NEWUSER = 0x80, 0x10000000

_LIBC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = (ctypes.c_long, *[ctypes.c_ulong] * 6)
libc.syscall.restype = ctypes.c_long
def call(number, args):
    done = libc.syscall(number, *args, *[0] * (6 - len(args)))
    return done, ctypes.get_errno() if done == -1 else 0
"""

# A call that is made, and not refused, if it ends in one of these ways.
_CALL = f"""{_LIBC}
done, error = call(given["number"], given["args"])
if error not in given["reached"]:
    raise OSError(error, "")
"""

# A process that is made by the bare call, as fork(2) makes one.
_CLONE = f"""{_LIBC}
done, error = call(given["number"], [given["flags"] | 17])
if done == 0:
    os._exit(0)
if error:
    raise OSError(error, "")
os.waitpid(done, 0)
"""


def refused(name: str, args: tuple[int, ...], error: int, *reached: int, **options: Any) -> None:
    """A call is reached outside and has this errno inside, in a capsule that goes on."""
    given = {"number": NUMBERS[name], "args": args, "reached": reached or (0,)}
    assert_denied(_CALL, error, outside=given, **options)


# A struct sock_fprog that allows everything, and the right to install it.
ALLOW_ALL = """
libc.prctl(38, 1, 0, 0, 0)
class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
program = Program(1, bytes.fromhex("060000000000ff7f"))
"""

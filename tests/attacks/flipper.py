"""A process that exchanges two names as fast as it can: the race that a check before a use loses."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import HANG, PYTHON

_AT_FDCWD = -100
_EXCHANGE = 2

_LOOP = f"""
import ctypes, os, random, signal, sys, time
one, other = (os.fsencode(path) for path in sys.argv[1:3])
pause = float(sys.argv[3])
exchange = ctypes.CDLL(None, use_errno=True).renameat2
arguments = ({_AT_FDCWD}, one, {_AT_FDCWD}, other, {_EXCHANGE})
going = [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
count = 0
while going:
    if exchange(*arguments) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    count += 1
    if count == 1:
        os.write(1, b"\\n")
    if pause:
        time.sleep(random.uniform(0, pause))
# As it was: an even number of exchanges.
count += count % 2 and exchange(*arguments) == 0
os.write(1, b"%d" % count)
"""


class Flips:
    """How often the names were exchanged; known when the block has ended."""

    count = 0


@contextlib.contextmanager
def flipping(one: Path, other: Path, pause: float = 0) -> Iterator[Flips]:
    """While the block runs, what has the one name and what has the other change places, endlessly.

    Args:
        one: a path.
        other: another on the same file system.
        pause: seconds to wait between two exchanges, at most; how long each time is random.
    """
    flips = Flips()
    process = subprocess.Popen(
        [PYTHON, "-I", "-S", "-c", _LOOP, str(one), str(other), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        process.stdout.read(1)
        try:
            yield flips
        finally:
            process.send_signal(signal.SIGTERM)
            told, error = process.communicate(timeout=HANG)
    assert process.returncode == 0, error
    flips.count = int(told)


def until_beaten(attempt: Callable[[], bool], tries: int = 200_000) -> bool:
    """The control of a race: whether what is tried again and again succeeds once."""
    return any(attempt() for _ in range(tries))


def naive_read(directory: Path, name: str) -> str | None:
    """What a check before a use finds: a file below what was no link a moment ago."""
    if os.path.islink(directory):
        return None
    # Time for the other side, as any real work in between would give it.
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        return (directory / name).read_text()
    return None

"""A process of a given size that starts what it is told to and answers with the seconds it took."""

from __future__ import annotations

import mmap
import sys

from .measure import timed
from .starts import bare, in_capsule, no_base, without_filter, without_landlock

PAGE = mmap.PAGESIZE


def hold(size: int) -> mmap.mmap | None:
    """Touched, private memory. In small pages, of which a fork would have to copy every entry."""
    if size == 0:
        return None
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, size, PAGE):
        memory[at] = 1
    return memory


def main() -> None:
    """One word of standard input, one number of standard output."""
    memory = hold(int(sys.argv[1]))
    subjects = {
        "ready": lambda: None,
        "capsule": in_capsule,
        "without Landlock": without_landlock,
        "without filter": without_filter,
        "no base": no_base,
        "bare": bare,
    }
    for line in sys.stdin:
        print(timed(subjects[line.strip()]), flush=True)
    del memory


main()

"""Access rights of Landlock, by the version (ABI) of the kernel's interface: pure; landlock(7).

The kernel refuses a ruleset that names a right it does not know, and lets through what a ruleset does
not name. So each right has the version that brought it.
"""

from __future__ import annotations

# struct landlock_ruleset_attr: handled_access_fs
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR = 1 << 4, 1 << 5, 1 << 6, 1 << 7
MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
# handled_access_net
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
# scoped
ABSTRACT_UNIX_SOCKET, SIGNAL = 1 << 0, 1 << 1

# What a plan gives and speaks of; device nodes can be made nowhere.
READ = READ_FILE | READ_DIR
WRITE = WRITE_FILE | TRUNCATE
MAKE = REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER
EVERYTHING = READ | EXECUTE | WRITE | MAKE | IOCTL_DEV
# Other rights are those of a directory: a rule for a file may not give them.
OF_A_FILE = READ_FILE | EXECUTE | WRITE | IOCTL_DEV

_WORDS = {READ: "read", EXECUTE: "execute", WRITE: "write", MAKE: "make", IOCTL_DEV: "ioctl"}

# The Linux that brought each version whose rights are known here; a newer kernel has them, too.
RELEASES = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12", 7: "6.15"}
NEWEST = max(RELEASES)
OF_TCP, OF_SCOPES = 4, 6
# The first version that has it -> rights, and what there is not before it.
_SINCE = {
    1: (EVERYTHING & ~(REFER | TRUNCATE | IOCTL_DEV) | MAKE_CHAR | MAKE_BLOCK, ""),
    2: (REFER, "renaming and linking from one directory to another, which fails (EXDEV, before ABI 2)"),
    3: (TRUNCATE, "truncation (ABI 3)"),
    5: (IOCTL_DEV, "ioctl of devices (ABI 5)"),
    OF_SCOPES: (0, "signals and abstract sockets (ABI 6)"),
}


def handled(abi: int) -> int:
    """Return the rights to files that a version knows: what no rule gives is refused."""
    return sum(rights for since, (rights, _) in _SINCE.items() if since <= abi)


def scoped(abi: int) -> int:
    """Return what stays among those under the ruleset: signals, abstract sockets."""
    return ABSTRACT_UNIX_SOCKET | SIGNAL if abi >= OF_SCOPES else 0


def lacks(abi: int) -> tuple[str, ...]:
    """Name what newer versions have."""
    return tuple(text for since, (_, text) in _SINCE.items() if since > abi)


def words(rights: int) -> str:
    """Rights to files, for people."""
    return ", ".join(word for bits, word in _WORDS.items() if rights & bits)

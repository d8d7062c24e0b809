"""What the filter refused, in words: pure, and imported only where something was refused."""

from __future__ import annotations

from capsule.base.values import Value

from . import numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .filters import Filter


class Denial(Value):
    """A kind of system call that the seccomp filter refused, as init counted it.

    The command can make up as many of them as it likes, and chooses the arguments; what it cannot do is
    have one told that it did not make.

    Attributes:
        call: name of the system call.
        argument: what of its arguments tells it from others, such as ``CLONE_NEWUSER``; or "".
        count: how many times it was refused.
        errno: what it answered.
        remedy: the options that would allow it.
    """

    call: str
    argument: str
    count: int
    errno: int
    remedy: str

    def describe(self) -> str:
        """One line: what was refused, how often, and what would allow it."""
        times = "1 time" if self.count == 1 else f"{self.count} times"
        return f"{self.call}({self.argument}) {times}; {self.remedy} would allow it"


def explain(records: Iterable[tuple[int, ...]], filter: Filter) -> tuple[Denial, ...]:
    """The refusals that init's records tell of, in the order in which they came.

    Args:
        records: (kind of record, number, errno, index of the argument or -1, its value, count, ...).
        filter: the filter that refused them.
    """
    names = {number: name for name, number in numbers.numbers(filter.request.arch).items()}
    rules = filter.request.rules()
    found = []
    for _, number, error, index, value, count, *_ in records:
        name = names[number]
        argument = "" if index < 0 else argument_text(name, index, value)
        found.append(Denial(name, argument, count, error, rules.call(name).remedy))
    return tuple(found)


# --- arguments ------------------------------------------------------------------------------

_NAMESPACES = {
    0x80: "CLONE_NEWTIME", 0x20000: "CLONE_NEWNS", 0x2000000: "CLONE_NEWCGROUP",
    0x4000000: "CLONE_NEWUTS", 0x8000000: "CLONE_NEWIPC", 0x10000000: "CLONE_NEWUSER",
    0x20000000: "CLONE_NEWPID", 0x40000000: "CLONE_NEWNET",
}  # fmt: skip
# The lower flags of clone(2) are a signal's number and what threads share.
_ONLY_NEW = sum(_NAMESPACES) & ~0x80

_FAMILIES = """
UNSPEC UNIX INET AX25 IPX APPLETALK NETROM BRIDGE ATMPVC X25 INET6 ROSE DECnet NETBEUI SECURITY KEY
NETLINK PACKET ASH ECONET ATMSVC RDS SNA IRDA PPPOX WANPIPE LLC IB MPLS CAN TIPC BLUETOOTH IUCV RXRPC
ISDN PHONET IEEE802154 CAIF ALG NFC VSOCK KCM QIPCRTR SMC XDP MCTP
"""
_FAMILY = {number: f"AF_{name}" for number, name in enumerate(_FAMILIES.split())}

# (call, argument) -> names of values
_VALUES = {
    ("bpf", 0): {0: "BPF_MAP_CREATE", 5: "BPF_PROG_LOAD"},
    ("fcntl", 1): {1024: "F_SETLEASE", 1026: "F_NOTIFY"},
    ("ioctl", 1): {0x5412: "TIOCSTI", 0x541C: "TIOCLINUX", 0x541D: "TIOCCONS", 0x5423: "TIOCSETD"},
    ("personality", 0): {0x40000: "ADDR_NO_RANDOMIZE"},
    ("prctl", 0): {35: "PR_SET_MM"},
    ("ptrace", 0): {0: "PTRACE_TRACEME", 16: "PTRACE_ATTACH", 0x4206: "PTRACE_SEIZE"},
    ("socket", 0): _FAMILY,
    ("socketpair", 0): _FAMILY,
}
# (call, argument) -> (mask, names of what it leaves)
_MASKED = {
    ("socket", 1): (0xF, {3: "SOCK_RAW", 10: "SOCK_PACKET"}),
    ("mknod", 1): (0xF000, {0x2000: "S_IFCHR", 0x6000: "S_IFBLK"}),
    ("mknodat", 2): (0xF000, {0x2000: "S_IFCHR", 0x6000: "S_IFBLK"}),
}
_FLAGS = {("clone", 0): _ONLY_NEW, ("unshare", 0): 0xFFFFFFFF, ("setns", 1): 0xFFFFFFFF}
_OWNERS = {
    (name, index + place): f"{what} {{}}"
    for name, index in (("chown", 1), ("fchown", 1), ("lchown", 1), ("fchownat", 2))
    for place, what in enumerate(("uid", "gid"))
}


def argument_text(call: str, index: int, value: int) -> str:
    """An argument of a call as its manual page writes it, else as a number."""
    key = (call, index)
    if key in _OWNERS:
        return _OWNERS[key].format(value)
    if key in _FLAGS:
        return _flags(value & _FLAGS[key])
    mask, names = _MASKED.get(key, (0xFFFFFFFF, _VALUES.get(key, {})))
    return names.get(value & mask, hex(value))


def _flags(value: int) -> str:
    names = [name for bit, name in _NAMESPACES.items() if value & bit]
    rest = value & ~sum(bit for bit in _NAMESPACES if value & bit)
    return "|".join([*names, *([hex(rest)] if rest or not names else [])])

"""libseccomp, as far as it is needed here.

Nothing of it touches this process: filters are made, exported and dropped.
"""

from __future__ import annotations

import ctypes
import errno
import os

from capsule.errors import HostError, InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rules import Test

SONAME = "libseccomp.so.2"
OLDEST = (2, 5)

# <seccomp.h>
_BAD_ARCH, _OPTIMIZE = 2, 8
_BINARY_TREE = 2
_MASKED_EQ = 7

_REMEDY = "install it: the package is libseccomp2 on Debian and Ubuntu, libseccomp elsewhere"
_KILL = 0x80000000


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class _Version(ctypes.Structure):
    """``struct scmp_version``."""

    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


_loaded: list[ctypes.CDLL] = []


def load() -> ctypes.CDLL:
    """The library.

    Raises:
        HostError: it is missing or too old.
    """
    if not _loaded:
        try:
            library = ctypes.CDLL(SONAME, use_errno=True)
        except OSError:
            raise HostError(f"seccomp: {SONAME} is not installed", hint=_REMEDY) from None
        _declare(library)
        found = version(library)
        if found < OLDEST:
            text = ".".join(map(str, found))
            raise HostError(f"seccomp: libseccomp {text} is too old: 2.5 is needed", hint=_REMEDY)
        _loaded.append(library)
    return _loaded[0]


def _declare(library: ctypes.CDLL) -> None:
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    library.seccomp_init.restype = pointer
    library.seccomp_init.argtypes = (number,)
    library.seccomp_release.restype = None
    library.seccomp_release.argtypes = (pointer,)
    library.seccomp_attr_set.argtypes = (pointer, ctypes.c_int, number)
    library.seccomp_arch_native.restype = number
    library.seccomp_arch_add.argtypes = (pointer, number)
    library.seccomp_arch_remove.argtypes = (pointer, number)
    library.seccomp_syscall_resolve_name_arch.argtypes = (number, ctypes.c_char_p)
    comparisons = ctypes.POINTER(_Comparison)
    library.seccomp_rule_add_array.argtypes = (
        pointer,
        number,
        ctypes.c_int,
        ctypes.c_uint,
        comparisons,
    )
    library.seccomp_export_bpf.argtypes = (pointer, ctypes.c_int)


def version(library: ctypes.CDLL) -> tuple[int, int, int]:
    """Of the library that was loaded."""
    found = library.seccomp_version().contents
    return (found.major, found.minor, found.micro)


class Filter:
    """A filter in the making, for one architecture: any other is killed."""

    def __init__(self, default: int, audit: int) -> None:
        self._library = load()
        self._context = self._library.seccomp_init(default)
        if not self._context:
            raise InternalError("libseccomp cannot make a filter")
        try:
            self._prepare(audit)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Filter:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop it."""
        self._library.seccomp_release(self._context)

    def _prepare(self, audit: int) -> None:
        library = self._library
        self._native = library.seccomp_arch_native()
        self._audit = audit
        if audit != self._native:
            self._check(library.seccomp_arch_add(self._context, audit), "the architecture")
            self._check(library.seccomp_arch_remove(self._context, self._native), "the architecture")
        self._check(library.seccomp_attr_set(self._context, _BAD_ARCH, _KILL), "other architectures")
        # A question of speed alone, from 2.5 on.
        library.seccomp_attr_set(self._context, _OPTIMIZE, _BINARY_TREE)

    def add(self, action: int, name: str, number: int, tests: tuple[Test, ...]) -> None:
        """Add a rule.

        Raises:
            InternalError: the library does not take it; no filter is better than half of one.
        """
        library = self._library
        if self._audit != self._native:
            # For another architecture the library wants its own number, and finds the other itself.
            number = library.seccomp_syscall_resolve_name_arch(self._native, name.encode())
            self._check(0 if number >= 0 else -errno.EFAULT, f"the name {name}")
        comparisons = (_Comparison * len(tests))(
            *[_Comparison(n, _MASKED_EQ, m, v) for n, m, v in tests]
        )
        done = library.seccomp_rule_add_array(self._context, action, number, len(tests), comparisons)
        self._check(done, f"the rule for {name}")

    def _check(self, done: int, what: str) -> None:
        if done != 0:
            name = errno.errorcode.get(-done, str(done))
            raise InternalError(f"seccomp: libseccomp does not take {what}: {name}")

    def export(self) -> bytes:
        """The program."""
        fd = os.memfd_create("capsule-filter", os.MFD_CLOEXEC)
        try:
            self._check(self._library.seccomp_export_bpf(self._context, fd), "the whole filter")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

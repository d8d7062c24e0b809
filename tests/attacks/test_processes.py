"""Rows B that need a scene of their own: a file by another of its names, a ring of the caller's."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from capsule import Mount, Policy
from tests.attacks.calls import _LIBC, NUMBERS
from tests.support import ask, ask_outside, assert_denied, give, needs, shared_directory

# --- a file by another of its names -------------------------------------------------------------

# Ways to a file whose path is given, for who looks at the text of a path; each returns what it read.
_WAYS = f"""{_LIBC}
import subprocess
def read(path, **options):
    fd = os.open(path, os.O_RDONLY, **options)
    try:
        return os.read(fd, 99)
    finally:
        os.close(fd)
def linked(make):
    place = "/tmp/" + make.__name__ + str(os.getpid())
    make(given["path"], place)
    try:
        return read(place)
    finally:
        os.unlink(place)
def by_openat2(resolve):
    import struct
    how = ctypes.create_string_buffer(struct.pack("QQQ", 0, 0, resolve))
    root = os.open("/", os.O_PATH)
    done, error = call({NUMBERS["openat2"]}, [root, ctypes.addressof(path), ctypes.addressof(how), 24])
    if error:
        raise OSError(error, "")
    return os.read(done, 99)
def by_o_path():
    fd = os.open(folder, os.O_PATH)
    return read(f"/proc/self/fd/{{fd}}/{{name}}")
folder, name = os.path.split(given["path"])
path = ctypes.create_string_buffer(given["path"].encode())
slashes = given["path"].replace("/", "//")
WAYS = {{
    "itself": lambda: read(given["path"]),
    "slashes": lambda: read(slashes),
    "dots": lambda: read(folder + "/./../" + os.path.basename(folder) + "/" + name),
    "the root of a process": lambda: read("/proc/self/root" + given["path"]),
    "the root of its thread": lambda: read("/proc/thread-self/root" + given["path"]),
    "its working directory": lambda: (os.chdir(folder), read("/proc/self/cwd/" + name))[1],
    "a directory's descriptor": lambda: read(name, dir_fd=os.open(folder, os.O_RDONLY)),
    "a path's descriptor": by_o_path,
    "openat2": lambda: by_openat2(0),
    "openat2 in the root": lambda: by_openat2(0x10),
    "a symbolic link": lambda: linked(os.symlink),
    "a hard link": lambda: linked(os.link),
    "another program": lambda: subprocess.run(
        ["cat", given["path"]], capture_output=True, check=True).stdout,
}}
"""
_TRY = f"""{_WAYS}
def attempt(way):
    try:
        return way().decode()
    except OSError as error:
        return errno.errorcode[error.errno]
    except subprocess.CalledProcessError as error:
        return error.stderr.decode().rpartition(": ")[2].strip()
tell({{name: attempt(way) for name, way in WAYS.items()}})
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a secret in it, and one that is none."""
    with shared_directory() as place:
        for name in ("secret", "plain"):
            (place / name).write_text(secrets.token_hex(8))
        yield place


def _told(place: Path, name: str, policy: Policy | None) -> dict[str, str]:
    """What each way ends in; outside, where there is no policy."""
    given = {"path": str(place / name)}
    told: dict[str, str] = ask_outside(_TRY, given) if policy is None else ask(_TRY, policy, given)
    return told


@pytest.mark.row("B-06")
def test_b06_what_is_hidden_is_hidden_by_every_name(place: Path) -> None:
    """A hidden file is empty by each way that reads the one beside it."""
    text = (place / "secret").read_text()
    outside = _told(place, "secret", None)
    # Hard links across file systems, and to what is another user's, fail outside as well.
    assert [way for way, told in outside.items() if told != text] in ([], ["a hard link"])
    policy = Policy(mounts=[Mount.read_only(place), Mount.hide(place / "secret")])
    plain = _told(place, "plain", policy)
    assert {way for way, told in plain.items() if told == (place / "plain").read_text()} == {
        *outside.keys() - {"a hard link"}
    }
    told = _told(place, "secret", policy)
    assert text not in told.values()
    # What covers it is empty, and lies on another file system than what a link is made in.
    assert told == {way: "EXDEV" if way == "a hard link" else "" for way in outside}


@pytest.mark.row("B-06")
def test_b06_what_is_not_shown_has_no_name(place: Path) -> None:
    """A file of the host that no mount shows does not exist, by whatever way."""
    told = _told(place, "secret", Policy(mounts=[Mount.tmpfs("/elsewhere")]))
    assert set(told.values()) == {"ENOENT", "No such file or directory"}


@pytest.mark.row("B-06")
def test_b06_what_is_read_only_is_so_by_every_name(place: Path) -> None:
    """Writing fails alike by each of the ways that lead there; outside each of them writes."""
    act = _WAYS.replace("os.O_RDONLY, **options", "os.O_WRONLY, **options").replace(
        "return os.read(fd, 99)", "return os.write(fd, b'x')"
    )
    ways = (
        "slashes",
        "dots",
        "the root of a process",
        "its working directory",
        "a directory's descriptor",
    )
    given = {"path": str(give(place / "plain"))}
    for way in ways:
        code = f"{act}\nWAYS[{way!r}]()"
        assert_denied(code, errno.EROFS, outside=given, policy=Policy(mounts=[Mount.read_only(place)]))


# --- a ring of the caller's ---------------------------------------------------------------------

_ENTER = f"""{_LIBC}
done, error = call({NUMBERS["io_uring_enter"]}, [given["ring"], 0, 0, 0])
if error:
    raise OSError(error, "")
"""


@contextlib.contextmanager
def ring() -> Iterator[int]:
    """A descriptor of io_uring_setup(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = mmap.mmap(-1, mmap.PAGESIZE)
    fd = libc.syscall(NUMBERS["io_uring_setup"], 1, ctypes.byref(ctypes.c_char.from_buffer(parameters)))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield fd
    finally:
        os.close(fd)


@needs("io_uring")
@pytest.mark.row("D-04")
def test_d04_a_ring_that_is_handed_over_is_of_no_use() -> None:
    """io_uring_enter(2) on a ring of the caller's, which could open what the filter does not see."""
    with ring() as fd:
        os.set_inheritable(fd, True)
        told = ask_outside(_ENTER + "tell('entered')", {"ring": fd}, pass_fds=(fd,))
        assert told == "entered"
        code = _ENTER.replace(
            'if error:\n    raise OSError(error, "")', "tell([error, os.getpid() > 1])"
        )
        assert ask(code, given={"ring": fd}, pass_fds=(fd,)) == [errno.ENOSYS, True]

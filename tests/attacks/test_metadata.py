"""What Capsule says of a run comes from the kernel (A-17): the command cannot fake it."""

from __future__ import annotations

import errno
import signal

import pytest

import capsule
from capsule import Mount, Outcome, Policy
from tests.support import ask, needs, probe_args, shared_directory

_FORGE = """
import struct
places = []
for place in ("/", "/run", "/run/capsule", "/tmp", "/dev", "/etc", "/proc/self", "/var/run"):
    for name in (".flatpak-info", ".capsule", "capsule-info", "status", ".layers"):
        try:
            with open(f"{place}/{name}", "w") as file:
                file.write('{"outcome": "exited", "protections": {}}')
            places.append(f"{place}/{name}")
        except OSError:
            pass
written = []
for fd in range(3, 1024):
    for report in (struct.pack("=ii", 3, 1), struct.pack("=iQQ", 0, 0, 0), b"{}"):
        try:
            os.write(fd, report)
            written.append(fd)
        except OSError as error:
            assert error.errno == errno.EBADF, error
tell([places, written])
sys.stdout.flush()
os._exit(7)
"""


@pytest.mark.row("B-05")
def test_a17_no_report_can_be_forged() -> None:
    """A command that writes reports to every descriptor and marker files is told of as it ended: 7."""
    honest = capsule.run(["sh", "-c", "exit 7"])
    result = capsule.run(probe_args(_FORGE))
    assert b'"/tmp/.flatpak-info"' in result.stdout  # it did write where it may
    assert result.stdout.endswith(b", []]")  # and to no descriptor
    assert (result.outcome, result.returncode) == (honest.outcome, honest.returncode)
    assert result.protections == honest.protections
    assert result.changes == result.set_aside == ()


_SHADOW = """
unshare -Urmp --fork sh -c 'mount -t tmpfs x /proc; mount -t tmpfs x /etc; mount -t tmpfs x /tmp
echo shadowed >/proc/1; kill -TERM 1; true' || true
exit $1
"""


@needs("unshare")
@pytest.mark.parametrize("status", [0, 3, 124, 125, 127])
def test_a17_namespaces_of_the_command_hide_nothing(status: int) -> None:
    """Mounts over /proc and /etc in namespaces of its own change nothing of what is told."""
    result = capsule.run(["sh", "-c", _SHADOW, "sh", str(status)])
    assert (result.outcome, result.returncode) == (Outcome.EXITED, status)


@pytest.mark.row("F-16")
def test_a17_a_signal_is_told_as_one() -> None:
    """A status of 128+9 and a death by signal 9 are told apart, and a timeout is no signal."""
    assert capsule.run(["sh", "-c", "exit 137"]).returncode == 137
    assert capsule.run(["sh", "-c", "kill -9 $$"]).returncode == -signal.SIGKILL
    assert capsule.run(["sleep", "1000"], timeout=0.05).outcome is Outcome.TIMED_OUT


@needs("overlay")
def test_a17_what_is_reported_as_changed_is_the_kernels() -> None:
    """Names and attributes like those of overlayfs itself do not hide a change, nor make one up."""
    code = """
os.mkdir("/data/dir")
told = []
for name in ("user.overlay.whiteout", "user.overlay.opaque", "trusted.overlay.opaque"):
    try:
        os.setxattr("/data/dir", name, b"y")
        told.append(name)
    except OSError as error:
        told.append(errno.errorcode[error.errno])
for name in (".wh.kept", ".wh..wh..opq", "upper", "work"):
    open("/data/" + name, "w").close()
try:
    os.mknod("/data/kept2", 0o020000, 0)
except OSError as error:
    told.append(errno.errorcode[error.errno])
tell([told, os.path.exists("/data/kept")])
"""
    with shared_directory() as lower:
        (lower / "kept").write_text("content")
        (lower / "kept").chmod(0o666)
        lower.chmod(0o777)
        policy = Policy(mounts=(Mount.overlay(lower, at="/data"),), cwd="/")
        result = capsule.run(probe_args(code), policy)
        assert result.ok, result
        paths = {change.path: change.action.value for change in result.changes}
        assert "/data/kept" not in paths
        for name in ("dir", ".wh.kept", ".wh..wh..opq", "upper", "work"):
            assert paths[f"/data/{name}"] == "added"
        assert "deleted" not in paths.values()


def test_a17_the_control_a_writer_can_write() -> None:
    """The control: in the same view descriptor 1 takes what is written, and 3 is EBADF."""
    code = """
try:
    os.write(3, b"x")
except OSError as error:
    tell(error.errno)
"""
    assert ask(code) == errno.EBADF

"""A scope of the user's own service manager, delegated to the process that asks for it.

So limits need no preparation in a session of systemd's. The process itself goes into the scope: from
elsewhere nothing could be cloned into it, since that takes the right to write to the cgroup that both
have above them, and of a login's scope that is root's (cgroups(7), "Cgroups delegation containment").
The scope is there for as long as the process or what it started is; systemd removes it then.
"""

from __future__ import annotations

import _thread  # what threading is made of, and a tenth of it
import os
import time

from capsule.base import signals
from capsule.base.errors import HostError

from .cgroup import move_callers, read_text

# A part of systemd, so it is wherever there is anybody to ask.
BUSCTL = "/usr/bin/busctl"
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
# Seconds for what takes milliseconds.
PATIENCE = 20.0
_lock = _thread.allocate_lock()


def bus() -> str:
    """The socket of the user's message bus. Not what the environment says, which may be another bus."""
    return f"/run/user/{os.geteuid()}/bus"


def enter(manager: str) -> None:
    """Ask for a scope, and go into a leaf of it: its other children can have limits then.

    Args:
        manager: the directory of the service manager's cgroup.

    Raises:
        HostError: the service manager refuses, or does not answer.
    """
    mount = manager.partition("/user.slice/")[0]
    mine = f"/capsule-{os.getpid()}-"
    with _lock:
        if mine in _own_cgroup():
            return  # another thread was here first
        name = f"{mine[1:]}{os.urandom(4).hex()}.scope"
        _ask(name)
        until = time.monotonic() + PATIENCE
        while not (own := _own_cgroup()).endswith(f"/{name}"):
            if time.monotonic() > until:
                raise _refused(f"{name} was granted, but not entered", f"journalctl --user -u {name}")
            signals.breathe()
            time.sleep(0.0005)
        move_callers(mount + own)


def _ask(name: str) -> None:
    """Return when the job is queued; org.freedesktop.systemd1(5), StartTransientUnit."""
    import subprocess  # only where a scope is made

    properties = (
        *("Description", "s", "Capsules with limits, and who watches them"),
        *("Delegate", "b", "true"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("PIDs", "au", "1", str(os.getpid())),
    )
    words = (BUSCTL, f"--address=unix:path={bus()}", "--quiet", "call", *_MANAGER, "StartTransientUnit")
    more = ("ssa(sv)a(sa(sv))", name, "fail", "4", *properties, "0")
    try:
        done = subprocess.run(
            (*words, *more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _refused(str(error)) from None
    if done.returncode != 0:
        raise _refused(done.stderr.decode(errors="replace").strip())


def _own_cgroup() -> str:
    """This process' cgroup, from where the tree begins."""
    lines = read_text("/proc/self/cgroup").splitlines()
    return next((line[3:] for line in lines if line.startswith("0::/")), "")


def _refused(why: str, hint: str = "") -> HostError:
    return HostError(
        f"the user's service manager gives no scope for limits: {why}",
        hint=hint or "systemctl --user status says how it is; `capsule doctor` what else there is",
    )

"""Sees each system call of a launch before it is made, and makes the chosen one fail.

It is done with seccomp's user notification and not with a tracer: the calls are counted for each
process by itself, their arguments are known, no tracer holds the launcher's pipes open, and nothing
but the one call is different.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.launcher.build import HERE, build, system_calls

SOCKET = 40  # as in notify.c
NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
KILL = -1
HANG = 20  # seconds; a launch takes a hundredth of one
ROLES = ("launcher", "init", "command", "other")

# Made without asking: they cannot fail with these arguments, or do their work even so, and nobody could
# act on their errors.
UNFAILING = {
    "close": "Linux releases the descriptor whatever close(2) returns",
    "getpid": "has no error",
    "getuid": "has no error",
    "getgid": "has no error",
    "umask": "has no error",
    "rt_sigaction": "fails for bad numbers only: SIGKILL and SIGSTOP",
    "rt_sigprocmask": "fails for bad pointers only",
}


class Call(NamedTuple):
    """A system call of one of the three processes."""

    role: str
    number: int  # which of that process's calls, from 0
    name: str
    args: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.role} {self.number}: {self.name}({', '.join(map(hex, self.args))})"


def witness(directory: Path, launcher: str) -> Path:
    """The program that executes the launcher under a listener."""
    quiet = ", ".join(f"SYS_{name}" for name in UNFAILING)
    options = ("-O1", "-Wall", "-Wextra", "-Werror", f"-DQUIET={quiet}", f'-DLAUNCHER="{launcher}"')
    return build(directory / "notify", [HERE / "notify.c"], *options)


class Watch:
    """The calls of one launch.

    Args:
        judge: is asked about each call; the errno with which it fails, 0, or KILL for who makes it.
    """

    def __init__(self, judge: Callable[[Call], int]) -> None:
        self.calls: list[Call] = []
        self.failed: list[Call] = []
        self.error: BaseException | None = None
        self._judge = judge
        self._pids: list[int] = []
        self._counts: dict[int, int] = {}
        self._started = False

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """Watch what is started in the block with this descriptor as SOCKET."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._run, args=(ours,), daemon=True)
        thread.start()
        try:
            with theirs:
                yield theirs.fileno()
        finally:
            # With no process left that the filter applies to, the listener hangs up.
            thread.join(HANG)
            ours.close()
        assert not thread.is_alive(), "a process is left"
        if self.error is not None:
            raise self.error

    def _run(self, ours: socket.socket) -> None:
        _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        for listener in listeners:
            try:
                self._serve(listener)
            except Exception as error:  # noqa: BLE001 - raised again where it can be seen
                self.error = error
            finally:
                os.close(listener)

    def _serve(self, listener: int) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        while True:
            ((_, events),) = poller.poll()
            if not events & select.POLLIN:
                return
            # The process may be gone: killed while it waited.
            with contextlib.suppress(FileNotFoundError):
                self._answer(listener)

    def _answer(self, listener: int) -> None:
        data = bytearray(NOTIFICATION.size)
        fcntl.ioctl(listener, RECEIVE, data)
        id_, pid, _, number, _, _, *args = NOTIFICATION.unpack(data)
        error = self._look(pid, system_calls().get(number, str(number)), tuple(args))
        if error == KILL:
            os.kill(pid, signal.SIGKILL)
            return
        answer = RESPONSE.pack(id_, 0, -error, 0 if error else CONTINUE)
        fcntl.ioctl(listener, SEND, bytearray(answer))

    def _look(self, pid: int, name: str, args: tuple[int, ...]) -> int:
        """Note a call, from the first one of the launcher's main function on."""
        self._started = self._started or (name == "fcntl" and args[0] == 3)
        if not self._started:
            return 0
        if pid not in self._pids:
            self._pids.append(pid)
        role = ROLES[min(self._pids.index(pid), 3)]
        count = self._counts.get(pid, 0)
        self._counts[pid] = count + 1
        call = Call(role, count, name, args)
        self.calls.append(call)
        error = self._judge(call)
        if error:
            self.failed.append(call)
        return error


def refusal(directory: Path) -> str | None:
    """Why this host lets nobody watch a launch, or None."""
    try:
        with Watch(lambda _call: 0).open() as fd:
            actions = [(os.POSIX_SPAWN_DUP2, fd, SOCKET)]
            pid = os.posix_spawn(witness(directory, "/bin/true"), ["x"], {}, file_actions=actions)
            status = os.waitpid(pid, 0)[1]
    except OSError as error:
        return f"seccomp user notification fails: {errno.errorcode[error.errno or 0]}"
    return None if status == 0 else "a seccomp filter with a listener cannot be installed here"

"""The process that dials for a capsule: begun when something inside first asks for the network.

It runs in a capsule of its own, with the caller's network. Until then its sockets are held here: what
comes to them waits in the kernel.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import sys
from _socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from importlib.machinery import PathFinder

from capsule.base.errors import HostError
from capsule.confine import proxy as code
from capsule.planner.network import REFUSALS
from capsule.policy.limits import Limits
from capsule.policy.policy import Network, Policy

from . import contact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from capsule.planner.network import Way
    from capsule.process.handle import Process
    from capsule.process.loop import Loop
    from capsule.process.result import Usage

    Begin = Callable[[Sequence[str], Policy, Sequence[int]], Process]

# In the order in which each imports those before it.
_MODULES = ("addresses", "rules", "dns", "opening", "contacts", "relay", "names", "dial", "serve")
_BOOT = """\
import marshal, os, sys
fd = int(sys.argv[1])
codes, setup = marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
for name, code in codes:
    module = sys.modules[name] = type(sys)(name)
    module.__package__, module.__path__ = name.partition(".")[0], []
    exec(code, module.__dict__)
module.main(setup)
"""
# Seconds within which it has said all, from when it is told that the capsule has ended.
_PATIENCE = 5.0
_BACKLOG = 1024

_codes: list[tuple[str, Any]] = []


class Proxy:
    """The way in and out of one capsule.

    Args:
        way: which hosts may be reached, and what is published.
        log: a descriptor for lines of JSON, or -1.
        begin: starts a command with a policy and descriptors.

    Attributes:
        published: port inside to (address, port) on the host.
        process: what dials, once it was begun.
        usage: what that used, once it has ended.

    Raises:
        HostError: a port of the host's cannot be had.
    """

    def __init__(self, way: Way, log: int, begin: Begin) -> None:
        self._way, self._begin = way, begin
        self._log = -1
        self._owned: list[int] = []
        self._sockets: tuple[int, ...] = ()
        self._channel = -1
        self._loop: Loop | None = None
        self.process: Process | None = None
        self.usage: Usage | None = None
        self.published: dict[int, tuple[str, int]] = {}
        self._doors: list[int] = []
        self._epoll = select.epoll()
        try:
            for address, outside, inside in way.published:
                self._publish(address, outside, inside)
            if log >= 0:
                self._log = self._own(os.dup(log))
            for fd in self._doors:
                self._epoll.register(fd, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def _own(self, fd: int) -> int:
        self._owned.append(fd)
        return fd

    def _publish(self, address: str, outside: int, inside: int) -> None:
        one = socket(AF_INET6 if ":" in address else AF_INET, SOCK_STREAM)
        try:
            one.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            one.bind((address, outside))
            one.listen(_BACKLOG)
        except OSError as error:
            one.close()
            hint = "choose another port of the host's (HOSTPORT:PORT), or 0 for a free one"
            message = f"publish: {address} port {outside}: {error.strerror}"
            raise HostError(message, hint=hint) from None
        self.published.setdefault(inside, one.getsockname()[:2])
        self._doors.append(self._own(one.detach()))

    def take(self, sockets: Sequence[int], channel: int) -> None:
        """Take what init has sent, and the socket by which it is asked for more."""
        self._owned += (*sockets, channel)
        self._sockets, self._channel = tuple(sockets), channel
        for fd in sockets:
            self._epoll.register(fd, select.EPOLLIN)

    def attach(self, loop: Loop) -> None:
        """Have it begin when a loop sees that something asks for it."""
        self._loop = loop
        loop.watch(self._epoll.fileno(), select.POLLIN, self.open)

    def open(self) -> None:
        """Begin it, unless it runs.

        Raises:
            HostError, SetupError: as `capsule.start`.
        """
        if self.process is not None:
            return
        if self._loop is not None:
            self._loop.unwatch(self._epoll.fileno())
        dns, *others = self._sockets or (-1,)
        refusals, others = others[:REFUSALS], others[REFUSALS:]
        listeners = [
            (fd, host, port) for fd, (host, _, port) in zip(others, self._way.listeners, strict=True)
        ]
        published = [
            (fd, address, inside)
            for fd, (address, _, inside) in zip(self._doors, self._way.published, strict=True)
        ]
        setup = {
            "rules": self._way.rules, "dns": dns, "refusals": refusals, "channel": self._channel,
            "log": self._log, "listeners": listeners, "published": published,
        }  # fmt: skip
        fd = self._own(os.memfd_create("capsule-proxy", os.MFD_CLOEXEC))
        os.write(fd, marshal.dumps((_all_code(), setup)))
        self.process = self._begin(_command(fd), _policy(), tuple(self._owned))
        self._let_go()

    def finish(self, *, killed: bool) -> tuple[tuple[contact.Contact, ...], tuple[str, ...]]:
        """End it, and return (what was reached and refused, notes).

        Args:
            killed: whether what the capsule has sent need not arrive any more.
        """
        if self.process is None and self._epoll.poll(0) and not killed:
            self.open()
        try:
            if self.process is None:
                return (), ()
            if killed:
                self.process.kill()
            result = self.process.wait(_PATIENCE)
            self.usage = result.usage
            return contact.read(result.stdout)
        except (TimeoutError, ValueError):
            return (), () if killed else ("the proxy ended without an account of the network",)
        finally:
            self.close()

    def close(self) -> None:
        """End it, if it runs, and close everything."""
        if self.process is not None:
            self.process.__exit__(None, None, None)
        self._let_go()
        self._epoll.close()

    def _let_go(self) -> None:
        owned, self._owned = self._owned, []
        for fd in owned:
            os.close(fd)


def _command(fd: int) -> list[str]:
    if not sys.executable:
        hint = "run it from a Python whose sys.executable is known"
        raise HostError("network: the proxy needs a Python, and sys.executable is empty", hint=hint)
    return [sys.executable, "-I", "-S", "-c", _BOOT, str(fd)]


def _policy() -> Policy:
    """The least that it can do with."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = Limits(output=contact.MOST, open_files=hard if 0 < hard < 1 << 20 else 1 << 20)
    return Policy(network=Network.HOST, show_cwd=False, cwd="/", limits=limits)


def _all_code() -> list[tuple[str, Any]]:
    """Return its modules, compiled: nothing of Capsule need be seen where it runs."""
    if not _codes:
        package = code.__name__
        for name in ("__init__", *_MODULES):
            spec = PathFinder.find_spec(f"{package}.{name}", code.__path__)
            loader: Any = spec and spec.loader
            short = "proxy" if name == "__init__" else f"proxy.{name}"
            _codes.append((short, loader.get_code(f"{package}.{name}")))
    return _codes

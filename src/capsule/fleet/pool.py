"""Capsules that are made before their commands are known."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import weakref
from functools import partial

from capsule.api import begin, compiled_for, override, presuming
from capsule.base.errors import CapsuleError, PolicyError
from capsule.host.host import presume
from capsule.launcher.spawn import reap
from capsule.process.stdio import check_input, given

from .caller import Caller
from .template import Spare, Table, Template

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Any, Self, Unpack

    from capsule.api import Args, Compiled, Options
    from capsule.base import signals
    from capsule.policy.policy import Overrides, Policy
    from capsule.process.handle import Process
    from capsule.process.result import Result
    from capsule.process.stdio import Given

    from .aio import AsyncProcess

    Reaper = Callable[[int, int], None]


_WORDS = frozenset(("input", "stdin", "stdout", "stderr", "text", "encoding", "errors", "pass_fds"))
_PLAIN = given()
# scm_rights(7) takes 253; the three standard ones go with them.
MOST, MOST_PASSED = 1024, 250
_ENDING = 4  # inits that may wait to be waited for


class Pool:
    """Capsules made ahead for one policy, each of which runs one command and is never used again.

    A run that finds one ready takes about as long as the command alone. It has the same protections and
    the same result as one by `capsule.run`; with none ready a capsule is made for it as ever, and
    `Usage.warm` is False. A thread refills the pool.

    A capsule is used only if it is what would be made now: what it has taken over from this process,
    the mounts and what lies where the policy points are compared; on any difference all are dropped.
    That a process restricts itself by Landlock nothing tells: call `drop` then. All are dropped in a
    forked child, at exit, and when the block ends; they end with this process.

    Args:
        policy: what each command may see and do; None is ``Policy()``.
        size: how many wait, at most 1,024. Each takes about half a MiB, with limits of memory or
            processes a cgroup too.
        command: a command whose needs the capsules are made for: its interpreter, or the prefix that it
            lies in. A run that needs to see something else is refused.
        overrides: fields of the policy or of its limits to change, as `capsule.run`.

    Raises:
        PolicyError: the request is wrong, or an overlay keeps its layer, which one at a time can have.
        HostError, SetupError: as `capsule.run`; the first capsule is made at once.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        size: int = 4,
        command: Args = ("true",),
        **overrides: Unpack[Overrides],
    ) -> None:
        if type(size) is not int or not 0 < size <= MOST:
            raise PolicyError(f"size: {size!r}", field="size", hint=f"pass a number from 1 to {MOST}")
        self.size = size
        self._policy = override(policy, overrides)
        self._command = command
        self._closed = False
        self._spares: list[Spare] = []
        self._dropped: list[Spare] = []
        self._ending: list[tuple[int, int]] = []
        self._prepare_threads()
        self._table, self._caller = Table(), Caller()
        try:
            self._spares.append(self._first())
        except BaseException:
            self._let_go()
            raise
        self._template = self._spares[0].template
        _pools.add(self)

    def _prepare_threads(self) -> None:
        self._changed = threading.Condition()
        self._making = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failed = False

    def _first(self) -> Spare:
        return presuming(lambda: self._fresh().make())

    def _made(self, template: Template) -> Spare:
        try:
            return template.make()
        except (CapsuleError, OSError):
            return self._first()  # the host may not be what it was presumed to be

    def _fresh(self) -> Template:
        compiled = compiled_for(presume, self._command, self._policy)
        if any(kept for *_, kept in compiled[0].overlays):
            message = "mounts: an overlay of a pool cannot keep its layer"
            raise PolicyError(message, field="mounts", hint="leave keep= out: see Process.layers")
        return Template(compiled, self._caller)

    # --- runs ---------------------------------------------------------------------------------

    def run(self, args: Args, *, check: bool = False, **options: Unpack[Options]) -> Result:
        """Run a command in one of the capsules and return how it ended.

        Args:
            args: the command and its arguments.
            check: raise CommandFailed unless the command ended with status 0.
            options: as `capsule.run`. Of the policy what makes no other view can be changed: the
                environment, limits of time, of output and of `setrlimit(2)`.

        Raises:
            PolicyError: the request is wrong, or the command needs what the pool's capsules lack.
            HostError, SetupError, CommandFailed: as `capsule.run`.
        """
        check_input(options.get("input"), options.get("stdin"))
        try:
            with self._start(args, options, self._reap_later) as process:
                result = process.wait()
        finally:
            # Not before: what makes the next one would be in the way of who waits for this.
            self._refill_if_low()
        return result.check() if check else result

    def start(self, args: Args, **options: Unpack[Options]) -> Process:
        """Start a command in one of the capsules and return once it runs; otherwise as `run`.

        Raises:
            PolicyError, HostError, SetupError: as `run`.
        """
        try:
            return self._start(args, options, partial(self._reap_later, soon=True))
        finally:
            self._refill()

    def _start(self, args: Args, options: Options, reaper: Reaper) -> Process:
        more: dict[str, Any] = {**options}
        words = given(**{name: more.pop(name) for name in _WORDS & more.keys()}) if more else _PLAIN
        policy = override(self._policy, more)
        if self._closed:
            raise PolicyError("pool: it is closed", field="pool", hint="make another one")

        def elsewhere(
            policy: Policy, compiled: Compiled, given: Given, held: signals.Held
        ) -> Process | None:
            held.stop_breathing()
            spare = self._take(compiled, lambda: compiled_for(presume, args, policy, words.passed))
            if spare is None:
                return None
            still = lambda: self._is_still(spare, policy, compiled)  # noqa: E731
            return spare.start(policy, compiled, given, held, still, reaper)

        if len(words.passed) > MOST_PASSED:
            return begin(args, policy, words)
        supposed = self._template.supposed(policy)
        return begin(args, policy, words, elsewhere=elsewhere, supposed=supposed)

    def _take(self, compiled: Compiled, anew: Callable[[], Compiled]) -> Spare | None:
        """Return a capsule for a plan; None if it is to have one of its own."""
        if compiled[2].found is None and self._policy.root is None:
            return None  # which says why it cannot be run
        with self._changed:
            if not self._template.fits(compiled):
                self._renew(anew())
                return None
            return self._spares.pop(0) if self._spares else None

    def _is_still(self, spare: Spare, policy: Policy, compiled: Compiled) -> bool:
        """Return whether a capsule is what would be made now; else all are dropped."""
        same = spare.is_same(policy, compiled)
        with self._changed:
            # Of a change of the mounts one thread is told, who makes another template.
            if same and spare.template is self._template and not self._table.has_changed():
                return True
            with contextlib.suppress(CapsuleError, OSError):  # the run that follows says why
                self._template = self._fresh()
            self._drop()
        return False

    def _reap_later(self, init: int, pidfd: int, soon: bool = False) -> None:
        """Have the thread wait for an init that is about to end, whenever it is told of something."""
        with self._changed:
            if not self._closed:
                self._ending.append((init, pidfd))
                if soon:
                    self._changed.notify_all()
                return
        reap(init)
        os.close(pidfd)

    def _renew(self, compiled: Compiled) -> None:
        """Make another template, if what the host has is not what it was.

        Raises:
            PolicyError: it is what it was, and the command needs another view.
        """
        fresh = self._fresh()
        if not fresh.fits(compiled):
            raise fresh.refusal(compiled)
        self._template = fresh
        self._drop()

    async def run_async(self, args: Args, *, check: bool = False, **options: Unpack[Options]) -> Result:
        """Run a command in one of the capsules while the event loop goes on: `capsule.run_async`."""
        from .aio import run_by

        try:
            begin = lambda: self._start(args, options, self._reap_later)  # noqa: E731
            return await run_by(begin, options, check=check)
        finally:
            self._refill_if_low()

    def start_async(
        self, args: Args, **options: Unpack[Options]
    ) -> AbstractAsyncContextManager[AsyncProcess]:
        """Start a command in one of the capsules, for an event loop; see `capsule.start_async`."""
        from .aio import start_by

        return start_by(lambda: self.start(args, **options))

    # --- the capsules that wait ------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """How many capsules wait."""
        return len(self._spares)

    def fill(self, timeout: float | None = None) -> bool:
        """Wait until all capsules are ready, so many seconds at most; return whether they are."""
        self._refill()
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout)
            return len(self._spares) >= self.size

    def drop(self) -> None:
        """End the capsules that wait; others are made, of what this process is by then."""
        with self._changed:
            self._drop()
        self._refill()

    def _drop(self) -> None:
        """Have all ended that wait; a new thread makes others, as restricted as this one is."""
        self._dropped += self._spares
        self._spares.clear()
        self._thread = None
        self._changed.notify_all()

    def _is_current(self) -> bool:
        return self._thread is threading.current_thread()

    def _refill_if_low(self) -> None:
        """Wake nobody after each run: that takes as long as a tenth of it."""
        if len(self._spares) <= self.size // 2 or self._dropped or len(self._ending) > _ENDING:
            self._refill()

    def _refill(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._failed = False
            if self._thread is None:
                # At exit nobody waits for it but `close`.
                made = threading.Thread(target=self._work, name="capsule-pool", daemon=True)
                try:
                    made.start()
                    self._thread = made
                except RuntimeError:
                    self._failed = True  # no thread can be had now
            self._changed.notify_all()

    def _is_settled(self) -> bool:
        return self._failed or not (len(self._spares) < self.size or self._dropped or self._ending)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not (self._is_current() and self._is_settled()))
                if not self._is_current():
                    return
                template = self._template
                full = self._failed or len(self._spares) >= self.size
            with self._making:
                self._clear()
                if not full and self._is_current():
                    self._make(template)

    def _clear(self) -> None:
        """End what was dropped, and wait for what is ending."""
        with self._changed:
            dropped, ending = self._dropped[:], self._ending[:]
        for spare in dropped:
            spare.end()
        for init, pidfd in ending:
            reap(init)
            os.close(pidfd)
        with self._changed:
            del self._dropped[: len(dropped)], self._ending[: len(ending)]
            self._changed.notify_all()

    def _make(self, template: Template) -> None:
        spare = None
        try:
            spare = self._made(template)
        except (CapsuleError, OSError):
            pass  # the next run says why
        with self._changed:
            if spare is None:
                self._failed = True
            elif template is self._template and self._is_current():
                self._template = spare.template
                self._spares.append(spare)
            else:
                self._dropped.append(spare)
            self._changed.notify_all()

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End the capsules that wait. Those that run a command go on; nothing more is started."""
        with self._changed:
            self._closed = True
            self._drop()
        with self._making:  # what is being made is dropped by who makes it
            self._clear()
        if self in _pools:
            _pools.discard(self)
            self._let_go()

    def _let_go(self) -> None:
        self._table.close()
        self._caller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.ready} of {self.size} ready"
        return f"<Pool {state}>"

    def _in_child(self) -> None:
        """The capsules are the parent's; what comes here begins anew."""
        for spare in (*self._spares, *self._dropped):
            spare.forget()
        for _, pidfd in self._ending:
            os.close(pidfd)
        self._spares, self._dropped, self._ending = [], [], []
        self._prepare_threads()
        self._let_go()
        self._table, self._caller = Table(), Caller()
        self._template = Template(self._template.compiled, self._caller)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _for_all(act: Callable[[Pool], object]) -> None:
    for pool in list(_pools):
        act(pool)


atexit.register(_for_all, Pool.close)
# Nobody forks while a capsule is being made: its descriptors would stay open in the child.
os.register_at_fork(
    before=lambda: _for_all(lambda pool: pool._making.acquire()),
    after_in_parent=lambda: _for_all(lambda pool: pool._making.release()),
    after_in_child=lambda: _for_all(Pool._in_child),
)

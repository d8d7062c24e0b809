"""A running capsule, from its command's first instruction to its result."""

from __future__ import annotations

import os
import time

from capsule.base import signals
from capsule.launcher import spawn

from .loop import Loop
from .outcome import omitted, says_read_only, usage, verdict
from .records import TO_GROUP, Records
from .result import Outcome, Result
from .stdio import input_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import IO, Any, Self

    from capsule.changes.closing import Closing
    from capsule.changes.layer import Layer
    from capsule.confine.cgroup import Account, Leaf
    from capsule.confine.seccomp.denials import Denial
    from capsule.planner.plan import Plan
    from capsule.policy.limits import Limits

    from .launch import Running
    from .network.proxy import Proxy
    from .result import Usage
    from .stdio import Streams


class Process:
    """A command that runs in a capsule. Made by `start`; there is no public constructor.

    Leaving the ``with`` block, or losing the last reference, kills and reaps everything. So does the
    end of this process, however it ends. After the block, `poll` returns the result: of a command that
    still ran it is `Outcome.KILLED`, and says what was set aside.

    Attributes:
        args: the command's argument vector.
        pid: process id of the capsule's init, as the host sees it.
        namespaces: the kinds of namespace that were entered.
        protections: each protection in force, and how it is enforced.
    """

    def __init__(
        self,
        running: Running,
        plan: Plan,
        limits: Limits,
        streams: Streams,
        terminal: int | None = None,
        closing: Closing | None = None,
        leaf: Leaf | None = None,
        reaper: Callable[[int, int], None] | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        # All inside is dead when init says so; where nothing else is left, nobody waits for its end.
        self._reaper = reaper if leaf is None and closing is None else None
        self.args = plan.args
        self.pid = running.pid
        self.namespaces = plan.namespaces
        self.protections = dict(plan.protections)
        self.terminal = terminal
        self._closing = closing
        self._leaf = leaf
        self._handed_over = running.handed_over
        self._began = self._handed_over or time.monotonic()
        self._running: Running | None = running
        self._records = Records(running, filtered=plan.filter is not None)
        self._records.on_kill = None if leaf is None else leaf.hurry
        self._limits = limits
        self._streams = streams
        self._loop = Loop(running, self._records, streams, limits.output, leaf)
        self._proxy = proxy
        if proxy is not None:
            proxy.attach(self._loop)
        self._plan = plan
        self._killed = self._reaped = False
        self._result: Result | None = None

    @property
    def published(self) -> Mapping[int, tuple[str, int]]:
        """Of each port inside that is published, the address and port of the host's."""
        return {} if self._proxy is None else self._proxy.published

    # --- streams ------------------------------------------------------------------------

    @property
    def stdin(self) -> IO[Any] | None:
        """A writer to the command's standard input, or None unless it was started with PIPE."""
        return self._streams.file("stdin", "wb")

    @property
    def stdout(self) -> IO[Any] | None:
        """A reader of the command's standard output, or None unless it is a pipe."""
        return self._streams.file("stdout", "rb")

    @property
    def stderr(self) -> IO[Any] | None:
        """A reader of the command's standard error, or None unless it is a pipe."""
        return self._streams.file("stderr", "rb")

    # --- life ------------------------------------------------------------------------

    def fileno(self) -> int:
        """A pidfd (pidfd_open(2)) that is readable once everything inside is gone.

        Raises:
            ValueError: the process has been waited for.
        """
        if self._running is None:
            raise ValueError("the capsule has ended and was reaped")
        return self._running.pidfd

    def poll(self) -> Result | None:
        """Return the result if the command has ended, else None, at once."""
        if self._result is None and self._loop.run(0):
            return self._finish()
        return self._result

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end, reading meanwhile what the command writes to its pipes.

        Standard input is closed first if it is a pipe: a command that reads would wait for ever.

        Args:
            timeout: seconds after which to give up waiting; the command goes on. The limit that
                ends a command is `Limits.timeout`.

        Raises:
            TimeoutError: it has not ended within *timeout*.
        """
        if self._result is None:
            self._streams.close_stdin()
            if not self._loop.run(timeout):
                raise TimeoutError(f"{self.args[0]} still runs after {timeout} s")
            return self._finish()
        return self._result

    def communicate(
        self, input: bytes | str | None = None, timeout: float | None = None
    ) -> tuple[Any, Any]:
        """Write *input*, close standard input and read until the end, as `subprocess.Popen` does.

        Args:
            input: what is written, bytes or with text=True str. After a time-out: None.
            timeout: as `wait`.

        Returns:
            What was read of its output and of its errors, as far as it was not read before; None for
            each that is no pipe. `poll` then returns the result.

        Raises:
            TimeoutError: as `wait`. Nothing is lost: it can be called again, without input.
            ValueError: there is input, and standard input is no pipe.
        """
        if input:
            self._streams.give(input_bytes(input, self._streams.encoding))
        result = self.wait(timeout)
        return result.stdout, result.stderr

    def send_signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the command: to it alone, or to its (foreground) process group.

        SIGKILL ends the whole capsule. After the end this does nothing.

        Raises:
            ValueError: there is no such signal.
        """
        if not 0 < number <= 64:
            raise ValueError(f"not a signal: {number}")
        if number == signals.SIGKILL:
            self.kill()
            return
        if self._running is not None:
            self._records.tell(int(number) | (TO_GROUP if group else 0))

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Kill everything in the capsule, at once."""
        if self._running is not None and not self._records.has_ended():
            self._killed = True
            self._loop.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def __del__(self) -> None:
        if getattr(self, "_running", None) is not None:
            try:
                self._warn()
            finally:
                self._end()

    def _warn(self) -> None:
        try:
            import warnings
        except ImportError:
            return  # the interpreter is about to end
        warnings.warn(f"capsule of {self.args[0]!r} still runs", ResourceWarning, stacklevel=3)

    def __repr__(self) -> str:
        state = self._result.outcome.value if self._result else "running"
        return f"<Process {self.args[0]!r} pid={self.pid} {state}>"

    def usage(self) -> Usage:
        """Return what the command has used up to now; after the end, what it used in all.

        Read from the cgroup where the capsule has one. Else init adds up what /proc says of the
        processes that there are and of those that were waited for.
        """
        if self._result is not None:
            return self._result.usage
        told = None
        if self._leaf is None and self._running is not None:
            told = self._records.ask_usage()
        ended = self._records.ended or None
        now = (None, None) if self._leaf is None or ended is not None else self._leaf.in_use()
        return self._usage(ended, self._account(), told, now)

    def _usage(self, *found: Any) -> Usage:
        ended, account, *more = found
        return usage(ended, account, self._wall(), *more, handed_over=self._handed_over)

    def _account(self) -> Account | None:
        return None if self._leaf is None else self._leaf.account()

    def _wall(self) -> float:
        return time.monotonic() - self._began

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The upper layers of overlays, by place. To be read after the end, within the block."""
        return {} if self._closing is None else self._closing.layers

    def _end(self) -> None:
        """Kill, reap and close, whatever state this is in; what came of it, `poll` returns."""
        if self._running is None and self._closing is None:
            return
        with signals.Held():
            try:
                if self._running is not None:
                    self.kill()
                    self._reap(self._running)
                    try:
                        # It may have ended by itself before that.
                        self._records.notice_end()
                    finally:
                        self._conclude(output=False)
            finally:
                if self._closing is not None:
                    self._closing.close()
                    self._closing = None

    # --- the end ------------------------------------------------------------------------

    def _finish(self) -> Result:
        """All inside is dead: what is in the pipes is all there will ever be."""
        self._loop.drain()
        # Held: what must not stay is not left because somebody is in a hurry.
        with signals.Held():
            return self._conclude()

    def _conclude(self, *, output: bool = True) -> Result:
        """Make the result, let go of everything, and look at what the command left on the host.

        Args:
            output: whether what was read of its output is wanted, whose decoding may fail.
        """
        try:
            result = self._make_result(output=output)
            if self._proxy is not None:
                contacts, told = self._proxy.finish(killed=self._killed)
                result = result.replace(network=contacts, notes=told)
        finally:
            self._release()
            found = None if self._closing is None else self._closing.examine()
        notes = result.notes if found is None else (*result.notes, *found.notes)
        if self._leaf is not None and self._leaf.left:
            notes = (f"the cgroup {self._leaf.path} could not be removed", *notes)
        if found is not None or notes:
            more = {} if found is None else found.__dict__
            result = result.replace(**{**more, "notes": notes})
        if output and result.outcome in (Outcome.EXITED, Outcome.SIGNALED):
            said = self._loop.capture.last if result.stderr is None else result.stderr
            # What it says went wrong counts as well: git ends with 0 after half a checkout.
            if not result.ok or says_read_only(said):
                from .unseen import hints  # only where something failed

                result = result.replace(hints=hints(self._plan, said))
        self._result = result
        return result

    def _reap(self, running: Running) -> None:
        """Once: its process id may be another's afterwards."""
        if not self._reaped:
            self._reaped = True
            spawn.reap(running.pid)

    def _release(self) -> None:
        """Reap init and close everything of ours."""
        running, self._running = self._running, None
        if running is None:
            return
        # While init's mounts are taken down.
        self._streams.close()
        if self._proxy is not None:
            self._proxy.close()
        for fd in (running.status, running.lifeline):
            os.close(fd)
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None
        if self._reaper is not None and self._records.ended and not self._reaped:
            self._reaped = True
            self._reaper(running.pid, running.pidfd)
            return
        self._reap(running)
        os.close(running.pidfd)
        if self._leaf is not None:
            self._leaf.remove()

    def _make_result(self, *, output: bool) -> Result:
        ended, account = self._records.ended or None, self._account()
        used = self._usage(ended, account)
        why = {"killed": self._killed, "truncated": self._loop.capture.met}
        outcome, returncode, detail = verdict(ended, self._limits, self._plan.filter, account, **why)
        return Result(
            args=self.args,
            outcome=outcome,
            returncode=returncode,
            stdout=self._loop.capture.text(self._streams.stdout) if output else None,
            stderr=self._loop.capture.text(self._streams.stderr) if output else None,
            truncated=self._loop.capture.met,
            usage=used,
            namespaces=self.namespaces,
            protections=self.protections,
            detail=detail,
            denials=self._denials(),
            denials_complete=self._plan.filter is None
            or (self._plan.filter.told and omitted(ended) == 0),
            denials_omitted=omitted(ended) or 0,
        )

    def _denials(self) -> tuple[Denial, ...]:
        if self._plan.filter is None or not self._records.refused:
            return ()
        from capsule.confine.seccomp.denials import explain  # only where something was refused

        return explain(self._records.refused, self._plan.filter)


def loop_of(process: Process) -> Loop:
    """The loop of a process, for a front end that puts itself between the command and who waits."""
    return process._loop


def streams_of(process: Process) -> Streams:
    """Our ends of the pipes of a process, likewise."""
    return process._streams


def result_of(process: Process) -> Result | None:
    """The result of a process that has been waited for."""
    return process._result


def is_reaped_elsewhere(process: Process) -> bool:
    """Tell whether nobody need wait for init's own end."""
    return process._reaper is not None


def open_network(process: Process) -> Process:
    """Begin what dials for a process, which `wait` does by need."""
    try:
        if process._proxy is not None:
            process._proxy.open()
    except BaseException:
        process.__exit__(None, None, None)
        raise
    return process

"""Python functions in capsules, by `concurrent.futures`."""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import sys
import threading
from concurrent.futures import Executor as _Executor
from concurrent.futures import Future, ThreadPoolExecutor

from capsule.api import override
from capsule.base.errors import CapsuleError, PolicyError
from capsule.policy.units import parse_size

from .interpreter import Kind, Worker, Zygotes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Unpack

    from capsule.policy.policy import Overrides, Policy

_RESULT = 16 << 20


class Executor(_Executor):
    """Runs Python functions in capsules: each call in an interpreter of its own that is used once.

    Interpreters that have imported what is named wait in capsules. A call is pickled and sent to one,
    by cloudpickle if that is installed: then functions of ``__main__`` and lambdas go, too. Its result
    comes back by a codec that holds None, booleans, numbers, text, bytes, lists, tuples, dictionaries,
    sets and numpy's arrays of plain types; it is read as hostile. An exception comes back as
    `CallFailed`. A call that meets a limit, or whose interpreter dies, raises `CommandFailed` with the
    whole `Result`.

    ``Limits.timeout`` is that of a call, from the moment on at which it is sent.

    Args:
        policy: what each call may see and do; None is ``Policy()``.
        max_workers: calls at once, and interpreters that wait; None is the number of CPUs.
        preload: modules to import ahead, from this process' ``sys.path``.
        share: fork one interpreter, in one capsule, for each call: some 3 ms however many come. The
            calls share all but memory: files, network, processes. One can see and kill the others, and
            the interpreter that is forked. Only for calls that trust each other.
        trust_results: results come back as pickles, whose reading executes what they say: whoever is
            inside can do everything that this process can.
        result_size: bytes of a result.
        python: the interpreter; None is this one.
        overrides: fields of the policy or of its limits to change, as `capsule.run`.

    Raises:
        PolicyError: the request is wrong.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        max_workers: int | None = None,
        preload: Iterable[str] = (),
        share: bool = False,
        trust_results: bool = False,
        result_size: int | str = _RESULT,
        python: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> None:
        policy = override(policy, overrides)
        if policy.limits.idle is not None:
            hint = "leave it out: an interpreter waits for its call; timeout= limits the call"
            raise PolicyError("idle: not for an executor", field="idle", hint=hint)
        workers = len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        if type(workers) is not int or workers < 1:
            hint = "pass a whole number from 1 on"
            raise PolicyError(f"max_workers: {workers!r}", field="max_workers", hint=hint)
        self._asked: dict[str, Any] = {
            "policy": policy,
            "max_workers": workers,
            "preload": tuple(preload),
            "share": share,
            "trust_results": trust_results,
            "result_size": parse_size(result_size, "result_size"),
            "python": python or sys.executable,
        }
        self._kind = Kind(**self._asked)
        self._shared = Zygotes(self._kind) if share else None
        self._waiting: list[Worker] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="capsule-executor")
        # What makes the next ones does not wait for its turn behind the calls.
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="capsule-keeper")
        for _ in range(1 if share else workers):
            self._keeper.submit(self._prepare)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a function called in a capsule; see `concurrent.futures.Executor.submit`.

        Of the future's exceptions, `PolicyError` is about a call that cannot be pickled.
        """
        return self._threads.submit(self._perform, lambda: _pickled(fn, (fn, args, kwargs)), None)

    def submit_source(self, source: str, /, **names: Any) -> Future[Any]:
        """Have Python source executed in a capsule; its result is that of a last expression, or None.

        Args:
            source: the source.
            names: what it finds under these names.
        """
        return self._threads.submit(self._perform, lambda: _pickled(None, names), source)

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in a capsule and return its result: what goes over to other processes.

        An executor that is pickled is, in each process that it comes to, one that all such share there.
        """
        return self.submit(fn, *args, **kwargs).result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the interpreters that wait, once the calls that were submitted are done."""
        self._closed = True
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        try:
            self._keeper.submit(self._end)
        except RuntimeError:
            self._end()  # it is the end of the process
        self._keeper.shutdown(wait)

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_this_process, (tuple(sorted(self._asked.items())),)

    # --- in a thread ------------------------------------------------------------------------------

    def _perform(self, call: Callable[[], bytes], source: str | None) -> Any:
        request = self._kind.request(call(), source)
        if self._shared is not None:
            return self._shared.perform(request)
        worker = self._take()
        try:
            return worker.perform(request)
        finally:
            worker.kill()
            try:
                self._keeper.submit(self._replace, worker)
            except RuntimeError:
                worker.end()  # shut down, without waiting for this call

    def _take(self) -> Worker:
        try:
            return self._waiting.pop(0)
        except IndexError:
            return Worker(self._kind)

    def _replace(self, worker: Worker) -> None:
        worker.end()
        self._prepare()

    def _end(self) -> None:
        while self._waiting:
            self._waiting.pop().end()
        if self._shared is not None:
            self._shared.end()

    def _prepare(self) -> None:
        """Have one more interpreter wait. Why one cannot be had, a call says."""
        try:
            if self._shared is not None:
                self._shared.prepare()
                return
            if not self._closed and len(self._waiting) < self._kind.max_workers:
                self._waiting.append(Worker(self._kind))
        except CapsuleError:
            pass


def _pickled(fn: Callable[..., Any] | None, call: object) -> bytes:
    """A call as it goes in.

    Raises:
        PolicyError: it cannot be pickled.
    """
    try:
        dumps = importlib.import_module("cloudpickle").dumps
    except ImportError:
        dumps = pickle.dumps
        if fn is not None and getattr(fn, "__module__", None) == "__main__":
            message = (
                f"call: {getattr(fn, '__name__', fn)} is in __main__, which is another one in a capsule"
            )
            hint = "pip install cloudpickle, put it in a module, or pass source to submit_source"
            raise PolicyError(message, field="fn", hint=hint) from None
    try:
        return bytes(dumps(call))
    except Exception as error:  # noqa: BLE001 - whatever a class of the caller's raises
        hint = "pass what can be pickled; cloudpickle, if it is installed, takes more"
        raise PolicyError(f"call: cannot be pickled: {error}", field="call", hint=hint) from None


_known: dict[object, Executor] = {}
_known_lock = threading.Lock()


def _of_this_process(asked: tuple[tuple[str, Any], ...]) -> Executor:
    """Return the one of this process that was made so."""
    with _known_lock:
        key = os.getpid(), asked
        if key not in _known or _known[key]._closed:
            _known[key] = Executor(**dict(asked))
            atexit.register(_known[key].shutdown)
        return _known[key]

"""Descriptors that are held for long."""

import os
import threading

import pytest

from capsule.base import descriptors
from capsule.base.descriptors import Kept


def test_two_threads_close_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is closed once: by then another file may have its number."""
    looked = threading.Barrier(2)
    identity = descriptors.identity

    def slow(path: str | int) -> tuple[int, int] | None:
        found = identity(path)
        try:
            looked.wait(0.2)
        except threading.BrokenBarrierError:
            pass  # the other one does not come here
        return found

    kept = Kept(os.pipe())
    monkeypatch.setattr(descriptors, "identity", slow)
    failed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    threads = [threading.Thread(target=kept.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [identity(fd) for fd in kept.fds] == [None, None]
    assert not kept.are_ours()


def test_a_number_that_is_anothers_by_now() -> None:
    """What somebody else has opened there is left open."""
    read, write = os.pipe()
    kept = Kept((read, write))
    os.dup2(0, read)
    assert not kept.are_ours()
    kept.close()
    assert descriptors.identity(read) == descriptors.identity(0)
    assert descriptors.identity(write) is None
    os.close(read)

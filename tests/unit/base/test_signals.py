"""Blocks that hold signals back: nothing cuts them off, and they can breathe."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from capsule.base.signals import Held, breathe


class Interrupt(Exception):
    """What the handler raises."""


def interrupt(*_: object) -> None:
    """A handler that cuts off what it interrupts."""
    raise Interrupt


def send() -> None:
    """A signal that comes now."""
    os.kill(os.getpid(), signal.SIGUSR1)


def await_others() -> None:
    """Wait until no other thread takes a signal: that of faulthandler's timeout has just been born."""
    others = {task for task in os.listdir("/proc/self/task") if int(task) != os.getpid()}
    end = time.monotonic() + 20
    while others:
        assert time.monotonic() < end, others
        for task in [*others]:
            with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/status") as file:
                blocked = int(next(line for line in file if line.startswith("SigBlk:")).split()[1], 16)
                if not blocked >> (signal.SIGALRM - 1) & 1:
                    continue
            others.remove(task)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """The handler for the time of a test, after which no signal is blocked."""
    await_others()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = signal.signal(signal.SIGUSR1, interrupt)
    yield
    signal.signal(signal.SIGUSR1, before)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    """It is delivered there, and the block was done to its end."""
    done = []
    with pytest.raises(Interrupt), Held():  # noqa: PT012 - the block is the subject
        send()
        breathe()
        done.append("all")
    assert done == ["all"]


def test_a_breathing_block_lets_it_through_where_it_says_so() -> None:
    """Not before, and not once it has stopped to breathe."""
    done = []
    with pytest.raises(Interrupt), Held(breathing=True):  # noqa: PT012 - the block is the subject
        send()
        done.append("before")
        breathe()
        done.append("after")
    assert done == ["before"]
    with pytest.raises(Interrupt), Held(breathing=True) as held:  # noqa: PT012 - the block is the subject
        held.stop_breathing()
        send()
        breathe()
        done.append("stopped")
    assert done == ["before", "stopped"]


def test_a_block_within_a_breathing_one_holds_its_breath() -> None:
    """And the one around it goes on breathing after that."""
    done = []
    with Held(breathing=True):
        with Held():
            send()
            breathe()
            done.append("within")
        with pytest.raises(Interrupt):
            breathe()
    assert done == ["within"]


def test_a_signal_that_is_under_way_closes_nothing_for_good() -> None:
    """However close to the beginning of a block it comes, the mask is as before afterwards."""
    signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00001 + number % 50 / 1e6)
                while True:
                    with Held():
                        pass
            except Interrupt:
                pass
            assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_read_can_be_cut_off() -> None:
    """A descriptor that says nothing is waited for as it is outside of the block."""
    reading, writing = os.pipe()
    signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupt), Held() as held:  # noqa: PT012 - the block is the subject
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            held.read(reading, 1)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.close(reading)
        os.close(writing)

"""The loop and the pairs of sockets that it moves bytes between."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from capsule.confine.proxy.relay import Loop, Pair, Pipes, close

Stage = tuple[Loop, Pipes, list[int]]


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A loop, pipes, and how pairs ended; the pipes are closed after the test."""
    pipes = Pipes()
    yield Loop(), pipes, []
    for pipe in pipes._free:
        close(pipe)


def paired(loop: Loop, pipes: Pipes, ended: list[int]) -> tuple[socket.socket, socket.socket]:
    """Two ends that are connected through a pair."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = []
        for _ in range(2):
            one = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
            ours.setblocking(False)
            ends.append((one, ours))
    (left, inside), (right, outside) = ends
    Pair(loop, pipes, inside, outside, lambda: None, ended.append)
    return left, right


def until(loop: Loop, done: Callable[[], bool]) -> None:
    """Turn until something is so."""
    for _ in range(10000):
        if done():
            return
        loop.turn(0.01)
    pytest.fail("it does not come to that")


def test_both_directions_and_both_ends(stage: Stage) -> None:
    """Each by itself: one may end while the other goes on."""
    loop, pipes, ended = stage
    left, right = paired(loop, pipes, ended)
    data, got = os.urandom(3 << 20), bytearray()

    def send() -> None:
        left.sendall(data)
        left.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    right.setblocking(False)

    def take() -> bool:
        try:
            piece = right.recv(1 << 16)
        except BlockingIOError:
            return False
        got.extend(piece)
        return not piece

    until(loop, take)
    sender.join()
    assert bytes(got) == data
    assert not ended
    right.setblocking(True)
    right.sendall(b"back")
    right.shutdown(socket.SHUT_WR)
    until(loop, lambda: ended == [0])
    assert left.recv(9) == b"back"
    assert left.recv(9) == b""
    left.close()
    right.close()


def test_who_does_not_read_stops_who_writes(stage: Stage) -> None:
    """What is held is bounded: the rest stays with the sender."""
    loop, pipes, ended = stage
    left, right = paired(loop, pipes, ended)
    left.setblocking(False)
    sent = stuck = 0
    while stuck < 50:
        try:
            sent += left.send(bytes(1 << 16))
            stuck = 0
        except BlockingIOError:
            stuck += 1
            loop.turn(0.001)
    assert sent < 64 << 20
    left.close()
    right.close()
    until(loop, lambda: bool(ended))


def test_a_reset_goes_through(stage: Stage) -> None:
    """Whoever is at the other side learns of it, as a reset."""
    loop, pipes, ended = stage
    left, right = paired(loop, pipes, ended)
    left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left.close()
    until(loop, lambda: bool(ended))
    assert ended == [errno.ECONNRESET]
    with pytest.raises(ConnectionResetError):
        right.recv(1)
    right.close()


def test_an_error_ends_nothing_but_its_handler() -> None:
    """The others go on, and it is told."""
    loop, heard = Loop(), list[int]()
    read, write = os.pipe()
    os.write(write, b"x")
    loop.again(lambda _events: 1 // 0)  # type: ignore[arg-type]
    loop.add(read, heard.append)
    loop.turn(0.1)
    loop.turn(0.1)
    assert heard
    assert "ZeroDivisionError" in loop.trouble
    loop.remove(read)
    os.close(read)
    os.close(write)

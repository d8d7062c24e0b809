"""Many connections and many bytes, in and out; connections that are opened and never used; ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Network
from tests.support import CAPSULE, HANG, PYTHON, await_end, await_line, nothing_left

# Sends and takes so much on each connection, and answers with the digest of what it took.
SERVER = """
import hashlib, os, socket, sys, threading
def serve(one):
    size = int.from_bytes(one.recv(8, socket.MSG_WAITALL), "big")
    data = os.urandom(1 << 16)
    def send():
        digest = hashlib.sha256()
        for _ in range(size >> 16):
            digest.update(data)
            one.sendall(data)
        one.sendall(digest.digest())
    sender = threading.Thread(target=send)
    sender.start()
    digest, left = hashlib.sha256(), size
    while left and (chunk := one.recv(min(left, 1 << 18))):
        digest.update(chunk)
        left -= len(chunk)
    told = one.recv(32, socket.MSG_WAITALL)
    ended = one.recv(1) == b""
    sender.join()
    one.sendall(b"ok" if told == digest.digest() and ended else b"no")
    one.close()
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.bind((sys.argv[1], 8080))
listener.listen(1024)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def exchange(where: tuple[str, int], size: int) -> bool:
    """Send and take so much at once; whether what came is what was sent."""
    data = os.urandom(1 << 16)
    with socket.create_connection(where, HANG) as one:
        one.sendall(size.to_bytes(8, "big"))

        def send() -> None:
            digest = hashlib.sha256()
            for _ in range(size >> 16):
                digest.update(data)
                one.sendall(data)
            one.sendall(digest.digest())
            one.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        digest, left = hashlib.sha256(), size
        while left and (chunk := one.recv(min(left, 1 << 18))):
            digest.update(chunk)
            left -= len(chunk)
        told = one.recv(32, socket.MSG_WAITALL)
        sender.join()
        return told == digest.digest() and one.recv(3, socket.MSG_WAITALL) == b"ok"


@contextlib.contextmanager
def published(address: str = "0.0.0.0") -> Iterator[tuple[capsule.Process, tuple[str, int]]]:
    """A server inside, and where it is on the host."""
    policy = capsule.Policy(publish=["0:8080"], cwd="/")
    with capsule.start([PYTHON, "-c", SERVER, address], policy) as process:
        assert await_line(process) == b"ready\n"
        yield process, process.published[8080]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_server_inside(address: str) -> None:
    """Wherever it listens; the port of the host's is its loopback's alone."""
    with nothing_left(), published(address) as (process, where):
        assert where[0] == "127.0.0.1"
        assert exchange(where, 1 << 20)
        process.kill()
        result = process.wait()
    assert [(one.protocol, one.port, one.count) for one in result.network] in (
        [("published", 8080, 1)],
        [],  # killed: nothing need be told
    )


def load(connections: int, size: int) -> None:
    """So many at once, each of which sends and takes so much."""
    with nothing_left(), published() as (_, where):
        right: list[bool] = []
        threads = [
            threading.Thread(target=lambda: right.append(exchange(where, size)))
            for _ in range(connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right == [True] * connections


def test_200_connections_at_once() -> None:
    """Every byte arrives, in both directions."""
    load(200, 1 << 17)


@pytest.mark.slow
def test_a_gibibyte_each_way() -> None:
    """Over 200 connections at once, and over one."""
    load(200, (1 << 30) // 200 >> 16 << 16)
    load(1, 1 << 30)


def test_nothing_listens_inside() -> None:
    """A connection that comes in is reset, and told."""
    policy = capsule.Policy(publish=["0:8080"])
    with capsule.start(["sleep", "60"], policy) as process:
        where = process.published[8080]
        with socket.create_connection(where, HANG) as one, pytest.raises(ConnectionResetError):
            one.recv(1)
        process.send_signal(15)
        result = process.wait()
    (told,) = result.network
    assert told.describe() == (
        "refused published 127.0.0.1:8080: nothing takes it inside: Connection refused"
    )


def test_a_port_that_is_taken() -> None:
    """Before anything is started, with what to do."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        with pytest.raises(capsule.HostError, match=f"publish: 127.0.0.1 port {port}: ") as caught:
            capsule.run(["true"], publish=[f"{port}:80"])
    assert "choose another port" in (caught.value.hint or "")


# --- never used -----------------------------------------------------------------------------------

OPEN = """
import os, resource, socket, sys
port, count, patience = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
kept, broken = [], 0
for number in range(count):
    one = socket.socket()
    one.settimeout(patience)
    one.connect(("127.0.0.1", port))
    if len(kept) < 1000:
        kept.append(one)
    if number % 500 == 499:
        with socket.create_connection(("127.0.0.1", port), patience) as used:
            used.sendall(b"word")
            assert used.recv(4) == b"word"
print("done")
"""


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """A server on the host's loopback that sends back what it is sent; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        kept: list[socket.socket] = []

        def answer(one: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := one.recv(1 << 16):
                    one.sendall(data)
                one.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    kept.append(one)
                    threading.Thread(target=answer, args=(one,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for one in kept:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """As many descriptors as this process may have: a server holds one for each connection."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def unused(count: int) -> tuple[capsule.Result, int]:
    """(The end of a program that opened so many, peak memory of what dials in bytes)."""
    with nothing_left(), many_files(), echo() as port:
        policy = capsule.Policy(network=Network.only(f"localhost:{port}"), cwd="/")
        with capsule.start(
            [PYTHON, "-c", OPEN, str(port), str(count), str(int(HANG))], policy, text=True
        ) as process:
            proxy: Any = process._proxy
            result = process.wait()
            return result, proxy.usage.peak_memory


@pytest.mark.slow
def test_10_000_connections_that_are_never_used() -> None:
    """The memory of what dials is bounded, and what is used meanwhile works."""
    few, little = unused(500)
    many, more = unused(10_000)
    assert (few.stdout, many.stdout) == ("done\n", "done\n")
    assert more - little < 48 << 20


def test_connections_that_are_never_used() -> None:
    """The same with fewer."""
    result, _ = unused(1000)
    assert result.stdout == "done\n", result.stderr
    assert sum(one.count for one in result.network) >= 1000


# --- ends -----------------------------------------------------------------------------------------


def test_what_was_sent_arrives_after_the_end() -> None:
    """A program that sends and ends at once has sent it; the end of one direction is no end."""
    code = (
        "import socket, sys; one = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
        "one.sendall(b'x' * 100000); one.close()"
    )
    got: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def take() -> None:
            one, _ = listener.accept()
            with one:
                got.append(sum(map(len, iter(lambda: one.recv(1 << 16), b""))))

        thread = threading.Thread(target=take)
        thread.start()
        result = capsule.run([PYTHON, "-c", code, str(port)], network=[f"localhost:{port}"])
        thread.join()
    assert result.ok
    assert got == [100000]
    assert [one.sent for one in result.network] == [100000]


def test_half_of_a_connection() -> None:
    """One side may end and go on reading."""
    code = (
        "import socket, sys; one = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
        "one.sendall(b'word'); one.shutdown(1); print(one.recv(9), one.recv(9))"
    )
    with echo() as port:
        result = capsule.run([PYTHON, "-c", code, str(port)], network=[f"localhost:{port}"])
    assert result.stdout == b"b'word' b''\n"


def test_nobody_asks() -> None:
    """Then nothing is begun for the network, and nothing told."""
    with nothing_left():
        result = capsule.run(["true"], network=["allowed.example"])
    assert result.ok
    assert result.network == ()


def test_the_command_line(tmp_path: Path) -> None:
    """--allow-net, -v and --net-log: one line for people, lines of JSON for programs."""
    log = tmp_path / "log"
    with echo() as port:
        code = f"import socket; socket.create_connection(('127.0.0.1', {port})).send(b'x')"
        words = [
            PYTHON,
            "-c",
            f"{code}\ntry: socket.getaddrinfo('evil.example', 80)\nexcept OSError: 0",
        ]
        done = subprocess.run(
            [CAPSULE, "run", "-v", "--allow-net", f"localhost:{port}", f"--net-log={log}", *words],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("capsule: network used: ")]
    assert f"reached localhost:{port}: 1 bytes sent, " in line
    assert "refused dns evil.example" in line
    assert "no rule names it; --allow-net evil.example allows it" in line
    events = [json.loads(text) for text in log.read_text().splitlines()]
    assert {one["event"] for one in events} == {"connected", "refused", "closed"}


def test_a_log_of_nothing(tmp_path: Path) -> None:
    """It is refused where there is nothing to be told, and where it cannot be written."""
    for words, said in (
        (["--net-log", str(tmp_path / "log")], "there is no list of hosts"),
        (["--net-log", "/nowhere/log", "--allow-net=a.b"], "cannot write /nowhere/log"),
    ):
        done = subprocess.run(
            [CAPSULE, "run", *words, "true"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert said in done.stderr


def test_a_pool_has_no_list() -> None:
    """It says so when it is made."""
    with pytest.raises(capsule.PolicyError, match="a pool's capsules"):
        capsule.Pool(capsule.Policy(network=["a.b"]))


def test_it_ends_with_whoever_asked() -> None:
    """What dials is gone as soon as the supervisor is, however that ends."""
    with echo() as port:
        code = (
            "import capsule, time\n"
            f"with capsule.start(['sleep', '60'], network=['localhost:{port}']) as process:\n"
            "    print(process.pid, process._proxy.process.pid, flush=True); time.sleep(60)"
        )
        with subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE) as supervisor:
            assert supervisor.stdout is not None
            pids = [int(word) for word in supervisor.stdout.readline().split()]
            assert len(pids) == 2
            supervisor.kill()
        assert all(await_end(pid) for pid in pids)


def test_a_proxy_that_somebody_killed() -> None:
    """The program has no network any more; the run says that there is no account of it."""
    code = (
        "import socket, sys, time; one = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "one.sendall(b'x'); one.recv(1); print('up', flush=True); sys.stdin.read()\n"
        "try: print(one.recv(1))\nexcept OSError as error: print(error.errno)\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "except OSError as error: print(error.errno)"
    )
    with echo() as port:
        policy = capsule.Policy(network=[f"localhost:{port}"])
        args = [PYTHON, "-c", code, str(port)]
        with capsule.start(args, policy, stdin=capsule.PIPE) as process:
            assert await_line(process) == b"up\n"
            proxy: Any = process._proxy
            proxy.process.kill()
            proxy.process.wait()
            result = process.wait()
    assert result.stdout in (b"104\n111\n", b"b''\n111\n")
    assert "the proxy ended without an account of the network" in result.notes

"""Rows about the network: what a list of hosts costs at the start, for a connection and for bytes."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

import capsule

from .measure import Row, Verdict, interleave, timed
from .starts import TRUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .starts import Options

# A server that counts what it is sent, or answers a byte; in a process of its own.
SERVER = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
def serve(one):
    if one.recv(1) == b"s":
        buffer, taken = bytearray(1 << 20), 0
        while count := one.recv_into(buffer):
            taken += count
        one.sendall(str(taken).encode())
    else:
        one.sendall(b"x")
    one.close()
def run():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=run, daemon=True).start()
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
# Prints milliseconds for a new connection with a byte each way, and bytes in a second.
CLIENT = """
import socket, statistics, sys, time
port, size = int(sys.argv[1]), 1 << 30
def connect():
    return socket.create_connection(("127.0.0.1", port), 30)
def once():
    began = time.perf_counter()
    with connect() as one:
        one.sendall(b"p")
        one.recv(1)
    return time.perf_counter() - began
for _ in range(20):
    once()
taken = statistics.median(once() for _ in range(200))
with connect() as one:
    data = bytes(1 << 18)
    one.sendall(b"s")
    began = time.perf_counter()
    for _ in range(size // len(data)):
        one.sendall(data)
    one.shutdown(socket.SHUT_WR)
    assert int(one.recv(99)) == size
print(taken * 1000, size / (time.perf_counter() - began))
"""


def network_row(options: Options) -> Row:
    """The start with a list beside one without; a connection and bytes beside direct ones and peers."""
    listed = capsule.Policy(network=["allowed.example"])
    samples = interleave(
        {
            "with a list": lambda: timed(lambda: capsule.run(TRUE, listed, check=True)),
            "without": lambda: timed(lambda: capsule.run(TRUE, check=True)),
        },
        options.rounds,
    )
    figures: dict[str, float] = {}
    verdicts = []
    more = (samples["with a list"].median - samples["without"].median) * 1000
    verdicts.append(Verdict("ms more at the start", more, 3.0))
    with _server() as port:
        ways = _ways(port)
        told: dict[str, list[list[float]]] = {name: [] for name in ways}
        for _ in range(max(3, options.rounds // 20)):
            for name, way in ways.items():
                told[name].append([float(word) for word in way().split()])
    taken = {name: statistics.median(one[0] for one in found) for name, found in told.items()}
    speeds = {name: statistics.median(one[1] for one in found) / 1e9 for name, found in told.items()}
    figures |= {f"{name}, ms a connection": value for name, value in taken.items()}
    figures |= {f"{name}, GB/s": value for name, value in speeds.items()}
    verdicts.append(Verdict("ms more a connection", taken["capsule"] - taken["direct"], 0.3))
    aim = min(1.0, 0.5 * speeds["direct"])
    verdicts.append(Verdict("GB/s that are the aim / capsule", aim / speeds["capsule"], 1.0))
    return Row("network", "a list of hosts", samples, figures, verdicts)


def _ways(port: int) -> dict[str, Callable[[], str]]:
    client = [sys.executable, "-c", CLIENT]

    def direct() -> str:
        return subprocess.run([*client, str(port)], capture_output=True, text=True, check=True).stdout

    def in_capsule() -> str:
        rules = [f"localhost:{port}"]
        return str(capsule.run([*client, str(port)], network=rules, text=True, check=True).stdout)

    def by_socat() -> str:
        with subprocess.Popen(
            ["socat", "-t30", "-b262144", f"TCP-LISTEN:{port + 1},fork,bind=127.0.0.1,reuseaddr",
             f"TCP:127.0.0.1:{port}"]
        ) as proxy:  # fmt: skip
            try:
                words = ["sh", "-c", 'sleep 0.2; exec "$@"', "sh", *client, str(port + 1)]
                return subprocess.run(words, capture_output=True, text=True, check=True).stdout
            finally:
                proxy.terminate()

    ways = {"direct": direct, "capsule": in_capsule}
    return {**ways, "socat": by_socat} if shutil.which("socat") else ways


@contextlib.contextmanager
def _server() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.stdin.close()

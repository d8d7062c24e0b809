"""Judge many untrusted snippets on a cluster of dask.distributed, here one of two processes.

    pip install capsule distributed numpy
    python examples/judge.py

Each snippet runs in a capsule of its own: a Python that has numpy already, used once. What the
scheduler spreads are the executor and the snippets; each process of the cluster has its own
interpreters. What comes back is a verdict: no snippet can make this program run anything.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter

import dask
from distributed import Client, LocalCluster

import capsule

# Of every ten: two that do as they are told, and what else people hand in.
SNIPPETS = (
    "sum(range(N))",
    "import numpy\nfloat(numpy.arange(N).sum())",
    "1 / 0",
    "import os\nos.listdir('/home')",
    "open('/etc/shadow').read()",
    "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=1)",
    "while True: pass",
    "import os\nos._exit(7)",
    "b'x' * (100 << 20)",
    "import os, signal\nos.kill(1, signal.SIGKILL)\n'still here'",
)


def judge(executor: capsule.Executor, snippet: str, number: int) -> str:
    """Return what came of a snippet."""
    try:
        result = executor.submit_source(snippet, N=number).result()
    except capsule.CallFailed as error:
        return error.type
    except capsule.CommandFailed as error:
        return error.result.outcome.value
    return f"a result: {type(result).__name__}"


def main(count: int) -> None:
    """Judge so many, and print how often each verdict came."""
    executor = capsule.Executor(max_workers=2, preload=["numpy"], timeout=2)
    snippets = [SNIPPETS[number % len(SNIPPETS)] for number in range(count)]
    # What a cluster writes on disk goes with it.
    with (
        tempfile.TemporaryDirectory() as scratch,
        dask.config.set({"temporary-directory": scratch}),
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(judge, [executor] * count, snippets, range(count), pure=False)
        verdicts = Counter(client.gather(futures))
    executor.shutdown()
    for verdict, times in verdicts.most_common():
        print(f"{times:5}  {verdict}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)

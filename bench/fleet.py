"""Rows about many runs: a pool, threads that share one, Python functions."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import capsule

from .measure import Row, Verdict, interleave, timed
from .starts import TRUE, in_capsule, in_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from .measure import Sample
    from .starts import Options

MANY = 8
SNIPPET = "import numpy\nfloat(numpy.arange(10).sum())"


def pool_row(options: Options) -> Row:
    """A run that finds a capsule ready beside a bare one: where the directory is shown, where not."""
    title = "Pool.run([true]), the pool full, default policy"
    with contextlib.chdir("/"):
        samples = _pooled(options.rounds)
    shown = _pooled(options.rounds)
    samples |= {f"{name}, in a project": sample for name, sample in shown.items()}
    ratio = samples["pool"].median / samples["subprocess.run"].median
    figures = {
        "in a project, pool / subprocess.run": shown["pool"].median / shown["subprocess.run"].median
    }
    verdicts = [Verdict("pool / subprocess.run", ratio, 1.6)]
    return Row("pool", title, samples, figures, verdicts)


def _pooled(rounds: int) -> dict[str, Sample]:
    with capsule.Pool(size=4) as pool:

        def full(action: Callable[[], object]) -> Callable[[], float]:
            """Nobody makes a capsule meanwhile, whoever has its turn."""

            def measure() -> float:
                pool.fill()
                return timed(action)

            return measure

        return interleave(
            {
                "pool": full(lambda: pool.run(TRUE, check=True)),
                "subprocess.run": full(lambda: subprocess.run(TRUE, check=True)),
            },
            rounds,
        )


def pool_threads_row(options: Options) -> Row:
    """Runs in a second from many threads that share a pool, beside runs without one."""
    title = f"runs of true from {MANY} threads that share a pool"
    counts: dict[str, list[float]] = {"pool": [], "capsule.run": []}
    with capsule.Pool(size=2 * MANY) as pool:
        for _ in range(max(3, options.rounds // 20)):
            pool.fill()
            counts["pool"].append(in_threads(lambda: pool.run(TRUE, check=True), MANY))
            pool.fill()
            counts["capsule.run"].append(in_threads(in_capsule, MANY))
    figures = {f"{name}, in a second": statistics.median(taken) for name, taken in counts.items()}
    pooled, cold = figures.values()
    verdict = Verdict("cold / pooled (1.2 times as many)", cold / pooled, 1 / 1.2)
    return Row("pool-threads", title, {}, figures, [verdict])


def executor_row(options: Options) -> Row:
    """A snippet in an interpreter that has numpy, beside a Python that imports it in a capsule."""
    title = "Executor.submit_source of a snippet of numpy"
    if importlib.util.find_spec("numpy") is None:
        return Row("executor", title, skipped="no numpy: pip install numpy")
    plain = [sys.executable, "-c", SNIPPET]
    with (
        capsule.Executor(max_workers=2, preload=["numpy"]) as single,
        capsule.Executor(max_workers=2, preload=["numpy"], share=True) as shared,
    ):

        def rested(executor: capsule.Executor) -> Callable[[], float]:
            def measure() -> float:
                time.sleep(0.3)  # an interpreter is ready by then
                return timed(lambda: executor.submit_source(SNIPPET).result())

            return measure

        samples = interleave(
            {
                "one for each call": rested(single),
                "shared": rested(shared),
                "capsule.run of python": lambda: timed(lambda: capsule.run(plain, check=True)),
            },
            max(10, options.rounds // 10),
        )
    most = samples["one for each call"].median * 1e3
    return Row("executor", title, samples, {}, [Verdict("one for each call, ms", most, 8)])

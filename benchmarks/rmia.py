"""Time and memory of RMIA's pairwise comparison, on random signals.

    python benchmarks/rmia.py --targets 200000 --population 40000
"""
import json
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import psutil
import typer

from one_shui.core.costs import watch_memory
from one_shui.evaluation.rmia import rmia_scores, rmia_votes


def resident_mb() -> float:
    "Resident memory of this process in MB"
    return psutil.Process().memory_info().rss / 1e6


def _seconds(work: Callable[[], object]) -> float:
    "How long a call takes"
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bench_rmia(
    targets: int,     # Attacked images
    population: int,  # Population images
    views: int = 1,   # Of each
    seed: int = 0,    # Of the scores
) -> dict[str, float]:  # seconds and peak_mb
    "Time and memory of `rmia_scores`, or of `rmia_votes` with several views"
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.uniform(.01, 1, shape)
    if views == 1: call, given = rmia_scores, (draw(targets), draw(targets, 2), draw(population), draw(population, 2))
    else: call, given = rmia_votes, (draw(targets, views), draw(targets, 2, views), draw(population, views), draw(population, 2, views))
    with watch_memory(False) as peak:
        started = time.perf_counter()
        call(*given)
        seconds = time.perf_counter() - started
    return dict(seconds=round(seconds, 3), peak_mb=round(peak[0], 1))


def main(
    targets: Annotated[int, typer.Option(help="Attacked images.", min=1)] = 200_000,
    population: Annotated[int, typer.Option(help="Population images.", min=1)] = 40_000,
    views: Annotated[int, typer.Option(help="Views of each image.", min=1)] = 1,
):
    "Time and memory of RMIA's comparison, on random signals; prints one JSON object."
    typer.echo(json.dumps(bench_rmia(targets, population, views)))


if __name__ == "__main__": typer.run(main)

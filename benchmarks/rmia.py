"""Time and memory of RMIA's pairwise comparison on random signals.

Run `python benchmarks/rmia.py --targets 200000 --population 40000`.
"""
import json
import time
from typing import Annotated

import numpy as np
import typer

from one_shui.core.costs import watch_memory
from one_shui.evaluation.rmia import rmia_scores, rmia_votes

app = typer.Typer(add_completion=False)
EXAMPLE = "Example: python benchmarks/rmia.py --targets 1000 --population 100"


def bench_rmia(
    targets: int,     # Attacked images
    population: int,  # Population images
    views: int = 1,   # Views per image
    seed: int = 0,    # Of the random signals
) -> dict[str, float]:  # seconds and peak_mb
    "Time and memory of `rmia_scores`, or of `rmia_votes` for several views"
    rng, last = np.random.default_rng(seed), () if views == 1 else (views,)
    shapes = (targets, *last), (targets, 2, *last), (population, *last), (population, 2, *last)
    signals = [rng.uniform(.01, 1, shape) for shape in shapes]
    attack = rmia_scores if views == 1 else rmia_votes
    with watch_memory(False) as peak:
        start = time.perf_counter()
        attack(*signals)
        seconds = time.perf_counter() - start
    return dict(seconds=round(seconds, 3), peak_mb=round(peak[0], 1))


@app.command(epilog=EXAMPLE)
def main(
    targets: Annotated[int, typer.Option(help="Number of attacked images.", min=1)] = 200_000,
    population: Annotated[int, typer.Option(help="Number of population images.", min=1)] = 40_000,
    views: Annotated[int, typer.Option(help="Views per image.", min=1)] = 1,
):
    "Measure time and memory of RMIA's comparison on random signals; prints one JSON object."
    typer.echo(json.dumps(bench_rmia(targets, population, views)))


if __name__ == "__main__": app()

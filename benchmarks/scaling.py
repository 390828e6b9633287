"""How time and memory of each step grow with images, people, request size and parameters.

`measure_growth` takes every step of a run at several sizes, each in a process of its own. `growth` fits
t ~ images^a people^b N_S^c parameters^d: an exponent of 1 is linear, 0 is independent.
`predict_seconds` fits a sum of a fixed part and parts that grow, for sizes that were not measured.

    python benchmarks/scaling.py --out growth.csv
    python benchmarks/scaling.py --out growth.csv --only people=100,400 --method key_edit,scrub
"""
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Optional

import altair as alt
import numpy as np
import pandas as pd
import torch
import typer
from scipy.optimize import nnls
from tqdm.auto import tqdm

from one_shui.core.costs import watch_memory
from one_shui.core.errors import BadInput
from one_shui.core.files import write_text
from one_shui.data.writers import save_faces
from one_shui.data.toy import toy_faces
from one_shui.evaluation.rmia import rmia_scores
from one_shui.evaluation.metrics import compute_metrics
from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.experiments.method_setup import make_method
from one_shui.experiments.original import original_network
from one_shui.experiments.rows import predict_splits
from one_shui.methods.harness import apply_method, prepare_method
from one_shui.methods.registry import find_method


BASE = dict(photos=10, people=200, n_forget=20, width=32)


AXES: dict[str, list[int]] = dict(photos=[5, 10, 20], people=[100, 200, 400], n_forget=[5, 20, 60], width=[16, 32, 64])


METHODS = ("ssd", "pgu", "metaunlearn", "key_edit")  # Whose preparation and request are timed


class _Stopwatch:
    "Seconds and memory of the steps of one place"
    def __init__(self): self.rows: list[tuple[str, float, float]] = []

    def __call__(self, step: str, work: Callable, *given: Any) -> Any:
        with watch_memory(False) as peak:
            start = time.perf_counter()
            made = work(*given)
            seconds = time.perf_counter() - start
        self.rows.append((step, seconds, peak[0]))
        return made


def _attack(n: int, population: int) -> np.ndarray:
    "RMIA with two references, on made-up probabilities"
    draw = lambda *shape: np.random.default_rng(0).uniform(.01, 1, shape)
    return rmia_scores(draw(n), draw(n, 2), draw(population), draw(population, 2))


def _steps(place: dict[str, int], size: int, methods: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, float, float]]]:
    "Take every step of a run once: sizes of the place, and what each step took"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONE_SHUI_CACHE"] = str(Path(folder) / "cache")
        save_faces(toy_faces(n_people=place["people"], n_photos=place["photos"], size=size), folder, "celeba")
        config = Config(dataset="celeba", root=folder, n_forget=place["n_forget"], size=size, epochs=1, methods=methods,
                        arch_options=dict(width=place["width"]),
                        settings={name: dict(epochs=1) for name in methods if name == "metaunlearn"})
        images = watch("decode", load_image_sets, config)
        original, _ = watch("train an epoch", original_network, config, Path(folder), images, False, lambda _: None)
        asked = images.support, images.forget, images.retain, images.val
        for name in methods:
            method = make_method(config, name)
            artifact = watch(f"prepare {name}", prepare_method, method, original, images.train, images.val).artifact
            watch(f"forget with {name}", apply_method, method, original, artifact, *asked)
        answers = watch("ask", predict_splits, original, images)
        watch("score", compute_metrics, answers)
        watch("attack", _attack, len(images.forget) + len(images.test), len(images.val))
        sizes = dict(images=len(images.faces), people=place["people"], n_forget=place["n_forget"],
                     parameters=sum(p.numel() for p in original.parameters()))
    return sizes, watch.rows


def measure_growth(
    axes: Mapping[str, Iterable[int]] = AXES,   # Values of photos (a person), people, n_forget and width to try
    size: int = 64,                          # Side of an image in pixels
    methods: tuple[str, ...] = METHODS,      # Whose preparation and request are timed
    base: dict[str, int] = BASE,             # The place from which one thing at a time is varied
    progress: bool = False,                  # Show a bar
) -> pd.DataFrame:                           # Columns axis, images, people, n_forget, parameters, step, seconds, peak_mb
    "Time and memory of each step at each place, on one thread"
    if unknown := set(axes) - set(base): raise BadInput(f"can't vary {sorted(unknown)[0]}; choose from {', '.join(base)}")
    places = [(axis, {**base, axis: value}) for axis, values in axes.items() for value in values]
    rows, known = [], dict[str, tuple]()
    for axis, place in tqdm(places, disable=not progress, unit="place"):
        if (key := repr(place)) not in known:
            with ProcessPoolExecutor(1, get_context("forkserver")) as pool: known[key] = pool.submit(_steps, place, size, methods).result()
        sizes, steps = known[key]
        rows += [dict(axis=axis, **sizes, step=step, seconds=seconds, peak_mb=peak) for step, seconds, peak in steps]
    return pd.DataFrame(rows)


SIZES = ("images", "people", "n_forget", "parameters")


def growth(
    rows: pd.DataFrame,  # As from `measure_growth`, with at least two values on each axis
) -> pd.DataFrame:       # By step: constant (log seconds), an exponent for each of `SIZES`, mb_per_1000_images, mb_per_million_parameters
    "How each step grows; raises `BadInput` when something was never varied"
    if still := [name for name in SIZES if rows[name].nunique() < 2]:
        raise BadInput(f"{still[0]} was never varied, so its growth isn't known; measure more places")
    found = {}
    for step, part in rows.groupby("step", sort=False):
        ones = np.ones(len(part))
        powers = np.linalg.lstsq(np.column_stack([ones, np.log(part[list(SIZES)])]), np.log(part["seconds"]), rcond=None)[0]
        memory = np.linalg.lstsq(np.column_stack([ones, part["images"] / 1e3, part["parameters"] / 1e6]), part["peak_mb"], rcond=None)[0]
        found[step] = [*powers, *memory[1:]]
    return pd.DataFrame.from_dict(found, "index", columns=["constant", *SIZES, "mb_per_1000_images", "mb_per_million_parameters"])


def _parts(place) -> np.ndarray:
    "What time is a sum of"
    images, people, asked, parameters = (np.asarray(place[name], dtype=float) for name in SIZES)
    return np.stack([np.ones_like(images), images, images * parameters, asked * parameters, people], -1)


def predict_seconds(
    rows: pd.DataFrame,    # As from `measure_growth`
    place: dict[str, float],  # A value for each of `SIZES`
    speed: float = 1.,     # Of the machine there
) -> pd.Series:            # By step
    "Computed seconds of each step at another size"
    found = {}
    for step, part in rows.groupby("step", sort=False):
        seconds, parts = part["seconds"].to_numpy(), _parts(part)
        most = parts.max(0)  # so that the numbers to be found are of one size
        found[step] = nnls(parts / most / seconds[:, None], np.ones(len(part)))[0] @ (_parts(place) / most) / speed
    return pd.Series(found)


def growth_chart(
    rows: pd.DataFrame,  # As from `measure_growth`
    axis: str = "photos",  # Of `AXES`
) -> alt.TopLevelMixin:
    "Seconds of each step along one axis, on logarithmic paper"
    x, shown = dict(photos="images", people="images", n_forget="n_forget", width="parameters")[axis], rows[rows["axis"] == axis]
    ends = shown.groupby("step", sort=False)["seconds"].agg(["first", "last"])
    described = f"Seconds by {x}, first to last: " + "; ".join(f"{r.Index} {r.first:.3g} to {r.last:.3g}" for r in ends.itertuples())
    chart = alt.Chart(shown, width=420, height=280, title=f"Seconds of each step by {x}", description=described)
    return chart.mark_line(point=True).encode(
        alt.X(f"{x}:Q", scale=alt.Scale(type="log", nice=False)), alt.Y("seconds:Q", scale=alt.Scale(type="log")),
        alt.Color("step:N", sort=None, scale=alt.Scale(scheme="tableau20")), tooltip=["step", x, "seconds", "peak_mb"])


app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python benchmarks/scaling.py --out growth.csv --only people=100,400")
def main(
    out: Annotated[str, typer.Option(help="CSV to write, one row per step and setting.")],
    size: Annotated[int, typer.Option(help="Image side in pixels.", min=8)] = 64,
    method: Annotated[Optional[str], typer.Option(help="Methods, separated by commas; default: four that prepare.")] = None,
    only: Annotated[Optional[list[str]], typer.Option(
        help="NAME=VALUE,VALUE of photos, people, n_forget or width; default: all.")] = None,
):
    "Measure growth, write the rows and print the fitted exponents."
    names = METHODS if method is None else tuple(name.strip() for name in method.split(",") if name.strip())
    for name in names: find_method(name)
    try: axes = {name: [int(v) for v in values.split(",")] for name, values in (text.split("=") for text in only or [])} or AXES
    except ValueError as error: raise typer.BadParameter(f"{only}: {error}; write whole numbers, people=100,200") from error
    write_text(probe := Path(f"{out}.probe"), "")  # refused now, not after the work
    probe.unlink()
    rows = measure_growth(axes, size, names, progress=sys.stderr.isatty())
    write_text(out, rows.to_csv(index=False))
    try: typer.echo(growth(rows).round(2).to_string())
    except BadInput as error: typer.echo(f"measured; no growth is fitted: {error}")
    typer.echo(f"\n{len(rows)} rows: {out}")


if __name__ == "__main__": app()

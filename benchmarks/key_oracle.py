"""What a better key would gain on the real request of runs, with the retrained network in sight.

Run `python benchmarks/key_oracle.py runs/0 runs/1 --out keys.csv`; rows of other places in the file stay.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from one_shui.experiments.run import load_network, load_run
from one_shui.methods.key_edit.key_oracle import key_oracle

app = typer.Typer(add_completion=False)
EXAMPLE = "Example: python benchmarks/key_oracle.py runs/0 runs/1 --out keys.csv"
PLACE = ["dataset", "arch", "n_forget", "seed"]


def rows_of(folder: Path) -> pd.DataFrame:
    "One row per kind of key, for a run with the methods original and retrain"
    config, images, original = load_run(folder)
    sets = images.train, images.val, images.support, images.forget, images.retain, images.test
    with torch.inference_mode(): table = key_oracle(original, load_network(folder, "retrain"), *sets)
    place = {name: getattr(config, name) for name in PLACE}
    return table.round(3).rename_axis("key").reset_index().assign(**place)[[*PLACE, "key", *table]]


def with_rows(file: Path, rows: pd.DataFrame) -> pd.DataFrame:
    "The rows of a file and new ones, which replace rows of the same place"
    if not file.exists(): return rows
    old = pd.read_csv(file)
    known = pd.MultiIndex.from_frame(old[PLACE]).isin(pd.MultiIndex.from_frame(rows[PLACE]))
    return pd.concat([old[~known], rows]).sort_values(PLACE, kind="stable")


@app.command(epilog=EXAMPLE)
def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs with the methods original and retrain.")],
    out: Annotated[Path, typer.Option(help="CSV file to write or to extend.")],
):
    "The best edit of the last layer for keys that know more and more about a person."
    for folder in runs:
        with_rows(out, rows := rows_of(folder)).to_csv(out, index=False)
        typer.echo(f"{folder}\n{rows.set_index('key')[['gain', 'retain', 'forget', 'test']].round(1).to_string()}")


if __name__ == "__main__": app()

"""What a better key would gain on the real request of runs, with the retrained network in sight.

Run `python benchmarks/key_oracle.py runs/0 runs/1 --out keys.csv`.
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


@app.command(epilog=EXAMPLE)
def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs with the methods original and retrain.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
):
    "The best edit of the last layer for keys that know more and more about a person."
    tables = []
    for folder in runs:
        tables.append(rows := rows_of(folder))
        typer.echo(f"{folder}\n{rows.set_index('key')[['gain', 'retain', 'forget', 'test']].round(1).to_string()}")
        pd.concat(tables).to_csv(out, index=False)


if __name__ == "__main__": app()

"""What artifacts of each class tell whoever steals them, on the networks of runs with reserved images.

Run `python benchmarks/price_list.py runs/0 runs/1 --out prices.csv`.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from one_shui.data.face_set import FaceSet
from one_shui.experiments.artifact_prices import attack_artifact, attack_photos
from one_shui.experiments.run import load_run
from one_shui.methods.access import measure_access
from one_shui.methods.key_edit.group_edit import GroupEdit
from one_shui.methods.key_edit.method import KeyEdit
from one_shui.methods.key_edit.photo_edit import PhotoEdit
from one_shui.methods.harness import prepare_method

app = typer.Typer(add_completion=False)
EXAMPLE = "Example: python benchmarks/price_list.py runs/0 runs/1 --out prices.csv"
PLACE = ["dataset", "arch", "n_forget", "seed"]
FIXED = dict(n_forget=4, strength=(.1, 10., 1.))  # what an artifact tells does not depend on the strength
METHODS = {"key_edit, keeps-nothing": KeyEdit(**FIXED, keeps="nothing"), "photo_edit": PhotoEdit(**FIXED),
           "group_edit, k35": GroupEdit(**FIXED, smallest_group=35), "group_edit": GroupEdit(**FIXED),
           "group_edit, k5": GroupEdit(**FIXED, smallest_group=5), "key_edit": KeyEdit(**FIXED)}


def two_images_each(images: FaceSet) -> FaceSet:
    "At most two images of each person; the size of an artifact does not depend on more"
    table = pd.Series(images.identities).to_frame("person")
    return images.subset(table.groupby("person").head(2).index.to_numpy())


def rows_of(folder: Path) -> pd.DataFrame:
    "One row per method, for the network of a run"
    config, images, model = load_run(folder)
    photos, few, rows = attack_photos(model, images), [two_images_each(part) for part in (images.train, images.val)], []
    for name, method in METHODS.items():
        artifact = prepare_method(method, model, images.train, images.val).artifact
        report = measure_access(method, model, *few)
        (people, half), (all_bytes, half_bytes) = report.people, report.artifact_bytes
        rows.append(dict(method=name, access=report.measured, bytes=artifact.n_bytes, people=people,
                         bytes_per_person=(all_bytes - half_bytes) / (people - half), **attack_artifact(artifact, photos)))
    return pd.DataFrame(rows).round(3).assign(**{name: getattr(config, name) for name in PLACE})


@app.command(epilog=EXAMPLE)
def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs with reserved images (--reserve).")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
):
    "Size, singling out and membership for the artifacts of KeyEdit, PhotoEdit and GroupEdit."
    tables = []
    for folder in runs:
        with torch.inference_mode(): tables.append(rows := rows_of(folder))
        typer.echo(f"{folder}\n{rows.set_index('method').drop(columns=PLACE).to_string()}")
        table = pd.concat(tables)
        table[[*PLACE, *table.columns.drop(PLACE)]].to_csv(out, index=False)


if __name__ == "__main__": app()

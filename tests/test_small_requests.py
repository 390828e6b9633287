"""Requests of one person whose images show no attribute: some scores do not exist."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from one_shui.data.readers import read_faces
from one_shui.data.splits import make_splits
from one_shui.experiments.config import Config
from one_shui.experiments.results import result_table, save_report, summary
from one_shui.experiments.run import run


@pytest.fixture(scope="module")
def beards(tmp_path_factory):
    "A folder with 24 people, of whom every third one has a beard, and a seed whose forget identity has none"
    folder, rng, rows = tmp_path_factory.mktemp("beards"), np.random.default_rng(0), []
    for person in range(24):
        for k in range(8):
            name = f"{person:02}-{k}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
            rows.append(dict(path=name, identity=f"p{person:02}", beard=int(person % 3 == 0)))
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    faces = read_faces("own", folder)
    for seed in range(20):
        forget = make_splits(faces, n_forget=1, seed=seed).request.forget
        if not faces.targets[forget].any(): return folder, seed
    raise AssertionError("every forget identity has a beard")


def test_a_request_without_an_attribute_keeps_its_rows(beards, tmp_path):
    folder, seed = beards
    config = Config("own", str(folder), n_forget=1, seed=seed, size=16, epochs=1, arch_options=dict(width=8),
                    methods=("original", "retrain", "gradient_ascent"))
    rows = run(config, tmp_path / "run", log=lambda _: None)
    splits = rows[rows["metric"] == "mAP"].groupby("method")["split"].apply(set)
    assert all("forget" not in names and "retain" in names for names in splits), splits.to_dict()
    assert "ToW" not in set(rows["metric"])
    assert set(rows.query("split == 'forget' and metric == 'loss'")["method"]) == set(config.methods)
    assert save_report(rows, config, tmp_path / "run").exists()
    assert result_table(rows).loc["gradient_ascent", "forget"] == "–"
    assert any(sentence.startswith("ToW is not defined") for sentence in summary(rows))

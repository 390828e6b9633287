"""A run folder of version 0.1.0 is reopened, measured again and extended."""
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from one_shui.core.errors import BadInput
from one_shui.evaluation.predictions import Predictions
from one_shui.experiments.config import Config
from one_shui.experiments.folder import predictions_file, read_config
from one_shui.experiments.rows import COLUMNS, read_results
from one_shui.experiments.run import load_network, load_run, open_run, rescore, run, try_methods
from one_shui.methods.registry import find_method

FIXTURE = Path(__file__).parent / "fixtures" / "v0.1.0" / "run"
SAMPLE = Path(__file__).parents[1] / "data" / "sample"
EXACT = ["method", "split", "metric"]


@pytest.fixture
def folder(tmp_path) -> Path:
    "A copy of the run, with the dataset where it is in this repository"
    shutil.copytree(FIXTURE, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(dict(values, root=str(SAMPLE))))
    return tmp_path / "run"


def same_config() -> Config:
    "The config of the run, under present names of settings"
    values = json.loads((FIXTURE / "config.json").read_text())
    settings = dict(values["settings"], amun=dict(with_support_images=True))
    return Config(**{**values, "root": str(SAMPLE), "methods": tuple(values["methods"]), "settings": settings})


def test_settings_are_read_under_their_present_names(folder):
    assert read_config(folder) == same_config()


def test_nothing_is_computed_again(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lines = []
    rows = run(same_config(), folder, log=lines.append)
    assert len(lines) == 1 and lines[0].startswith("already in")
    assert list(rows) == COLUMNS
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_metrics_have_their_present_names(folder):
    metrics = set(read_results(folder)["metric"])
    assert {"images read", "prepare images read"} <= metrics
    assert not any("picture" in name for name in metrics)


def test_another_setting_is_still_refused(folder):
    changed = Config(**{**vars(same_config()), "settings": dict(amun=dict(with_support_images=False))})
    with pytest.raises(BadInput, match="holds (amun|metaunlearn) with settings"): run(changed, folder)


def test_the_run_and_its_networks_open(folder):
    config, images, original = load_run(folder)
    assert config == same_config() and len(images.support) == 2
    for name in config.methods:
        network = load_network(folder, name)
        assert not network.training
        assert predictions_file(folder, name).name == f"{name}-answers.parquet"
    stored = Predictions.load(predictions_file(folder, "original"))
    assert stored.split("forget").score == pytest.approx(open_run(folder).predictions("original").split("forget").score)


def test_scores_are_computed_again(folder):
    old, new = read_results(folder), rescore(folder)
    both = old.merge(new, on=EXACT, suffixes=("", "_new"))
    assert len(both) == len(old)
    added = new.merge(old, on=EXACT, how="left", indicator=True).query("_merge == 'left_only'")
    assert set(added["metric"]) == {"update attack AUC"}, "the old files have no predictions on support images"
    for name in ("value", "low", "high"):
        pd.testing.assert_series_equal(both[name], both[f"{name}_new"], check_names=False, rtol=1e-6)
    assert "images read" in (folder / "results.csv").read_text()
    assert "pictures" not in (folder / "results.csv").read_text()


def test_a_method_is_added_and_one_is_tried(folder):
    old = same_config()
    more = Config(**{**vars(old), "methods": ("original", "masked_ascent"), "settings": {}})
    rows = run(more, folder, log=lambda line: None)
    assert list(rows["method"].unique()) == [*old.methods, "masked_ascent"]
    assert (folder / "masked_ascent-predictions.parquet").exists()
    assert read_config(folder).settings == old.settings
    tried = try_methods(folder, {"small step": find_method("gradient_ascent")(lr=1e-6)})
    assert list(tried["method"].unique())[-1] == "small step"


def test_an_artifact_is_read(folder):
    before = (folder / "ssd-artifact.safetensors").read_bytes()
    assert open_run(folder).prepare("ssd").cost.images_read > 0
    assert (folder / "ssd-artifact.safetensors").read_bytes() == before

"""Every benchmark runs at a tiny size and prints what it should."""
import json
from pathlib import Path

import pandas as pd
import pytest
from processes import run_script

from one_shui.experiments.config import Config
from one_shui.experiments.run import run as run_config

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(name: str, *arguments) -> str:
    "Run a benchmark in a process of its own; returns what it prints"
    done = run_script(FOLDER / f"{name}.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["key_oracle", "loaders", "meta_gradient", "price_list", "rmia", "scaling"])
def test_help_shows_an_example(name):
    assert f"python benchmarks/{name}.py" in " ".join(run(name, "--help").split())


@pytest.mark.parametrize("views", [1, 2])
def test_rmia(views):
    printed = run("rmia", "--targets", 1000, "--population", 100, "--views", views)
    assert set(json.loads(printed)) == {"seconds", "peak_mb"}


def test_loaders(drawn):
    arguments = ("--root", drawn, "--rounds", 1, "--size", 32, "--memory-images", 500)
    results = json.loads(run("loaders", *arguments))
    assert set(results) == {"cache_seconds", "pil_per_second", "batched_per_second", "ratio",
                            "step_overhead", "rss_growth_mb"}
    assert results["ratio"] > 0


def test_meta_gradient():
    size = ("--size", 16, "--people", 2, "--batches", 1, "--batch-size", 4, "--rounds", 1)
    results = json.loads(run("meta_gradient", "--arch", "small_cnn", *size))
    assert results["forward_mode"]["passes"] > 0
    assert results["max_relative_difference"] < 1e-3


def test_scaling(tmp_path):
    file = tmp_path / "growth.csv"
    arguments = ("--size", 16, "--only", "people=60", "--method", "gradient_ascent")
    assert "no growth is fitted" in run("scaling", "--out", file, *arguments)
    rows = pd.read_csv(file)
    assert set(rows["people"]) == {60} and (rows["seconds"] > 0).all()


def test_key_oracle(tmp_path):
    run_config(Config.tiny(methods=("original", "retrain"), settings={}, metrics=("score",)), tmp_path / "run", log=lambda _: None)
    printed = run("key_oracle", tmp_path / "run", "--out", tmp_path / "keys.csv")
    rows = pd.read_csv(tmp_path / "keys.csv")
    assert len(rows) == 7 and all(key in printed for key in rows["key"])
    kept = rows[["retain", "test"]].min(axis=1)
    assert (rows["gain"] >= 0).all() and rows["gain"].max() > 0 and (kept >= -2).all()


def test_price_list(tmp_path):
    config = Config.tiny(methods=("original",), reserve=8, epochs=1, settings={}, metrics=("score",))
    run_config(config, tmp_path / "run", log=lambda _: None)
    run("price_list", tmp_path / "run", "--out", tmp_path / "prices.csv")
    rows = pd.read_csv(tmp_path / "prices.csv").set_index("method")
    assert rows.loc["photo_edit", ["access", "bytes_per_person"]].to_list() == ["statistics", 0]
    assert rows.loc["key_edit", "access"] == "record" and rows["singled out"].notna().sum() == 4

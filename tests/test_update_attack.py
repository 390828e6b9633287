"""The attack on two versions of a network: known movements, and what a run stores for it."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from one_shui.core.errors import BadInput
from one_shui.data.task import Task
from one_shui.evaluation.metrics import MetricInputs, compute_metrics, support_update_attack_auc, update_attack_auc
from one_shui.evaluation.predictions import Predictions
from one_shui.evaluation.update_attack import update_attack, update_attack_on_support
from one_shui.experiments.config import Config
from one_shui.experiments.rows import SETS, read_results
from one_shui.experiments.run import open_run, rescore, run

PEOPLE = dict(retain=6, forget=3, val=4, test=4, support=3)
PHOTOS = dict(support=1)


def made(movement, seed=0, parts=tuple(PEOPLE)) -> Predictions:
    "Random predictions whose first logit was moved: by a number for each set, or for each of its images"
    rng, tables = np.random.default_rng(seed), []
    for name in PEOPLE:
        n = PEOPLE[name] * PHOTOS.get(name, 4)
        owner = "forget" if name == "support" else name
        columns = dict(set=name, image=np.arange(n), identity=np.repeat([f"{owner} {k}" for k in range(PEOPLE[name])], n // PEOPLE[name]))
        columns |= {f"target_{k}": rng.integers(0, 2, n) for k in range(2)}
        columns |= {f"logit_{k}": rng.normal(size=n) for k in range(2)}
        columns["logit_0"] = columns["logit_0"] + np.asarray(movement.get(name, 0.))
        if name in parts: tables.append(pd.DataFrame(columns))
    return Predictions(Task("multi-label", ("a", "b")), pd.concat(tables, ignore_index=True))


def test_the_larger_movement_is_that_of_the_forget_identities():
    before = made({})
    assert update_attack(before, made(dict(forget=2., retain=1.)))[0] == 1
    assert update_attack(before, made(dict(forget=-2., retain=1.)))[0] == 1, "the direction of a movement plays no role"
    assert update_attack(before, made(dict(forget=1., retain=2.)))[0] == 0
    assert update_attack(before, before) == (.5, .5, .5)


def test_people_are_compared_and_not_images():
    one_image_moved_far = np.tile([8., 0, 0, 0], 3)  # mean 2 of each person; three of four images did not move
    assert update_attack(made({}), made(dict(forget=one_image_moved_far, retain=1.)))[0] == 1


def test_the_interval_draws_people():
    moved = dict(forget=np.repeat([1., 2, 6], 4), retain=np.repeat([1., 2, 3, 4, 5, 0], 4))
    auc, low, high = update_attack(made({}), made(moved), draws=500)
    assert low < auc < high
    one = Predictions(made({}).task, made({}).table.query("set != 'forget' or identity == 'forget 0'"))
    assert np.isnan(update_attack(one, one)[1:]).all(), "one person has no interval"


def test_the_control_compares_support_images_with_non_members():
    before, after = made({}), made(dict(support=2., test=1., forget=9.))
    assert update_attack_on_support(before, after)[0] == 1
    assert update_attack_on_support(before, made(dict(support=1., test=2., forget=9.)))[0] == 0


def test_metrics_are_in_percent_and_left_out_where_they_cannot_be_computed():
    before, after = made({}), made(dict(forget=2., retain=1., support=1., test=2.))
    assert update_attack_auc(MetricInputs(after, before))[0] == 100
    assert support_update_attack_auc(MetricInputs(after, before))[0] == 0
    assert np.isnan(update_attack_auc(MetricInputs(after))) and np.isnan(support_update_attack_auc(MetricInputs(after)))
    old = made({}, parts=SETS)  # stored before support images were
    for pair in ((after, old), (made(dict(forget=2., retain=1.), parts=SETS), before)):
        found = set(compute_metrics(*pair, draws=5)["metric"])
        assert "update attack AUC" in found and "update attack AUC on support" not in found


def test_two_runs_are_not_compared():
    other = made({})
    with pytest.raises(BadInput, match="compare networks of one run"):
        update_attack(made({}), replace(other, table=other.table.assign(identity=other.table["identity"].to_numpy()[::-1])))
    few = Predictions(other.task, other.table.drop_duplicates(["set", "identity"]))
    with pytest.raises(BadInput, match="of 12 images before the request and of 3 other images"): update_attack(other, few)


def test_a_run_stores_support_images_and_does_not_score_them(tmp_path):
    config = Config.tiny(epochs=2, methods=("original", "retrain", "gradient_ascent"), settings={},
                         metrics=("score", "update attack AUC", "update attack AUC on support"))
    run(config, tmp_path, log=lambda _: None)
    rows, ours = read_results(tmp_path), ["update attack AUC", "update attack AUC on support"]
    assert "support" not in set(rows["split"])
    values = rows[rows["metric"].isin(ours)].pivot(index="method", columns="metric", values="value")
    assert (values.loc["original"] == 50).all() and (values.loc["retrain"] != 50).any()
    support = open_run(tmp_path).predictions("retrain").split("support")
    assert len(support.logits) == config.n_forget and torch.isfinite(support.logits).all()
    again = rescore(tmp_path)
    assert again[again["metric"].isin(ours)]["value"].tolist() == pytest.approx(rows[rows["metric"].isin(ours)]["value"].tolist())


def test_predictions_without_support_images_are_scored_as_before(tmp_path):
    config = Config.tiny(epochs=1, methods=("original", "retrain"), settings={})
    run(config, tmp_path, log=lambda _: None)
    file = tmp_path / "retrain-predictions.parquet"
    whole = Predictions.load(file)
    replace(whole, table=whole.table.query("set != 'support'")).save(file)
    before, after = read_results(tmp_path), rescore(tmp_path)
    lost = before.merge(after, on=["method", "split", "metric"], how="left", suffixes=("", " again"))
    lost = lost[lost["value again"].isna()]
    assert lost[["method", "metric"]].values.tolist() == [["retrain", "update attack AUC on support"]]

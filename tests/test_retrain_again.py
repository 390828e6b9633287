"""The second retraining: another seed, the same images, and a line of its own in tables and charts."""
from dataclasses import replace

import pandas as pd
import pytest

from one_shui.core.errors import BadInput
from one_shui.experiments.audit_charts import _shown_methods, cost_chart
from one_shui.experiments.audit_references import Reference, unlearn_reference
from one_shui.experiments.audit_tables import audit_differences, audit_table, metric_correlations
from one_shui.experiments.config import Config
from one_shui.experiments.results import summary, tow_chart
from one_shui.experiments.rows import read_results
from one_shui.experiments.run import load_network, load_run, run
from one_shui.experiments.stream import stream
from one_shui.experiments.tables import with_gain
from one_shui.methods.registry import METHODS, REFERENCE_LINES
from one_shui.models.files import weights_digest
from one_shui.scale.grid import GRIDS
from one_shui.scale.jobs import unlearn_job
from one_shui.scale.run_grid import step_epochs

CONFIG = Config.tiny(epochs=3, methods=("original", "retrain", "retrain_again", "gradient_ascent"), settings={}, metrics=("score",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run(CONFIG, out := tmp_path_factory.mktemp("again") / "run", log=lambda _: None)
    return out


def digest(folder, name): return weights_digest(load_network(folder, name).state_dict())


def test_it_is_the_retraining_of_a_run_with_another_seed(folder, tmp_path):
    run(replace(CONFIG, train_seed=3, methods=("original", "retrain")), tmp_path, log=lambda _: None)
    assert digest(folder, "retrain_again") == digest(tmp_path, "retrain") != digest(folder, "retrain")


def test_tables_show_what_another_retraining_scores(folder):
    rows = read_results(folder)
    tow = rows[rows["metric"] == "ToW"].set_index("method")
    assert tow.loc["retrain", "value"] == 100 and 0 < tow.loc["retrain_again", "value"] < 100
    assert set(rows[rows["method"] == "retrain_again"]["access"]) == {"full"}
    gained = with_gain(rows.assign(variant="")).query("metric == 'ToW gained'").set_index("method")["value"]
    assert gained["retrain_again"] == pytest.approx(tow.loc["retrain_again", "value"] - tow.loc["original", "value"])
    chart = tow_chart(rows).to_dict()
    assert chart["title"] == "Tug of War (dashed: original network; dotted: a second retraining)" and len(chart["layer"]) == 3
    assert "dotted" not in tow_chart(rows[rows["method"] != "retrain_again"]).to_dict()["title"]


def test_it_is_a_line_and_no_method_to_rank(folder):
    values = dict(original=70., retrain=100., gradient_ascent=75., ssd=72., key_edit=90., jit=60., retrain_again=97.)
    nan = float("nan")
    rows = pd.DataFrame([dict(method=name, metric=metric, value=value - k, access="full", seconds=1., seed=0, low=nan, high=nan)
                         for k, metric in enumerate(("ToW", "RMIA AUC", "gap to val", "RF-JSD", "blind loss attack AUC"))
                         for name, value in values.items()])
    assert _shown_methods(rows, rows) == ("original", "retrain", "retrain_again", "key_edit", "gradient_ascent", "ssd")
    assert list(audit_table(rows, rows[:0]).index)[:4] == ["original", "retrain", "retrain_again", "key_edit"]
    assert "retrain_again" not in set(cost_chart(rows).to_dict()["description"].replace(":", " ").split())
    without = rows[rows["method"] != "retrain_again"]
    pd.testing.assert_series_equal(metric_correlations(rows), metric_correlations(without))
    differences = audit_differences(rows).query("metric == 'RMIA AUC'").set_index("method")["difference"]
    assert differences["retrain_again"] == -3, "how far a second retraining is from the first"
    assert not any("retrain_again" in sentence for sentence in summary(read_results(folder)) if "comes closest" in sentence)


def test_references_of_an_audit_are_not_retrained(folder):
    config, images, original = load_run(folder)
    for kind in ("all", "limited", "none"):
        assert unlearn_reference(config, "retrain_again", Reference(original, images.retain), images, 1, kind) is original


def test_a_stream_has_no_retraining(folder):
    for name in ("retrain", "retrain_again"):
        with pytest.raises(BadInput, match=f"{name} starts afresh"): stream(folder, (name,), 1, log=lambda _: None)


def test_grids_of_all_methods_have_it():
    assert set(REFERENCE_LINES) < set(METHODS)
    for name in ("toy", "celeba-subset"): assert "retrain_again" in GRIDS[name].methods
    assert "retrain_again" not in GRIDS["mufac"].methods
    jobs = [unlearn_job(replace(CONFIG, methods=(name,)), name) for name in ("retrain", "retrain_again")]
    assert len({job.step.address for job in jobs}) == 2, "a store keeps them apart"
    assert step_epochs(jobs[1]) == step_epochs(jobs[0]) > CONFIG.to_recipe().epochs, "its cost is that of a training"

"""Differences from retraining and from another method, against numbers computed by hand."""
import numpy as np
import pandas as pd
import pytest

from one_shui.core.errors import BadInput
from one_shui.core.intervals import paired_interval
from one_shui.experiments.audit_tables import audit_differences, differences_table

PLACE = dict(dataset="toy", arch="small_cnn", n_forget=20, split="forget", variant="")


def rows_of(metric, **methods):
    "A value of each method on each seed"
    return pd.DataFrame([dict(PLACE, metric=metric, method=name, seed=seed, value=value)
                         for name, values in methods.items() for seed, value in enumerate(values) if value is not None])


def test_differences_are_paired_by_seed_and_place():
    auc = dict(retrain=[50., 60, 40], key_edit=[70., 82, 59], ssd=[80., None, 90])
    results, audits = rows_of("loss attack AUC", retrain=[50.], key_edit=[40.]), rows_of("RMIA AUC", **auc)
    another = audits.assign(n_forget=5, value=audits["value"] + audits["seed"])
    found = audit_differences(results, pd.concat([audits, another])).set_index(["n_forget", "metric", "method"])
    row = found.loc[(20, "RMIA AUC", "key_edit")]
    assert row["seeds"] == 3 and (row["difference"], row["half"]) == pytest.approx(paired_interval(auc["key_edit"], auc["retrain"]))
    assert found.loc[(5, "RMIA AUC", "key_edit"), "difference"] == row["difference"], "both networks of a place are higher there"
    few = found.loc[(20, "RMIA AUC", "ssd")]
    assert few["seeds"] == 2 and few["difference"] == (30 + 50) / 2
    one = found.loc[(20, "loss attack AUC", "key_edit")]
    assert one["difference"] == -10 and np.isnan(one["half"])
    assert "retrain" not in found.index.get_level_values("method")


def test_a_difference_from_nothing_is_refused():
    with pytest.raises(BadInput, match="need rows of retrain"): audit_differences(rows_of("RMIA AUC", ssd=[1.]))


def test_metrics_that_have_no_reference_are_left_out():
    rows = pd.concat([rows_of(name, retrain=[1.], ssd=[2.]) for name in ("ToW", "RF-JSD", "RMIA a", "linkage AUC")])
    assert set(audit_differences(rows)["metric"]) == {"linkage AUC"}


def test_the_table_names_variants_and_seeds():
    rows = rows_of("RMIA AUC", retrain=[50., 50, 50], ssd=[60., 61, 62])
    strong = rows[rows["method"] == "ssd"].assign(variant="strong", value=[70., 70, 70])
    table = differences_table(audit_differences(pd.concat([rows, strong])))
    assert table["RMIA AUC"].to_dict() == {("ssd", ""): "+11.0 ± 2.5 (3)", ("ssd", "strong"): "+20.0 ± 0.0 (3)"}
    assert differences_table(audit_differences(rows[rows["seed"] < 2]))["RMIA AUC"].to_dict() == {"ssd": "+10.5 (2)"}
    with pytest.raises(BadInput, match="choose one dataset"):
        differences_table(audit_differences(pd.concat([rows, rows.assign(n_forget=5)])))

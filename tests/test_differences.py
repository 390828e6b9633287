"""Differences from retraining and from another method, against numbers computed by hand."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from one_shui.core.errors import BadInput
from one_shui.core.intervals import holm, paired_interval, paired_p_value
from one_shui.experiments.audit_tables import audit_differences, differences_table
from one_shui.experiments.tables import paired_gains

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


@pytest.mark.parametrize(("given", "corrected"), [
    ([.01, .04, .03, .005], [.03, .06, .06, .02]),  # ascending: 4 x .005, 3 x .01, 2 x .03, and .04 raised to the one before
    ([.02, .02], [.04, .04]), ([.9, .8], [1, 1]), ([.3], [.3]), ([], []), ([.01, np.nan, .02], [.02, np.nan, .02])])
def test_holm_by_hand(given, corrected):
    np.testing.assert_allclose(holm(given), corrected, rtol=1e-12)


@pytest.mark.parametrize("wrong", [[1.1], [-.1, .5], [np.inf]])
def test_what_is_no_p_value_is_refused(wrong):
    with pytest.raises(BadInput, match=r"they are in \[0, 1\]"): holm(wrong)


def test_p_values_fit_their_intervals():
    rng = np.random.default_rng(0)
    for shift in (0, .5, 1, 2):
        values, others = rng.normal(shift, 1, 5), rng.normal(0, 1, 5)
        mean, half = paired_interval(values, others)
        assert paired_p_value(values, others) == pytest.approx(stats.ttest_rel(values, others).pvalue)
        assert (paired_p_value(values, others) < .05) == (abs(mean) > half)
    assert paired_p_value([1., 2], [0., 1]) == 0, "the same difference on every seed"
    with pytest.raises(BadInput, match="can't be paired"): paired_p_value([1.], [1., 2])


def test_paired_gains_of_a_small_table():
    tow = rows_of("ToW", original=[70., 75, 80], retrain=[100.] * 3, retrain_again=[97.] * 3, ssd=[71., 77, 83], jit=[70., 75, 80],
                  pgu=[60., None, None])
    strong = tow[tow["method"] == "ssd"].assign(variant="strong", value=[80., 90, 85])
    found = paired_gains(pd.concat([tow, strong, rows_of("loss", ssd=[1.])]))
    assert list(found.index) == [("ssd", "strong"), ("ssd", ""), ("jit", ""), ("pgu", "")]
    assert found["seeds"].tolist() == [3, 3, 3, 1] and found["gain"].tolist() == pytest.approx([10, 2, 0, -10])
    p = [paired_p_value(values, [0.] * 3) for values in ([10., 15, 5], [1., 2, 3])]
    assert found["p"].tolist() == pytest.approx([*p, 1, np.nan], nan_ok=True)
    first, second = 3 * min(p), max(3 * min(p), 2 * max(p))  # three tests; one seed is none
    assert sorted(found["p (Holm)"].dropna()) == pytest.approx([first, second, 1])
    over = paired_gains(tow, "ssd")
    assert over["gain"].to_dict() == pytest.approx({"jit": -2, "pgu": -11}) and "original" not in over.index
    with pytest.raises(BadInput, match="no method has a ToW where 'original' has one"):
        paired_gains(tow[tow["method"].isin(["original", "retrain", "retrain_again"])])


def test_places_are_lines_and_not_repetitions():
    tow = rows_of("ToW", original=[70., 75, 80], ssd=[71., 77, 83])
    found = paired_gains(pd.concat([tow, tow.assign(n_forget=5, value=tow["value"] * 2)]))
    assert found["seeds"].tolist() == [3, 3] and found["gain"].to_dict() == {(5, "ssd"): 4, (20, "ssd"): 2}

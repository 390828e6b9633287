"""Attacks on networks with known membership, and what they refuse."""
import copy
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from one_shui.evaluation.attacks import auc_interval, blind_loss_attack, loss_attack
from one_shui.evaluation.attacks import roc, threshold_attack
from one_shui.evaluation.rmia import membership_signal, rmia_scores, rmia_votes
from one_shui.experiments.audit import audit
from one_shui.experiments.audit_metrics import Audit, attack, identity_metrics
from one_shui.experiments.audit_references import Reference, unlearn_reference
from one_shui.experiments.audit_metrics import view_signals
from one_shui.cli.main import main
from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.experiments.run import load_network, load_run, run
from one_shui.evaluation.identity import relearn
from one_shui.evaluation.ulira import confidence, ulira, ulira_interval
from one_shui.models.networks import ModelSpec, create_model
from one_shui.core.intervals import paired_interval
from one_shui.evaluation.scores import predict
from one_shui.core.errors import BadInput
from one_shui.data.task import Task, image_losses
from one_shui.training.fit import fit

RUN = Config.tiny(epochs=25, n_forget=8, methods=("original", "retrain", "gradient_ascent"), settings=dict(gradient_ascent=dict(lr=0.)),
                  toy=dict(n_people=60, n_photos=10, size=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A run whose ascent has a step of zero: weights restored, nothing forgotten"
    out = tmp_path_factory.mktemp("audit") / "run"
    run(RUN, out, log=lambda _: None)
    return out


@pytest.fixture(scope="module")
def audited(folder):
    "What the run and its audit found on the forget images"
    found = pd.concat([pd.read_csv(folder / "results.csv").query("split == 'forget'"), audit(folder, log=lambda _: None)])
    return lambda method, metric: found.query("method == @method and metric == @metric").iloc[0]


@pytest.fixture(scope="module")
def sets(folder):
    return load_run(folder)[1]


@pytest.fixture(scope="module")
def crowds(sets):
    "Networks by the dozen, quickly trained: with the forget people, without them, and without them from other starts"
    config = replace(RUN, epochs=12)
    def trained(on, seed):
        network = create_model(ModelSpec(config.arch, sets.faces.task.n_outputs, config.size, seed, config.arch_options))
        fit(network, on, sets.val, config.to_recipe(), seed)
        return network
    named = dict(original=(sets.train, range(6)), retrained=(sets.retain, range(6)), others=(sets.retain, range(6, 12)))
    found = {name: [trained(on, seed) for seed in seeds] for name, (on, seeds) in named.items()}
    restored = [unlearn_reference(RUN, "gradient_ascent", Reference(network, sets.train), sets, 0)
                for network in found["original"]]
    return {**found, "restored": restored}


def losses_of(network, sets):
    parts = {name: getattr(sets, name) for name in ("retain", "val", "forget", "test")}
    return {name: image_losses(sets.faces.task, predict(network, part), part.targets) for name, part in parts.items()}


def confidences(networks, sets):
    return np.stack([confidence(sets.faces.task, predict(network, sets.forget), sets.forget.targets) for network in networks])


def threshold(retain, val, forget, test):
    return threshold_attack(forget, test)


@pytest.mark.parametrize("attack_with", [threshold, loss_attack, blind_loss_attack])
def test_loss_attacks_tell_a_memory_from_none(folder, sets, attack_with):
    aucs = {name: attack_with(**losses_of(load_network(folder, name), sets)).auc for name in ("original", "retrain")}
    assert aucs["original"] > aucs["retrain"] + .1


@pytest.mark.parametrize("metric", ["RMIA AUC", "RMIA AUC of people", "linkage AUC", "probe accuracy"])
def test_audits_tell_a_memory_from_none(audited, metric):
    assert audited("original", metric)["value"] > audited("retrain", metric)["value"]


@pytest.mark.parametrize("metric", ["RMIA AUC", "RMIA AUC of people"])
def test_a_network_that_never_saw_them_stays_at_chance(audited, metric):
    found = audited("retrain", metric)
    assert found["low"] <= 50 <= found["high"]


@pytest.mark.parametrize("metric", ["RMIA AUC", "RMIA AUC of people", "linkage AUC", "probe accuracy", "support image relearn steps",
                                    "sibling relearn steps", "loss attack AUC", "blind loss attack AUC", "threshold AUC", "gap to val",
                                    "RF-JSD", "update attack AUC"])
def test_restored_weights_are_caught(audited, metric):
    "An unlearning that puts the old weights back looks like the original in every audit, and not like the retrained network"
    restored, original, retrained = (audited(name, metric)["value"] for name in ("gradient_ascent", "original", "retrain"))
    assert abs(restored - original) < .1 * abs(retrained - original)


def interval_of_loss(attack_with):
    def found(network, sets):
        owners, losses = (sets.forget.identities, sets.test.identities), losses_of(network, sets)
        if attack_with is threshold: return auc_interval(-losses["forget"], owners[0], -losses["test"], owners[1])
        return attack_with(**losses).interval(*owners)
    return found


@pytest.mark.parametrize("attack_with", [threshold, loss_attack, blind_loss_attack])
def test_loss_attacks_hold_chance_on_a_network_that_never_saw_them(crowds, sets, attack_with):
    for network in (crowds["retrained"][0], crowds["others"][0]):
        low, high = interval_of_loss(attack_with)(network, sets)
        assert low <= .5 <= high and low < high


def test_rmia_holds_chance_between_two_networks_trained_on_the_same_data(crowds, sets):
    def signals(network): return {name: view_signals(network, getattr(sets, name), 1, "likelihood") for name in ("forget", "test", "val")}
    ours, ref = signals(crowds["retrained"][0]), {name: s[:, None] for name, s in signals(crowds["others"][0]).items()}
    rows = attack(ours, ref, dict(forget=sets.forget.identities, test=sets.test.identities), 1.)
    intervals = {name: (low, high) for name, _, low, high in rows if "AUC" in name}
    assert set(intervals) == {"RMIA AUC", "RMIA AUC of people"}
    for low, high in intervals.values(): assert low <= 50 <= high


KNOWN = ("linkage AUC", "linkage AUC of non-members", "probe accuracy")


@pytest.fixture(scope="module")
def known(crowds, sets):
    "What each network's features know, in the order of `KNOWN`: (networks, 3) by crowd"
    def values(network): return [value for _, value, *_ in identity_metrics(network, sets)]

    return {name: np.array([values(network) for network in crowd]) for name, crowd in crowds.items()}


@pytest.mark.parametrize("k", range(len(KNOWN)), ids=KNOWN)
def test_features_of_networks_trained_on_the_same_data_know_as_much(known, k):
    "Linkage and probe have no chance of their own: what other starts give is it"
    difference, half = paired_interval(known["retrained"][:, k], known["others"][:, k])
    assert abs(difference) <= half


@pytest.mark.parametrize("name", ["original", "restored"])
def test_features_identify_members_and_non_members_no_better(known, name):
    gains = [paired_interval(known[name][:, k], known["retrained"][:, k]) for k in range(len(KNOWN))]
    (linked, _), (non_members, half), (named, _) = gains
    assert linked > max(0, non_members) and named > 0
    assert abs(non_members) <= half


def test_ulira_holds_chance_between_crowds_trained_on_the_same_data(crowds, sets):
    low, high = ulira_interval(*(confidences(crowds[name], sets) for name in ("retrained", "others")))
    assert low <= .5 <= high


@pytest.mark.parametrize("name", ["original", "restored"])
def test_ulira_tells_networks_apart(crowds, sets, name):
    "What a crowd of networks knows that saw the forget people, weights restored or not, shows against a crowd of retrained ones"
    both = [confidences(crowds[crowd], sets) for crowd in (name, "retrained")]
    success, curve = ulira(*both)
    assert success > .55 and curve.auc > .55 and ulira_interval(*both)[0] > .5


def test_hidden_memory_comes_back_faster(folder):
    "A last layer of noise hides the memory from scores, not from relearning"
    images, original = load_run(folder)[1:]
    hidden = copy.deepcopy(original)
    noise = torch.randn(hidden.head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): hidden.head.weight.copy_(.02 * noise)
    found = {name: relearn(network, images.support, images.forget, goal=.9, lr=3e-3).regained
             for name, network in dict(hidden=hidden, retrained=load_network(folder, "retrain")).items()}
    assert found["hidden"] > found["retrained"]


def test_knowing_a_single_person_needs_no_probe(folder):
    config = Config.tiny(n_forget=1)
    images, network = load_image_sets(config), load_network(folder, "original")
    found = {name: rest for name, *rest in identity_metrics(network, images)}
    assert list(found) == ["linkage AUC", "linkage AUC of non-members"]
    assert np.isfinite(found["linkage AUC"]).tolist() == [True, False, False]


def test_one_person_has_no_interval():
    low, high = auc_interval([1., 2], ["p"] * 2, [0., 1, 2], ["a", "b", "c"])
    assert np.isnan(low) and np.isnan(high)


def test_names_have_to_fit_their_scores():
    with pytest.raises(BadInput, match="members has 2 values and 1 names"): auc_interval([1., 2], ["p"], [0.], ["a"])


@pytest.mark.parametrize("attack_on", [threshold_attack, roc])
@pytest.mark.parametrize("bad, said", [([], "0 values"), ([float("nan")], "nan or infinite")])
def test_attacks_refuse_empty_and_nan(attack_on, bad, said):
    with pytest.raises(BadInput, match=said): attack_on(torch.tensor(bad), torch.tensor([1.]))


def test_nan_logits_are_refused():
    with pytest.raises(BadInput, match="nan or infinite"):
        membership_signal(Task("multi-class", ("a", "b")), torch.tensor([[float("nan"), 0]]), torch.tensor([0]))


@pytest.mark.parametrize("given, said", [
    (dict(p_x=[1.2]), "a probability is in"), (dict(p_x=[0.]), "a probability is in"), (dict(p_z=[]), "p_z has 0 values"),
    (dict(ref_x=[.5]), "expected 2 axes"), (dict(ref_x=[[.5], [.5]]), "doesn't fit"), (dict(a=2.), "a is 2"),
    (dict(gamma=0.), "gamma is 0")])
def test_rmia_refuses(given, said):
    good = dict(p_x=[.5], ref_x=[[.5]], p_z=[.5], ref_z=[[.5]])
    with pytest.raises(BadInput, match=said): rmia_scores(**{**good, **given})


def test_other_settings_are_refused(folder, audited):
    with pytest.raises(BadInput, match="holds an audit with views 5"): audit(folder, settings=Audit(views=2))


def test_an_even_number_of_views_can_tie_and_is_refused(folder, tmp_path):
    image, other = np.array([[.9, .4]]), np.array([[.4, .9]])  # one of two views exceeds
    references, population = np.full((1, 1, 2), .5), (np.full((1, 2), .5), np.full((1, 1, 2), .5))
    for view in (0, 1): assert {rmia_scores(x[:, view], references[..., view], *(p[..., view] for p in population))[0]
                                for x in (image, other)} == {0, 1}
    assert rmia_votes(image, references, *population) == rmia_votes(other, references, *population) == 0, "a tie says no for both"
    empty = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("audit*", "*-signals*"))
    with pytest.raises(BadInput, match=r"has to be odd; use 3 \(--views 3\)"): audit(empty, settings=Audit(views=2))
    assert not (empty / "audit.json").exists() and not list(empty.glob("*signals*"))


def test_an_audit_with_an_even_number_of_views_is_still_read(folder, audited, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "run")
    old = json.loads((copied / "audit.json").read_text())
    (copied / "audit.json").write_text(json.dumps(dict(old, views=4)))
    with pytest.raises(BadInput, match="views 4, this one has 5; use the same value to continue it"): audit(copied)
    rows = audit(copied, settings=Audit(views=4), log=lambda _: None)
    assert set(rows["method"]) == set(RUN.methods)


@pytest.fixture(scope="module")
def gatherer():
    spec = importlib.util.spec_from_file_location("gather", Path(__file__).parent.parent / "tools/gather.py")
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    return tool


def test_gathered_results_replace_all_rows_of_a_method_at_a_place_and_no_others(gatherer, tmp_path):
    key = gatherer.COLUMNS[:5]
    old = pd.DataFrame([("toy", "a", 5, 0, "both", "mAP", 2.), ("toy", "a", 5, 0, "both", "ToW", 3.),
                        ("toy", "a", 5, 0, "old", "mAP", 1.), ("toy", "a", 5, 1, "both", "mAP", 4.)], columns=[*key, "metric", "value"])
    old.to_csv(file := tmp_path / "sizes.csv", index=False)
    found = gatherer.joined(file, old.iloc[[0]].assign(value=9.), key)
    told = found[["seed", "method", "value"]].values.tolist()
    assert told == [[0, "both", 9.], [0, "old", 1.], [1, "both", 4.]]


def test_gathered_results_keep_what_a_figure_needs(folder, audited, gatherer):
    rows = gatherer.gather([folder]).query("split == 'forget'")
    wide = rows.pivot(index="method", columns="metric", values=["value", "low", "high"])
    assert wide["value"][["RMIA TPR", "RMIA TPR at FPR", "RMIA TPR of people", "RMIA TPR of people at FPR", "RMIA TPR at 1 % FPR",
                          "support image relearn steps", "sibling relearn steps", "linkage AUC of non-members"]].notna().all(axis=None)
    assert (wide["low"]["RMIA AUC"] < wide["high"]["RMIA AUC"]).all()


def test_the_command_writes_a_report(folder, audited, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["one-shui", "audit", str(folder)])
    with pytest.raises(SystemExit) as ended: main()
    assert ended.value.code == 0 and "RMIA AUC" in capsys.readouterr().out
    assert (folder / "audit.html").read_text(encoding="utf-8").count('role="img" aria-label="') == 4
    (folder / "results.csv").write_text(pd.read_csv(folder / "results.csv").assign(value=0.).to_csv(index=False))
    monkeypatch.setattr(sys, "argv", ["one-shui", "rescore", str(folder)])
    with pytest.raises(SystemExit) as ended: main()
    assert ended.value.code == 0
    assert pd.read_csv(folder / "results.csv").query("method == 'retrain' and metric == 'ToW'")["value"].iloc[0] == 100

"""Attacks on networks with known membership, and what they refuse."""
import copy
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from one_shui.attacks import auc_interval, blind_loss_attack, loss_attack, membership_signal, rmia_scores, roc, threshold_attack
from one_shui.audit import Audit, attack, audit, know, references, view_signals
from one_shui.cli import main
from one_shui.experiment import Config, load_network, load_pictures, load_run, run
from one_shui.identity import relearn
from one_shui.lira import confidence, ulira
from one_shui.scores import predict
from one_shui.task import BadInput, Task, picture_losses

RUN = Config.tiny(epochs=25, n_forget=8, methods=("original", "retrain", "gradient_ascent"), settings=dict(gradient_ascent=dict(lr=0.)),
                  toy=dict(n_people=60, n_photos=10, size=32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A run whose ascent has a step of zero: weights restored, nothing forgotten"
    out = tmp_path_factory.mktemp("audit") / "run"
    run(RUN, out, say=lambda _: None)
    return out


@pytest.fixture(scope="module")
def audited(folder):
    audits = audit(folder, say=lambda _: None)
    return lambda method, metric: audits.query("method == @method and metric == @metric").iloc[0]


@pytest.fixture(scope="module")
def losses(folder):
    pictures = load_run(folder)[1]
    def of(name):
        network = load_network(folder, name)
        return {part: picture_losses(pictures.faces.task, predict(network, (s := getattr(pictures, part))), s.targets)
                for part in ("retain", "val", "forget", "test")}
    return {name: of(name) for name in ("original", "retrain")}


LOSS_ATTACKS = dict(threshold=lambda of: threshold_attack(of["forget"], of["test"]).auc,
                    paper=lambda of: loss_attack(**of).auc, blind=lambda of: blind_loss_attack(**of).auc)


@pytest.mark.parametrize("name", LOSS_ATTACKS)
def test_loss_attacks_tell_a_memory_from_none(losses, name):
    assert LOSS_ATTACKS[name](losses["original"]) > LOSS_ATTACKS[name](losses["retrain"]) + .1


@pytest.mark.parametrize("metric", ["RMIA AUC", "RMIA AUC of people", "linkage AUC"])
def test_audits_tell_a_memory_from_none(audited, metric):
    assert audited("original", metric)["value"] > audited("retrain", metric)["value"]


@pytest.mark.parametrize("metric", ["RMIA AUC", "RMIA AUC of people"])
def test_a_network_that_never_saw_them_stays_at_chance(audited, metric):
    found = audited("retrain", metric)
    assert found["low"] <= 50 <= found["high"]


@pytest.mark.parametrize("metric", ["RMIA AUC", "RMIA AUC of people", "linkage AUC", "portrait relearn steps", "sibling relearn steps"])
def test_restored_weights_are_caught(audited, metric):
    "An unlearning that puts the old weights back looks like the original in every audit, and not like the retrained network"
    assert audited("gradient_ascent", metric)["value"] == pytest.approx(audited("original", metric)["value"], abs=1.)
    assert audited("gradient_ascent", metric)["value"] != pytest.approx(audited("retrain", metric)["value"], abs=1.)


def test_two_networks_trained_on_the_same_data_stay_within_chance(folder, losses):
    "Neither of two networks without the forget people gives them away: thresholds and RMIA hold chance in their intervals"
    config, pictures, _ = load_run(folder)
    forget, test = pictures.forget.identities, pictures.test.identities
    low, high = auc_interval(-losses["retrain"]["forget"], forget, -losses["retrain"]["test"], test)
    assert low <= .5 <= high
    (one, _), (two, _) = references(folder, config, pictures)
    sets = {name: getattr(pictures, name) for name in ("forget", "test", "val")}
    ours, ref = ({name: view_signals(network, s, 1, "likelihood") for name, s in sets.items()} for network in (one, two))
    rows, *_ = attack(ours, {name: s[:, None] for name, s in ref.items()}, dict(forget=forget, test=test), 1.)
    for metric, _, low, high in (rows[0], rows[3]): assert low <= 50 <= high, metric


def test_hidden_memory_comes_back_faster(folder):
    "A last layer of noise hides the memory from scores, not from relearning"
    pictures, original = load_run(folder)[1:]
    hidden = copy.deepcopy(original)
    noise = torch.randn(hidden.head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): hidden.head.weight.copy_(.02 * noise)
    found = {name: relearn(network, pictures.support, pictures.forget, goal=.9, lr=3e-3).regained
             for name, network in dict(hidden=hidden, retrained=load_network(folder, "retrain")).items()}
    assert found["hidden"] > found["retrained"]


def test_ulira_tells_networks_apart(folder):
    "Three networks with and three without the forget people: what a crowd of originals knows shows against a crowd of retrained ones"
    crowds = {"original": [], "retrain": []}
    for seed in range(3):
        out = folder.parent / f"pair-{seed}"
        config = Config.tiny(epochs=12, n_forget=8, train_seed=seed, methods=("original", "retrain"), settings={},
                             toy=dict(n_people=60, n_photos=10, size=32))
        run(config, out, say=lambda _: None)
        pictures = load_pictures(config)
        for name, crowd in crowds.items():
            logits = predict(load_network(out, name), pictures.forget)
            crowd.append(confidence(pictures.faces.task, logits, pictures.forget.targets))
    success, curve = ulira(*(np.stack(crowd) for crowd in crowds.values()))
    assert success > .55 and curve.auc > .55


def test_knowing_a_single_person_needs_no_probe(folder):
    config = Config.tiny(n_forget=1)
    pictures, network = load_pictures(config), load_network(folder, "original")
    assert [row[0] for row in know(network, pictures)] == ["linkage AUC"]


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
    with pytest.raises(BadInput, match="holds an audit with views 4"): audit(folder, settings=Audit(views=2))


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


def test_the_bench_prints_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["one-shui", "bench", "rmia", "--targets", "1000", "--population", "100"])
    with pytest.raises(SystemExit): main()
    assert {"seconds", "peak_mb"} == set(json.loads(capsys.readouterr().out))

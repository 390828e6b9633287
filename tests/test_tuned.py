"""Settings and strength chosen on simulated requests: every method by the same rule."""
import copy
import json
import math

import pytest
import torch

from one_shui.core.errors import BadInput
from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.experiments.run import load_run, run
from one_shui.evaluation.simulation import ProxyToW, simulate_requests
from one_shui.methods.access import measure_access
from one_shui.methods.contract import Artifact
from one_shui.methods.harness import apply_method, prepare_method
from one_shui.methods.registry import find_method, tuned_names
from one_shui.methods.tuned import best_candidates, candidate_settings, mean_scores, score_strengths

ONE = dict(candidates={}, requests=2, first_requests=1, strengths=(0., .5), sample=50, max_score_drop=100.)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A network and its sets, with reserved images"
    folder = tmp_path_factory.mktemp("run")
    config = Config.tiny(methods=("original", "retrain"), settings={}, epochs=1, reserve=8, metrics=("score",))
    run(config, folder, log=lambda line: None)
    return load_run(folder)[1:]


@pytest.mark.parametrize("name", tuned_names())
def test_every_method_can_be_tuned(place, name):
    "Four settings each; the network at a request is the original or the interpolation that was chosen"
    images, original = place
    kind = find_method(name)
    assert len(candidate_settings(kind.inner.search_space)) == 4
    quick = {"metaunlearn-tuned": dict(epochs=1, hidden=16), "jit-tuned": dict(copies=2, lr=1e-4)}
    fixed = dict(kind.inner.fixed_in_tuning, **quick.get(name, {}))
    if name == "key_edit-tuned": fixed["strength"] = [.1, 10., 1.]
    method = kind(n_forget=3, fixed=fixed, **ONE)
    prepared = prepare_method(method, original, images.train, images.val, images.reserved)
    sets = images.support, images.forget, images.retain, images.val
    after = apply_method(method, original, prepared.artifact, *sets)[0].state_dict()
    chosen = prepared.artifact.facts["chosen"]
    assert chosen["strength"] in (0., .5) and method.access == method.make({}).access
    before = original.state_dict()
    if chosen["strength"] == 0:
        assert all(after[key].equal(before[key]) for key in before)
        return
    inner = Artifact(prepared.artifact.tensors, prepared.artifact.facts["inner"])
    full = apply_method(method.make({}), original, inner, *sets)[0].state_dict()
    for key in dict(original.named_parameters()): assert after[key].equal(before[key].lerp(full[key], .5))


def test_a_tuned_support_method_keeps_hyperparameters_alone(place):
    "Its artifact has no tensors and the same size for half of the people, so its class is `support`"
    images, original = place
    method = find_method("gradient_ascent-tuned")(n_forget=2, **ONE)
    report = measure_access(method, original, images.train, images.val)
    assert (report.declared, report.measured, report.artifact_bytes) == ("support", "support", (0, 0))
    record = find_method("key_edit-tuned")(n_forget=2, **{**ONE, "fixed": dict(strength=[.1, 10., 1.])})
    assert measure_access(record, original, images.train, images.val).measured == "record"


def test_reserved_images_are_in_no_other_set():
    images = load_image_sets(Config.tiny(reserve=8))
    reserved = set(images.reserved.rows)
    assert len(reserved) == 8
    for name in ("train", "val", "test", "support", "forget", "retain"):
        assert not reserved & set(getattr(images, name).rows), name
    assert set(images.reserved.identities) <= set(images.retain.identities)
    plain = load_image_sets(Config.tiny())
    assert sorted([*images.train.rows, *reserved]) == sorted(plain.train.rows)
    assert (images.support.rows == plain.support.rows).all() and (images.forget.rows == plain.forget.rows).all()


def test_an_impossible_reserve_is_refused_before_training(tmp_path):
    with pytest.raises(BadInput, match="can't reserve an image of 60 people: 15 people of the retain set"):
        run(Config.tiny(reserve=60), tmp_path / "run", log=lambda line: None)


def test_a_folder_without_reserved_images_is_not_reopened_with_them(tmp_path):
    "A config of an older version has no entry `reserve`, which means none"
    config = dict(methods=("original",), settings={}, epochs=1, metrics=("score",))
    run(Config.tiny(**config), tmp_path, log=lambda line: None)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    stored.pop("reserve")
    file.write_text(json.dumps(stored))
    run(Config.tiny(**config), tmp_path, log=lambda line: None)
    with pytest.raises(BadInput, match="holds a run with reserve 0"):
        run(Config.tiny(**config, reserve=8), tmp_path, log=lambda line: None)


def test_a_candidate_that_overflows_is_not_chosen(place):
    "Finite weights may give infinite logits; such a network has no score and ends no search"
    images, original = place
    request = simulate_requests(images.train, 2, 1, reserved=images.reserved)[0]
    proxy, broken = ProxyToW(original, images.val, sample=50), copy.deepcopy(original)
    with torch.no_grad():
        for p in broken.head.parameters(): p.fill_(3e38)
    assert all(p.isfinite().all() for p in broken.parameters())
    rows = [dict(setting=0, request=0, **row) for row in score_strengths(original, broken, request, proxy, (0., 1.))]
    assert [math.isnan(row["simulated ToW"]) for row in rows] == [True]
    best = best_candidates(mean_scores(rows, [proxy(original, request)]), 2.)
    assert best["strength"].tolist() == [0.]

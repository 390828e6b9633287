"""The meta-gradient in several processes, and what meta-training feeds to it."""
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from processes import CONTEXT

from one_shui.core.costs import Cost, ResourceUsage
from one_shui.core.errors import BadInput
from one_shui.core.files import read_tensors, write_tensors
from one_shui.data.face_set import face_set
from one_shui.data.splits import make_splits
from one_shui.data.toy import toy_faces
from one_shui.experiments.config import Config
from one_shui.experiments.method_setup import make_method
from one_shui.experiments.rows import COST_METRICS, method_rows, read_results
from one_shui.experiments.run import rescore, run
from one_shui.methods.contract import Artifact
from one_shui.methods.harness import Prepared, apply_method
from one_shui.methods.metaunlearn import meta_training
from one_shui.methods.metaunlearn.loss import MetaLoss, Support, norm
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient
from one_shui.methods.metaunlearn.objective import Objective
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient_by_double_backward
from one_shui.methods.metaunlearn.meta_training import meta_problem, new_state, run_meta_training, save_state, validate
from one_shui.methods.metaunlearn.method import MetaUnlearn
from one_shui.methods.metaunlearn.objective import val_weighted_losses
from one_shui.methods.metaunlearn.oracle import OutputJacobian, nearest_signal, objective_of, oracle_step, outer_batches, retain_batches
from one_shui.methods.metaunlearn.simulated_requests import ShuffledVal
from one_shui.models.networks import ModelSpec, create_model
from one_shui.data.task import Task
from one_shui.scale.engines import Engine
from one_shui.scale.grid import GRIDS, Grid
from one_shui.scale.run_grid import run_grid
from one_shui.training.fit import fit
from one_shui.training.recipes import RECIPES

ATTRIBUTES = Task("multi-label", ("a", "b", "c"))
AGES = Task("multi-class", ("young", "old", "older"))


def problem(task, batches=3):
    "A meta-gradient's arguments, the same in every process"
    torch.manual_seed(0)
    model = create_model(ModelSpec("small_cnn", 3, 16, options=dict(width=4))).eval()
    draw = lambda n: (torch.randn(n, 3, 16, 16), torch.randint(2, (n, 3)).float() if task.is_multi_label else torch.randint(3, (n,)))
    support = Support(*draw(4), torch.arange(4))
    forget, val = [draw(5 + k) for k in range(batches)], [draw(6) for _ in range(2)]
    losses = MetaLoss(task, model.head.in_features, 4, hidden=16, dropout=0.)
    objective = Objective(distance="l1")
    return model, losses, support, forget, val, val_weighted_losses(model, task, val, objective), .3, objective


def one_of_two(rank, file, answers):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    step = meta_gradient(*problem(ATTRIBUTES), shared=True)
    answers.put((rank, step.objective, {name: g.numpy() for name, g in step.gradient.items()}))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_find_the_gradient_of_one(tmp_path):
    alone, answers = meta_gradient(*problem(ATTRIBUTES)), CONTEXT.Queue()
    both = [CONTEXT.Process(target=one_of_two, args=(rank, tmp_path / "meet", answers)) for rank in range(2)]
    for process in both: process.start()
    found = [answers.get(timeout=100) for _ in both]
    for process in both: process.join()
    assert [process.exitcode for process in both] == [0, 0]
    largest = max(g.abs().max().item() for g in alone.gradient.values())
    assert largest > 0
    for _, objective, gradient in found:
        assert objective == pytest.approx(alone.objective, rel=1e-5)
        for name, g in alone.gradient.items(): assert abs(g.numpy() - gradient[name]).max() < 1e-5 * largest


def test_classes_too():
    forward, oracle = (find(*problem(AGES)) for find in (meta_gradient, meta_gradient_by_double_backward))
    largest = max(g.abs().max() for g in oracle.gradient.values())
    assert largest > 0
    for name, g in oracle.gradient.items(): assert (forward.gradient[name] - g).abs().max() < 1e-4 * largest


def largest_difference(first, second):
    "Of two gradients, relative to the largest entry"
    largest = max(g.abs().max() for g in second.values())
    assert largest > 0
    return max(((first[name] - g).abs().max() / largest).item() for name, g in second.items())


@pytest.mark.parametrize("task", [ATTRIBUTES, AGES])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_normalized_step_is_differentiated_exactly(task, steps):
    model, loss, support, forget, val, val_losses, _, objective = problem(task)
    losses = torch.nn.ModuleList([loss] * steps)
    given = model, losses, support, forget, val, val_losses, .05, objective
    forward, oracle = (find(*given, normalize=True) for find in (meta_gradient, meta_gradient_by_double_backward))
    assert forward.objective == pytest.approx(oracle.objective, rel=1e-5)
    assert largest_difference(forward.gradient, oracle.gradient) < 1e-4
    assert largest_difference(meta_gradient(*given).gradient, oracle.gradient) > .1, "it is another gradient than that of a plain step"


def test_a_normalized_step_against_finite_differences():
    "In the direction of the gradient; the large network is in double precision"
    model, loss, support, forget, val, *_ = problem(ATTRIBUTES, batches=1)
    model, loss, smooth = model.double(), loss.double(), Objective("original", weigh_by_score=False)
    support = support._replace(x=support.x.double(), targets=support.targets.double())
    forget, val = ([(x.double(), y.double()) for x, y in batches] for batches in (forget, val))

    val_losses = val_weighted_losses(model, ATTRIBUTES, val, smooth)

    def step(): return meta_gradient(model, loss, support, forget, val, val_losses, .05, smooth, normalize=True)
    gradient = step().gradient
    size = sum(g.square().sum() for g in gradient.values()).sqrt().item()
    values = []
    for sign in (1, -2):  # to +h, then from there to -h
        with torch.no_grad():
            for name, p in loss.named_parameters(): p += sign * 1e-3 * gradient[name] / size
        values.append(step().objective)
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(size, rel=3e-3)


def test_a_normalized_step_has_the_length_that_is_set():
    model, train, val = drawn()
    method = quick(held_out=0., normalize=True, eta=.02)
    unlearned = apply_method(method, model, method.prepare(model, train, val), train.subset([0, 20, 40]))[0]
    before, after = (torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (model, unlearned))
    assert (after - before).norm() / before.norm() == pytest.approx(.02, rel=1e-3)


@cache
def drawn():
    "A network that was not trained, its train and its validation images"
    faces = toy_faces(n_people=40, n_photos=6, size=16)
    splits = make_splits(faces, n_forget=3)
    train, val = (face_set(faces, faces.images, rows) for rows in (splits.train, splits.val))
    torch.manual_seed(0)
    return create_model(ModelSpec("small_cnn", faces.task.n_outputs, 16, options=dict(width=4))).eval(), train, val


def quick(**settings):
    "MetaUnlearn with settings of seconds"
    return MetaUnlearn(**dict(n_forget=3, epochs=1, hidden=8, simulations=1, strengths=(0., 1.)) | settings)


@pytest.fixture
def seen(monkeypatch):
    "What each call of `meta_gradient` during meta-training is given: rows of forget, rows of val, losses of val"
    calls, gradient = [], meta_training.meta_gradient

    def watched(model, losses, support, forget, val, val_losses, *more, **named):
        calls.append((forget.images, val.images, val, list(val_losses)))
        return gradient(model, losses, support, forget, val, val_losses, *more, **named)
    monkeypatch.setattr(meta_training, "meta_gradient", watched)
    return calls


def rows_seen(calls): return [(forget.rows.tolist(), val.rows.tolist()) for forget, val, *_ in calls]


def test_forget_and_val_are_shuffled_for_each_request(seen):
    model, train, val = drawn()
    assert (n := len(val)) > 16
    quick(batch_size=8, held_out=0.).prepare(model, train, val.view())
    used = np.concatenate([images.rows for _, images, *_ in seen])
    counts = [np.sum(used == row) for row in val.rows]
    assert len(used) > n and min(counts) >= 1 and max(counts) - min(counts) <= 1, "all of val takes part"
    mixed = [len(set(forget.identities[:8])) for forget, *_ in seen]
    assert min(mixed) == 3, "each batch has images of everybody who asks"
    orders = [images.rows.tolist() for _, images, *_ in seen]
    assert all(order != sorted(order) for order in orders) and orders[0] != orders[1]
    for _, _, batches, losses in seen: assert losses == pytest.approx(val_weighted_losses(model, val.task, batches), abs=1e-5)


def test_the_orders_are_those_of_the_seed(seen):
    model, train, val = drawn()
    for seed in (0, 0, 1): quick(seed=seed, epochs=2, held_out=0.).prepare(model, train, val)
    third = len(seen) // 3
    first, again, other = (rows_seen(seen[k * third:(k + 1) * third]) for k in range(3))
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))
    assert first[0] != first[third // 2], "epochs differ"


def test_val_is_read_once_under_the_original_network(seen):
    model, train, val = drawn()
    view = val.view()
    quick(objective=dict(compare="original"), epochs=3, held_out=0.).prepare(model, train, view)
    paired = sum(len(images.rows) for _, images, *_ in seen)
    assert len(seen) > 10 and view.counter.reads <= len(val) + paired


def test_an_untrained_loss_is_no_candidate(monkeypatch):
    model, train, val = drawn()
    tried = []

    def falling(settings, losses, problem, tow_at_zero=None):
        "Each loss that is tried is worse than the one before, so an untrained one would be chosen"
        if settings.strengths == (0.,): return {0.: 50.}
        tried.append(losses[0].input_block[0].weight.detach().clone())
        return {0.: tow_at_zero, 1.: 90. - 10 * len(tried)}
    monkeypatch.setattr(meta_training, "tow_by_strength", falling)
    method = quick(epochs=2, held_out=.3)
    facts = method.prepare(model, train, val).facts
    initial = new_state(method, meta_problem(method, model, train, val)).losses[0].input_block[0].weight
    assert len(tried) == 2 and not any(torch.equal(weight, initial) for weight in tried)
    assert {entry["round"] for entry in facts["curve"]} == {1, 2}
    assert facts["chosen"] == dict(round=1, strength=1., tow=80., nothing=50.)


@pytest.mark.parametrize("settings", [dict(held_out=0.), dict(held_out=.3), dict(held_out=.3, embedding=0), dict(held_out=0., patience=2)])
def test_the_untrained_loss_is_an_ablation(settings):
    model, train, val = drawn()
    method = quick(epochs=0, **settings)
    artifact = method.prepare(model, train, val)
    initial = new_state(method, meta_problem(method, model, train, val)).losses.state_dict()
    for name in initial.keys() - {"0.embed.weight"}: assert torch.equal(artifact.tensors[name], initial[name])
    assert artifact.facts["history"] == [] and artifact.facts["chosen"]["round"] == 0
    if not method.held_out: assert artifact.facts["chosen"] == dict(round=0, strength=1.)
    else: assert [entry["round"] for entry in artifact.facts["curve"]] == [0, 0]


def test_a_checkpoint_of_another_protocol_is_refused(tmp_path):
    model, train, val = drawn()
    method = quick(epochs=2, held_out=.3, checkpoint=tmp_path / "state.safetensors")
    problem, usage = meta_problem(method, model, train, val), ResourceUsage(train.counter, val.counter)
    state = new_state(method, problem)
    validate(method, state, problem)  # version 0.1.0 did, before the first epoch
    save_state(state, method.checkpoint, usage)
    tensors, facts = read_tensors(method.checkpoint)
    for key in ("protocol", "nothing"): del facts[key]
    write_tensors(method.checkpoint, tensors, facts)
    with pytest.raises(BadInput, match="by an earlier version of one_shui.*remove it"):
        run_meta_training(method, problem, new_state(method, problem), usage)


def test_patience_counts_from_the_best_trained_loss(monkeypatch):
    model, train, val = drawn()
    monkeypatch.setattr(meta_training, "tow_by_strength", lambda settings, *_: {s: 50. for s in settings.strengths})
    facts = quick(epochs=9, patience=2, held_out=.3, embedding=0).prepare(model, train, val).facts
    assert (facts["round"], facts["chosen"]["round"], facts["chosen"]["strength"]) == (3, 1, 0.)
    assert len(facts["history"]) == 3, "one mean per completed epoch"


@pytest.mark.parametrize("decay", [0., .5])
def test_weight_decay_shrinks_parameters_without_gradient(decay):
    "An embedding row of somebody who asks for nothing only decays"
    model, train, val = drawn()
    method = quick(lr=.1, held_out=.3, weight_decay=decay)
    problem = meta_problem(method, model, train, val)
    initial = new_state(method, problem).losses[0].embed.weight.detach().clone()
    state = new_state(method, problem)
    meta_training.train_epoch(method, state, problem, ShuffledVal(model, val, method.batch_size))
    unseen = [problem.identities.index(person) for person in problem.meta_val]
    shrunk = (1 - .1 * decay) ** len(state.facts["history"])
    torch.testing.assert_close(state.losses[0].embed.weight[unseen], initial[unseen] * shrunk)


REPORT = ["meta steps", "chosen round", "chosen strength"]
SMALL = dict(size=32, epochs=1, recipe="toy", toy=dict(n_people=30, n_photos=6, size=32), arch_options=dict(width=8), metrics=["score"],
             settings=dict(metaunlearn=dict(hidden=8, epochs=2, held_out=0.)))


def test_a_run_reports_the_chosen_loss(tmp_path):
    config = Config(**SMALL | dict(n_forget=3, methods=("original", "metaunlearn"), metrics=("score",)))
    rows = run(config, tmp_path, log=lambda line: None)
    for table in (rows, read_results(tmp_path), rescore(tmp_path)):
        report = table[table["metric"].isin(REPORT)]
        assert set(report["method"]) == {"metaunlearn"} and set(report["split"]) == {"all"}
        steps = 2 * (Artifact.load(tmp_path / "metaunlearn-artifact.safetensors").facts["n_meta_train"] // 3)
        assert report.set_index("metric")["value"].to_dict() == dict(zip(REPORT, (steps, 2, 1.), strict=True))


def test_artifacts_without_a_report_have_no_rows_of_one():
    metrics = pd.DataFrame([dict(split="forget", metric="mAP", value=50., low=40., high=60.)])
    rows = [method_rows(Config.tiny(), "metaunlearn", quick(), metrics, Prepared(Artifact(facts=facts)), Cost(), "")
            for facts in ({}, dict(report={"chosen strength": .3}))]
    assert len(rows[1]) == len(rows[0]) + 1
    assert rows[1].iloc[-1][["split", "metric", "value"]].tolist() == ["all", "chosen strength", .3]


def test_a_grid_keeps_what_methods_report(tmp_path):
    config = {key: value for key, value in SMALL.items() if key != "settings"}
    variant = dict(method="metaunlearn", settings=dict(hidden=8, epochs=1, held_out=0.))
    grid = Grid("tiny", config, dict(n_forget=[3], seed=[0]), ("original",), dict(short=variant))
    rows = run_grid(grid, grid.cells, tmp_path, Engine("in-process", 0), "a test")[0]
    report = rows[(rows["variant"] == "short") & rows["metric"].isin(REPORT)].set_index("metric")["value"]
    assert sorted(report.index) == sorted(REPORT) and report["chosen strength"] == 1. and report["meta steps"] > 0
    assert not set(rows["metric"]) & set(COST_METRICS), "costs are columns of a grid"


@pytest.mark.parametrize("name", ["toy", "celeba-subset"])
def test_grids_have_the_published_and_the_untrained_form(name):
    grid = GRIDS[name]
    points = len(grid.over["n_forget"]) * len(grid.over["seed"])
    assert len(grid.cells) == points * (len(grid.methods) + 2)
    forms = {cell.variant: make_method(cell.config, cell.method) for cell in grid.cells if cell.method == "metaunlearn"}
    assert set(forms) == {"", "metaunlearn-published", "metaunlearn-untrained"}
    assert forms["metaunlearn-published"].held_out == 0. and forms["metaunlearn-published"].epochs == forms[""].epochs > 0
    assert forms["metaunlearn-untrained"].epochs == 0 and forms["metaunlearn-untrained"].held_out == forms[""].held_out > 0


def test_the_published_form_is_the_last_loss_at_full_strength():
    model, train, val = drawn()
    for patience in (None, 1):
        facts = quick(held_out=0., epochs=3, patience=patience).prepare(model, train, val).facts
        assert facts["chosen"] == dict(round=3, strength=1.) and facts["n_meta_train"] == len(set(train.identities))


@pytest.mark.parametrize("with_retain", [False, True])
def test_the_oracle_does_better_than_the_learned_loss(with_retain):
    "One step on the same support images, on a network that has learned its training images"
    faces = toy_faces(n_people=30, n_photos=6, size=32)
    splits = make_splits(faces, n_forget=3)
    rows = splits.train, splits.val, splits.request.support, splits.request.forget, splits.request.retain
    train, val, support, forget, retain = (face_set(faces, faces.images, part) for part in rows)
    model = create_model(ModelSpec("small_cnn", faces.task.n_outputs, 32, options=dict(width=8)))
    fit(model, train, val, replace(RECIPES["toy"], epochs=25))
    before = {name: p.clone() for name, p in model.eval().state_dict().items()}
    outer = outer_batches(model, forget, val)
    method = quick(held_out=0., epochs=3, lr=1e-3, eta=.003)
    learned = apply_method(method, model, method.prepare(model, train, val), support)[0]
    oracle, history = oracle_step(model, support, forget, val, retain if with_retain else None, iterations=15, lengths=(.01, .03))
    reached = objective_of(oracle, outer)
    assert history[0] == pytest.approx(objective_of(model, outer), rel=1e-4) and min(history) < history[0]
    assert reached < objective_of(learned, outer) and reached < objective_of(model, outer)
    total = reached + (objective_of(oracle, retain_batches(model, retain, outer)) if with_retain else 0.)
    assert total == pytest.approx(min(history), rel=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items()), "the original is not changed"
    jacobian = OutputJacobian(model, support)  # the change is Jᵀc for some c
    change = tuple(oracle.get_parameter(name).detach() - p for name, p in jacobian.parameters.items())
    missed = [a - b for a, b in zip(change, jacobian.transposed(nearest_signal(jacobian, change, 150)), strict=True)]
    assert norm(change) > 0 and norm(missed) < .02 * norm(change)

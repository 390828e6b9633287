"""Each method is wired to the right set, with the right sign and the right mask: a swapped one fails here."""
from dataclasses import replace

import pytest
import torch
from torch import nn

from one_shui.methods.bad_teacher import BadTeacher, fresh_copy
from one_shui.methods.finetune import FineTune, NegGradPlus, SalUn, quantile
from one_shui.methods.input_gradients import AMUN, nearest_adversarial
from one_shui.methods.jit import JiT
from one_shui.methods.key_edit.method import KeyEdit, answer, carried_back, views, wide_place
from one_shui.data.loaders import FaceLoader
from one_shui.methods.metaunlearn.loss import (
    MetaLoss, Objective, Support, meta_gradient, unlearning_step, val_levels,
)
from one_shui.methods.metaunlearn.method import MetaUnlearn
from one_shui.models.networks import ModelSpec, create_model
from one_shui.methods.pgu import PGU, forgetting_loss
from one_shui.methods.support_steps import AscentToVal, BoundaryShrink, MaskedAscent, nearest_wrong
from one_shui.methods.relabel import MaxEntropy, PriorLabels, RandomLabels, soft_loss
from one_shui.evaluation.scores import predict
from one_shui.methods.scrub import SCRUB, softened_divergence
from one_shui.methods.ssd import SSD, gradient_size, importance
from one_shui.core.errors import BadInput
from one_shui.data.task import Task, task_loss
from one_shui.training.fit import Recipe, fit
from one_shui.methods.contract import Artifact, apply_method, find_method, prepare_method


@pytest.fixture(scope="module")
def model(pictures):
    "A network that has learnt its train pictures"
    network = create_model(ModelSpec("small_cnn", pictures.faces.task.n_outputs, 32, options=dict(width=8)))
    fit(network, pictures.train, pictures.val, Recipe(20, 3e-3, .05, batch_size=16))
    return network.eval()


def batch(part):
    "All of a set as it is read by a method"
    return FaceLoader(part, len(part), device="cpu").one_batch()


def loss(network, part): return task_loss(part.task, predict(network, part), part.targets).item()


def forget(method, model, pictures, artifact=None):
    "The network after a method forgot"
    artifact = prepare_method(method, model, pictures.train, pictures.val).artifact if artifact is None else artifact
    return apply_method(method, model, artifact, pictures.support, pictures.forget, pictures.retain, pictures.val)[0]


def moved(network, model):
    "By name: which weights differ"
    before = dict(model.named_parameters())
    return {name: p != before[name] for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", ["gradient_ascent", "masked_ascent", "task_negation", "ascent_to_val"])
def test_ascent_makes_portraits_worse(pictures, model, name):
    made = find_method(name)()
    artifact = Artifact({"val_loss": torch.tensor(9.)}) if name == "ascent_to_val" else None
    assert loss(forget(made, model, pictures, artifact), pictures.support) > loss(model, pictures.support)


def test_the_stop_rule_is_the_loss_on_val(pictures, model):
    artifact = prepare_method(AscentToVal(), model, pictures.train, pictures.val).artifact
    assert artifact.tensors["val_loss"].item() == pytest.approx(loss(model, pictures.val), rel=1e-5)
    assert abs(loss(model, pictures.val) - loss(model, pictures.train)) > 1e-3  # else the line above could not tell


def test_ssd_shrinks_what_matters_more_to_the_portraits(pictures, model):
    method = SSD(alpha=2., lam=.5, batch_size=16)
    after = dict(forget(method, model, pictures).named_parameters())
    sets = pictures.train, pictures.support
    everybody, portraits = (importance(model, part.task, FaceLoader(part, 16, device="cpu")) for part in sets)
    for name, before in model.named_parameters():
        chosen = portraits[name] > 2 * everybody[name]
        factor = torch.where(chosen, (.5 * everybody[name] / portraits[name]).clamp(max=1), 1.)
        torch.testing.assert_close(after[name], before * factor)
    assert any((portraits[name] > 2 * everybody[name]).any() for name in portraits)


def test_jit_descends_and_reads_no_label(pictures, model):
    "Its loss takes the answers to noisy pictures as given, so they are the old network's here, for the noise that it drew"
    method = JiT(copies=4, sigma=.01, lr=1e-6)  # a norm's kink is near: a step of more than the small distance overshoots
    x, _ = batch(pictures.support)
    noise = torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(method.seed))
    noisy = [(x + .01 * draw).clamp(x.min(), x.max()) for draw in noise]
    far = lambda network: sum(((network(x) - model(n)).norm(dim=1) / (n - x).flatten(1).norm(dim=1)).sum().item() for n in noisy)
    after = forget(method, model, pictures)
    assert far(after) < far(model)
    lied = pictures.support.lend()
    lied._targets = 1 - lied._targets
    told = apply_method(method, model, Artifact(), lied)[0]
    for p, q in zip(told.parameters(), after.parameters(), strict=True): assert torch.equal(p, q)


def test_pgu_descends(pictures, model):
    after = forget(PGU(lr=.05), model, pictures)
    x, y = batch(pictures.support)
    with torch.no_grad(): before, now = (forgetting_loss(pictures.support.task, network(x), y) for network in (model, after))
    assert now < before


def test_pgu_without_a_positive_label():
    task = Task("multi-label", ("a", "b"))
    assert forgetting_loss(task, torch.zeros(3, 2), torch.zeros(3, 2)).isfinite()


@pytest.mark.parametrize("kind", [RandomLabels, PriorLabels, MaxEntropy])
def test_other_answers_are_taught(pictures, model, kind):
    method = kind(lr=.05, steps=10)
    artifact = prepare_method(method, model, pictures.train, pictures.val).artifact
    x, y = batch(pictures.support)
    taught = method.answers(pictures.support.task, y, artifact, torch.Generator().manual_seed(0))
    if kind is RandomLabels: taught = torch.full_like(y, .5)  # what labels that are drawn anew for every step add up to
    after = forget(method, model, pictures, artifact)
    with torch.no_grad(): assert soft_loss(pictures.support.task, after(x), taught) < soft_loss(pictures.support.task, model(x), taught)


def test_boundary_shrink_teaches_the_nearest_wrong_answer(pictures, model):
    x, y = batch(pictures.support)
    wrong = nearest_wrong(model, pictures.support.task, x, y, .1)
    after = forget(BoundaryShrink(lr=.02), model, pictures)
    task = pictures.support.task
    with torch.no_grad(): assert task_loss(task, after(x), wrong) < task_loss(task, model(x), wrong)
    assert loss(after, pictures.support) > loss(model, pictures.support)


def test_amun_teaches_the_answers_of_adversarial_pictures(pictures, model):
    x, y = batch(pictures.support)
    near, answers, found = nearest_adversarial(model, pictures.support.task, x, y)
    after = forget(AMUN(lr=.02), model, pictures)
    task = pictures.support.task
    with torch.no_grad(): assert task_loss(task, after(near[found]), answers[found]) < task_loss(task, model(near[found]), answers[found])


def test_masked_ascent_moves_only_the_most_salient(pictures, model):
    salience = gradient_size(model, pictures.support.task, [batch(pictures.support)])
    bar = quantile(salience, .9)
    changed = moved(forget(MaskedAscent(lr=.1), model, pictures), model)
    assert not any((of & (salience[name] < bar)).any() for name, of in changed.items())


def test_salun_moves_only_what_is_salient_for_forget(pictures, model):
    method = SalUn(share=.1, epochs=1, bf16=False)
    salience = gradient_size(model, pictures.forget.task, FaceLoader(pictures.forget, 7, device="cpu"))
    whole = gradient_size(model, pictures.forget.task, [batch(pictures.forget)])
    for name in whole: torch.testing.assert_close(salience[name], whole[name], rtol=1e-3, atol=1e-5)
    bar, after = quantile(whole, .9), forget(method, model, pictures)
    changed = moved(after, model)
    assert any(of.any() for of in changed.values())
    for name, of in changed.items(): assert not (of & (whole[name] < bar * .999)).any()


def test_full_access_methods_keep_retain_and_lose_forget(pictures, model):
    "NegGrad+ with half its weight on forget loses more of it than fine-tuning does, and of retain less than of forget"
    tuned, negated = (forget(method, model, pictures) for method in (
        FineTune(lr=.005, epochs=2, batch_size=16, bf16=False), NegGradPlus(lr=.005, epochs=2, batch_size=16, beta=.5, bf16=False)))
    assert loss(tuned, pictures.retain) < loss(model, pictures.retain)
    assert loss(negated, pictures.forget) > loss(tuned, pictures.forget)
    assert loss(negated, pictures.forget) - loss(model, pictures.forget) > loss(negated, pictures.retain) - loss(model, pictures.retain)


def test_finetune_never_reads_forget(pictures, model):
    everything = pictures.support, pictures.forget, pictures.retain, pictures.val
    _, cost = apply_method(FineTune(epochs=2, batch_size=16), model, Artifact(), *everything)
    assert cost.pictures_read == 2 * len(pictures.retain)


def test_salun_teaches_random_labels_on_forget_alone(pictures, model):
    after = forget(SalUn(share=1., epochs=3, lr=.01, batch_size=16, bf16=False), model, pictures)
    assert loss(after, pictures.forget) - loss(model, pictures.forget) > loss(after, pictures.retain) - loss(model, pictures.retain)


def test_scrub_disobeys_on_forget(pictures, model):
    "With passes over forget it ends farther from the teacher there than without, and no better on it"
    x, _ = batch(pictures.forget)
    apart, losses = [], []
    for passes in (0, 2):
        after = forget(SCRUB(lr=.01, epochs=2, forgetting_epochs=passes, batch_size=16, bf16=False), model, pictures)
        with torch.no_grad(): apart.append(softened_divergence(after(x), model(x), 4.).item())
        losses.append(loss(after, pictures.forget))
    assert apart[1] > apart[0] and losses[1] > losses[0]


def test_bad_teacher_is_followed_on_forget(pictures, model):
    method = BadTeacher(lr=.05, epochs=4, batch_size=16, bf16=False)
    after, bad = forget(method, model, pictures), fresh_copy(model, method.seed)

    def nearer(part, teacher):
        x, _ = batch(part)
        with torch.no_grad(): return softened_divergence(model(x), teacher(x)) - softened_divergence(after(x), teacher(x))
    with torch.no_grad():
        x, _ = batch(pictures.retain)
        still = softened_divergence(after(x), model(x))
    assert nearer(pictures.forget, bad) > nearer(pictures.retain, bad)
    x, _ = batch(pictures.forget)
    with torch.no_grad(): assert softened_divergence(after(x), model(x)) > still


def test_metaunlearn_takes_the_step_that_it_learnt(pictures, model):
    "At full strength: the weights minus η times the gradient of the learned loss"
    method = MetaUnlearn(n_forget=3, epochs=1, hidden=16, held_out=0., eta=.05, seed=1)
    artifact = prepare_method(method, model, pictures.train, pictures.val).artifact
    after = dict(forget(method, model, pictures, artifact).named_parameters())
    learned = MetaLoss(pictures.support.task, artifact.facts["features"], len(artifact.facts["people"]), 16)
    learned.load_state_dict({name.removeprefix("0."): t for name, t in artifact.tensors.items()})
    x, y = batch(pictures.support)
    rows = torch.tensor([artifact.facts["people"].index(person) for person in pictures.support.identities])
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    step = unlearning_step(model, learned.eval(), Support(x, y, rows), .05, leaves)[0]
    for name in after: torch.testing.assert_close(after[name], step[name], rtol=1e-4, atol=1e-6)
    assert any((after[name] != p).any() for name, p in model.named_parameters())


def test_metaunlearn_descends_on_its_objective(pictures, model):
    "One plain step against the meta-gradient lowers A"
    task = pictures.support.task
    torch.manual_seed(0)
    learned = MetaLoss(task, 64, len(pictures.support), 16, dropout=0.)
    support = Support(*batch(pictures.support), torch.arange(len(pictures.support)))
    sets = [batch(pictures.forget)], [batch(pictures.val)]
    smooth = Objective(weigh_by_score=False)  # the score jumps
    levels = val_levels(model, task, sets[1], smooth)
    first = meta_gradient(model, learned, support, *sets, levels, .01, smooth)
    size = sum(g.square().sum() for g in first.gradient.values()).sqrt()
    with torch.no_grad():
        for name, p in learned.named_parameters(): p -= .01 * first.gradient[name] / size
    assert meta_gradient(model, learned, support, *sets, levels, .01, smooth).objective < first.objective


def test_metaunlearn_is_judged_on_people_who_dont_play(pictures, model, monkeypatch):
    asked, played = [], []
    import one_shui.methods.metaunlearn.method as module
    plain, simulated = module.play_requests, module.simulate_requests
    monkeypatch.setattr(module, "play_requests", lambda *given: asked.append(given[-1]) or plain(*given))
    monkeypatch.setattr(
        module, "simulate_requests", lambda identities, *more: played.append(set(identities)) or simulated(identities, *more))
    prepare_method(MetaUnlearn(n_forget=3, epochs=1, hidden=16, held_out=.3), model, pictures.train, pictures.val)
    assert asked and played
    assert all(not set(judges) & people for judges in asked for people in played)


def test_key_edit_turns_the_gaps_down(pictures, model):
    "Along a person's keys the answers move against the gap, by no more than the scale says"
    method = KeyEdit(n_forget=3, rank=2, strength=(1e-4, 1e4, 1.))
    artifact = prepare_method(method, model, pictures.train, pictures.val).artifact
    after = forget(method, model, pictures, artifact)
    people = artifact.facts["people"]
    rows = [people.index(person) for person in pictures.support.identities]
    keys, gaps = (artifact.tensors[name][rows].float().flatten(0, 1) for name in ("keys", "gaps"))
    change = keys @ (model.head.weight - after.head.weight).T
    assert (change * gaps).sum() > .5 * gaps.square().sum() > 0


@pytest.fixture(scope="module")
def transformer(pictures):
    "A network with a wide layer before its last norm, whose output a layer scale turns down"
    options = dict(patch_size=8, depth=2, embed_dim=24, num_heads=2, init_values=.5)
    network = create_model(ModelSpec("vit_tiny_patch16_224", pictures.faces.task.n_outputs, 32, options=options))
    fit(network, pictures.train, pictures.val, Recipe(20, 3e-3, .05, batch_size=16))
    return network.eval()


def test_key_edit_of_a_transformer_moves_one_layer_as_rehearsed(pictures, transformer):
    method = KeyEdit(n_forget=3, strength=(.1, 1., 1.))
    after = forget(method, transformer, pictures, prepare_method(method, transformer, pictures.train, pictures.val).artifact)
    assert [name for name, differs in moved(after, transformer).items() if differs.any()] == ["blocks.1.mlp.fc2.weight"]
    place = wide_place(transformer, batch(pictures.train)[0])
    assert not torch.allclose(place.gain, torch.tensor(1.), atol=.1)
    change = (transformer.blocks[1].mlp.fc2.weight - after.blocks[1].mlp.fc2.weight).detach()
    seen = views(transformer, pictures.val, place)
    told = answer(transformer, place, seen.before - place.gain * (seen.features @ change.T))
    assert torch.allclose(told, views(after, pictures.val).logits, atol=1e-4) and not torch.allclose(told, seen.logits, atol=1e-2)


def test_a_change_is_carried_back_to_the_answer_that_it_is_for(pictures, transformer):
    place = wide_place(transformer, batch(pictures.train)[0])
    before, step = views(transformer, pictures.train, place).before.double(), 1e-3
    back = carried_back(transformer, place, before.float())
    mean = lambda entry: answer(transformer, place, entry.float()).double().mean(0)
    moves = torch.stack([(mean(before + step * place.gain * of) - mean(before - step * place.gain * of)) / (2 * step) for of in back.T])
    assert torch.allclose(moves, torch.eye(len(moves)).double(), atol=.05)


@pytest.mark.parametrize("changed", [dict(layer="blocks.1.mlp.fc1"), dict(layer="blocks.0.mlp.fc2.bias"), dict(layer="head"), dict(layer=3),
                                     dict(pool="all"), dict(skip=None), None])
def test_an_artifact_for_another_place_is_refused(pictures, transformer, changed):
    method = KeyEdit(n_forget=3, strength=(.1, 1., 1.))
    made = prepare_method(method, transformer, pictures.train, pictures.val).artifact
    facts = {name: value for name, value in made.facts.items() if name != "place"}
    if changed is not None: facts["place"] = made.facts["place"] | changed
    with pytest.raises(BadInput, match="place|layer"): forget(method, transformer, pictures, replace(made, facts=facts))


class Elsewhere(nn.Module):
    "Its last wide layer leads nowhere, the one before that to the answer"
    def __init__(self):
        super().__init__()
        self.wide, self.aside, self.norm, self.head = nn.Linear(48, 6), nn.Linear(48, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        x = x.flatten(1)[:, :48]
        told = self.wide(x)
        self.aside(x)
        return self.head(self.norm(told))


class Squashed(Elsewhere):
    "No wide layer reaches the norm as it is"
    def forward(self, x): return self.head(self.norm(torch.tanh(self.wide(x.flatten(1)[:, :48]))))


@pytest.mark.parametrize("kind, layer", [(Elsewhere, "wide"), (Squashed, "head")])
def test_only_a_layer_that_reaches_the_answer_is_edited(kind, layer):
    torch.manual_seed(0)
    assert wide_place(kind().eval(), torch.rand(8, 3, 8, 8)).layer == layer


def test_artifacts_are_of_train(pictures, model):
    "Preparing on val instead gives another artifact"
    for method in (SSD(), PGU(), PriorLabels()):
        right, wrong = (prepare_method(method, model, *sets).artifact.tensors for sets in (
            (pictures.train, pictures.val), (pictures.val, pictures.train)))
        of_train = replace(method)
        again = of_train.prepare(model, pictures.train, pictures.val).tensors
        assert all(torch.equal(right[name], again[name]) for name in right)
        assert any(not torch.equal(right[name], wrong[name]) for name in right)

"""Each method is wired to the right set, with the right sign and the right mask: a swapped one fails here."""
from dataclasses import replace

import pytest
import torch
from torch import nn

from one_shui.methods.bad_teacher import BadTeacher, fresh_copy
from one_shui.methods.finetune import FineTune, NegGradPlus
from one_shui.methods.saliency import quantile
from one_shui.methods.salun import SalUn
from one_shui.methods.amun import AMUN, nearest_adversarial
from one_shui.methods.jit import JiT
from one_shui.methods.key_edit.edit_site import find_edit_site, jacobian_pinv, logits_from_site
from one_shui.methods.key_edit.method import KeyEdit
from one_shui.methods.key_edit.statistics import layer_outputs
from one_shui.data.loaders import FaceLoader
from one_shui.methods.metaunlearn.loss import MetaLoss, Support
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient
from one_shui.methods.metaunlearn.objective import Objective
from one_shui.methods.metaunlearn.loss import unlearning_step
from one_shui.methods.metaunlearn.objective import val_weighted_losses
from one_shui.methods.metaunlearn.method import MetaUnlearn
from one_shui.models.networks import ModelSpec, create_model
from one_shui.methods.pgu import PGU, forgetting_loss
from one_shui.methods.ascent import AscentToVal, MaskedAscent
from one_shui.methods.boundary_shrink import BoundaryShrink, nearest_wrong
from one_shui.methods.relabel import MaxEntropy, PriorLabels, RandomLabels, soft_loss
from one_shui.evaluation.scores import predict
from one_shui.methods.scrub import SCRUB, softened_divergence
from one_shui.methods.saliency import gradient_size
from one_shui.methods.ssd import SSD, importance
from one_shui.core.errors import BadInput
from one_shui.data.task import Task, task_loss
from one_shui.training.fit import fit
from one_shui.training.recipes import Recipe
from one_shui.methods.contract import Artifact
from one_shui.methods.demo import flip_labels
from one_shui.methods.harness import apply_method, prepare_method
from one_shui.methods.registry import find_method


@pytest.fixture(scope="module")
def model(images):
    "A network that has learnt its train images"
    network = create_model(ModelSpec("small_cnn", images.faces.task.n_outputs, 32, options=dict(width=8)))
    fit(network, images.train, images.val, Recipe(20, 3e-3, .05, batch_size=16))
    return network.eval()


def batch(part):
    "All of a set as it is read by a method"
    return FaceLoader(part, len(part), device="cpu").one_batch()


def loss(network, part): return task_loss(part.task, predict(network, part), part.targets).item()


def forget(method, model, images, artifact=None):
    "The network after a method forgot"
    artifact = prepare_method(method, model, images.train, images.val).artifact if artifact is None else artifact
    return apply_method(method, model, artifact, images.support, images.forget, images.retain, images.val)[0]


def moved(network, model):
    "By name: which weights differ"
    before = dict(model.named_parameters())
    return {name: p != before[name] for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", ["gradient_ascent", "masked_ascent", "task_negation", "ascent_to_val"])
def test_ascent_makes_support_images_worse(images, model, name):
    made = find_method(name)()
    artifact = Artifact({"val_loss": torch.tensor(9.)}) if name == "ascent_to_val" else None
    assert loss(forget(made, model, images, artifact), images.support) > loss(model, images.support)


def test_the_stop_rule_is_the_loss_on_val(images, model):
    artifact = prepare_method(AscentToVal(), model, images.train, images.val).artifact
    assert artifact.tensors["val_loss"].item() == pytest.approx(loss(model, images.val), rel=1e-5)
    assert abs(loss(model, images.val) - loss(model, images.train)) > 1e-3  # else the line above could not tell


def test_ssd_shrinks_what_matters_more_to_the_support_images(images, model):
    method = SSD(alpha=2., lam=.5, batch_size=16)
    after = dict(forget(method, model, images).named_parameters())
    sets = images.train, images.support
    everybody, support_images = (importance(model, part.task, FaceLoader(part, 16, device="cpu")) for part in sets)
    for name, before in model.named_parameters():
        chosen = support_images[name] > 2 * everybody[name]
        factor = torch.where(chosen, (.5 * everybody[name] / support_images[name]).clamp(max=1), 1.)
        torch.testing.assert_close(after[name], before * factor)
    assert any((support_images[name] > 2 * everybody[name]).any() for name in support_images)


def test_jit_descends_and_reads_no_label(images, model):
    "Its loss takes the answers to noisy images as given, so they are the old network's here, for the noise that it drew"
    method = JiT(copies=4, sigma=.01, lr=1e-6)  # a norm's kink is near: a step of more than the small distance overshoots
    x, _ = batch(images.support)
    noise = torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(method.seed))
    noisy = [(x + .01 * draw).clamp(x.min(), x.max()) for draw in noise]
    far = lambda network: sum(((network(x) - model(n)).norm(dim=1) / (n - x).flatten(1).norm(dim=1)).sum().item() for n in noisy)
    after = forget(method, model, images)
    assert far(after) < far(model)
    other = apply_method(method, model, Artifact(), flip_labels(images.support))[0]
    for p, q in zip(other.parameters(), after.parameters(), strict=True): assert torch.equal(p, q)


def test_pgu_descends(images, model):
    after = forget(PGU(lr=.05), model, images)
    x, y = batch(images.support)
    with torch.no_grad(): before, now = (forgetting_loss(images.support.task, network(x), y) for network in (model, after))
    assert now < before


def test_pgu_without_a_positive_label():
    task = Task("multi-label", ("a", "b"))
    assert forgetting_loss(task, torch.zeros(3, 2), torch.zeros(3, 2)).isfinite()


@pytest.mark.parametrize("kind", [RandomLabels, PriorLabels, MaxEntropy])
def test_other_answers_are_taught(images, model, kind):
    method = kind(lr=.05, steps=10)
    artifact = prepare_method(method, model, images.train, images.val).artifact
    x, y = batch(images.support)
    taught = method.new_targets(images.support.task, y, artifact, torch.Generator().manual_seed(0))
    if kind is RandomLabels: taught = torch.full_like(y, .5)  # what labels that are drawn anew for every step add up to
    after = forget(method, model, images, artifact)
    with torch.no_grad(): assert soft_loss(images.support.task, after(x), taught) < soft_loss(images.support.task, model(x), taught)


def test_boundary_shrink_teaches_the_nearest_wrong_answer(images, model):
    x, y = batch(images.support)
    wrong = nearest_wrong(model, images.support.task, x, y, .1)
    after = forget(BoundaryShrink(lr=.02), model, images)
    task = images.support.task
    with torch.no_grad(): assert task_loss(task, after(x), wrong) < task_loss(task, model(x), wrong)
    assert loss(after, images.support) > loss(model, images.support)


def test_amun_teaches_the_answers_of_adversarial_images(images, model):
    x, y = batch(images.support)
    near, answers, found = nearest_adversarial(model, images.support.task, x, y)
    after = forget(AMUN(lr=.02), model, images)
    task = images.support.task
    with torch.no_grad(): assert task_loss(task, after(near[found]), answers[found]) < task_loss(task, model(near[found]), answers[found])


def test_masked_ascent_moves_only_the_most_salient(images, model):
    salience = gradient_size(model, images.support.task, [batch(images.support)])
    bar = quantile(salience, .9)
    changed = moved(forget(MaskedAscent(lr=.01), model, images), model)
    assert not any((of & (salience[name] < bar)).any() for name, of in changed.items())


def test_salun_moves_only_what_is_salient_for_forget(images, model):
    method = SalUn(share=.1, epochs=1, bf16=False)
    salience = gradient_size(model, images.forget.task, FaceLoader(images.forget, 7, device="cpu"))
    whole = gradient_size(model, images.forget.task, [batch(images.forget)])
    for name in whole: torch.testing.assert_close(salience[name], whole[name], rtol=1e-3, atol=1e-5)
    bar, after = quantile(whole, .9), forget(method, model, images)
    changed = moved(after, model)
    assert any(of.any() for of in changed.values())
    for name, of in changed.items(): assert not (of & (whole[name] < bar * .999)).any()


def test_full_access_methods_keep_retain_and_lose_forget(images, model):
    "NegGrad+ with half its weight on forget loses more of it than fine-tuning does, and of retain less than of forget"
    tuned, negated = (forget(method, model, images) for method in (
        FineTune(lr=.005, epochs=2, batch_size=16, bf16=False), NegGradPlus(lr=.005, epochs=2, batch_size=16, beta=.5, bf16=False)))
    assert loss(tuned, images.retain) < loss(model, images.retain)
    assert loss(negated, images.forget) > loss(tuned, images.forget)
    assert loss(negated, images.forget) - loss(model, images.forget) > loss(negated, images.retain) - loss(model, images.retain)


def test_finetune_never_reads_forget(images, model):
    everything = images.support, images.forget, images.retain, images.val
    _, cost = apply_method(FineTune(epochs=2, batch_size=16), model, Artifact(), *everything)
    assert cost.images_read == 2 * len(images.retain)


def test_salun_teaches_random_labels_on_forget_alone(images, model):
    after = forget(SalUn(share=1., epochs=3, lr=.01, batch_size=16, bf16=False), model, images)
    assert loss(after, images.forget) - loss(model, images.forget) > loss(after, images.retain) - loss(model, images.retain)


def test_scrub_disobeys_on_forget(images, model):
    "With passes over forget it ends farther from the teacher there than without, and no better on it"
    x, _ = batch(images.forget)
    apart, losses = [], []
    for passes in (0, 2):
        after = forget(SCRUB(lr=.01, epochs=2, forgetting_epochs=passes, batch_size=16, bf16=False), model, images)
        with torch.no_grad(): apart.append(softened_divergence(after(x), model(x), 4.).item())
        losses.append(loss(after, images.forget))
    assert apart[1] > apart[0] and losses[1] > losses[0]


def test_bad_teacher_is_followed_on_forget(images, model):
    method = BadTeacher(lr=.05, epochs=4, batch_size=16, bf16=False)
    after, bad = forget(method, model, images), fresh_copy(model, method.seed)

    def nearer(part, teacher):
        x, _ = batch(part)
        with torch.no_grad(): return softened_divergence(model(x), teacher(x)) - softened_divergence(after(x), teacher(x))
    with torch.no_grad():
        x, _ = batch(images.retain)
        still = softened_divergence(after(x), model(x))
    assert nearer(images.forget, bad) > nearer(images.retain, bad)
    x, _ = batch(images.forget)
    with torch.no_grad(): assert softened_divergence(after(x), model(x)) > still


def test_metaunlearn_takes_the_step_that_it_learnt(images, model):
    "At full strength: the weights minus η times the gradient of the learned loss"
    method = MetaUnlearn(n_forget=3, epochs=1, hidden=16, held_out=0., eta=.05, seed=1)
    artifact = prepare_method(method, model, images.train, images.val).artifact
    after = dict(forget(method, model, images, artifact).named_parameters())
    learned = MetaLoss(images.support.task, artifact.facts["features"], len(artifact.facts["people"]), 16)
    learned.load_state_dict({name.removeprefix("0."): t for name, t in artifact.tensors.items()})
    x, y = batch(images.support)
    rows = torch.tensor([artifact.facts["people"].index(person) for person in images.support.identities])
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    step = unlearning_step(model, learned.eval(), Support(x, y, rows), .05, leaves)[0]
    for name in after: torch.testing.assert_close(after[name], step[name], rtol=1e-4, atol=1e-6)
    assert any((after[name] != p).any() for name, p in model.named_parameters())


def test_metaunlearn_descends_on_its_objective(images, model):
    "One plain step against the meta-gradient lowers A"
    task = images.support.task
    torch.manual_seed(0)
    learned = MetaLoss(task, 64, len(images.support), 16, dropout=0.)
    support = Support(*batch(images.support), torch.arange(len(images.support)))
    sets = [batch(images.forget)], [batch(images.val)]
    smooth = Objective(weigh_by_score=False)  # the score jumps
    levels = val_weighted_losses(model, task, sets[1], smooth)
    first = meta_gradient(model, learned, support, *sets, levels, .01, smooth)
    size = sum(g.square().sum() for g in first.gradient.values()).sqrt()
    with torch.no_grad():
        for name, p in learned.named_parameters(): p -= .01 * first.gradient[name] / size
    assert meta_gradient(model, learned, support, *sets, levels, .01, smooth).objective < first.objective


def test_metaunlearn_is_validated_on_identities_that_meta_training_does_not_see(images, model, monkeypatch):
    import one_shui.methods.metaunlearn.meta_training as module
    validated, trained_on = [], []
    simulate, epoch = module.simulate_requests, module.simulated_epoch

    def simulate_requests(*arguments, **named):
        requests = simulate(*arguments, **named)
        validated.extend(set(request.support.identities) for request in requests)
        return requests

    def simulated_epoch(train, *more):
        trained_on.append(set(train.identities))
        return epoch(train, *more)

    monkeypatch.setattr(module, "simulate_requests", simulate_requests)
    monkeypatch.setattr(module, "simulated_epoch", simulated_epoch)
    method = MetaUnlearn(n_forget=3, epochs=1, hidden=16, held_out=.3)
    prepare_method(method, model, images.train, images.val)
    assert validated and trained_on
    assert all(not held_out & people for held_out in validated for people in trained_on)


def test_key_edit_turns_the_gaps_down(images, model):
    "Along a person's keys the answers move against the gap, by no more than the scale says"
    method = KeyEdit(n_forget=3, rank=2, strength=(1e-4, 1e4, 1.))
    artifact = prepare_method(method, model, images.train, images.val).artifact
    after = forget(method, model, images, artifact)
    people = artifact.facts["people"]
    rows = [people.index(person) for person in images.support.identities]
    keys, gaps = (artifact.tensors[name][rows].float().flatten(0, 1) for name in ("keys", "gaps"))
    change = keys @ (model.head.weight - after.head.weight).T
    assert (change * gaps).sum() > .5 * gaps.square().sum() > 0


@pytest.fixture(scope="module")
def transformer(images):
    "A network with a wide layer before its last norm, whose output a layer scale turns down"
    options = dict(patch_size=8, depth=2, embed_dim=24, num_heads=2, init_values=.5)
    network = create_model(ModelSpec("vit_tiny_patch16_224", images.faces.task.n_outputs, 32, options=options))
    fit(network, images.train, images.val, Recipe(20, 3e-3, .05, batch_size=16))
    return network.eval()


def test_key_edit_of_a_transformer_moves_one_layer_as_rehearsed(images, transformer):
    method = KeyEdit(n_forget=3, strength=(.1, 1., 1.))
    after = forget(method, transformer, images, prepare_method(method, transformer, images.train, images.val).artifact)
    assert [name for name, differs in moved(after, transformer).items() if differs.any()] == ["blocks.1.mlp.fc2.weight"]
    place = find_edit_site(transformer, batch(images.train)[0])
    assert not torch.allclose(place.gain, torch.tensor(1.), atol=.1)
    change = (transformer.blocks[1].mlp.fc2.weight - after.blocks[1].mlp.fc2.weight).detach()
    seen = layer_outputs(transformer, images.val, place)
    told = logits_from_site(transformer, place, seen.head_input - place.gain * (seen.features @ change.T))
    assert torch.allclose(told, layer_outputs(after, images.val).logits, atol=1e-4) and not torch.allclose(told, seen.logits, atol=1e-2)


def test_a_change_is_carried_back_to_the_answer_that_it_is_for(images, transformer):
    place = find_edit_site(transformer, batch(images.train)[0])
    before, step = layer_outputs(transformer, images.train, place).head_input.double(), 1e-3
    back = jacobian_pinv(transformer, place, before.float())
    mean = lambda entry: logits_from_site(transformer, place, entry.float()).double().mean(0)
    moves = torch.stack([(mean(before + step * place.gain * of) - mean(before - step * place.gain * of)) / (2 * step) for of in back.T])
    assert torch.allclose(moves, torch.eye(len(moves)).double(), atol=.05)


@pytest.mark.parametrize("changed", [dict(layer="blocks.1.mlp.fc1"), dict(layer="blocks.0.mlp.fc2.bias"), dict(layer="head"), dict(layer=3),
                                     dict(pool="all"), dict(skip=None), None])
def test_an_artifact_for_another_place_is_refused(images, transformer, changed):
    method = KeyEdit(n_forget=3, strength=(.1, 1., 1.))
    made = prepare_method(method, transformer, images.train, images.val).artifact
    facts = {name: value for name, value in made.facts.items() if name != "place"}
    if changed is not None: facts["place"] = made.facts["place"] | changed
    with pytest.raises(BadInput, match="place|layer"): forget(method, transformer, images, replace(made, facts=facts))


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
    assert find_edit_site(kind().eval(), torch.rand(8, 3, 8, 8)).layer == layer


def test_artifacts_are_of_train(images, model):
    "Preparing on val instead gives another artifact"
    for method in (SSD(), PGU(), PriorLabels()):
        right, wrong = (prepare_method(method, model, *sets).artifact.tensors for sets in (
            (images.train, images.val), (images.val, images.train)))
        of_train = replace(method)
        again = of_train.prepare(model, images.train, images.val).tensors
        assert all(torch.equal(right[name], again[name]) for name in right)
        assert any(not torch.equal(right[name], wrong[name]) for name in right)

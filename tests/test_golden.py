"""Arithmetic against the golden vectors in the folder that ONE_SHUI_GOLDEN names; skipped without one."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from one_shui.evaluation.attacks import loss_attack
from one_shui.methods.bad_teacher import BadTeacher
from one_shui.methods.jit import lipschitz_loss
from one_shui.methods.metaunlearn.loss import MetaLoss, Support
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient
from one_shui.methods.metaunlearn.objective import Objective
from one_shui.methods.metaunlearn.meta_gradient import meta_gradient_by_double_backward
from one_shui.methods.metaunlearn.objective import val_weighted_losses
from one_shui.models.networks import ModelSpec, create_model
from one_shui.methods.pgu import PGU
from one_shui.data.metrics import mean_average_precision
from one_shui.evaluation.scores import tow_factor
from one_shui.methods.scrub import SCRUB
from one_shui.methods.ssd import dampen, importance
from one_shui.data.task import Task
from one_shui.methods.contract import Artifact, UnlearnData

FOLDER = os.environ.get("ONE_SHUI_GOLDEN")
pytestmark = pytest.mark.skipif(not FOLDER, reason="set ONE_SHUI_GOLDEN to the folder of golden vectors")


READ: set[Path] = set()  # What the tests below read


def files(pattern):
    "The golden files of a family; other folders may hold other seeds, or lack a family"
    found = sorted(Path(FOLDER).glob(pattern)) if FOLDER else []
    READ.update(found)
    return pytest.mark.parametrize("file", found, ids=lambda file: file.stem)


def read(file):
    "Tensors and settings of a golden file"
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, {k: json.loads(v) for k, v in (opened.metadata() or {}).items()}


def part(tensors, prefix):
    "The tensors below a prefix"
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def assert_close(ours, golden, tolerance=1e-4):
    "Within `tolerance` of the largest absolute value of the golden tensor"
    assert ours.shape == golden.shape
    assert (ours - golden).abs().max() <= tolerance * max(golden.abs().max().item(), 1e-12)


@files("metric_map*.safetensors")
def test_map(file):
    tensors, _ = read(file)
    assert mean_average_precision(tensors["logits"], tensors["targets"], absent=0.) == pytest.approx(tensors["map"].item(), abs=1e-5)


@files("metric_tow_factor*.json")
def test_tow_factor(file):
    rows = json.loads(file.read_text())
    assert rows
    for row in rows: assert tow_factor(row["approx"], row["retrain"]) == pytest.approx(row["factor"], abs=1e-5)


@files("metric_loss_mia*.safetensors")
def test_loss_attack(file):
    tensors, facts = read(file)
    result = loss_attack(*(tensors[k] for k in ("retain", "val", "forget", "test")))
    assert 100 * result.auc == pytest.approx(float(facts["auc_percent"]), abs=1)
    assert 100 * result.judged_out == pytest.approx(float(facts["forget_not_member_percent"]), abs=1)


def batches(tensors, prefix, size):
    "Images and targets in batches, in order"
    return list(zip(tensors[f"{prefix}.x"].split(size), tensors[f"{prefix}.y"].split(size), strict=True))


@files("meta_unlearn_*.safetensors")
@pytest.mark.parametrize("gradient", [meta_gradient, meta_gradient_by_double_backward])
def test_meta_unlearn(file, gradient):
    tensors, facts = read(file)
    task = Task("multi-label" if facts["task"] == "multilabel" else "multi-class", tuple(map(str, range(facts["num_classes"]))))
    model = create_model(ModelSpec("vit_tiny_patch16_224", facts["num_classes"], options=facts["vit"])).eval()
    model.load_state_dict(part(tensors, "theta"))
    identities = tensors["identities"]
    meta_loss = MetaLoss(task, model.num_features, len(identities), facts["hidden_size"], facts["identity_embed_size"], facts["dropout"])
    meta_loss.load_state_dict(part(tensors, "phi"))
    support = Support(tensors["support.x"], tensors["support.y"], torch.searchsorted(identities, tensors["support.id"]))
    forget, val = (batches(tensors, name, facts["batch_size"]) for name in ("forget", "val"))
    objective = Objective(facts["loss_type"], facts["forget_loss"], facts["weigh_by_one_minus_accuracy"], absent=0.)
    val_losses = val_weighted_losses(model, task, val, objective)
    step = gradient(model, meta_loss, support, forget, val, val_losses, facts["meta_lr"], objective, "leaves")
    assert step.objective == pytest.approx(facts["aux_loss"], rel=1e-5)
    assert step.meta_loss * len(support.x) == pytest.approx(facts["meta_loss"], rel=1e-5)  # the file has the sum over S
    for name, golden in part(tensors, "phi_grad").items(): assert_close(step.gradient[name], golden)
    before = part(tensors, "theta")
    for name, golden in part(tensors, "theta_unlearned").items():
        if not golden.is_floating_point(): continue
        assert_close(step.unlearned.get(name, before[name]) - before[name], golden - before[name])


class Tensors:
    "Golden tensors in the place of a `FaceSet`"
    def __init__(self, x, y, task): self.x, self.y, self.task = x, y, task

    def __len__(self): return len(self.x)

    def subset(self, rows): return Tensors(self.x[rows], self.y[rows], self.task)


@pytest.fixture
def tensor_loader(monkeypatch):
    "Methods read golden tensors, in order, where they would read images"
    def loader(images, bs=256, shuffle=False, device=None):
        assert not shuffle
        return list(zip(images.x.split(bs), images.y.split(bs), strict=True))
    for module in ("pgu", "scrub", "bad_teacher"): monkeypatch.setattr(f"one_shui.methods.{module}.FaceLoader", loader)


def network(tensors, facts, prefix="before"):
    "The golden network and its task"
    multi = facts.get("task") == "multilabel" or next((t for n, t in tensors.items() if n.endswith(".y")), torch.zeros(1)).ndim == 2
    task = Task("multi-label" if multi else "multi-class", tuple(map(str, range(facts["num_classes"]))))
    model = create_model(ModelSpec("vit_tiny_patch16_224", facts["num_classes"], options=facts["vit"])).eval()
    model.load_state_dict(part(tensors, prefix))
    return model, task


def assert_changed_like(model, tensors, tolerance=1e-4):
    "Each parameter has moved as in the file, within `tolerance` of the largest movement and a rounding of the weight itself"
    before, after, state = part(tensors, "before"), part(tensors, "after"), model.state_dict()
    assert any((after[name] != before[name]).any() for name in after)
    for name in after:
        moved, rounding = (after[name] - before[name]).abs().max(), torch.finfo(torch.float32).eps * before[name].abs()
        assert ((state[name] - after[name]).abs() <= tolerance * moved.clamp(min=1e-12) + rounding).all(), name


def without_key_biases(state):
    "Attention doesn't depend on its keys' bias: the gradient there is a rounding error, which each processor makes differently"
    return {name: torch.cat([t[:len(t) // 3], t[-(len(t) // 3):]]) if name.endswith("qkv.bias") else t for name, t in state.items()}


def changed_weights(after, before): return sum(int((after[name] != before[name]).sum()) for name in after)


@files("ssd_*.safetensors")
def test_ssd(file):
    tensors, facts = read(file)
    model, task = network(tensors, facts)
    everybody, support_images = (importance(model, task, batches(tensors, name, facts["batch_size"])) for name in ("train", "support"))
    dampen(model, everybody, support_images, facts["alpha_selection"], facts["lambda_dampening"])
    before, after, found = (without_key_biases(state) for state in (part(tensors, "before"), part(tensors, "after"), model.state_dict()))
    assert changed_weights(found, before) == pytest.approx(changed_weights(after, before), rel=1e-3)
    for name in after: assert_close(found[name] - before[name], after[name] - before[name])


@files("jit*.safetensors")
def test_jit(file):
    tensors, facts = read(file)
    model, _ = network(tensors, facts)
    optimizer = torch.optim.SGD(model.parameters(), facts["lr"])
    lipschitz_loss(model, tensors["support.x"], tensors["noise"], facts["noise_std"]).backward()
    optimizer.step()
    assert_changed_like(model, tensors)


@files("pgu_*.safetensors")
def test_pgu(file, tensor_loader):
    tensors, facts = read(file)
    model, task = network(tensors, facts)
    method = PGU(gamma=facts["gamma"], lr=facts["lr"], epochs=facts["epochs"], batch_size=8, stride_one=True, double=False)
    train, support = (Tensors(tensors[f"{name}.x"], tensors[f"{name}.y"], task) for name in ("train", "support"))
    assert_changed_like(method.unlearn(model, method.prepare(model, train, None), UnlearnData(support)), tensors, 1e-3)


@files("scrub_*.safetensors")
def test_scrub(file, tensor_loader):
    tensors, facts = read(file)
    model, task = network(tensors, facts)
    method = SCRUB(bf16=False, lr=facts["lr"], epochs=facts["epochs"], forgetting_epochs=facts["forgetting_epochs"], alpha=facts["alpha"],
                   gamma=facts["gamma"], temperature=facts["temperature"], batch_size=facts["batch_size"], shuffle=False)
    forget, retain = (Tensors(tensors[f"{name}.x"], tensors[f"{name}.y"], task) for name in ("forget", "retain"))
    assert_changed_like(method.unlearn(model, Artifact(), UnlearnData(forget, forget, retain)), tensors)


@files("bad_teacher*.safetensors")
def test_bad_teacher(file, tensor_loader):
    tensors, facts = read(file)
    model, task = network(tensors, facts)
    bad, _ = network(tensors, facts, "incompetent")
    method = BadTeacher(bf16=False, lr=facts["lr"], epochs=facts["epochs"], batch_size=facts["batch_size"], shuffle=False)
    forget, retain = (Tensors(tensors[f"{name}.x"], tensors[f"{name}.y"], task) for name in ("forget", "retain"))
    assert_changed_like(method.teach(model, bad, UnlearnData(forget, forget, retain)), tensors, 1e-3)


def test_the_comparison_can_fail():
    with pytest.raises(AssertionError): assert_close(torch.tensor([1., 2.001]), torch.tensor([1., 2.]))
    assert_close(torch.tensor(np.float32([1, 2.00001])), torch.tensor([1., 2.]))


def test_every_file_is_read():
    there = {file for kind in ("*.safetensors", "*.json") for file in Path(FOLDER).glob(kind)}
    assert there, f"no golden vectors in {FOLDER}"
    assert not there - READ, f"of no known family: {sorted(there - READ)}"

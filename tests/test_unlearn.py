"""A method reads the data that it declared, and nothing else."""
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import one_shui.methods.registry
from one_shui.core.errors import BadInput
from one_shui.core.files import read_tensors
from one_shui.methods.contract import Artifact, Unlearner
from one_shui.methods.baselines import Original
from one_shui.methods.harness import apply_method, check_artifact, prepare_method
from one_shui.methods.registry import find_method, method_names

HIDDEN = []  # where a cheating method hides data between the two calls


@dataclass
class Cheat(Unlearner):
    "Stores the training set in `self`, in a global and in its class, and tries to read each of them"
    name: ClassVar[str] = "cheat"
    data_access: ClassVar[str] = "statistics"
    way: str = "global"

    def prepare(self, model, train, val):
        self.mine = train
        Cheat.ours = train
        HIDDEN.append(train.subset([0, 1]))
        HIDDEN.append(train)
        return Artifact()

    def unlearn(self, model, artifact, data):
        if self.way == "self": self.mine.batch([0])
        if self.way == "class": Cheat.ours.batch([0])
        if self.way == "global": HIDDEN[-1].targets.sum()
        if self.way == "data": data.retain.batch([0])
        return model


@pytest.mark.parametrize("way, error", [
    ("self", AttributeError), ("class", ValueError), ("global", ValueError), ("data", AttributeError)])
def test_training_data_are_out_of_reach(images, model, way, error):
    prepared = prepare_method(Cheat(way=way), model, images.train, images.val)
    everything = images.support, images.forget, images.retain, images.val
    with pytest.raises(error): apply_method(Cheat(way=way), model, prepared.artifact, *everything)
    assert len(images.train.targets) == len(images.train)  # the caller's own set is still open


def test_the_original_is_not_changed(images, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_method(find_method("gradient_ascent")(lr=.1), model, Artifact(), images.support)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_no_numbers(images, model):
    with pytest.raises(BadInput, match="aren't numbers; use a smaller step"):
        apply_method(find_method("gradient_ascent")(lr=1e30), model, Artifact(), images.support)


def test_a_method_from_another_package(monkeypatch):
    point = EntryPoint("outside", "one_shui.methods.baselines:Original", "one_shui.methods")
    monkeypatch.setattr(one_shui.methods.registry, "entry_points", lambda group: [point] if group == "one_shui.methods" else [])
    assert "outside" in method_names()
    assert find_method("outside") is Original


def test_artifacts_of_version_0_1_0_are_read():
    "Settings under their old names are translated; the facts in the file stay readable as they are"
    file = Path(__file__).parent / "fixtures/v0.1.0/ssd.artifact.safetensors"
    artifact, (_, raw) = Artifact.load(file), read_tensors(file)
    assert artifact.facts["settings"]["per_image"] is False and "per_picture" not in artifact.facts["settings"]
    assert raw["settings"]["per_picture"] is False
    weights = raw["weights"]
    for facts in (artifact.facts, raw): check_artifact(Artifact(artifact.tensors, facts), find_method("ssd")(), weights)
    for facts in (artifact.facts, raw):
        with pytest.raises(BadInput, match="prepared with per_image False, not True"):
            check_artifact(Artifact(artifact.tensors, facts), find_method("ssd")(per_image=True), weights)


def test_metaunlearn_warns_about_an_unknown_person(images, model):
    method = find_method("metaunlearn")(n_forget=3, epochs=1, hidden=16)
    prepared = prepare_method(method, model, images.train, images.val)
    with pytest.warns(UserWarning, match="the mean embedding is used"):
        apply_method(method, model, prepared.artifact, images.val.subset([0]))

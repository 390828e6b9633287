"""A method sees what it declared, and nothing else."""
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch

import one_shui.unlearn
from one_shui.core.errors import BadInput
from one_shui.methods.contract import Artifact, Unlearner, apply_method, find_method, method_names
from one_shui.methods.contract import prepare_method

KEPT = []  # where a cheating method hides things between the two moments


@dataclass
class Cheat(Unlearner):
    "Hides the training set in `self`, in a global and in its class, and tries every way back to it"
    name: ClassVar[str] = "cheat"
    data_access: ClassVar[str] = "statistics"
    way: str = "global"

    def prepare(self, model, train, val):
        self.mine = train
        Cheat.ours = train
        KEPT.append(train.subset([0, 1]))
        KEPT.append(train)
        return Artifact()

    def unlearn(self, model, artifact, data):
        if self.way == "self": self.mine.batch([0])
        if self.way == "class": Cheat.ours.batch([0])
        if self.way == "global": KEPT[-1].targets.sum()
        if self.way == "handover": data.retain.batch([0])
        return model


@pytest.mark.parametrize("way, error", [
    ("self", AttributeError), ("class", ValueError), ("global", ValueError), ("handover", AttributeError)])
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
    point = EntryPoint("theirs", "one_shui.methods.contract:Original", "one_shui.methods")
    monkeypatch.setattr(one_shui.methods.contract, "entry_points", lambda group: [point] if group == "one_shui.methods" else [])
    assert "theirs" in method_names()
    assert find_method("theirs") is one_shui.methods.contract.Original


def test_metaunlearn_says_who_is_a_stranger(images, model):
    method = find_method("metaunlearn")(n_forget=3, epochs=1, hidden=16)
    prepared = prepare_method(method, model, images.train, images.val)
    with pytest.warns(UserWarning, match="the mean code stands in"):
        apply_method(method, model, prepared.artifact, images.val.subset([0]))

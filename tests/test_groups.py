"""Entries of groups: what they keep, and what a request gets from them."""
import numpy as np
import pytest
import torch

from one_shui.methods.key_edit.groups import estimate_in_groups, group_bounds, group_of, group_tensors, identity_number
from one_shui.methods.key_edit.records import request_keys_and_gaps
from one_shui.methods.key_edit.statistics import LayerOutputs

NAMES = [f"n{k}" for k in range(300)]


def outputs(n: int, width: int = 6, classes: int = 3, seed: int = 0) -> LayerOutputs:
    rng = torch.Generator().manual_seed(seed)
    none = torch.empty(0)
    return LayerOutputs(torch.randn(n, width, generator=rng), none, none, (torch.rand(n, classes, generator=rng) < .5).float())


@pytest.mark.parametrize("k", [2, 5, 17, 300, 1000])
def test_no_group_is_smaller_than_promised(k):
    sizes = np.bincount(group_of(NAMES, group_bounds(NAMES, k)), minlength=1)
    assert sizes.sum() == 300 and sizes.min() >= min(k, 300) and len(sizes) == max(300 // k, 1)


def test_a_boundary_is_nobodys_number_and_has_few_digits():
    bounds, numbers = group_bounds(NAMES, 17), [identity_number(name) for name in NAMES]
    assert not set(bounds.tolist()) & set(numbers)
    assert all((bound * 2 ** 24).is_integer() for bound in bounds.tolist())


def test_the_number_of_a_person_stays_the_same():
    "An artifact of today is read tomorrow, on another machine"
    assert identity_number("anna") == pytest.approx(.47569, abs=1e-5)
    assert identity_number(7) == identity_number("7")


def test_the_estimate_is_the_posterior_mean():
    "As with dense matrices, from the entries alone"
    ids, train, photos = np.repeat(NAMES[:60], 4), outputs(240), outputs(60, seed=1)
    prior = train.targets.mean(0)
    tensors = {name: t.double() for name, t in group_tensors(train, ids, prior, 12).items()}
    keys, labels = estimate_in_groups(tensors, photos, np.array(NAMES[:60]), prior)
    for k, group in enumerate(group_of(NAMES[:60], tensors["group_bounds"])):
        F, m = tensors["group_factors"][group], tensors["group_means"][group]
        seen = torch.cat([photos.features[k], photos.targets[k] - prior]).double()
        S = F.T @ F
        expected = m + S @ torch.linalg.solve(S + tensors["group_noise"], seen - m)
        assert torch.cat([keys[k], labels[k]]).double().allclose(expected, atol=1e-5)


def test_several_photos_of_a_person_count_as_one():
    ids, train = np.repeat(NAMES[:60], 4), outputs(240)
    shared = dict(prior=train.targets.mean(0), gap=torch.ones(3))
    tensors = shared | group_tensors(train, ids, shared["prior"], 12)
    one = outputs(1, seed=2)
    twice = LayerOutputs(one.features.repeat(2, 1), one.head_input, one.logits, one.targets.repeat(2, 1))
    first, both = (request_keys_and_gaps(tensors, [], out, np.array(["n3"] * n)) for out, n in ((one, 1), (twice, 2)))
    assert (both[0].T @ both[1]).allclose(first[0].T @ first[1], atol=1e-5)


def test_the_artifact_does_not_grow_within_a_group():
    "The rank of an entry is the promised size, whatever the number of its people"
    shapes = []
    for people in (30, 44):
        ids = np.repeat(NAMES[:people], 3)
        made = group_tensors(out := outputs(3 * people), ids, out.targets.mean(0), 15)
        shapes.append({name: tuple(t.shape) for name, t in made.items()})
    assert shapes[0] == shapes[1]

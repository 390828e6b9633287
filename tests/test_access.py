"""Access classes are measured: the size of an artifact tells what a method keeps."""
from dataclasses import replace

import pytest

from one_shui.data.face_set import face_set
from one_shui.data.splits import make_splits
from one_shui.data.toy import toy_faces
from one_shui.methods.access import check_access, depends_on_photo, measure_access
from one_shui.methods.harness import prepare_method
from one_shui.methods.registry import METHODS, find_method
from one_shui.models.networks import ModelSpec, create_model

VARIANTS = {"key_edit": dict(keeps="nothing"), "metaunlearn": dict(embedding=0)}
QUICK = {"key_edit": dict(n_forget=2, simulations=1), "photo_edit": dict(n_forget=2, simulations=1),
         "ticket_edit": dict(n_forget=2, simulations=1), "group_edit": dict(n_forget=2, simulations=1, smallest_group=4),
         "metaunlearn": dict(epochs=1, n_forget=2, hidden=16), "jit": dict(copies=2)}


def quick(name, **settings):
    "A method with settings of seconds"
    return find_method(name)(**QUICK.get(name, {}) | settings)


def sets(n_people):
    "A network, the train and the validation images of a drawn dataset, and support images"
    faces = toy_faces(n_people=n_people, n_photos=4, size=16)
    splits = make_splits(faces, n_forget=2)
    train, val, support = (face_set(faces, faces.images, rows) for rows in (splits.train, splits.val, splits.request.support))
    network = create_model(ModelSpec("small_cnn", faces.task.n_outputs, 16, options=dict(width=8))).eval()
    return network, train, val, support


@pytest.fixture(scope="module")
def small():
    return sets(40)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_declared_class_is_the_measured_one(small, name):
    report = measure_access(quick(name), *small[:3])
    assert report.measured == report.declared, report.reasons


@pytest.mark.parametrize("name", VARIANTS)
def test_without_its_records_a_method_keeps_statistics(small, name):
    method = quick(name, **VARIANTS[name])
    assert check_access(method, *small[:3]).measured == "statistics"


STATISTICS = [name for name in METHODS if find_method(name).data_access == "statistics"]


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in STATISTICS), *VARIANTS.items()])
def test_statistics_have_one_size_for_50_and_500_people(name, settings):
    sizes = []
    for n_people in (50, 500):
        network, train, val, _ = sets(n_people)
        artifact = prepare_method(quick(name, **settings), network, train, val).artifact
        sizes.append({key: tuple(tensor.shape) for key, tensor in artifact.tensors.items()})
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", [name for name in METHODS if find_method(name).data_access == "support" and name != "original"])
def test_a_support_method_uses_the_photo(small, name):
    network, train, val, support = small
    method = quick(name)
    assert depends_on_photo(method, network, prepare_method(method, network, train, val).artifact, support)


def test_a_record_is_found_by_name_and_not_by_photo(small):
    network, train, val, support = small
    method = quick("key_edit")
    assert not depends_on_photo(method, network, prepare_method(method, network, train, val).artifact, support)
    method = replace(method, keeps="nothing")
    assert depends_on_photo(method, network, prepare_method(method, network, train, val).artifact, support)

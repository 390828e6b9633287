"""Properties that every split has, whatever the dataset looks like."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from one_shui.core.errors import BadInput
from one_shui.data.splits import load_splits, make_splits, save_splits, simulated_request_rows
from one_shui.data.task import Faces, Task

datasets = st.lists(st.integers(1, 12), min_size=6, max_size=60)  # images of each person


def faces_with(counts: list[int]) -> Faces:
    "A dataset with the given number of images per person, in random order"
    names = [f"p{k}" for k in range(len(counts))]
    identity = np.random.default_rng(0).permutation(np.repeat(names, counts))
    paths = [f"{i}.jpg" for i in range(len(identity))]
    table = pd.DataFrame(dict(path=paths, identity=identity, yes=1))
    return Faces("drawn", table, Task("multi-label", ("yes",)))


def split(counts: list[int], n_forget: int, seed: int):
    "A split, or None where the request is impossible and refused"
    try: return make_splits(faces_with(counts), n_forget, seed)
    except BadInput as error:
        message = str(error)
        assert "a request of 1 person needs" in message or "is impossible: only" in message
        return None


@settings(max_examples=200, deadline=None)
@given(datasets, st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_properties(counts, n_forget, seed):
    faces, made = faces_with(counts), split(counts, n_forget, seed)
    if made is None: return
    people = faces.identities
    request = made.request
    rows = [made.train, made.val, made.test, request.support]
    assert sorted(np.concatenate(rows)) == list(range(len(faces)))  # each image in exactly one set
    train, val, test = (set(people[part]) for part in rows[:3])
    assert not (train & val or train & test or val & test)  # no person in two sets
    assert len(set(request.identities)) == n_forget == len(request.support)
    assert people[request.support].tolist() == list(request.identities)
    assert sorted(np.concatenate([request.forget, request.retain])) == sorted(made.train)
    assert set(people[request.forget]) == set(request.identities)
    assert not set(people[request.retain]) & set(request.identities)
    for part in (made.val, made.test):  # shares are right to within one person's images
        assert abs(len(part) - .2 * len(faces)) <= max(counts)
    if n_forget == 1: assert len(request.forget) >= 5


@settings(max_examples=50, deadline=None)
@given(datasets, st.integers(2, 6), st.integers(0, 1000))
def test_same_seed_same_split(counts, n_forget, seed):
    one, two = split(counts, n_forget, seed), split(counts, n_forget, seed)
    assert (one is None) == (two is None)
    if one is not None: assert one.digest == two.digest


def test_every_eligible_size_works():
    faces = faces_with([3] * 20)
    train_people = set(faces.identities[make_splits(faces, 2).train])
    sizes = [n for n in range(2, 20) if split([3] * 20, n, 0) is not None]
    assert sizes == list(range(2, 1 + len(train_people)))


@settings(max_examples=50, deadline=None)
@given(datasets, st.integers(0, 1000))
def test_saved_and_loaded(tmp_path_factory, counts, seed):
    made = split(counts, 2, seed)
    if made is None: return
    file = tmp_path_factory.mktemp("splits") / "splits.json"
    save_splits(made, file)
    assert load_splits(file, faces_with(counts)).digest == made.digest
    with pytest.raises(BadInput, match="was made for other images"):
        load_splits(file, faces_with([*counts, 3]))


@settings(max_examples=100, deadline=None)
@given(datasets, st.integers(1, 6), st.integers(0, 1000))
def test_simulated_requests(counts, n_forget, seed):
    identities = faces_with(counts).identities
    try: requests = list(simulated_request_rows(identities, n_forget, np.random.default_rng(seed)))
    except BadInput:
        assert sum(c > 1 for c in counts) < n_forget
        return
    assert len(requests) == sum(c > 1 for c in counts) // n_forget
    chosen = [person for support, _ in requests for person in identities[support]]
    assert len(chosen) == len(set(chosen))  # each person occurs once per epoch at most
    for support, forget in requests:
        assert len(support) == n_forget and not set(support) & set(forget)
        images_of_chosen = np.flatnonzero(np.isin(identities, identities[support]))
        assert set(images_of_chosen) == set(support) | set(forget)


def test_row_number_too_large(tmp_path):
    "Found by a fuzzer: a row number that does not fit into 64 bits"
    file = tmp_path / "splits.json"
    save_splits(split([3] * 12, 2, 0), file)
    file.write_text(file.read_text().replace('"train": [', '"train": [9' + "9" * 30 + ","))
    with pytest.raises(BadInput, match="can't read the split"):
        load_splits(file, faces_with([3] * 12))

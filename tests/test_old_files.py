"""Files that version 0.1.0 wrote can still be used."""
from pathlib import Path

import numpy as np
import pytest
import torch

from one_shui.core.files import read_tensors
from one_shui.data.face_set import FaceSet
from one_shui.data.toy import toy_faces
from one_shui.methods.contract import Artifact
from one_shui.methods.harness import apply_method
from one_shui.methods.registry import find_method
from one_shui.models.files import load_model

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1.0"
RENAMED_SETTINGS = dict(rehearsals="simulations", spares="use_covariance", weighs="per_attribute_gap", lose="max_score_drop")


def support_of(people):
    "Drawn faces under the names of these people"
    faces = toy_faces(n_people=len(people), n_photos=1, size=32)
    return FaceSet(faces.images, np.arange(len(people)), faces.targets, np.array(people), faces.task)


@pytest.mark.parametrize("name", ["key_edit", "metaunlearn"])
@pytest.mark.parametrize("file", ["{}.artifact.safetensors", "run/{}-artifact.safetensors"])
def test_artifacts_of_0_1_0(name, file):
    file = FIXTURES / file.format(name)
    network = "run/original.safetensors" if file.parent.name == "run" else "model.safetensors"
    model, _ = load_model(FIXTURES / network)
    old_settings = read_tensors(file)[1]["settings"]
    artifact = Artifact.load(file)
    settings = artifact.facts["settings"]
    assert settings == {RENAMED_SETTINGS.get(key, key): value for key, value in old_settings.items()}
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    method = find_method(name)(**tuples)
    for key, value in tuples.items():
        if key != "objective": assert getattr(method, key) == value
    known = artifact.facts["people"][:2]
    unlearned = apply_method(method, model, artifact, support_of(known))[0]
    assert all(p.isfinite().all() for p in unlearned.parameters())
    changed = [key for key, p in model.named_parameters() if not torch.equal(p, unlearned.get_parameter(key))]
    if name == "key_edit": assert changed == ["head.weight"]
    else: assert len(changed) == len(list(model.parameters())) or artifact.facts["chosen"]["strength"] == 0

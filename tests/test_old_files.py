"""Files that version 0.1.0 wrote can still be used."""
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from one_shui.core.files import read_tensors
from one_shui.data.face_set import FaceSet
from one_shui.data.toy import toy_faces
from one_shui.experiments.audit import audit
from one_shui.experiments.audit_metrics import Audit
from one_shui.methods.contract import Artifact
from one_shui.methods.harness import apply_method
from one_shui.methods.registry import find_method
from one_shui.models.files import load_model
from one_shui.scale.run_grid import read_rows

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1.0"
SAMPLE = Path(__file__).parents[1] / "data" / "sample"
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


def test_a_table_of_a_grid_of_0_1_0():
    rows = read_rows(FIXTURES / "grid")
    assert {"images_read", "prepare_images_read"} <= set(rows.columns) and "pictures_read" not in rows
    assert set(rows["method"]) >= {"original", "retrain", "gradient_ascent", "key_edit"}
    assert rows.loc[rows["metric"] == "ToW", "value"].between(0, 100).all()


def test_an_audit_of_0_1_0_goes_on(tmp_path):
    shutil.copytree(FIXTURES / "run", folder := tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(config, root=str(SAMPLE))))
    stored = pd.read_csv(folder / "audit.csv")
    rows = audit(folder, ("original", "retrain"), Audit(views=1), log=lambda _: None)
    assert {"linkage AUC of non-members", "support image regained"} <= set(rows["metric"])
    assert not set(rows["metric"]) & {"linkage AUC of strangers", "portrait regained"}
    assert sorted(rows["value"]) == pytest.approx(sorted(stored["value"]), nan_ok=True), "nothing is attacked again"

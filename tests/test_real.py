"""Real faces: read as they were downloaded, and a short run. Needs ONE_SHUI_DATA."""
import json
import shutil

import pytest
from typer.testing import CliRunner

from one_shui.cli.main import app
from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.experiments.run import run
from one_shui.data.readers import read_faces
from one_shui.requests.ledger import Ledger
from one_shui.data.splits import load_splits


@pytest.mark.parametrize("dataset, classes", [("celeba", 40), ("celebahq", 40), ("mufac", 8)])
def test_read(real, dataset, classes):
    faces = read_faces(dataset, real)
    assert len(faces) > 1000
    assert faces.task.n_outputs == classes
    assert all((faces.root / path).is_file() for path in faces.table["path"][:20])


def test_celebahq_knows_the_same_people_as_celeba(real, tmp_path):
    "Whether identities are given or derived, the same images show the same person"
    given = read_faces("celebahq", real)
    (tmp_path / "CelebAMask-HQ").mkdir()
    for file in given.root.glob("*.txt"):
        if file.name != "CelebA-HQ-identity.txt": shutil.copy(file, tmp_path / "CelebAMask-HQ")
    shutil.copytree(given.root / "CelebA-HQ-img", tmp_path / "CelebAMask-HQ/CelebA-HQ-img")
    shutil.copy(real / "celeba/identity_CelebA.txt", tmp_path / "CelebAMask-HQ")
    derived = read_faces("celebahq", tmp_path)
    both = given.table[["path", "identity"]].merge(derived.table[["path", "identity"]], on="path")
    assert len(both) > 100
    for one, other in (("identity_x", "identity_y"), ("identity_y", "identity_x")):
        assert (both.groupby(one)[other].nunique() == 1).all()


@pytest.mark.parametrize("dataset", ["celeba", "celebahq", "mufac"])
def test_run(real, tmp_path, dataset):
    metrics = None if dataset == "mufac" else ("score",)  # All metrics once
    config = Config(dataset, str(real), n_forget=5, size=32, epochs=1, methods=("original", "retrain", "gradient_ascent"), metrics=metrics)
    rows = run(config, tmp_path / "run", log=lambda _: None)
    assert set(rows["method"]) == set(config.methods)
    assert rows["value"].notna().all()


def test_identities_stay_apart(real):
    images = load_image_sets(Config("celeba", str(real), size=32))
    assert not set(images.train.identities) & set(images.test.identities)
    assert len(images.support) == 20


def test_a_request_when_the_images_are_gone(real, tmp_path):
    "The three commands, with the training folder renamed between the first and the second"
    def one_shui(*words) -> str:
        answer = CliRunner().invoke(app, [str(word) for word in words])
        assert answer.exit_code == 0, answer.exception or answer.output
        return answer.output
    shutil.copytree(real / "celeba", tmp_path / "data/celeba")
    config = Config("celeba", str(tmp_path / "data"), n_forget=3, size=32, epochs=3, methods=("original",), metrics=("score",))
    run(config, tmp_path / "run", log=lambda _: None)
    model, artifact, splits = tmp_path / "run/original.safetensors", tmp_path / "artifact.safetensors", tmp_path / "run/splits.json"
    one_shui("prepare", "--model", model, "--dataset", "celeba", "--root", tmp_path / "data", "--splits", splits, "--method", "key_edit",
             "--people", 3, "--set", "key_edit.simulations=2", "--out", artifact)
    faces = read_faces("celeba", tmp_path / "data")
    request = load_splits(splits, faces).request
    person, rows = faces.identities[request.support[0]], load_splits(splits, faces).val[:200]
    theirs = request.forget[faces.identities[request.forget] == person]
    (held := tmp_path / "held-out").mkdir()
    for path in faces.table["path"].iloc[[*rows, *theirs]]: shutil.copy(faces.root / path, held)
    shown = faces.table.iloc[[*rows, *theirs]]
    shown.assign(path=[path.rsplit("/", 1)[-1] for path in shown["path"]]).to_csv(held / "labels.csv", index=False)
    photo = shutil.copy(faces.root / faces.table["path"].iloc[request.support[0]], tmp_path / "photo.jpg")
    (tmp_path / "data").rename(tmp_path / "gone")
    after = tmp_path / "after.safetensors"
    one_shui("forget", "--model", model, "--artifact", artifact, "--photo", photo, "--identity", person, "--check", held, "--force",
             "--out", after)
    assert "threshold attack AUC" in one_shui("verify", "--before", model, "--after", after, "--check", held, "--identity", person)
    one_shui("receipt", "check", tmp_path / "after.receipt.json", "--before", model, "--after", after)
    assert str(person) not in json.loads((tmp_path / "after.receipt.json").read_text())["request"]
    assert [line["event"] for line in Ledger.read(tmp_path / "run/original.safetensors.ledger.jsonl").lines] == ["started", "done"]

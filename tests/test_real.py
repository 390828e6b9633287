"""Real faces: read as they were downloaded, and a short run. Needs ONE_SHUI_DATA."""
import shutil

import pytest

from one_shui.experiment import Config, load_pictures, run
from one_shui.faces import read_faces


@pytest.mark.parametrize("dataset, classes", [("celeba", 40), ("celebahq", 40), ("mufac", 8)])
def test_read(real, dataset, classes):
    faces = read_faces(dataset, real)
    assert len(faces) > 1000
    assert faces.task.n_outputs == classes
    assert all((faces.root / path).is_file() for path in faces.table["path"][:20])


def test_celebahq_knows_the_same_people_as_celeba(real, tmp_path):
    "Whether identities are given or derived, the same pictures show the same person"
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
    config = Config(dataset, str(real), n_forget=5, size=32, epochs=1, methods=("original", "retrain", "gradient_ascent"))
    rows = run(config, tmp_path / "run", say=lambda _: None)
    assert set(rows["method"]) == set(config.methods)
    assert rows["value"].notna().all()


def test_identities_stay_apart(real):
    pictures = load_pictures(Config("celeba", str(real), size=32))
    assert not set(pictures.train.identities) & set(pictures.test.identities)
    assert len(pictures.support) == 20

"""What several tests share: drawn faces on disk, and the folder of real ones."""
import gc
import os
from pathlib import Path

import pytest
from processes import CONTEXT

from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.data.writers import save_faces
from one_shui.models.networks import ModelSpec, create_model
from one_shui.data.toy import toy_faces


def pytest_collection_finish():
    "Garbage collection, which each measurement of memory begins with, skips what the imports made"
    gc.freeze()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    "A folder with drawn faces in the layouts of CelebA, CelebA-HQ and MUFAC"
    root = tmp_path_factory.mktemp("drawn")
    save_faces(faces := toy_faces(n_people=12, n_photos=5, size=32), root, "celeba")
    save_faces(faces, root, "celebahq")
    save_faces(toy_faces(n_people=12, n_photos=5, size=32, task="ages"), root, "mufac")
    return root


@pytest.fixture(scope="session")
def real() -> Path:
    "The folder that ONE_SHUI_DATA names, with celeba/, CelebAMask-HQ/ and mufac/"
    folder = os.environ.get("ONE_SHUI_DATA")
    if not folder: pytest.skip("set ONE_SHUI_DATA to a folder with real faces")
    return Path(folder)


@pytest.fixture(scope="module")
def images():
    "The sets of a tiny run"
    return load_image_sets(Config.tiny())


@pytest.fixture(scope="module")
def model(images):
    "An untrained network for them"
    return create_model(ModelSpec("small_cnn", images.faces.task.n_outputs, 32, options=dict(width=8))).eval()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    "Decoded images go to a folder of the tests"
    if "ONE_SHUI_CACHE" not in os.environ: monkeypatch.setenv("ONE_SHUI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def clean_process():
    "Makes processes that have imported everything and hold no thread of this one"
    def start(target, *arguments):
        process = CONTEXT.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process
    return start

"""Feed spoiled files to every reader with atheris, guided by coverage. Anything but `BadInput` is a finding.

    pip install atheris
    python tests/fuzz/fuzz_readers.py READER -max_total_time=600 [CORPUS_FOLDER]

READER is one of celeba, mufac, own, receipt, ledger, requests, description, grid, model, artifact, answers, splits, photo.
"""
import json
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np
import pandas as pd
from PIL import Image

with atheris.instrument_imports(include=["one_shui"]):
    from one_shui.evaluation.predictions import Predictions
    from one_shui.data.datasets.celeba import read_celeba
    from one_shui.data.datasets.mufac import read_mufac
    from one_shui.data.datasets.own import read_own
    from one_shui.scale.grid import read_grid
    from one_shui.requests.ledger import Ledger
    from one_shui.requests.receipts import check_receipt, read_receipt
    from one_shui.data.face_set import FaceSet
    from one_shui.models.files import save_model, task_facts
    from one_shui.models.networks import ModelSpec, create_model
    from one_shui.methods.key_edit.method import KeyEdit
    from one_shui.requests.own_model import read_description
    from one_shui.requests.photos import read_photo
    from one_shui.requests.artifact import prepare_artifact
    from one_shui.requests.case import Options
    from one_shui.requests.letters import ForgetRequest
    from one_shui.requests.model import open_model
    from one_shui.requests.forget import process_request
    from one_shui.requests.letters import read_requests
    from one_shui.data.splits import load_splits, make_splits, save_splits
    from one_shui.core.errors import BadInput
    from one_shui.data.task import Task
    from one_shui.data.toy import toy_faces

FOLDER = Path(tempfile.mkdtemp())
FACES = toy_faces(n_people=12, n_photos=3, size=8)


def dataset(name: str, files: dict[str, bytes], read, spoiled: str):
    "A reader of a dataset's folder in which one file is spoiled"
    (folder := FOLDER / name).mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    def attempt(data: bytes):
        (folder / spoiled).write_bytes(data)
        read(FOLDER)
    return attempt


def single(suffix: str, read):
    "A reader of one file"
    def attempt(data: bytes):
        (file := FOLDER / f"spoiled{suffix}").write_bytes(data)
        read(file)
    return attempt


def small_model(file: Path) -> None:
    "A model of this package"
    spec = ModelSpec("small_cnn", FACES.task.n_outputs, 8, options=dict(width=1))
    save_model(create_model(spec), spec, file, **task_facts(FACES.task))


def answering():
    "A request that a spoiled artifact answers: as far as the last step before anything is written"
    small_model(file := FOLDER / "model.safetensors")
    Image.fromarray(FACES.images[0]).save(FOLDER / "face.png")
    model, asked = open_model(file), [ForgetRequest("1", (FOLDER / "face.png",))]
    return single(".safetensors", lambda artifact: process_request(
        model, asked, FOLDER / "out.safetensors", artifact, options=Options(dry_run=True, unknown=True)))


READERS = {
    "celeba": lambda: dataset("celeba", {"img_align_celeba/000001.jpg": b"", "identity_CelebA.txt": b"000001.jpg 1\n"}, read_celeba,
                              "list_attr_celeba.txt"),
    "mufac": lambda: dataset("mufac", {"train_images/1.jpg": b"", "custom_val_dataset.csv": b"family_id,person_id,age_class,image_path\n",
                                       "custom_test_dataset.csv": b"family_id,person_id,age_class,image_path\n"}, read_mufac,
                             "custom_train_dataset.csv"),
    "own": lambda: dataset("own", {"a.jpg": b""}, lambda root: read_own(root / "own"), "labels.csv"),
    "receipt": lambda: single(".json", lambda file: check_receipt(read_receipt(file), b"0123456789abcdef", after=file)),
    "ledger": lambda: single(".jsonl", Ledger.read),
    "requests": lambda: single(".csv", read_requests),
    "description": lambda: single(".yaml", read_description),
    "grid": lambda: single(".yaml", lambda file: read_grid(file).cells),
    "model": lambda: single(".safetensors", open_model),
    "artifact": answering,
    "answers": lambda: single(".parquet", Predictions.load),
    "splits": lambda: single(".json", lambda file: load_splits(file, FACES)),
    "photo": lambda: single(".jpg", lambda file: read_photo(file, 16)),
}
SEEDS = {
    "celeba": b"1\nSmiling Young\n000001.jpg 1 -1\n",
    "mufac": b"family_id,person_id,age_class,image_path\n1,1,3,1.jpg\n",
    "own": b"path,identity,Smiling\na.jpg,1,1\n",
    "receipt": json.dumps(dict(request="a", signature=dict(kind="hmac-sha256", value="00"), model=dict(
        before=dict(weights="a", sha256="x"), after=dict(weights="b", sha256="y")))).encode(),
    "requests": b"photo,identity,labels\na.jpg,1,Smiling\n",
    "grid": b"config: {dataset: toy}\nover: {seed: [0]}\nmethods: [original]\n",
    "description": b"arch: resnet18\nclasses: [a]\nsize: 32\nmean: [0, 0, 0]\n",
}


def plant_photos(seed: Path) -> None:
    "One of each decoder"
    import pillow_heif
    pillow_heif.register_heif_opener()
    face = Image.fromarray(FACES.images[0]).resize((16, 16))
    for kind in ("JPEG", "PNG", "TIFF", "HEIF", "WEBP", "GIF", "BMP"): face.save(seed.with_name(f"{seed.name}-{kind}"), kind)
    Image.fromarray(np.asarray(face.convert("L"), np.float32)).save(seed.with_name(f"{seed.name}-numbers"), "TIFF")


def plant(name: str, seed: Path) -> None:
    "A sound file to begin with"
    if name in SEEDS: seed.write_bytes(SEEDS[name])
    elif name == "splits": save_splits(make_splits(FACES, 2), seed)
    elif name == "ledger":
        seed.unlink(missing_ok=True)
        ledger = Ledger.read(seed)
        ledger.append(event="started", request="a", before="b", out="m")
        ledger.append(event="done", request="a", before="b", after="c", out="m", receipt="r", sha256="d")
    elif name == "photo": plant_photos(seed)
    elif name == "artifact":
        small_model(model := FOLDER / "model.safetensors")
        rows = [FaceSet(FACES.images, some, FACES.targets, FACES.identities, FACES.task) for some in (np.arange(24), np.arange(24, 36))]
        prepare_artifact(open_model(model), *rows, KeyEdit(n_forget=1)).save(seed)
    elif name == "model": small_model(seed)
    elif name == "answers":
        task = Task("multi-class", ("a", "b"))
        row = dict(set=["forget"], image=[0], identity=["p"], target_0=[0], logit_0=[1.], logit_1=[0.])
        Predictions(task, pd.DataFrame(row)).save(seed)


def main() -> None:
    "Fuzz one reader"
    attempt = READERS[sys.argv.pop(1)]()
    warnings.simplefilter("ignore")

    def once(data: bytes) -> None:
        try: attempt(data)
        except BadInput: pass

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in READERS: sys.exit(__doc__)
    corpus = next((Path(word) for word in sys.argv[2:] if not word.startswith("-")), None)
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
        plant(name, corpus / "seed")
    main()

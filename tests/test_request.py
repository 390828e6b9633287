"""Real requests: odd photos, bad input, two at once, killed at any moment."""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.torch import save_file

import one_shui
from one_shui.cli.main import main
from one_shui.experiments.config import Config
from one_shui.experiments.run import run
from one_shui.data.readers import read_faces
from one_shui.data.writers import save_faces
from one_shui.core.files import file_digest
from one_shui.requests.ledger import Ledger
from one_shui.requests.receipts import check_receipt, read_key, read_receipt
from one_shui.data.cache import cached_images
from one_shui.data.face_set import FaceSet, face_set
from one_shui.core.files import read_header
from one_shui.models.files import save_model, task_facts, weights_digest
from one_shui.models.networks import ModelSpec, create_model
from one_shui.requests.own_model import open_any, read_description
from one_shui.requests.photos import opencv_faces, read_photo
from one_shui.methods.contract import settings_of
from one_shui.requests.artifact import artifact_seal
from one_shui.requests.case import DEFAULT_OPTIONS, Options
from one_shui.requests.letters import ForgetRequest
from one_shui.requests.model import open_model
from one_shui.requests.artifact import prepare_artifact, read_artifact
from one_shui.requests.forget import process_request
from one_shui.requests.letters import read_requests
from one_shui.data.splits import load_splits
from one_shui.core.errors import BadInput
from one_shui.data.task import Task
from one_shui.data.toy import toy_faces
from one_shui.methods.contract import Artifact
from one_shui.methods.registry import find_method, method_names

KILLS = int(os.environ.get("ONE_SHUI_KILLS", "12"))


FORCED, UNKNOWN = Options(force=True), Options(force=True, unknown=True)


def call(monkeypatch, *words):
    "The command line in this process: its exit code"
    monkeypatch.setattr(sys, "argv", ["one-shui", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    "A company: a model trained on images that are gone, an artifact, an inbox"
    folder = tmp_path_factory.mktemp("company")
    save_faces(toy_faces(n_people=30, n_photos=6, size=32), folder / "data", "celeba")
    root = str(folder / "data")
    run(
        Config(
            dataset="celeba",
            root=root,
            n_forget=3,
            size=32,
            recipe="toy",
            epochs=4,
            arch_options=dict(width=8),
            methods=("original",),
        ),
        folder / "run",
        log=lambda _: None,
    )
    shutil.copy(folder / "run" / "original.safetensors", folder / "model.safetensors")
    words = [
        "one-shui",
        "prepare",
        "--model",
        folder / "model.safetensors",
        "--method",
        "key_edit",
        "--dataset",
        "celeba",
        "--root",
        root,
        "--splits",
        folder / "run" / "splits.json",
        "--people",
        3,
        "--out",
        folder / "artifact.safetensors",
    ]
    before, sys.argv = sys.argv, [str(w) for w in words]
    with pytest.raises(SystemExit) as ended:
        main()
    sys.argv = before
    assert ended.value.code == 0
    faces = read_faces("celeba", root)
    rows = faces.table.iloc[load_splits(folder / "run" / "splits.json", faces).request.support]
    (folder / "inbox").mkdir()
    for path, person in zip(rows["path"], rows["identity"], strict=True):
        shutil.copy(folder / "data" / "celeba" / path, folder / "inbox" / f"{person}.jpg")
    (folder / "data").rename(folder / "gone")
    (folder / "key").write_text("a key of more than sixteen bytes")
    return folder


@pytest.fixture
def desk(company, tmp_path):
    "A copy of the files of a request, so that tests don't share files"
    for name in ("model.safetensors", "artifact.safetensors", "key"):
        shutil.copy(company / name, tmp_path / name)
    shutil.copytree(company / "inbox", tmp_path / "inbox")
    return tmp_path


def photo_of(desk):
    return sorted((desk / "inbox").glob("*.jpg"))[0]


def letter(photo):
    "The request of the person whom a photo is named after"
    return [ForgetRequest(photo.stem, (photo,))]


def forget(desk, out="model-2.safetensors", **more):
    photo = photo_of(desk)
    return process_request(
        open_model(desk / "model.safetensors"),
        letter(photo),
        desk / out,
        desk / "artifact.safetensors",
        **more,
    )


def test_from_a_photo_to_a_receipt(desk, monkeypatch, capsys):
    photo, sound = photo_of(desk), file_digest(desk / "model.safetensors")
    words = (
        "forget",
        "--model",
        desk / "model.safetensors",
        "--artifact",
        desk / "artifact.safetensors",
        "--photo",
        photo,
        "--identity",
        photo.stem,
        "--out",
        desk / "model-2.safetensors",
        "--key",
        desk / "key",
    )
    assert call(monkeypatch, *words, "--dry-run") == 0
    assert not list(desk.glob("model-2*")) and not list(desk.glob("*.jsonl*")), (
        "a dry run leaves nothing, not even a lock"
    )
    assert call(monkeypatch, *words) == 0
    assert "could not be measured" in capsys.readouterr().out.lower()
    assert call(monkeypatch, *words) == 0
    assert "was processed on" in capsys.readouterr().out
    assert file_digest(desk / "model.safetensors") == sound
    receipt = desk / "model-2.receipt.json"
    checks = (
        "receipt",
        "check",
        receipt,
        "--key",
        desk / "key",
        "--before",
        desk / "model.safetensors",
    )
    assert call(monkeypatch, *checks, "--after", desk / "model-2.safetensors") == 0
    assert call(monkeypatch, *checks, "--after", desk / "model.safetensors") == 1
    assert call(monkeypatch, *checks, "--ledger", desk / "model.safetensors.ledger.jsonl") == 0
    receipt.write_text(receipt.read_text().replace('"people": 1', '"people": 2'))
    assert call(monkeypatch, *checks) == 1
    assert "signature doesn't fit" in capsys.readouterr().out
    assert call(monkeypatch, "receipt", "ledger", desk / "model.safetensors.ledger.jsonl") == 0
    assert "done" in capsys.readouterr().out


def test_no_name_and_no_photo_is_kept(desk):
    photo = photo_of(desk)
    person = desk / "inbox" / "a name like no other.jpg"
    photo.rename(person)
    forget(desk)
    written = b"".join(
        f.read_bytes()
        for f in desk.iterdir()
        if f.is_file() and f.suffix in (".json", ".jsonl", ".html")
    )
    assert (
        b"no other" not in written
        and hashlib.sha256(person.read_bytes()).hexdigest().encode() not in written
    )


@pytest.fixture(scope="module")
def data(company):
    "Train and val images, as they were before the deletion"
    faces = read_faces("celeba", company / "gone")
    splits, decoded = (
        load_splits(company / "run" / "splits.json", faces),
        cached_images(faces, 32, progress=False),
    )
    return tuple(face_set(faces, decoded, rows) for rows in (splits.train, splits.val))


FEW = dict(
    metaunlearn=dict(n_forget=3, epochs=1, simulations=1, strengths=(0.0, 1.0)),
    key_edit=dict(n_forget=3), photo_edit=dict(n_forget=3, simulations=1),
    ticket_edit=dict(n_forget=3, simulations=1), group_edit=dict(n_forget=3, simulations=1),
    pgu=dict(lr=1e-3),
)


@pytest.mark.parametrize(
    "name", [name for name in method_names() if find_method(name).makes_artifact()]
)
def test_every_method_with_an_artifact(desk, data, name):
    "Prepared, stored and used; no file that is written contains the name or the photo's digest"
    method = find_method(name)(**FEW.get(name, {}))
    artifact = prepare_artifact(open_model(desk / "model.safetensors"), *data, method, people=3)
    if name == "metaunlearn":  # simulations of one round may choose strength 0
        artifact.facts["chosen"]["strength"] = 1.0
        artifact.facts["seal"] = artifact_seal(artifact)
    artifact.save(desk / "its.safetensors")
    photo, model = (
        photo_of(desk).rename(desk / "inbox" / "Xanthippe Quux.jpg"),
        open_model(desk / "model.safetensors"),
    )
    made = process_request(
        model,
        [ForgetRequest("Xanthippe Quux", (photo,))],
        desk / "2.safetensors",
        desk / "its.safetensors",
        options=UNKNOWN,
    )
    assert (made.receipt["method"]["name"], made.receipt["method"]["settings"]) == (
        name,
        settings_of(method),
    )
    written = b"".join(
        f.read_bytes()
        for f in desk.iterdir()
        if f.is_file() and f.name not in ("model.safetensors", "artifact.safetensors")
    )
    assert (
        b"Xanthippe" not in written
        and b"Quux" not in written
        and file_digest(photo).encode() not in written
    )
    assert (desk / "2.receipt.json").is_file() and (desk / "2.receipt.html").is_file()


def test_an_artifact_has_codes_and_finds_the_forget_identity(desk, data):
    method = find_method("key_edit")(n_forget=3)
    prepare_artifact(open_model(desk / "model.safetensors"), *data, method, people=3).save(
        desk / "its.safetensors"
    )
    header, names = read_header(desk / "its.safetensors"), set(data[0].identities)
    assert len(header["people"]) == len(names)
    assert not names & set(header["people"])
    photo, model = photo_of(desk), open_model(desk / "model.safetensors")
    by_name = {
        who: process_request(
            model,
            [ForgetRequest(who, (photo,))],
            desk / f"{who}.safetensors",
            desk / "its.safetensors",
            options=UNKNOWN,
        )
        for who in (photo.stem, "somebody else")
    }
    notes = {who: " ".join(made.receipt["what_was_done"]) for who, made in by_name.items()}
    assert "no record of" not in notes[photo.stem] and "no record of" in notes["somebody else"]
    one, other = (made.receipt["model"]["after"]["weights"] for made in by_name.values())
    assert one != other, "the record of a person is used, and only for that person"


def test_figures_that_no_image_tells(desk, tmp_path):
    "One rare attribute: a simulated request has no score, and the files are complete all the same"
    faces = toy_faces(n_people=12, n_photos=4, size=32)
    rare = np.zeros(len(faces), np.uint8)
    rare[:2] = 1
    table, task = (
        faces.table[["path", "identity"]].assign(Rare=rare),
        Task("multi-label", ("Rare",)),
    )
    spec = ModelSpec("small_cnn", 1, 32, options=dict(width=4))
    save_model(create_model(spec), spec, desk / "rare.safetensors", **task_facts(task))
    rows = np.arange(36), np.arange(36, 48)
    train, val = (
        FaceSet(faces.images, some, table[["Rare"]].to_numpy(), faces.identities, task)
        for some in rows
    )
    model = open_model(desk / "rare.safetensors")
    prepare_artifact(model, train, val, find_method("key_edit")(n_forget=2))
    prepare_artifact(
        model, train, val, find_method("metaunlearn")(n_forget=2, epochs=1, hidden=8, held_out=0.5)
    )
    prepare_artifact(model, train, val, find_method("prior_labels")()).save(
        desk / "rare-artifact.safetensors"
    )
    photo = photo_of(desk)
    made = process_request(
        model,
        [ForgetRequest("1", (photo,))],
        desk / "rare-2.safetensors",
        desk / "rare-artifact.safetensors",
        options=UNKNOWN,
    )
    assert made.receipt["simulated"]["before"]["val"] is None
    assert read_receipt(desk / "rare-2.receipt.json")["simulated"] == made.receipt["simulated"]


def odd_photos(face, folder):
    "Images as people send them, and what each should look like"
    turned, grey = Image.Exif(), face.convert("L")
    turned[0x0112] = 8
    clear = face.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(face.size))
    white = Image.alpha_composite(Image.new("RGBA", face.size, "white"), clear)
    face.rotate(-90).save(folder / "phone.jpg", exif=turned, quality=95)
    clear.save(folder / "alpha.png")
    face.quantize(200).save(folder / "palette.png")
    grey.save(folder / "grey.jpg", quality=95)
    face.convert("1").save(folder / "fax.tif")
    face.convert("CMYK").save(folder / "print.jpg", quality=95)
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.asarray(grey, np.float32) / 255).save(folder / "unit.tif")
    Image.fromarray(np.asarray(grey, np.int32)).save(folder / "whole.tif")
    (tiny := face.resize((9, 9))).save(folder / "tiny.png")
    (wide := face.resize((3000, 40))).save(folder / "wide.webp", lossless=True)
    face.save(folder / "moves.gif", save_all=True, append_images=[face.rotate(30)])
    import pillow_heif

    pillow_heif.register_heif_opener()
    face.save(folder / "iphone.heic", quality=95)
    dots, shades = face.convert("1"), ("grey.jpg", "deep.png", "unit.tif", "whole.tif")
    looks = {
        "alpha.png": white,
        "fax.tif": dots,
        "tiny.png": tiny,
        "wide.webp": wide,
        **dict.fromkeys(shades, grey),
    }
    return {file: looks.get(file.name, face).convert("RGB") for file in sorted(folder.iterdir())}


def test_odd_photos_are_read(tmp_path):
    "Upright, on white, and as bright as they were: to the few shades that lossy formats cost"
    face = Image.fromarray(toy_faces(n_people=1, n_photos=1, size=64).images[0])
    for file, look in odd_photos(face, tmp_path).items():
        photo = read_photo(file, 32)
        assert photo.pixels.shape == (32, 32, 3) and photo.pixels.dtype == np.uint8, file
        expected = np.asarray(ImageOps.fit(look, (32, 32), Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(photo.pixels - expected).mean() < 4, file.name
        for wrong in (np.rot90(expected), expected[::-1], expected[:, ::-1] / 2):
            assert np.abs(photo.pixels - wrong).mean() > 8, file.name
        assert photo.notes, file


@pytest.mark.parametrize(
    "name, cut",
    [
        ("fax.tif", 4),
        ("unit.tif", 4),
        ("iphone.heic", 2),
        ("alpha.png", 2),
        ("moves.gif", 3),
        ("phone.jpg", 2),
        ("wide.webp", 2),
    ],
)
def test_damaged_photos_are_refused(tmp_path, name, cut):
    "A part of the file only: each decoder has its own error for that"
    odd_photos(Image.fromarray(toy_faces(n_people=1, n_photos=1, size=64).images[0]), tmp_path)
    (tmp_path / name).write_bytes((whole := (tmp_path / name).read_bytes())[: len(whole) // cut])
    with pytest.raises(BadInput, match=f"{name} is (damaged|no image)"):
        read_photo(tmp_path / name, 32)


def test_only_known_formats_are_opened(tmp_path):
    face = Image.fromarray(toy_faces(n_people=1, n_photos=1, size=64).images[0])
    for name in ("face.dds", "face.eps", "face.jp2", "face.pcx", "face.tga"):
        face.save(tmp_path / name)
        with pytest.raises(BadInput, match="no image that can be read"):
            read_photo(tmp_path / name, 32)


def test_bombs_and_rubbish_are_refused(tmp_path, monkeypatch):
    Image.new("L", (400, 400)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(BadInput, match="too many pixels to decode"):
        read_photo(tmp_path / "bomb.png", 32)
    (tmp_path / "cut.png").write_bytes((tmp_path / "bomb.png").read_bytes()[:60])
    for name in ("cut.png", "none.png"):
        with pytest.raises(BadInput):
            read_photo(tmp_path / name, 32)


def test_the_detector_finds_nobody_on_a_wall():
    assert opencv_faces(Image.new("RGB", (200, 200), "white")) == []


ONE = {"--photo": "PHOTO", "--identity": "1"}
BARE = {**ONE, "--artifact": None, "--method": "jit"}


@pytest.mark.parametrize(
    "words, said",
    [
        ({"--photo": "none.jpg", "--identity": "1"}, "no photo"),
        ({"--photo": "inbox", "--identity": "1"}, "no photo"),
        ({"--identity": "1"}, "give --photo and --identity"),
        ({**ONE, "--identity": ""}, "without an identity"),
        ({**ONE, "--identity": "\udcff"}, "no text in UTF-8"),
        ({**ONE, "--labels": "Scales"}, "has no class 'Scales'"),
        ({**ONE, "--out": "model.safetensors"}, "never overwritten"),
        ({**ONE, "--out": "artifact.safetensors"}, "is there already"),
        ({**ONE, "--out": "nowhere/new.safetensors"}, "no folder nowhere"),
        ({**ONE, "--out": "new.pth"}, "end in .safetensors"),
        ({**ONE, "--out": "\udcff.safetensors"}, "no name in UTF-8"),
        ({**ONE, "--artifact": "model.safetensors"}, "wasn't made by one-shui prepare"),
        ({**ONE, "--artifact": "none.safetensors"}, "no file"),
        ({**ONE, "--model": "model.pth"}, "is a pickle"),
        ({**ONE, "--key": "inbox"}, "can't read the key"),
        ({**ONE, "--ledger": "key"}, "is no ledger"),
        ({**ONE, "--ledger": "new.safetensors"}, "can't be the ledger and a result"),
        ({"--requests": "none.csv"}, "can't read the requests"),
        ({"--requests": "inbox"}, "lies in nobody's folder"),
        ({**ONE, "--requests": "inbox"}, "leave out --photo"),
        ({"--requests": "inbox", "--labels": "Young"}, "leave out --photo"),
        ({**ONE, "--check": "inbox"}, "labels.csv"),
        ({**ONE, "--tolerance": "nan"}, "the tolerance is nan"),
        ({**ONE, "--set": "key_edit.rank=3"}, "an artifact brings its method, settings and seed"),
        ({**ONE, "--seed": "4"}, "an artifact brings its method, settings and seed"),
        ({**BARE, "--set": "gradient_ascent.lr=1"}, "--set gradient_ascent"),
        ({**BARE, "--set": "jit.lr=big"}, "lr is 'big'"),
        ({**BARE, "--set": "jit.lr=NaN"}, "lr is nan"),
        ({**BARE, "--set": "jit.nope=1"}, "has no 'nope'"),
        ({**BARE, "--set": "jit.batch_size=0"}, "jit fails with"),
        ({**BARE, "--method": "original"}, "nothing would be forgotten"),
        ({**BARE, "--method": "scrub"}, "needs training data"),
        ({**BARE, "--method": "key_edit"}, "needs an artifact"),
        ({**ONE, "--describe": "key"}, "names and values"),
    ],
)
def test_malformed_input_ends_in_one_line(desk, monkeypatch, capsys, words, said):
    monkeypatch.chdir(desk)
    base = {
        "--model": "model.safetensors",
        "--artifact": "artifact.safetensors",
        "--out": "new.safetensors",
        **words,
    }
    named = {
        name: str(photo_of(desk)) if value == "PHOTO" else value
        for name, value in base.items()
        if value is not None
    }
    before = {file: file_digest(file) for file in desk.rglob("*") if file.is_file()}
    assert call(monkeypatch, "forget", *[w for pair in named.items() for w in pair]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    left = {
        file: file_digest(file)
        for file in desk.rglob("*")
        if file.is_file() and not file.name.endswith(".lock")
    }
    assert left == before


@pytest.mark.parametrize(
    "words, said",
    [
        (("prepare", "--out", "model.safetensors"), "never overwritten"),
        (("prepare", "--out", "key"), "is there already"),
        (("prepare", "--out", "nowhere/a"), "no folder nowhere"),
        (("prepare", "--out", "a", "--crop", "nan"), "--crop is nan"),
        (("prepare", "--out", "a", "--method", "scrub"), "needs the training data"),
        (("prepare", "--out", "a", "--method", "key_edit", "--set", "key_edit.rank=[3]"), "rank is [3]"),
        (("prepare", "--out", "a", "--method", "key_edit", "--set", "key_edit.nope=3"), "has no 'nope'"),
        (("prepare", "--out", "a", "--method", "key_edit", "--set", "jit.lr=3"), "but the method is key_edit"),
        (("export", "--out", "model.safetensors"), "never overwritten"),
        (("export", "--out", "linked.safetensors"), "never overwritten"),
        (("export", "--out", "key"), "is there already"),
    ],
)
def test_commands_write_over_nothing(desk, monkeypatch, capsys, words, said):
    monkeypatch.chdir(desk)
    (desk / "linked.safetensors").symlink_to(desk / "model.safetensors")
    before = {file: file_digest(file) for file in desk.iterdir() if file.is_file()}
    more = (
        ("--dataset", "celeba", "--root", "nowhere", "--splits", "none.json")
        if words[0] == "prepare"
        else ()
    )
    assert call(monkeypatch, *words, "--model", "model.safetensors", *more) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert {file: file_digest(file) for file in desk.iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    "file, text",
    [
        ("r.json", '{"request": "a", "model": []}'),
        ("r.json", "[" * 100_000),
        ("r.json", '{"request": NaN}'),
        ("r.json", '"\\ud800"'),
        ("l.jsonl", '{"n": 1, "previous": "0"}\n'),
        ("l.jsonl", "[" * 100_000 + "\n"),
        ("l.jsonl", "\x80"),
        ("l.jsonl", "3\n"),
    ],
)
def test_malformed_records_end_in_one_line(tmp_path, monkeypatch, capsys, file, text):
    (tmp_path / file).write_text(text)
    assert (
        call(monkeypatch, "receipt", "check" if file == "r.json" else "ledger", tmp_path / file)
        == 2
    )
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_the_system_refuses_is_one_line(desk, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("one_shui.requests.forget.write_unlearned", full)
    photo = photo_of(desk)
    assert (
        call(
            monkeypatch,
            "forget",
            "--model",
            desk / "model.safetensors",
            "--artifact",
            desk / "artifact.safetensors",
            "--photo",
            photo,
            "--identity",
            "1",
            "--out",
            desk / "new.safetensors",
        )
        == 2
    )
    assert "No space" in (error := capsys.readouterr().err) and len(error.strip().splitlines()) == 1


def test_many_at_once_and_several_photos(desk):
    people = sorted(p.stem for p in (desk / "inbox").glob("*.jpg"))
    lines = [
        "photo,identity",
        *(f"inbox/{p}.jpg,{p}" for p in people),
        f"inbox/{people[1]}.jpg,{people[0]}",
    ]
    (desk / "requests.csv").write_text("\n".join(lines) + "\n")
    requests = read_requests(desk / "requests.csv")
    assert [len(one.photos) for one in requests] == [2, 1, 1]
    made = process_request(
        open_model(desk / "model.safetensors"),
        requests,
        desk / "many.safetensors",
        desk / "artifact.safetensors",
    )
    assert (made.receipt["people"], made.receipt["photos"]) == (3, 4)


def test_an_identity_without_a_record_is_reported(desk):
    photo = photo_of(desk)
    model = open_model(desk / "model.safetensors")
    requests = [ForgetRequest("nobody knows", (photo,))]
    with pytest.raises(BadInput, match=r"no record of .*\(nobody knows\).*--unknown"):
        process_request(model, requests, desk / "s.safetensors", desk / "artifact.safetensors")
    made = process_request(
        model, requests, desk / "s.safetensors", desk / "artifact.safetensors", options=UNKNOWN
    )
    assert any("the artifact has no record of" in note for note in made.receipt["what_was_done"])


def forget_one(desk, photo, out):
    process_request(
        open_model(desk / "model.safetensors"),
        letter(photo),
        desk / out,
        desk / "artifact.safetensors",
        options=FORCED,
    )


def test_one_request_after_another(desk):
    "The artifact of the first model serves its descendants; a repeated request is recognized"
    first, second = sorted((desk / "inbox").glob("*.jpg"))[:2]

    def process(model, photo, out, options=DEFAULT_OPTIONS):
        return process_request(
            open_model(desk / model),
            letter(photo),
            desk / out,
            desk / "artifact.safetensors",
            ledger_file=desk / "ledger.jsonl",
            options=options,
        )

    first_result = process("model.safetensors", first, "model-2.safetensors")
    second_result = process("model-2.safetensors", second, "model-3.safetensors")
    assert not first_result.again and not second_result.again
    assert "before 1 earlier request;" in " ".join(second_result.receipt["what_was_done"])
    third = open_model(desk / "model-3.safetensors")
    assert third.origin == open_model(desk / "model.safetensors").weights
    assert third.processed_requests == [
        first_result.receipt["request"],
        second_result.receipt["request"],
    ]
    assert process("model-3.safetensors", first, "model-4.safetensors").again
    assert not (desk / "model-4.safetensors").exists()
    third_photo = sorted((desk / "inbox").glob("*.jpg"))[2]
    with pytest.raises(
        BadInput, match=r"would not have forgotten those people.*--model model-3.safetensors"
    ):
        process("model.safetensors", third_photo, "other.safetensors")
    branch = process("model.safetensors", third_photo, "other.safetensors", FORCED)
    assert any("has not forgotten" in note for note in branch.receipt["what_was_done"])


def test_two_requests_at_once_take_turns(desk, clean_process):
    both = [
        clean_process(forget_one, desk, photo, f"out-{photo.stem}.safetensors")
        for photo in sorted((desk / "inbox").glob("*.jpg"))[:2]
    ]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    lines = Ledger.read(desk / "model.safetensors.ledger.jsonl").lines
    assert [line["event"] for line in lines] == ["started", "done"] * 2
    assert lines[0]["request"] == lines[1]["request"] != lines[2]["request"] == lines[3]["request"]


def test_killed_at_any_moment(desk, clean_process):
    "A kill leaves nothing or everything done; the same request ends with the same weights"
    shutil.copytree(desk, whole := desk.parent / f"{desk.name}-whole")
    shutil.copytree(desk, first := desk.parent / f"{desk.name}-first")
    clean_process(forget, first).join()  # the server imports before its first process
    started = time.perf_counter()
    clean_process(forget, whole).join()
    seconds, rng, seen = time.perf_counter() - started, random.Random(0), set()
    expected = open_model(whole / "model-2.safetensors").weights
    sound = file_digest(desk / "model.safetensors")
    for k in range(KILLS):
        for file in desk.glob("model-2*"):
            file.unlink()
        for file in desk.glob("*.jsonl"):
            file.unlink()
        process, late = clean_process(forget, desk), k % 2
        ledger_file = desk / "model.safetensors.ledger.jsonl"
        while (
            late
            and process.is_alive()
            and not (ledger_file.exists() and ledger_file.stat().st_size)
        ):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1) if late else rng.uniform(0, 1.2) * seconds)
        process.kill()  # every second process while it writes files; or it has ended
        process.join()
        assert file_digest(desk / "model.safetensors") == sound
        ledger = Ledger.read(ledger_file)
        done = [line for line in ledger.lines if line["event"] == "done"]
        seen.add("done" if done else "started" if ledger.lines else "nothing")
        if done:
            assert (
                open_model(desk / "model-2.safetensors").weights == done[0]["after"] == expected
            ), k
            assert (
                check_receipt(
                    read_receipt(desk / "model-2.receipt.json"), after=desk / "model-2.safetensors"
                )
                == []
            )
        elif (desk / "model-2.safetensors").exists():
            assert open_model(desk / "model-2.safetensors").weights == expected
        again = forget(desk)
        assert again.again == bool(done)
        assert open_model(desk / "model-2.safetensors").weights == expected
        assert Ledger.read(desk / "model.safetensors.ledger.jsonl").find_done(
            again.receipt["request"]
        )
    assert len(seen) > 1, seen


def test_finished_models_and_receipts_stay(desk):
    "The model of one request is never overwritten by another, whatever their order"
    first, second = sorted((desk / "inbox").glob("*.jpg"))[:2]

    def process(model, photo, out):
        return process_request(
            open_model(desk / model),
            letter(photo),
            desk / out,
            desk / "artifact.safetensors",
            options=FORCED,
        )

    process("model.safetensors", first, "x.safetensors")
    process("model.safetensors", second, "n.safetensors")
    before = {file: file_digest(file) for file in desk.glob("x.*")}
    with pytest.raises(BadInput, match="x.safetensors is there already"):
        process("n.safetensors", first, "x.safetensors")
    assert {file: file_digest(file) for file in before} == before
    for paper in ("y.receipt.json", "y.receipt.html"):
        (desk / paper).write_text("somebody's")
        with pytest.raises(BadInput, match=f"{paper} is there already"):
            process("n.safetensors", first, "y.safetensors")
        (desk / paper).unlink()
    assert not process("n.safetensors", first, "y.safetensors").again


def test_a_crash_gives_no_right_to_overwrite_other_files(desk, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("one_shui.requests.forget.write_unlearned", full)
    with pytest.raises(OSError, match="No space"):
        forget(desk)
    monkeypatch.undo()
    (desk / "sub").mkdir()
    for place in ("model-2.safetensors", "sub/model-2.safetensors"):
        shutil.copy(desk / "model.safetensors", desk / place)
        with pytest.raises(BadInput, match="is there already"):
            forget(desk, place)
        assert file_digest(desk / place) == file_digest(desk / "model.safetensors")
    (desk / "model-2.safetensors").unlink()
    assert not forget(desk).again


def test_a_link_to_a_model_has_its_ledger(desk):
    (desk / "linked.safetensors").symlink_to(desk / "model.safetensors")
    forget(desk)
    photo, linked = photo_of(desk), open_model(desk / "linked.safetensors")
    again = process_request(
        linked, letter(photo), desk / "3.safetensors", desk / "artifact.safetensors"
    )
    assert again.again and not (desk / "3.safetensors").exists()


def test_the_ledger_moves_with_its_models(desk, tmp_path_factory):
    "The result of a request is found again when the folder was moved"
    forget(desk)
    moved = tmp_path_factory.mktemp("moved") / "desk"
    shutil.copytree(desk, moved)
    (desk / "model-2.safetensors").unlink()
    assert forget(moved, "model-3.safetensors").again
    assert not forget(desk, "model-3.safetensors").again


def test_a_line_of_models_has_one_ledger(desk):
    "A model that a request produced continues its ancestor's ledger, if that lies beside it"
    first, second = sorted((desk / "inbox").glob("*.jpg"))[:2]
    for model, photo, out in (
        ("model.safetensors", first, "m2.safetensors"),
        ("m2.safetensors", second, "m3.safetensors"),
    ):
        process_request(
            open_model(desk / model), letter(photo), desk / out, desk / "artifact.safetensors"
        )
    assert [
        line["out"]
        for line in Ledger.read(desk / "model.safetensors.ledger.jsonl").lines
        if line["event"] == "done"
    ] == ["m2.safetensors", "m3.safetensors"]
    assert not list(desk.glob("m2*.jsonl"))
    with pytest.raises(BadInput, match="--model m3.safetensors"):
        process_request(
            open_model(desk / "model.safetensors"),
            [ForgetRequest(second.stem, (first,))],
            desk / "x.safetensors",
            desk / "artifact.safetensors",
        )


def test_a_full_disk_leaves_the_old_state(desk, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("one_shui.requests.forget.write_unlearned", full)
    with pytest.raises(OSError, match="No space"):
        forget(desk)
    assert not (desk / "model-2.safetensors").exists()
    monkeypatch.undo()
    assert not forget(desk).again


def test_harm_is_refused_and_can_be_forced(desk, company):
    table = read_faces("celeba", company / "gone").table
    held = desk / "held"
    held.mkdir()
    for path in table["path"]:
        shutil.copy(company / "gone" / "celeba" / path, held / Path(path).name)
    table.assign(path=[Path(p).name for p in table["path"]]).to_csv(
        held / "labels.csv", index=False
    )
    photo, model = photo_of(desk), open_model(desk / "model.safetensors")
    reckless = dict(method="gradient_ascent", settings=dict(lr=0.05), check=held)
    with pytest.raises(BadInput, match="nothing was changed"):
        process_request(
            model, letter(photo), desk / "x.safetensors", options=Options(-100.0), **reckless
        )
    assert not (desk / "x.safetensors").exists()
    forced = Options(tolerance=-100.0, force=True)
    made = process_request(model, letter(photo), desk / "x.safetensors", options=forced, **reckless)
    assert "others mAP after" in made.receipt["measured"]


def test_nothing_is_unpickled():
    "No module of the package unpickles"
    bad = re.compile(
        r"\bpickle\.|\bimport pickle|torch\.load\(|joblib\.load|allow_pickle=True|"
        r"np\.load\((?!.*mmap_mode)|yaml\.load\(|"
        r"\beval\(|\bexec\(|read_pickle|load_learner|shell=True"
    )
    for file in Path(one_shui.__file__).parent.rglob("*.py"):
        lines = [
            line
            for line in file.read_text(encoding="utf-8").splitlines()
            if bad.search(re.sub(r"(?<=\.)eval\(", "", line))
        ]
        assert not lines, (file.name, lines)


class Armed:
    def __reduce__(self):
        return os.system, ("touch /tmp/one_shui_was_here",)


@pytest.mark.parametrize(
    "reader",
    [
        open_model,
        Artifact.load,
        read_artifact,
        read_receipt,
        read_requests,
        read_description,
        Ledger.read,
        read_key,
        lambda f: open_any(f, None),
        lambda f: read_photo(f, 32),
        lambda f: read_faces("own", f),
    ],
)
def test_a_pickle_is_never_opened(tmp_path, reader):
    Path("/tmp/one_shui_was_here").unlink(missing_ok=True)
    (file := tmp_path / "armed.safetensors").write_bytes(pickle.dumps(Armed()))
    try:
        reader(file)
    except BadInput:
        pass
    assert not Path("/tmp/one_shui_was_here").exists()


def test_a_header_names_no_code(tmp_path):
    "A model file can't make the package import or call something"
    header = dict(
        spec=dict(arch="os:system", n_outputs=1), weights="x", classes=["a"], kind="multi-label"
    )
    save_file(
        {"a": torch.zeros(1)}, file := tmp_path / "m.safetensors", {"one_shui": json.dumps(header)}
    )
    with pytest.raises(BadInput):
        open_model(file)


@pytest.mark.parametrize(
    "reader, text",
    [
        (read_requests, "photo,identity,ls\na.jpe,1,,SnSng\n"),
        (read_requests, "photo,identity\n\0.jpg,1\n"),
        (lambda file: read_faces("own", file), "path,identity,ling\n\0a/p,j1g,1\njpg,1,1\n"),
        (lambda file: read_faces("own", file), "path,idnyetit,Smilingid"),
        (lambda file: read_faces("own", file), "path,identity,Smiling\n"),
    ],
)
def test_what_the_fuzzers_found(tmp_path, reader, text):
    "Each of these once raised something else than `BadInput`"
    (file := tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BadInput):
        reader(file)


@pytest.mark.parametrize(
    "header",
    [
        "[1]",
        '{"spec": ',
        '{"spec": 3}',
        '{"spec": {"arch": "small_cnn", "n_outputs": 2, "opqions": {}}}',
        '{"spec": {"arch": "small_cnn"}}',
        '{"spec": {"arch": "small_cnn", "n_outputs": 2, '
        '"options": {"width": 1000000000}}, "weights": "WEIGHTS"}',
        '{"spec": {"arch": "small_cnn", "n_outputs": 2, '
        '"options": {"depth": 2}}, "weights": "WEIGHTS"}',
    ],
)
def test_headers_that_describe_no_network(tmp_path, header):
    "Found by a fuzzer: no JSON, another network, or a network too large to build"
    state = {"a": torch.zeros(1)}
    save_file(
        state,
        file := tmp_path / "m.safetensors",
        {"one_shui": header.replace("WEIGHTS", weights_digest(state))},
    )
    with pytest.raises(BadInput):
        open_model(file)


def test_an_empty_list_of_attributes(tmp_path):
    "Found by a fuzzer: a CelebA whose list of attributes names no image"
    folder = save_faces(toy_faces(n_people=2, n_photos=2, size=16), tmp_path, "celeba")
    (folder / "list_attr_celeba.txt").write_text("1\nSmiling Young\n")
    with pytest.raises(BadInput):
        read_faces("celeba", tmp_path)


FUZZ = settings(
    max_examples=int(os.environ.get("ONE_SHUI_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def spoil(data, whole):
    "A file with some bytes changed, cut out or put in"
    spoiled = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at, kind = (
            data.draw(st.integers(0, max(len(spoiled) - 1, 0))),
            data.draw(st.sampled_from(["set", "cut", "put", "end"])),
        )
        if kind == "set" and spoiled:
            spoiled[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del spoiled[at : at + data.draw(st.integers(1, 40))]
        elif kind == "put":
            spoiled[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else:
            del spoiled[at:]
    return bytes(spoiled)


@FUZZ
@given(st.data())
def test_spoiled_receipts(tmp_path, data):
    models = dict(before=dict(weights="a", sha256="x"), after=dict(weights="b", sha256="y"))
    whole = json.dumps(
        dict(request="a1", signature=dict(kind="hmac-sha256", value="00"), model=models)
    ).encode()
    (file := tmp_path / "r.json").write_bytes(spoil(data, whole))
    try:
        check_receipt(read_receipt(file), b"0123456789abcdef", after=file)
    except BadInput:
        pass


@FUZZ
@given(st.data())
def test_spoiled_ledgers(tmp_path, data):
    file = tmp_path / "l.jsonl"
    file.unlink(missing_ok=True)
    ledger, rest = (
        Ledger.read(file),
        dict(before="a", after="b", out="m.safetensors", receipt="m.receipt.json", sha256="c"),
    )
    for k in range(3):
        ledger.append(event="done", request=f"r{k}", **rest)
    file.write_bytes(spoil(data, file.read_bytes()))
    try:
        assert (read := Ledger.read(file).lines) == ledger.lines[: len(read)], (
            "only lines at the end may go unseen"
        )
    except BadInput:
        pass


@FUZZ
@given(st.data())
def test_spoiled_artifacts(company, tmp_path, data):
    "A change in an artifact is detected before it is used"
    (file := tmp_path / "a.safetensors").write_bytes(
        spoil(data, (company / "artifact.safetensors").read_bytes())
    )
    photo, model = (
        sorted((company / "inbox").glob("*.jpg"))[0],
        open_model(company / "model.safetensors"),
    )
    try:
        process_request(
            model,
            [ForgetRequest("1", (photo,))],
            tmp_path / "2.safetensors",
            file,
            options=Options(dry_run=True, unknown=True),
        )
    except BadInput:
        return
    assert read_artifact(file).facts == read_artifact(company / "artifact.safetensors").facts


@FUZZ
@given(st.data())
def test_spoiled_requests(tmp_path, data):
    (file := tmp_path / "q.csv").write_bytes(
        spoil(data, b"photo,identity,labels\na.jpg,1,Smiling;Young\nb.jpg,2,\n")
    )
    try:
        assert all(one.photos and one.identity for one in read_requests(file))
    except BadInput:
        pass


@FUZZ
@given(st.data())
def test_spoiled_descriptions(tmp_path, data):
    (file := tmp_path / "m.yaml").write_bytes(
        spoil(data, b"arch: resnet18\nclasses: [a, b]\nsize: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\n")
    )
    try:
        assert len(read_description(file).classes) >= 1
    except BadInput:
        pass


@FUZZ
@given(st.data())
def test_spoiled_models(company, tmp_path, data):
    (file := tmp_path / "m.safetensors").write_bytes(
        spoil(data, (company / "model.safetensors").read_bytes()[:6000])
    )
    with pytest.raises(BadInput):
        open_model(file)


@FUZZ
@given(
    st.data(),
    st.sampled_from(
        ["phone.jpg", "alpha.png", "deep.png", "wide.webp", "moves.gif", "fax.tif", "iphone.heic"]
    ),
)
def test_spoiled_photos(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("photos")
    odd_photos(Image.fromarray(toy_faces(n_people=1, n_photos=1, size=48).images[0]), folder)
    (folder / name).write_bytes(spoil(data, (folder / name).read_bytes()))
    try:
        assert read_photo(folder / name, 32).pixels.shape == (32, 32, 3)
    except BadInput:
        pass

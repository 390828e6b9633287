"""Readers, cache and checks on what users really have: broken, odd and hostile files."""
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from one_shui.cli.main import main
from one_shui.data.quality import check_data
from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.data.datasets.celeba import read_celeba
from one_shui.data.readers import read_faces
from one_shui.data.writers import save_faces
from one_shui.data.cache import BadImages, cached_images
from one_shui.data.face_set import FaceSet
from one_shui.data.loaders import FaceLoader
from one_shui.data.splits import make_splits
from one_shui.core.errors import BadInput
from one_shui.data.toy import toy_faces


@pytest.fixture
def celeba(tmp_path) -> Path:
    "A folder with a small CelebA of its own"
    return save_faces(toy_faces(n_people=6, n_photos=4, size=32), tmp_path, "celeba")


def edit(file: Path, line: int, text: str | None) -> None:
    "Replace a line (1 is the first), or delete it"
    lines = file.read_text().splitlines()
    lines[line - 1:line] = [] if text is None else [text]
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("dataset", ["celeba", "celebahq", "mufac"])
def test_round_trip(tmp_path, dataset):
    drawn = toy_faces(n_people=7, n_photos=4, size=32, task="ages" if dataset == "mufac" else "attributes")
    save_faces(drawn, tmp_path, dataset)
    faces = read_faces(dataset, tmp_path)
    number = -2 if dataset == "mufac" else -1  # F0001_AGE_A_00008_q1.jpg, 000008.jpg
    order = np.argsort([int(Path(path).stem.split("_")[number]) for path in faces.table["path"]])
    assert (faces.targets[order] == drawn.targets).all()
    read, written = faces.identities[order], drawn.identities
    assert ((read[:, None] == read) == (written[:, None] == written)).all()


@pytest.mark.parametrize("file, line, text, said", [
    ("identity_CelebA.txt", 2, "000002.jpg", "line 2: no value for identity"),
    ("identity_CelebA.txt", 3, "000003.jpg 1 2 3", "can't read"),
    ("identity_CelebA.txt", 3, "000002.jpg 1", "000002.jpg is on line 2 and again on line 3"),
    ("list_attr_celeba.txt", 4, "000002.jpg  1 -1", "line 4: no value for"),
    ("list_attr_celeba.txt", 4, "000002.jpg " + " ".join(["7"] * 17), "line 4: Wide_Face is 7, expected -1 or 1"),
    ("list_attr_celeba.txt", 4, "000002.jpg " + " ".join(["x"] * 17), "line 4: Wide_Face is x, expected -1 or 1"),
    ("list_attr_celeba.txt", 5, "000002.jpg " + " ".join(["1"] * 17), "000002.jpg is on line 4 and again on line 5"),
])
def test_malformed_lines(celeba, file, line, text, said):
    edit(celeba / file, line, text)
    with pytest.raises(BadInput) as refused: read_celeba(celeba)
    assert said in str(refused.value) and file in str(refused.value)


def test_an_image_that_is_missing(celeba):
    (celeba / "img_align_celeba/000005.jpg").unlink()
    with pytest.warns(UserWarning, match="1 of 24 images listed aren't in .*, the first is img_align_celeba/000005.jpg"):
        assert len(read_celeba(celeba)) == 23


def test_an_identity_without_attributes(celeba):
    edit(celeba / "list_attr_celeba.txt", 6, None)
    with pytest.warns(UserWarning, match="1 images without attributes"): assert len(read_celeba(celeba)) == 23


def test_mufac_label_out_of_range(tmp_path):
    folder = save_faces(toy_faces(n_people=6, n_photos=4, size=32, task="ages"), tmp_path, "mufac")
    edit(folder / "custom_val_dataset.csv", 2, "F0001,A,q,F0001_AGE_A_00008_q1.jpg")
    with pytest.raises(BadInput, match="age_class is 'q', expected a letter a to h"): read_faces("mufac", tmp_path)


def test_a_link_that_leaves_the_root(celeba, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.jpg"
    Image.new("RGB", (32, 32)).save(secret)
    image = celeba / "img_align_celeba/000001.jpg"
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(BadInput, match="leads out of"): read_celeba(celeba)


def test_a_name_that_leaves_the_root(tmp_path):
    (tmp_path / "own").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "outside.png")
    (tmp_path / "own/labels.csv").write_text("path,identity,hat\n../outside.png,ann,1\n")
    with pytest.raises(BadInput, match="leads out of"): read_faces("own", tmp_path / "own")


def test_names_with_spaces_and_accents(tmp_path):
    (tmp_path / "Ann Lée").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "Ann Lée/smile 1 é.png")
    (tmp_path / "labels.csv").write_text("path,hat\nAnn Lée/smile 1 é.png,1\n", encoding="utf-8")
    faces = read_faces("own", tmp_path)
    assert cached_images(faces, 16, progress=False)[0, 0, 0].tolist() == [255, 0, 0]


def test_one_person_only(tmp_path):
    save_faces(toy_faces(n_people=1, n_photos=8, size=32), tmp_path, "celeba")
    with pytest.raises(BadInput, match="of size 1 is impossible: only"): make_splits(read_faces("celeba", tmp_path), 1)


@pytest.mark.parametrize("content, said", [
    (b"", "cannot identify image"), (b"hello", "cannot identify image"), ("cut", "[Tt]runcated"), ("bomb", "decompression bomb")])
def test_bad_images(celeba, content, said, monkeypatch):
    image = celeba / "img_align_celeba/000004.jpg"
    if content == "cut": content = image.read_bytes()[:300]
    if content == "bomb":
        Image.new("RGB", (64, 64)).save(image)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32)
    else: image.write_bytes(content)
    faces = read_celeba(celeba)
    with pytest.raises(BadImages, match=said) as refused: cached_images(faces, 16, progress=False)
    assert list(refused.value.problems) == [3] and "000004.jpg" in str(refused.value)


def test_skip_bad(celeba):
    (celeba / "img_align_celeba/000004.jpg").write_bytes(b"hello")
    config = Config("celeba", str(celeba), n_forget=2, size=16)
    with pytest.raises(BadImages, match="--skip-bad"): load_image_sets(config)
    with pytest.warns(UserWarning, match="1 images left out that can't be read"):
        assert len(load_image_sets(replace(config, skip_bad=True)).faces) == 23


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_image(tmp_path, mode):
    grey = np.linspace(0, 255, 40 * 40).reshape(40, 40)
    if mode == "I;16": image = Image.fromarray((grey * 257).astype(np.uint16))
    else: image = Image.fromarray(grey.astype(np.uint8)).convert("RGB").convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    (tmp_path / "labels.csv").write_text(f"path,identity,hat\na.{'tif' if mode == 'CMYK' else 'png'},ann,1\n")
    decoded = cached_images(read_faces("own", tmp_path), 40, tmp_path, progress=False)[0]
    assert abs(decoded.mean() - grey.mean()) < 6


def test_a_phone_s_rotation(tmp_path):
    image = Image.new("RGB", (40, 40), "white")
    image.paste("red", (0, 0, 40, 10))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise to be upright
    image.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "labels.csv").write_text("path,identity,hat\na.jpg,ann,1\n")
    decoded = cached_images(read_faces("own", tmp_path), 40, tmp_path, progress=False)[0].astype(int)
    assert decoded[:, -5:, 1].mean() < 60 < 200 < decoded[:, :20, 1].mean()  # red on the right


def test_a_full_disk(celeba, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr("one_shui.data.cache.os.replace", full)
    with pytest.raises(BadInput, match="No space left on device.*make room, or name another folder in ONE_SHUI_CACHE"):
        cached_images(read_celeba(celeba), 24, progress=False)


def test_a_cache_of_another_version(celeba, tmp_path):
    faces = read_celeba(celeba)
    right = np.array(cached_images(faces, 16, tmp_path / "cache", progress=False))
    cache, = (tmp_path / "cache").glob("*.npy")
    for wrong in (b"", b"not a cache", cache.read_bytes()[:-1]):
        cache.write_bytes(wrong)
        assert (cached_images(faces, 16, tmp_path / "cache", progress=False) == right).all()


BUILD = """
import sys
from one_shui.data.cache import cached_images
from one_shui.data.datasets.celeba import read_celeba
print(int(cached_images(read_celeba(sys.argv[1]), 48, sys.argv[2], progress=False).sum()))
"""


def test_two_processes_build_one_cache(tmp_path):
    folder = save_faces(toy_faces(n_people=40, n_photos=25, size=64), tmp_path, "celeba")
    command = [sys.executable, "-c", BUILD, str(folder), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {process.communicate(timeout=300)[0] for process in both}
    assert len(sums) == 1 and all(process.returncode == 0 for process in both)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_memory_stays_bounded(tmp_path):
    import psutil
    rows = 60_000
    file = tmp_path / "images.npy"
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(rows, 64, 64, 3)).flush()
    task = toy_faces(1, 1, 16).task
    images = FaceSet(np.load(file, mmap_mode="r"), np.arange(rows), np.zeros((rows, 17), np.uint8), np.zeros(rows, "U1"), task)
    loader = FaceLoader(images, 64, shuffle=True)
    loader.one_batch()
    before = psutil.Process().memory_info().rss
    for number, _ in enumerate(loader):
        if number % 20 == 0: assert psutil.Process().memory_info().rss - before < 300e6


def test_annotations_of_full_size(tmp_path):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    (folder / "img_align_celeba/000001.jpg").touch()
    names = [f"{i + 1:06d}.jpg" for i in range(202_599)]
    (folder / "identity_CelebA.txt").write_text("".join(f"{n} {i % 10177 + 1}\n" for i, n in enumerate(names)))
    row = " ".join(["-1", " 1"] * 20)
    head = ["202599", " ".join(f"a{k}" for k in range(40))]
    (folder / "list_attr_celeba.txt").write_text("\n".join([*head, *(f"{n} {row}" for n in names)]) + "\n")
    with pytest.warns(UserWarning, match="202598 of 202599 images listed"): assert len(read_celeba(folder)) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mangled_annotations(tmp_path, data):
    "Whatever happens to an annotation file, there is a table or one clear error"
    folder = tmp_path / "celeba"
    if not folder.exists(): save_faces(toy_faces(n_people=4, n_photos=3, size=16), tmp_path, "celeba")
    name = data.draw(st.sampled_from(["identity_CelebA.txt", "list_attr_celeba.txt"]))
    whole = (folder / name).read_bytes()
    start, length = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 60))
    (folder / name).write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[start + length:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            faces = read_celeba(folder)
        assert 1 <= len(faces) <= 12 and set(np.unique(faces.targets)) <= {0, 1}
    except BadInput as error: assert str(folder) in str(error)
    finally: (folder / name).write_bytes(whole)


def check(capsys, monkeypatch, *arguments) -> tuple[int, str]:
    "`one-shui data check` in this process: exit code and what it printed"
    monkeypatch.setattr(sys, "argv", ["one-shui", "data", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as left: main()
    return left.value.code, capsys.readouterr().out


def test_data_check(tmp_path, capsys, monkeypatch):
    folder = save_faces(toy_faces(n_people=10, n_photos=5, size=64), tmp_path, "celeba")
    assert check(capsys, monkeypatch, "--dataset", "celeba", "--root", tmp_path)[0] == 0
    images = folder / "img_align_celeba"
    Image.open(images / "000001.jpg").save(images / "000007.jpg", quality=70)  # another person's
    code, said = check(capsys, monkeypatch, "--dataset", "celeba", "--root", tmp_path, "--report", tmp_path / "check.html")
    assert code == 1 and "not sound" in said
    assert re.search(r"near duplicates across people +1\b", said)
    assert (tmp_path / "check.html").stat().st_size > 100_000


def test_a_planted_leak_is_found(tmp_path):
    folder = save_faces(toy_faces(n_people=12, n_photos=5, size=64), tmp_path, "celeba")
    faces = read_celeba(folder)
    splits = make_splits(faces, 2)
    train, test = splits.request.retain[0], splits.test[0]
    (faces.root / faces.table["path"].iloc[test]).write_bytes((faces.root / faces.table["path"].iloc[train]).read_bytes())
    report = check_data(read_celeba(folder), splits)
    assert report.pairs["sets"].tolist() == ["retain and test"] and report.pairs["across_people"].all()


def test_real_faces_are_checked(real, capsys, monkeypatch):
    for dataset in ("celeba", "mufac"):
        code, said = check(capsys, monkeypatch, "--dataset", dataset, "--root", real, "--n-forget", "20")
        assert code == 1 and "near duplicates across people" in said


def test_cleaned(tmp_path):
    folder = save_faces(toy_faces(n_people=10, n_photos=5, size=64), tmp_path, "celeba")
    images = folder / "img_align_celeba"
    (images / "000002.jpg").write_bytes((images / "000001.jpg").read_bytes())
    config = Config("celeba", str(tmp_path), n_forget=2, size=16, clean=True)
    with pytest.warns(UserWarning, match="1 duplicates left out of 50 images"): loaded = load_image_sets(config, tmp_path)
    assert len(loaded.faces) == 49
    assert "looks like img_align_celeba/000001.jpg" in (tmp_path / "left-out.csv").read_text()


def test_decoding_every_time_is_the_same(drawn):
    loaded = [load_image_sets(Config("celeba", str(drawn), n_forget=2, size=16, cached=cached)) for cached in (True, False)]
    assert (loaded[0].train.batch([0, 3])[0] == loaded[1].train.batch([0, 3])[0]).all()

"""A dataset that another package adds through an entry point is read without any edit of this package."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import run_code

from one_shui.core.errors import BadInput
from one_shui.data.readers import READERS, find_reader, package_readers, read_faces, reader
from one_shui.data.readers import reader_names

READER = '''
from pathlib import Path

import pandas as pd

from one_shui.data.annotations import existing_images
from one_shui.data.task import Faces, Task

print("loaded")


def read_swatches(root):
    "Files such as ann-1-red.png"
    paths = sorted(file.name for file in Path(root).glob("*.png"))
    people = [path.split("-")[0] for path in paths]
    red = [int("-red" in path) for path in paths]
    table = existing_images(pd.DataFrame(dict(path=paths, identity=people, Red=red)), Path(root))
    return Faces("swatches", table, Task("multi-label", ("Red",)), Path(root))
'''

USE = """
import sys
import one_shui.data.readers as readers
print("swatches" in readers.reader_names(), "swatches" in readers.READERS)
faces = readers.read_faces("swatches", sys.argv[1])
print(faces.name, faces.identities.tolist(), faces.targets.tolist())
from one_shui.data.cache import cached_images
print(cached_images(faces, 16, sys.argv[2], progress=False)[:, 8, 8, 0].tolist())
"""

LAZY = """
import sys
from one_shui.data.readers import reader_names
print(", ".join(reader_names()))
print([name for name in ("torch", "pandas", "one_shui.data.datasets.celeba") if name in sys.modules])
"""


@pytest.fixture
def outside(tmp_path) -> Path:
    "A folder with an installed package of one module, which announces a reader"
    site = tmp_path / "site"
    info = site / "swatches-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "swatches.py").write_text(READER)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swatches\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[one_shui.datasets]\nswatches = swatches:read_swatches\n")
    return site


@pytest.fixture
def swatches(tmp_path) -> Path:
    "The images of that dataset"
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in (("ann-1-red", "red"), ("ann-2-blue", "blue"), ("bob-3-red", "red")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.png")
    return folder


def run_python(code: str, *arguments, site: Path | None = None) -> list[str]:
    "Lines that a new process prints; `site` is on its path"
    package = Path(__file__).parents[1]
    places = [str(package), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    done = run_code(code, *arguments, PYTHONPATH=os.pathsep.join(place for place in places if place))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_outside_dataset_is_listed_and_read(outside, swatches, tmp_path):
    lines = run_python(USE, swatches, tmp_path / "cache", site=outside)
    assert lines[0] == "True False"  # listed, and neither registered nor loaded yet
    assert lines[1] == "loaded"
    assert lines[2] == "swatches ['ann', 'ann', 'bob'] [[1], [0], [1]]"
    assert lines[3] == "[255, 0, 255]"


def test_names_are_listed_without_loading_readers(outside):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(outside), str(Path(__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", LAZY], env=environment, capture_output=True, text=True, check=True)
    names, loaded = done.stdout.splitlines()
    assert set(names.split(", ")) >= {"celeba", "celebahq", "mufac", "mucac", "lfw", "own", "swatches"}
    assert loaded == "[]"


def test_an_unknown_dataset_is_refused_with_the_outside_name(outside):
    code = "from one_shui.data.readers import read_faces\ntry: read_faces('swatch', '.')\nexcept ValueError as error: print(error)"
    line, = run_python(code, site=outside)
    assert line.startswith("unknown dataset 'swatch'; choose one of toy, celeba") and line.endswith("swatches")


def test_a_decorated_function_is_a_dataset(monkeypatch):
    monkeypatch.setattr("one_shui.data.readers.READERS", dict(READERS))

    @reader("drawn")
    def read_drawn(root): return read_faces("toy")

    assert "drawn" in reader_names() and find_reader("drawn") is read_drawn
    assert len(read_faces("drawn", "anywhere")) == len(read_faces("toy"))


@pytest.mark.parametrize("name", sorted(package_readers()))
def test_each_module_registers_its_own_name(name):
    read = find_reader(name)
    assert READERS[name] is read and read.__module__ == f"one_shui.data.datasets.{name}"
    with pytest.raises(BadInput): read("nowhere")

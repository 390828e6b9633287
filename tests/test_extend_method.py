"""A method from another package works by its name, without an edit of this one."""
import json
import os
from pathlib import Path

import pytest
from processes import run_code

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from one_shui.methods.contract import DataAccess, Unlearner
from one_shui.methods.settings import PublishedSettings


@dataclass
class ShrinkHead(Unlearner):
    "Multiply the weights of the head by a factor"
    name: ClassVar[str] = "shrink_head"
    data_access: ClassVar[DataAccess] = "support"
    source: ClassVar[str] = "an example"
    published: ClassVar[tuple[PublishedSettings, ...]] = (
        PublishedSettings("toy", "cnn", 3, dict(factor=.25), "an example"),)
    factor: float = .5

    def unlearn(self, model, artifact, data):
        with torch.no_grad(): model.head.weight *= self.factor
        return model
'''

PROGRAM = '''
import json, sys
from one_shui.experiments.run import Config, run
from one_shui.methods.registry import find_method, method_names, published_settings

rows = run(Config.tiny(methods=("original", "shrink_head"), epochs=1, settings={}), sys.argv[1], log=lambda _: None)
print(json.dumps(dict(
    names=method_names(), module=find_method("shrink_head").__module__,
    published=published_settings("shrink_head", "toy", "small_cnn", 3),
    methods=sorted(set(rows["method"])), settings=sorted(set(rows.query("method == 'shrink_head'")["settings"])))))
'''


@pytest.fixture
def outside(tmp_path) -> Path:
    "A folder with an installed package that announces one method"
    site = tmp_path / "site"
    (info := site / "outside_methods-1.0.dist-info").mkdir(parents=True)
    (site / "outside_methods.py").write_text(METHOD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[one_shui.methods]\nshrink_head = outside_methods:ShrinkHead\n")
    return site


def test_a_method_of_another_package_runs(tmp_path, outside):
    root = Path(__file__).parent.parent
    done = run_code(PROGRAM, tmp_path / "run", folder=tmp_path, PYTHONPATH=os.pathsep.join([str(outside), str(root)]))
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["names"][-1] == "shrink_head"
    assert result["module"] == "outside_methods"
    assert result["published"] == [{"factor": .25}, "toy, cnn, N_S 3 (an example)"]
    assert result["methods"] == ["original", "shrink_head"]
    assert result["settings"] == ["toy, cnn, N_S 3 (an example)"]

"""A module outside the package adds a metric by an entry point, without any edit of the package."""
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_code

from one_shui.core.errors import BadInput
from one_shui.evaluation.metrics import Metric, _evaluate, _with_interval

MODULE = '''
from one_shui.evaluation.metrics import Metric


def mean_margin(inputs):
    "Mean distance of the forget logits from the decision boundary"
    return inputs.predictions.split("forget").logits.abs().mean().item()


MARGIN = Metric("margin", "forget", mean_margin, "match retrain", shown_in=("grid",))
'''
USE = '''
import json, sys
import numpy as np, pandas as pd
from one_shui.data.task import Task
from one_shui.evaluation.metrics import compute_metrics, metric_names, table_columns
from one_shui.evaluation.predictions import Predictions
from one_shui.core.errors import BadInput

rng, classes = np.random.default_rng(0), ("a", "b")
tables = []
for name in ("retain", "forget", "val", "test"):
    people = np.repeat([f"{name} {k}" for k in range(5)], 4)
    columns = dict(set=name, image=np.arange(20), identity=people)
    columns |= {f"target_{k}": rng.integers(0, 2, 20) for k in range(2)}
    tables.append(pd.DataFrame(columns | {f"logit_{k}": rng.normal(size=20).astype("float32") for k in range(2)}))
predictions = Predictions(Task("multi-label", classes), pd.concat(tables, ignore_index=True))
try: rows = compute_metrics(predictions).set_index(["split", "metric"])["value"]
except BadInput as error: sys.exit(str(error))
margin = predictions.split("forget").logits.abs().mean().item()
print(json.dumps(dict(names=metric_names(), rows=[list(key) for key in rows.index], columns=list(table_columns("grid")),
                      equal=bool(rows["forget", "margin"] == margin) if ("forget", "margin") in rows else None)))
'''


def install(folder: Path, entry: str) -> None:
    "A package as pip would leave it: a module, and a dist-info with an entry point"
    (folder / "my_metrics.py").write_text(MODULE)
    info = folder / "my_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[one_shui.metrics]\nmargin = {entry}\n")


def run(*folders: Path) -> subprocess.CompletedProcess:
    "Compute metrics in a new process that can import from these folders"
    paths = [*map(str, folders), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return run_code(USE, PYTHONPATH=os.pathsep.join(filter(None, paths)))


def test_an_outside_module_adds_a_metric(tmp_path):
    without = json.loads(run().stdout)
    install(tmp_path, "my_metrics:MARGIN")
    with_metric = json.loads(run(tmp_path).stdout)
    assert with_metric["equal"]
    assert with_metric["rows"] == [*without["rows"], ["forget", "margin"]]
    assert with_metric["names"] == [*without["names"], "margin"]
    assert with_metric["columns"] == [*without["columns"], "margin"]


def test_an_entry_point_that_is_no_metric_is_refused(tmp_path):
    install(tmp_path, "my_metrics:mean_margin")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "the entry point 'margin' of one_shui.metrics is a function; it has to be a Metric" in done.stderr


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(split="train"), "unknown split of the metric 'm': 'train'; choose one of retain, forget, val, test, all"),
    (dict(direction="up"), "unknown direction of the metric 'm': 'up'; choose one of higher, lower, match retrain"),
    (dict(shown_in=("paper",)), "unknown table of the metric 'm': 'paper'; choose one of result, grid, stored"),
    (dict(shown_in="grid"), "shown_in of the metric 'm': write a tuple, ('grid',)"),
])
def test_an_unknown_choice_is_refused(wrong, message):
    with pytest.raises(BadInput, match="of the metric 'm'") as error:
        Metric(**dict(name="m", split="forget", compute=None, direction="higher") | wrong)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [
    torch.tensor(.5), torch.tensor([.5], requires_grad=True), torch.tensor(.5, dtype=torch.bfloat16),
    np.array([.5]), np.float32(.5), .5])
def test_a_scalar_becomes_a_float(value):
    result = _with_interval((value, value, value))
    assert result == (.5, .5, .5)
    assert all(type(number) is float for number in result)
    assert _with_interval(value)[0] == .5


@pytest.mark.parametrize(("compute", "message"), [
    (lambda inputs: torch.ones(2), "the metric 'm' failed: got 2 numbers instead of one"),
    (lambda inputs: (1., 2.), "the metric 'm' failed: got a tuple of 2"),
    (lambda inputs: None, "the metric 'm' failed: float"),
    (lambda inputs: int("x"), "the metric 'm' failed: invalid literal"),
])
def test_a_bad_value_names_the_metric(compute, message):
    with pytest.raises(BadInput) as error:
        _evaluate(Metric("m", "forget", compute, "higher"), None)
    assert str(error.value).startswith(message)


def test_other_errors_stay_and_name_the_metric():
    def refuse(inputs): raise BadInput("no such file")
    with pytest.raises(BadInput, match="^no such file$"):
        _evaluate(Metric("m", "forget", refuse, "higher"), None)
    with pytest.raises(KeyError) as error:
        _evaluate(Metric("m", "forget", lambda inputs: {}["a"], "higher"), None)
    assert error.value.__notes__ == ["raised by the metric 'm'"]

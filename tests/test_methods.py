"""Every method of the list, through the harness and the command line."""
import json
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from one_shui.cli.main import main
from one_shui.experiments.config import Config
from one_shui.experiments.run import load_run, run
from one_shui.methods.registry import PUBLISHED
from one_shui.core.errors import BadInput
from one_shui.methods.contract import Artifact
from one_shui.methods.harness import apply_method, prepare_method
from one_shui.methods.registry import METHODS, RETRAINED, find_method

NAMES = [name for name in METHODS if name not in RETRAINED]
EDITS = "key_edit", "photo_edit", "group_edit", "ticket_edit"


def quick(name):
    "A method with settings of seconds"
    edit = dict(n_forget=3)
    edits = dict.fromkeys(EDITS, edit)
    fast = dict(edits, metaunlearn=dict(epochs=1, n_forget=3, hidden=16), jit=dict(copies=2))
    return find_method(name)(**fast.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_sees_what_it_declares(images, model, name):
    "Closed training sets are never read at the request, and a method with full access needs the sets"
    method = quick(name)
    prepared = prepare_method(method, model, images.train, images.val)
    if method.data_access == "full":
        with pytest.raises((AttributeError, TypeError)): apply_method(method, model, prepared.artifact, images.support)
    else:
        closed = images.train.subset([0, 1])
        closed.close()
        apply_method(method, model, prepared.artifact, images.support, closed, closed, closed)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_repeats_itself(images, model, name):
    method = quick(name)
    prepared = prepare_method(method, model, images.train, images.val)
    everything = images.support, images.forget, images.retain, images.val
    one, two = (apply_method(method, model, prepared.artifact, *everything)[0].state_dict() for _ in range(2))
    assert all((one[key] == two[key]).all() for key in one)


FIXED = {name: dict(strength=(.1, 10., 1.)) for name in EDITS}  # chosen in tests of their own


@pytest.mark.parametrize("task", ["attributes", "ages"])
def test_every_method_runs(tmp_path, task):
    settings = dict(metaunlearn=dict(epochs=1), jit=dict(lr=1e-4), **FIXED)
    config = Config.tiny(methods=tuple(METHODS), epochs=1, metrics=("score",), settings=settings,
                         toy=dict(n_people=30, n_photos=6, size=32, task=task))
    rows = run(config, tmp_path / "run", log=lambda _: None)
    assert set(rows["method"]) == set(METHODS)
    assert set(rows.query("metric == 'ToW'")["method"]) == set(METHODS)



def test_settings_say_where_they_come_from(tmp_path):
    config = Config.tiny(methods=("original", "ssd", "jit"), settings=dict(jit=dict(lr=1e-4)), epochs=1)
    rows = run(config, tmp_path / "run", log=lambda _: None)
    said = rows.groupby("method")["settings"].first()
    assert said["original"] == "defaults of the class"
    assert said["ssd"] == "nearest cell: celeba, vit, N_S 5 (De Min et al. 2025)"
    assert said["jit"].startswith("given: lr; others: nearest cell: celeba, cnn")


def test_cells_fit_their_methods():
    for name, cells in PUBLISHED.items():
        known = {f.name for f in fields(find_method(name))}
        assert cells and all(cell.values.keys() <= known for cell in cells), name
        assert len({(cell.dataset, cell.family, cell.n_forget) for cell in cells}) == len(cells), name


def test_search_spaces_fit_their_methods():
    for name in METHODS:
        kind = find_method(name)
        assert kind.search_space.keys() <= {f.name for f in fields(kind)}, name
        assert kind.unlearn_epochs > 0 and kind.prepare_epochs > 0


def test_for_request_has_the_published_settings():
    for name, cells in PUBLISHED.items():
        cell = cells[0]
        method = find_method(name).for_request(cell.dataset, cell.n_forget, "resnet18" if cell.family == "cnn" else "vit_base_patch16_224")
        assert {setting: getattr(method, setting) for setting in cell.values} == cell.values


def test_costs(images, model):
    "A method with full access reads the training images, one without reads support images alone"
    everything = images.support, images.forget, images.retain, images.val
    names = "original", "gradient_ascent", "finetune"
    read = {name: apply_method(quick(name), model, Artifact(), *everything)[1].images_read for name in names}
    assert read["original"] == 0
    assert read["gradient_ascent"] == 5 * len(images.support)
    assert read["finetune"] >= len(images.retain)
    assert prepare_method(quick("ssd"), model, images.train, images.val).cost.images_read == len(images.train)


def test_the_guard_speaks_up(tmp_path):
    "A step that ruins the network is marked, one that moves nothing isn't; also where the original isn't among the methods"
    for methods in (("original", "gradient_ascent", "ssd"), ("gradient_ascent", "ssd")):
        settings = dict(gradient_ascent=dict(lr=1e-6), ssd=dict(alpha=0., lam=0.))  # every weight that a support image needs is set to 0
        rows = run(Config.tiny(methods=methods, epochs=20, settings=settings), tmp_path / str(len(methods)), log=lambda _: None)
        guard = rows.query("metric == 'over_forgot'").set_index("method")["value"]
        assert guard.to_dict() == {name: float(name == "ssd") for name in methods}


def test_list_and_tune(tmp_path, capsys, monkeypatch):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["one-shui", *map(str, arguments)])
        with pytest.raises(SystemExit) as left: main()
        return left.value.code, capsys.readouterr()
    code, said = command("methods", "--json")
    assert code == 0 and {row["name"] for row in json.loads(said.out)} >= set(METHODS)
    folder = tmp_path / "run"
    run(Config.tiny(methods=("original",), epochs=1, settings={}), folder, log=lambda _: None)
    code, said = command("tune", "gradient_ascent", "--run", folder, "--grid", "lr=0.001,0.01", "--requests", "2")
    assert code == 0 and len(pd.read_csv(folder / "tune-gradient_ascent.csv")) == 2
    assert command("tune", "gradient_ascent", "--run", tmp_path)[0] == 2
    assert "has no setting 'etta'" in command("tune", "gradient_ascent", "--run", folder, "--grid", "etta=1")[1].err


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(BadInput, match="holds no run"): load_run(tmp_path)


def test_settings_of_our_own_are_those_that_the_stored_search_found():
    "data/results/tune.csv, made by tools/gather.py"
    searched = pd.read_csv(Path(__file__).parent.parent / "data/results/tune.csv")
    source = "ours: one-shui tune {}, on CelebA"
    ours = {name: cell for name, cells in PUBLISHED.items() for cell in cells if cell.source.startswith(source.format(name))}
    assert len(ours) >= 10
    for name, cell in ours.items():
        tried = searched[(searched["method"] == name) & (searched["arch"] == "resnet18")]
        best = tried.dropna(subset="simulated ToW").sort_values("simulated ToW").iloc[-1]
        assert (best["dataset"], best["n_forget"]) == (cell.dataset, cell.n_forget)
        assert {setting: best[setting] for setting in cell.values} == cell.values

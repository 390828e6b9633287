"""The command line as a user meets it: in a process of its own."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import one_shui

from one_shui.cli.main import main
from one_shui.models.files import save_model
from one_shui.models.networks import ModelSpec, create_model

BIN = Path(sys.executable).parent
QUICK = ["--size", "32", "--epochs", "1", "--set", "metaunlearn.epochs=1", "--metric", "score"]


@pytest.fixture
def refused(monkeypatch, capsys):
    "Run a command in this process that must be refused in one line with exit code 2; returns the line"
    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["one-shui", "run", *map(str, arguments)])
        with pytest.raises(SystemExit) as left: main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert left.value.code == 2 and len(lines) == 1, lines
        return lines[0]
    return run


def test_run_and_run_again(drawn, tmp_path):
    command = ("run", "--dataset", "celeba", "--root", drawn, "--n-forget", "2", *QUICK, "--out", tmp_path / "run")
    first = one_shui(*command)
    assert first.returncode == 0, first.stderr
    assert "Traceback" not in first.stderr
    rows = pd.read_csv(tmp_path / "run/results.csv")
    assert list(rows) == ["dataset", "arch", "n_forget", "seed", "method", "access", "split", "metric", "value", "low", "high",
                          "seconds", "settings"]
    assert set(rows["method"]) == {"original", "retrain", "metaunlearn"}
    assert (rows["metric"] == "mAP").sum() == 12  # three methods, four sets
    for name in ("splits.json", "original.safetensors", "retrain.safetensors", "metaunlearn.safetensors", "report.html"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    assert not list((tmp_path / "run").glob("*.part*"))
    stamps = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("*.safetensors")}
    second = one_shui(*command)
    assert second.returncode == 0
    assert "already in" in second.stdout
    assert stamps == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("*.safetensors")}


@pytest.mark.parametrize("dataset", ["celebahq", "mufac"])
def test_layouts(drawn, tmp_path, dataset):
    done = one_shui("run", "--dataset", dataset, "--root", drawn, "--n-forget", "2", *QUICK,
                    "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metric = "accuracy" if dataset == "mufac" else "mAP"
    assert (pd.read_csv(tmp_path / "run/results.csv")["metric"] == metric).sum() == 12  # three methods, four sets


def test_bad_input(drawn, tmp_path, refused):
    out = ("--out", tmp_path / "run")
    assert "there is no such folder" in refused("--dataset", "celeba", "--root", tmp_path / "nowhere", *out)
    assert "neither celeba/identity_CelebA.txt nor" in refused("--dataset", "celeba", "--root", drawn / "mufac", *out)
    assert "where is mufac?" in refused("--dataset", "mufac", *out)
    assert "unknown dataset 'lfv'; choose one of" in refused("--dataset", "lfv", *out)
    assert "a request of size 100 is impossible" in refused("--dataset", "celeba", "--root", drawn, "--n-forget", "100", *out)
    assert "at least 1 person" in refused("--n-forget", "0", *out)
    assert "at least 1 person" in refused("--n-forget", "-3", *out)
    assert "unknown method 'metaunlern'; choose one of" in refused("--method", "metaunlern", *out)
    assert "did you mean resnet18" in refused("--arch", "resnet81", *out)
    assert "60 isn't a multiple; use --size 48 or 64" in refused("--arch", "vit_tiny_patch16_224", "--size", "60", *out)
    assert "unexpected keyword argument 'patch_sise'" in refused("--arch", "vit_tiny_patch16_224", "--arch-option", "patch_sise=8", *out)
    assert "write --arch-option NAME=VALUE" in refused("--arch-option", "patch_size", *out)
    assert "write --set METHOD.NAME=VALUE" in refused("--set", "eta", *out)
    assert "has no setting 'etta'" in refused("--set", "metaunlearn.etta=1", *out)
    assert "no weights file" in refused("--weights", tmp_path / "none.safetensors", *out)
    assert "pickled weights aren't read" in refused("--weights", drawn / "celeba/list_attr_celeba.txt", *out)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.part*"))


def test_pretrained_without_a_network(tmp_path):
    offline = one_shui("run", "--arch", "resnet18", "--pretrained", "--out", tmp_path / "run", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert offline.returncode == 2 and "--weights FILE" in offline.stderr and "Traceback" not in offline.stderr


def test_folder_not_writable(tmp_path, refused):
    (tmp_path / "file").write_text("in the way")
    assert "can't write to" in refused("--out", tmp_path / "file")
    assert "can't write to" in refused("--out", "/proc/one_shui" if os.path.isdir("/proc") else "/dev/null/one_shui")


def test_folder_of_another_run(tmp_path, refused):
    command = ["--n-forget", "3", *QUICK[:4], "--method", "original", "--out", tmp_path / "run"]
    assert one_shui("run", *command).returncode == 0
    assert "holds a run with seed 0, this one has 1" in refused(*command, "--seed", "1")
    checkpoint = tmp_path / "run/original.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert "is it cut short?" in refused(*command[:-4], "--method", "gradient_ascent", "--out", tmp_path / "run")


def test_another_architecture_in_the_folder(tmp_path, refused):
    command = ["--n-forget", "3", *QUICK[:4], "--method", "original", "--out", tmp_path / "run"]
    assert one_shui("run", *command).returncode == 0
    other = ModelSpec("resnet18", 17, size=32)
    save_model(create_model(other), other, tmp_path / "run/original.safetensors")
    (tmp_path / "run/results.csv").unlink()
    assert "holds another network" in refused(*command)


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = one_shui("run", "--dataset", "celeba", "--root", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith("one-shui: can't read celeba from")


def test_help():
    for command in ([], ["run"], ["demo"]):
        shown = subprocess.run([BIN / "one-shui", *command, "--help"], capture_output=True, text=True)
        assert shown.returncode == 0
        assert "one-shui" in shown.stdout


def test_killed_and_resumed(drawn, tmp_path):
    "A run that is killed goes on, and ends with the numbers of one that wasn't"
    command = ["run", "--dataset", "celeba", "--root", str(drawn), "--n-forget", "2", "--size", "32", "--epochs", "25",
               "--method", "original", "--metric", "score", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(BIN / "one-shui"), *command, str(tmp_path / "killed")], env=environment, stdout=subprocess.DEVNULL)
    log = tmp_path / "killed/original-log.csv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 2): time.sleep(.01)
    process.kill()
    process.wait()
    assert 2 <= len(pd.read_csv(log)) < 25, "the run ended before it could be killed"
    for folder in ("killed", "whole"): assert one_shui(*command, tmp_path / folder).returncode == 0
    rows = [pd.read_csv(tmp_path / folder / "results.csv").query("metric != 'peak MB'") for folder in ("killed", "whole")]
    values = [table["value"].tolist() for table in rows]
    assert values[0] == values[1]

"""Several processes train one network as one process does."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from processes import CONTEXT, one_shui

from one_shui.data.face_set import face_set
from one_shui.models.networks import ModelSpec, create_model
from one_shui.evaluation.scores import predict
from one_shui.data.splits import make_splits
from one_shui.training.distributed import together_callbacks
from one_shui.data.toy import toy_faces
from one_shui.training.fit import fit
from one_shui.training.recipes import RECIPES

RECIPE = replace(RECIPES["toy"], epochs=2, bf16=False, batch_size=27)  # a number that doesn't divide, and a last batch that is small
VIT = dict(arch="vit_tiny_patch16_224", options=dict(patch_size=16, depth=2))
SAMPLE = Path(__file__).parent.parent / "data/sample"
RUN = ["run", "--dataset", "celeba", "--root", str(SAMPLE), "--n-forget", "2", "--size", "32", "--arch", "vit_tiny_patch16_224",
       "--recipe", "paper-vit", "--epochs", "1", "--method", "original,retrain,metaunlearn", "--set", "metaunlearn.epochs=1",
       "--metric", "score"]


def answers(arch, options):
    "What a network says about val after training, and how its training went"
    torch.set_num_threads(1)
    faces = toy_faces(n_people=16, n_photos=6, size=32)
    splits = make_splits(faces, n_forget=2)
    train, val = (face_set(faces, faces.images, rows) for rows in (splits.train, splits.val))
    network = create_model(ModelSpec(arch, faces.task.n_outputs, 32, options=options))
    log = fit(network, train, val, RECIPE, cbs=together_callbacks())
    return predict(network, val).numpy(), log["train_loss"].to_numpy()


def one_of(rank, world, file, found, model):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    found.put((rank, *answers(**model)))
    dist.barrier()
    dist.destroy_process_group()


def trained(tmp_path, world, model):
    "From each process: answers and losses"
    found = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=one_of, args=(rank, world, tmp_path / "meet", found, model)) for rank in range(world)]
    for worker in workers: worker.start()
    told = sorted((found.get(timeout=200) for _ in workers), key=lambda row: row[0])
    for worker in workers: worker.join()
    assert [worker.exitcode for worker in workers] == [0] * world
    return [row[1:] for row in told]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_train_the_network_that_one_trains(tmp_path, world):
    alone, losses = answers(**VIT)
    both = trained(tmp_path, world, VIT)
    assert abs(alone).max() > .1
    for told, theirs in both:
        assert abs(told - alone).max() < 1e-3 * abs(alone).max()
        assert abs(theirs - losses).max() < 1e-3
    assert (both[0][0] == both[1][0]).all()


def test_processes_agree_on_running_statistics(tmp_path):
    one, two = trained(tmp_path, 2, dict(arch="small_cnn", options=dict(width=8)))
    assert (one[0] == two[0]).all()


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "one_shui.cli.main"],
    "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                   "--dynamo_backend", "no", "-m", "one_shui.cli.main"]}


@pytest.fixture(scope="module")
def by_one_process(tmp_path_factory):
    assert one_shui(*RUN, "--out", folder := tmp_path_factory.mktemp("one") / "run").returncode == 0
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_whole_run(by_one_process, tmp_path, launcher):
    if launcher == "accelerate": pytest.importorskip("accelerate")
    command = RUN
    if launcher != "torchrun": command = [*RUN[:RUN.index("--method")], "--method", "original", "--metric", "score"]
    words = [sys.executable, *LAUNCHERS[launcher], *command, "--out", str(tmp_path / "two")]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.count("report:") == 1
    folders = dict(one=by_one_process, two=tmp_path / "two")
    one, two = (pd.read_csv(folder / "results.csv").set_index(["method", "split", "metric"])["value"] for folder in folders.values())
    if launcher != "torchrun": one = one.loc[["original"]]  # the other launcher starts the same processes
    scores = one.index.get_level_values("metric") == "mAP"
    assert scores.sum() == (12 if launcher == "torchrun" else 4)
    assert (one[scores] - two.reindex(one.index)[scores]).abs().max() < .5
    names = [{file.name for file in folder.iterdir()} for folder in folders.values()]
    assert names[1] <= names[0] and (launcher != "torchrun" or names[0] == names[1])

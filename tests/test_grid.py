"""Grids that are killed, that run out of disk, that two processes write, and whose workers vanish."""
import json
import os
import random
import resource
import shutil
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from one_shui.scale import engines
from one_shui.cli.main import main
from one_shui.scale.engines import Engine, attempt
from one_shui.scale.grid import Grid, read_grid, select_cells
from one_shui.scale.jobs import TIMES, build_jobs, collect
from one_shui.scale.store import Step, Store
from one_shui.scale.run_grid import failures, grid_folder, read_rows, run_grid
from one_shui.core.errors import BadInput

TINY = dict(size=32, epochs=2, recipe="toy", toy=dict(n_people=30, n_photos=6, size=32), arch_options=dict(width=8), metrics=["score"])
GRID = Grid("tiny", TINY, dict(n_forget=[3], seed=[0]), ("gradient_ascent", "prior_labels"))
KILLS = int(os.environ.get("ONE_SHUI_KILLS", 5))


@pytest.fixture(autouse=True)
def one_thread():
    "As workers have it"
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def compute(folder: Path, grid: Grid = GRID, engine: str = "in-process", fewer: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Run the grid, or its first cell"
    return run_grid(grid, grid.cells[:1] if fewer else grid.cells, folder, Engine(engine, 2 if engine == "joblib" else 0), "a test")


def compute_small_files(folder: Path) -> None:
    "Run the grid where no file may be larger than 20 kB, as on a disk that fills"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try: compute(folder)
    except OSError as error: os._exit(7 if "too large" in str(error) else 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    "The grid, run without any trouble"
    compute(folder := tmp_path_factory.mktemp("whole"))
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    "A copy of it"
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def numbers(folder: Path) -> pd.DataFrame:
    "What two runs of a grid have in common"
    return read_rows(folder).drop(columns=TIMES)


def same(folder: Path, whole: Path) -> None:
    "Assert that two folders hold the same rows"
    pd.testing.assert_frame_equal(numbers(folder), numbers(whole))


def test_killed_again_and_again(whole, tmp_path, clean_process):
    clean_process(compute, tmp_path / "first", GRID, "in-process", True).join()  # the server imports before its first process
    started = time.perf_counter()
    clean_process(compute, tmp_path / "timed").join()
    seconds, rng, kills, reached = time.perf_counter() - started, random.Random(0), 0, set()
    while kills < KILLS:
        process = clean_process(compute, folder := tmp_path / "killed")
        process.join(rng.uniform(.2, .6) * seconds)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            reached.add(len(list(folder.glob("steps/*/*/step.json"))))
        else:
            same(folder, whole)
            shutil.rmtree(folder)
    compute(tmp_path / "killed")
    same(tmp_path / "killed", whole)
    assert len(reached) > 2, f"killed at the same place every time: {reached}"


def vanishing(root, job, threads, command, *needed):
    "A worker that is killed in the middle of its first attempt to retrain"
    tried = Path(root) / f"{job.step.address}.tried"
    if job.step.kind == "unlearn" and job.method == "retrain" and not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt(root, job, threads, command, *needed)


def hopeless(root, job, threads, command, *needed):
    "A worker that is killed by one method, every time"
    if job.step.kind == "unlearn" and job.method == "gradient_ascent": os.kill(os.getpid(), signal.SIGKILL)
    return attempt(root, job, threads, command, *needed)


def test_a_worker_that_vanishes(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "attempt", vanishing)
    compute(tmp_path, engine="joblib")
    same(tmp_path, whole)
    assert len(list(tmp_path.glob("steps/*.tried"))) == 1


def test_a_step_that_kills_its_workers_fails_alone(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "attempt", hopeless)
    monkeypatch.setattr(engines, "TRIES", 1)
    _, failed = compute(tmp_path, engine="joblib")
    assert failed["method"].tolist() == ["gradient_ascent"] * 2
    assert failed["error"].tolist() == ["its worker was killed 2 times; is there enough memory for it?", "needs a step that failed"]
    expected = numbers(whole).query("method != 'gradient_ascent'").reset_index(drop=True)
    pd.testing.assert_frame_equal(numbers(tmp_path), expected)


def test_a_full_disk_ends_the_grid_and_loses_nothing(whole, tmp_path, clean_process):
    process = clean_process(compute_small_files, tmp_path)
    process.join()
    assert process.exitcode == 7
    assert not list(tmp_path.glob("steps/pretrain/*/step.json"))
    compute(tmp_path)
    same(tmp_path, whole)
    assert not list(tmp_path.glob("steps/*/*.partial"))


def test_damaged_entries_are_made_again(whole, copy):
    victims = sorted(file for file in copy.glob("steps/*/*/*") if file.suffix in (".safetensors", ".parquet"))[::4]
    for file in victims: file.write_bytes(file.read_bytes()[:-7])
    (one := sorted(copy.glob("steps/score/*/step.json"))[0]).write_text("{")
    with pytest.warns(UserWarning, match="is damaged; moved to"): compute(copy)
    same(copy, whole)
    assert len(list((copy / "steps/damaged").iterdir())) == len({file.parent for file in [*victims, one]})


def test_two_writers_do_each_step_once(whole, tmp_path, clean_process):
    both = [clean_process(compute, tmp_path) for _ in range(2)]
    for process in both: process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    same(tmp_path, whole)
    assert len(list(tmp_path.glob("steps/*/*/step.json"))) == len(build_jobs(GRID.cells))


def build_slowly(root: Path) -> None:
    "A step that notes that it was done"
    def build(folder):
        with (root / "built").open("a") as notes: notes.write("x")
        time.sleep(.3)
        (folder / "answer").write_text("42")
    Store(root).make(Step("pretrain", {}, ""), build)


def test_a_step_that_two_want_is_built_once(tmp_path, clean_process):
    many = [clean_process(build_slowly, tmp_path) for _ in range(5)]
    for process in many: process.join()
    assert (tmp_path / "built").read_text() == "x"


def test_a_clock_that_jumps(whole, copy, drawn, tmp_path, monkeypatch):
    "Nothing depends on a clock: neither files from the future nor a clock that goes back make a step again"
    for k, file in enumerate(copy.rglob("*")): os.utime(file, (4e9, 4e9) if k % 2 else (0, 0))
    monkeypatch.setattr(time, "time", lambda: 0.)
    compute(copy)
    pd.testing.assert_frame_equal(read_rows(copy), read_rows(whole))
    real = replace(GRID, config={**TINY, "dataset": "celeba", "root": str(drawn)}, over=dict(n_forget=[1], seed=[0]), methods=())
    before = [job.step.address for job in build_jobs(real.cells)]
    moved = shutil.copytree(drawn, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    after = [job.step.address for job in build_jobs(replace(real, config={**real.config, "root": str(moved)}).cells)]
    assert before == after, "a copy of the images, newer and elsewhere, is the same data"
    image = next((tmp_path / "elsewhere/celeba").rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"\0")
    other = shutil.copytree(moved, tmp_path / "changed")
    assert before != [job.step.address for job in build_jobs(replace(real, config={**real.config, "root": str(other)}).cells)]


def test_a_method_that_fails_fails_alone(copy, whole):
    broken = replace(GRID, variants={"wrong": dict(method="jit", settings=dict(copies=0))})
    rows, failed = compute(copy, broken)
    assert failed["kind"].tolist() == ["unlearn", "score"]
    assert "non-empty" in failed["error"].iloc[0]
    same(copy, whole)
    run_grid(broken, broken.cells[:1], copy, Engine("in-process"))
    assert failures(copy)["kind"].tolist() == ["unlearn", "score"], "a narrower command doesn't forget what failed"
    compute(copy)
    assert failures(copy).empty, "what isn't in the grid any more hasn't failed"


def test_values_of_several_kinds(copy):
    mixed = replace(GRID, over=dict(GRID.over, epochs=[2, None]))
    rows = collect(Store(copy / "steps"), "mixed", mixed.cells, varied=mixed.over)
    rows.to_parquet(copy / "mixed.parquet")
    assert set(rows["epochs"]) == {"2"}


def test_the_command(copy, tmp_path, capsys, monkeypatch):
    def one_shui(*words) -> int:
        monkeypatch.setattr("sys.argv", ["one-shui", *map(str, words)])
        try: main()
        except SystemExit as stop: return stop.code or 0
        return 0
    (file := tmp_path / "tiny.yaml").write_text(json.dumps(dict(config=TINY, over=GRID.over, methods=["gradient_ascent", "prior_labels"])))
    assert one_shui("bench", file, "--out", copy, "--dry-run") == 0
    assert "10 steps, 10 of them done" in capsys.readouterr().out
    assert one_shui("bench", file, "--out", copy, "--select", "method=original", "--engine", "in-process") == 0
    assert "report.html" in capsys.readouterr().out
    assert one_shui("results", copy, "--where", "method=gradient_ascent", "--across", "n_forget", "--form", "csv") == 0
    assert capsys.readouterr().out.startswith("method,3\ngradient_ascent,")
    assert one_shui("report", copy) == 0
    few = ("--select", "method=gradient_ascent", "--engine", "in-process")
    assert one_shui("bench", file, "--out", tmp_path / "fresh", *few) == 0, "without the original there is no gain, but all the rest"
    for words, said in ((("bench", file, "--out", copy, "--select", "sead=1"), "no such field"), (("results", tmp_path), "run a grid"),
                        (("bench", "celeba-subset", "--out", copy), "--root DATA"), (("bench", file, "--out", file), "can't write"),
                        (("bench", "toy", "--out", copy), "holds the grid tiny"),
                        (("bench", file, "--out", copy, "--engine", "slurm"), "ray"),
                        (("bench", file, "--out", copy, "--select", "method=original,ssdd"), "method=ssdd: no such cell"),
                        (("bench", file, "--out", copy, "--views", 2), "add --attack"),
                        (("bench", file, "--out", copy, "--gpus", 1), "--engine ray"),
                        (("bench", file, "--out", copy, "--engine", "in-process", "--workers", 2), "--workers"),
                        (("results", copy, "--where", "metric=ToW"), "--metric NAME"),
                        (("results", copy, "--across", "n_forget", "--by", "access"), "average over method")):
        capsys.readouterr()
        assert one_shui(*words) == 2, words
        message = capsys.readouterr().err
        assert said in message and len(message.strip().splitlines()) == 1, message


@pytest.mark.parametrize("text,said", [
    ("[]", "isn't a grid"), ("{", "can't read"), ("x: 1", "unknown x"), ("config: {sead: 0}", "has no 'sead'"),
    ("config: 3", "should be a table"), ("config: {toy}", "toy is None; it has to be dict"),
    ("config: {n_forget: true}", "n_forget is True"),
    ("over: {seed: 0}", "write a list"), ("over: [1]", "should be a table"), ("over: {seed: [a]}", "seed is 'a'; it has to be int"),
    ("over: {seed: [0, 1, 1]}", "each value once"), ("variants: {5: {method: ssd, settings: {}}}", "name in quotes"),
    ("variants: {a: {method: ssd, settings: {lam: 1e-3}}}", "lam is '1e-3'; it has to be float"), ("attack: {views: '4'}", "views is '4'"),
    ("methods: [forgetting]", "unknown method"), ("methods: 3", "write a list of names"), ("methods: [or=fig: ]", "write a list of names"),
    ("variants: {a: 1}", "variant a needs"), ("variants: {a: {method: ssd, settings: 1}}", "variant a needs")])
def test_wrong_grids(tmp_path, text, said):
    (file := tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(BadInput, match=said): read_grid(file).cells  # noqa: B018


def test_attacks_begin_with_an_odd_number_of_views_and_go_on_with_the_stored_one(tmp_path):
    with pytest.raises(BadInput, match="has to be odd"): grid_folder(tmp_path / "new", replace(GRID, attack=dict(views=4)))
    grid_folder(old := tmp_path / "old", replace(GRID, attack={}))
    assert json.loads((old / "grid.json").read_text())["attack"] == {"views": 5}
    for held in ({}, {"views": 4}):  # earlier versions wrote only what differed from the default, which was 4
        facts = json.loads((old / "grid.json").read_text())
        (old / "grid.json").write_text(json.dumps(dict(facts, attack=held)))
        with pytest.raises(BadInput, match="were attacked with {'views': 4}"): grid_folder(old, replace(GRID, attack={}))
        grid_folder(old, replace(GRID, attack=dict(views=4)))


def test_published_grids_can_be_planned():
    for name in ("toy", "mufac", "celebahq", "ablation", "robustness"):
        grid = read_grid(name)
        assert len(grid.cells) == len(select_cells(grid.cells, dict(seed=["0"]))) * len(grid.over["seed"])
        assert len({(cell.method, cell.variant) for cell in grid.cells}) >= len(grid.methods)


def test_nothing_is_said_twice(copy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute(copy)

"""A grid on a real Ray cluster of two nodes, one of which is killed midway. Needs `one_shui[ray]`; run by `make test-cluster`."""
import threading
import time

import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster

from one_shui.scale.engines import Engine
from one_shui.scale.grid import Grid
from one_shui.scale.jobs import TIMES, build_jobs
from one_shui.scale.run_grid import read_rows, run_grid

TINY = dict(size=32, epochs=2, recipe="toy", toy=dict(n_people=30, n_photos=6, size=32), arch_options=dict(width=8))
GRID = Grid("tiny", TINY, dict(n_forget=[2, 3], seed=[0, 1]), ("gradient_ascent", "prior_labels"))


@pytest.fixture
def cluster(monkeypatch):
    "A head that computes nothing, and two nodes of one processor each"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
    yield made, [made.add_node(num_cpus=1) for _ in range(2)]
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pd.DataFrame:
    "The rows as one process finds them"
    rows, failed = run_grid(GRID, GRID.cells, folder := tmp_path_factory.mktemp("whole"), Engine("in-process"), "a test")
    assert failed.empty
    return read_rows(folder).drop(columns=TIMES)


def test_a_node_that_is_killed(cluster, whole, tmp_path):
    "Its steps go to the other node; nothing is lost, nothing is done twice"
    made, nodes = cluster
    killed: list[int] = []

    def kill() -> None:
        "Kill a node when some steps are done and it is in the middle of others"
        while len(list(tmp_path.glob("steps/*/*/step.json"))) < 5: time.sleep(.05)
        killed.append(len(list(tmp_path.glob("steps/*/*/step.json"))))
        made.remove_node(nodes[0], allow_graceful=False)

    (killer := threading.Thread(target=kill, daemon=True)).start()
    _, failed = run_grid(GRID, GRID.cells, tmp_path, Engine("ray", address=made.address), "a test")
    killer.join(60)
    assert failed.empty
    assert killed and killed[0] < len(build_jobs(GRID.cells)), "the grid ended before a node could be killed"
    pd.testing.assert_frame_equal(read_rows(tmp_path).drop(columns=TIMES), whole)
    assert len(list(tmp_path.glob("steps/*/*/step.json"))) == len(build_jobs(GRID.cells))
    assert not list(tmp_path.glob("steps/*/*.partial"))


def test_on_one_machine(whole, tmp_path):
    "Without an address Ray starts and ends by itself"
    _, failed = run_grid(GRID, GRID.cells, tmp_path, Engine("ray"), "a test")
    assert failed.empty and not ray.is_initialized()
    pd.testing.assert_frame_equal(read_rows(tmp_path).drop(columns=TIMES), whole)

"""Gather what grids, runs, audits and searches found into data/results: `python tools/gather.py FOLDER FOLDER …`

With --add, stored rows stay but for those that the folders have anew: of a method with a dataset, network, request size and seed,
or a search for it there.
"""
import json
import sys
from pathlib import Path

import pandas as pd

from one_shui.experiments.audit_tables import AUDIT_METRICS

RESULTS = Path(__file__).parent.parent / "data/results"
REPORTED = {"meta steps", "chosen round", "chosen strength", "simulated gain"}  # By methods, about their preparation
METRICS = {"mAP", "accuracy", "ToW", "over_forgot", "loss attack AUC", "gap to val", "RF-JSD", "blind loss attack AUC", "prepare seconds",
           "artifact MB", "peak MB", "RMIA TPR at FPR", "RMIA TPR of people", "RMIA TPR of people at FPR", "support image relearn steps",
           "sibling relearn steps", *REPORTED, *AUDIT_METRICS, *(name.replace("TPR at", "TPR of people at") for name in AUDIT_METRICS)}
COLUMNS = ["dataset", "arch", "n_forget", "seed", "method", "access", "split", "metric", "value", "low", "high", "seconds"]
ROUNDED = {"value": 3, "low": 3, "high": 3, "seconds": 2}
COSTS = {"prepare_seconds": "prepare seconds", "artifact_mb": "artifact MB", "peak_mb": "peak MB"}  # Columns of a grid, rows of a run


def rows_of(folder: Path) -> list[pd.DataFrame]:
    "The tables of a run or of a grid; a grid's variants have their names behind the method's"
    if not (file := folder / "results.parquet").exists():
        return [pd.read_csv(file) for file in (folder / "results.csv", folder / "audit.csv") if file.exists()]
    rows = pd.read_parquet(file)
    rows["method"] += (", " + rows["variant"]).where(rows["variant"] != "", "")
    once = rows.drop_duplicates(COLUMNS[:5]).drop(columns=["metric", "value", "low", "high", "split"])
    costs = once.rename(columns=COSTS).melt([c for c in once if c not in COSTS], list(COSTS.values()), "metric").dropna(subset="value")
    prepared = costs.merge(once.loc[once["prepare_seconds"] > 0, COLUMNS[:5]], how="left", indicator=True)["_merge"] == "both"
    return [rows, costs[prepared.to_numpy() | (costs["metric"] == "peak MB")].assign(split="all")]


FOUND = ["forget", "rest", "val", "simulated ToW", "seed", "requests", "command"]


def search_of(file: Path) -> pd.DataFrame:
    "What `one-shui tune` found on a run, with where that was"
    config = json.loads((file.parent / "config.json").read_text())
    place = {name: config[name] for name in ("dataset", "arch", "n_forget")}
    table = pd.read_csv(file).round(dict.fromkeys(FOUND[:4], 3))
    table["command"] = table["command"].str.replace(r"--run \S+", "--run RUN", regex=True)
    return pd.DataFrame({**place, "method": file.stem.removeprefix("tune-")}, table.index).join(table)


ATTACKS = {metric for metric in METRICS if metric.startswith(("RMIA", "update attack", "linkage", "support image", "sibling"))}
SIZES = {"mAP", "accuracy", "ToW", "over_forgot", "loss attack AUC", *REPORTED, *ATTACKS}
TABLES = {"rows": METRICS, "ablation": METRICS, "reserved": METRICS | {"threshold AUC"}, "sizes": SIZES}


def table_of(folder: Path) -> str:
    "Which of `TABLES` a folder belongs to: variants of a method, reserved images and several request sizes have their own"
    grid = json.loads(file.read_text()) if (file := folder / "grid.json").exists() else {}
    if grid.get("name") == "key-edit-ablation": return "ablation"
    if grid.get("config", {}).get("reserve"): return "reserved"
    return "sizes" if len(grid.get("over", {}).get("n_forget", [])) > 1 else "rows"


def gather(folders: list[Path], metrics: set[str] = METRICS) -> pd.DataFrame:
    "The rows of all runs and grids, sorted, each once"
    rows = pd.concat([table for folder in folders for table in rows_of(folder)], ignore_index=True)
    rows = rows[rows["metric"].isin(metrics)].reindex(columns=COLUMNS).round(ROUNDED).sort_values(COLUMNS[:8], kind="stable")
    return rows.drop_duplicates(COLUMNS[:8])


def joined(file: Path, new: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    "Stored rows, those with a key that the new ones have too replaced by them"
    old = pd.read_csv(file)
    known = pd.MultiIndex.from_frame(old[key]).isin(pd.MultiIndex.from_frame(new[key]))
    return pd.concat([old[~known], new], ignore_index=True).sort_values(key, kind="stable")


def main() -> None:
    "Write rows.csv, ablation.csv, reserved.csv and sizes.csv where something was measured, and tune.csv where something was searched"
    given = [word for word in sys.argv[1:] if word != "--add"]
    if not given: sys.exit(__doc__)
    folders, add = [Path(folder) for folder in given], len(given) < len(sys.argv) - 1
    for name, metrics in TABLES.items():
        part = [folder for folder in folders if table_of(folder) == name]
        if not any(rows_of(folder) for folder in part): continue
        rows, file = gather(part, metrics), RESULTS / f"{name}.csv"
        if add and file.exists(): rows = joined(file, rows, COLUMNS[:5])
        rows.to_csv(file, index=False)
        print(f"{name}.csv: {len(rows)} rows of {len(rows.drop_duplicates(COLUMNS[:4]))} places")
    if searched := sorted(file for folder in folders for file in folder.glob("tune-*.csv")):
        table = pd.concat([search_of(file) for file in searched], ignore_index=True)
        if add: table = joined(RESULTS / "tune.csv", table, [*COLUMNS[:3], "method"])
        table.reindex(columns=[*(c for c in table if c not in FOUND), *FOUND]).to_csv(RESULTS / "tune.csv", index=False)
        print(f"{len(table)} settings in {len(searched)} searches")


if __name__ == "__main__": main()

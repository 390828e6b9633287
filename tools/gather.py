"""Gather what runs and audits found into data/results/rows.csv: `python tools/gather.py RUN RUN …`"""
import sys
from pathlib import Path

import pandas as pd

from one_shui.audit import AUDITED

METRICS = {"mAP", "accuracy", "ToW", "over_forgot", "loss attack AUC", "gap to val", "RF-JSD", "blind loss attack AUC", "prepare seconds",
           "artifact MB", "RMIA TPR at FPR", "RMIA TPR of people", "RMIA TPR of people at FPR", "portrait relearn steps",
           "sibling relearn steps", *AUDITED, *(name.replace("TPR at", "TPR of people at") for name in AUDITED)}
COLUMNS = ["dataset", "arch", "n_forget", "seed", "method", "access", "split", "metric", "value", "low", "high", "seconds"]
ROUNDED = {"value": 3, "low": 3, "high": 3, "seconds": 2}


def gather(runs: list[Path]) -> pd.DataFrame:
    "The rows of all runs, sorted"
    files = [file for run in runs for file in (run / "results.csv", run / "audit.csv") if file.exists()]
    rows = pd.concat([pd.read_csv(file) for file in files], ignore_index=True)
    return rows[rows["metric"].isin(METRICS)].reindex(columns=COLUMNS).round(ROUNDED).sort_values(COLUMNS[:8], kind="stable")


def main() -> None:
    "Write them"
    if len(sys.argv) < 2: sys.exit(__doc__)
    rows = gather([Path(run) for run in sys.argv[1:]])
    (out := Path(__file__).parent.parent / "data/results/rows.csv").parent.mkdir(exist_ok=True)
    rows.to_csv(out, index=False)
    print(f"{len(rows)} rows of {len(rows.drop_duplicates(COLUMNS[:4]))} runs: {out}")


if __name__ == "__main__": main()

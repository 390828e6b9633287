"""Gather what runs and audits found into data/results/rows.csv: `python tools/gather.py RUN RUN …`"""
import sys
from pathlib import Path

import pandas as pd

from one_shui.audit import AUDITED

METRICS = {"mAP", "accuracy", "ToW", "over_forgot", "loss attack AUC", "gap to val", "RF-JSD", "blind loss attack AUC", "prepare seconds",
           "artifact MB", *AUDITED}
COLUMNS = ["dataset", "arch", "n_forget", "seed", "method", "access", "split", "metric", "value", "seconds"]


def main() -> None:
    "Write the rows of all runs"
    if len(sys.argv) < 2: sys.exit(__doc__)
    files = [file for run in sys.argv[1:] for file in (Path(run) / "results.csv", Path(run) / "audit.csv") if file.exists()]
    rows = pd.concat([pd.read_csv(file) for file in files], ignore_index=True)
    rows = rows[rows["metric"].isin(METRICS)].reindex(columns=COLUMNS).round({"value": 3, "seconds": 2})
    (out := Path(__file__).parent.parent / "data/results/rows.csv").parent.mkdir(exist_ok=True)
    rows.sort_values(COLUMNS[:8], kind="stable").to_csv(out, index=False)
    print(f"{len(rows)} rows of {len(rows.drop_duplicates(COLUMNS[:4]))} runs: {out}")


if __name__ == "__main__": main()

"""What the README says is what was measured, and short."""
import re
from pathlib import Path

import pandas as pd
import pytest

from one_shui.core.intervals import mean_and_interval

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
STORED = {"`key_edit` without records": "key_edit, keeps-nothing"}  # Names of variants in the stored rows
SEEDS = 5


def table() -> list[list[str]]:
    "Cells of the table of results"
    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def stored(method: str) -> pd.DataFrame:
    "Rows of a method on CelebA with reserved images and 20 forget identities"
    rows = pd.read_csv(ROOT / "data/results/reserved.csv").query("dataset == 'celeba' and n_forget == 20")
    name = STORED.get(method, method.removesuffix(", tuned").strip("`") + ("-tuned" if method.endswith("tuned") else ""))
    assert name in set(rows["method"]), f"{name} is none of {sorted(set(rows['method']))}"
    return rows[rows["method"] == name]


@pytest.mark.parametrize("cells", table(), ids=lambda cells: cells[0])
def test_a_line_of_the_table_is_what_was_measured(cells):
    method, _, _, *scores, tow, gained = cells
    rows = stored(method)
    assert rows["seed"].nunique() == SEEDS
    for split, shown in zip(("retain", "forget", "test"), scores, strict=True):
        values = rows[(rows["metric"] == "mAP") & (rows["split"] == split)]["value"]
        assert float(shown) == pytest.approx(values.mean(), abs=.051)
    of_tow = rows[rows["metric"] == "ToW"].set_index("seed")["value"]
    assert float(tow) == pytest.approx(of_tow.mean(), abs=.051)
    if "±" not in gained: return
    nothing = stored("original").query("metric == 'ToW'").set_index("seed")["value"]
    differences = of_tow - nothing.reindex(of_tow.index)
    expected = mean_and_interval(differences.to_numpy())
    assert [float(part) for part in gained.split("±")] == pytest.approx(expected, abs=.051)


def test_the_table_has_the_lines_to_compare_with():
    assert {"`retrain`", "`original`", "`photo_edit`", "`metaunlearn`", "`key_edit`"} <= {cells[0] for cells in table()}


def test_every_link_leads_somewhere():
    for place in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT): assert (ROOT / place).exists(), place


def test_it_is_short():
    assert len(TEXT.split()) <= 1200

"""Write README.md from nbs/index.ipynb, and its two charts from stored results."""
import base64
import json
import re
from pathlib import Path

import pandas as pd

from one_shui.experiments.tables import gain_chart

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "nbs/images"
SHOWN = ["original", "photo_edit", "key_edit, keeps-nothing", "group_edit", "key_edit", "metaunlearn",
         "gradient_ascent-tuned", "max_entropy-tuned"]
HEAD = "<!-- Written by `make prepare` from nbs/index.ipynb; edit that. -->\n\n"


def cells(file: Path) -> list[dict]:
    "A notebook's cells"
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def to_markdown(notebook: list[dict]) -> str:
    "The text of a notebook: its prose as it is, its code fenced, hidden cells left out"
    parts = []
    for cell in notebook:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown": parts.append(source)
        elif cell["cell_type"] == "code" and not source.startswith("#| hide"): parts.append(f"```python\n{source}\n```")
    return re.sub(r"\]\(((?!https?:)[\w/]+\.(?:ipynb|svg|png))\)", r"](nbs/\1)", "\n\n".join(parts)) + "\n"


def draw_gain() -> None:
    "What each method gains on CelebA, from stored rows"
    rows = pd.read_csv(ROOT / "data/results/reserved.csv").query("dataset == 'celeba' and method in @SHOWN").assign(variant="")
    gain_chart(rows).configure(background="white").save(IMAGES / "gain.svg")


def take_overview() -> None:
    "The chart that the first tutorial has stored"
    for cell in cells(ROOT / "nbs/tutorials/five_minutes.ipynb"):
        if not "".join(cell["source"]).startswith("# This chart is also shown in the README"): continue
        for out in cell["outputs"]: (IMAGES / "overview.png").write_bytes(base64.b64decode(out["data"]["image/png"]))


def main() -> None:
    "Write README.md and its charts"
    IMAGES.mkdir(exist_ok=True)
    draw_gain()
    take_overview()
    (ROOT / "README.md").write_text(HEAD + to_markdown(cells(ROOT / "nbs/index.ipynb")), encoding="utf-8")


if __name__ == "__main__": main()

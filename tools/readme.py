"""Write README.md from nbs/index.ipynb: its prose as it is, its code fenced, hidden cells left out; and draw its chart."""
import json
import re
from pathlib import Path

import pandas as pd

from one_shui.experiments.tables import gain_chart

ROOT = Path(__file__).parent.parent


def to_markdown(cells: list[dict]) -> str:
    "The text of a notebook"
    parts = []
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown": parts.append(source)
        elif cell["cell_type"] == "code" and not source.startswith("#| hide"): parts.append(f"```python\n{source}\n```")
    return re.sub(r"\]\(((?:tutorials/|images/)?\w+\.(?:ipynb|svg))\)", r"](nbs/\1)", "\n\n".join(parts)) + "\n"


def draw(file: Path) -> None:
    "Draw what each method gains on CelebA"
    rows = pd.read_csv(ROOT / "data/results/rows.csv").query("dataset == 'celeba'").assign(variant="")
    chart = gain_chart(rows).configure(background="white")
    file.parent.mkdir(exist_ok=True)
    chart.save(file)


def main() -> None:
    "Write README.md and its chart"
    draw(ROOT / "nbs/images/gain.svg")
    notebook = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    text = "<!-- Written by `make prepare` from nbs/index.ipynb; edit that. -->\n\n" + to_markdown(notebook["cells"])
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__": main()

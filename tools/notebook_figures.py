"""How the notebooks read, in figures, beside those of three admired projects. A mirror, not a gate.

Fails only on what is never right: a notebook that skips execution, or outputs that bloat it.
"""
import ast
import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 200_000  # bytes of a notebook
# Measured the same way in their sources: lines of an exported cell (median / 90th percentile / longest),
# definitions shown at work within two cells, definitions with prose just before, share of markdown cells.
OTHERS = {"fastcore": ("6 / 16 / 51", "83 %", "12 %", "30 %"), "nbdev": ("9 / 22 / 49", "59 %", "7 %", "27 %"),
          "fasttransform": ("6 / 25 / 48", "64 %", "20 %", "47 %")}


@dataclass
class Figures:
    "Counts over some notebooks"
    lines: list[int] = field(default_factory=list)  # Of each exported cell, without blank ones and directives
    definitions: int = 0
    shown: int = 0
    explained: int = 0
    cells: int = 0
    markdown: int = 0

    def row(self) -> tuple[str, str, str, str]:
        "As the others are printed"
        deciles = statistics.quantiles(self.lines, n=10)
        share = lambda part, whole: f"{100 * part / whole:.0f} %"
        return (f"{statistics.median(self.lines):.0f} / {deciles[-1]:.0f} / {max(self.lines)}", share(self.shown, self.definitions),
                share(self.explained, self.definitions), share(self.markdown, self.cells))


def defines(source: str) -> bool:
    "Does a cell define a function or class?"
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(source).body)


def count(cells: list[dict], figures: Figures) -> None:
    "Add a notebook's cells"
    sources = ["".join(cell["source"]) for cell in cells]
    exported = [cell["cell_type"] == "code" and "#| export" in source for cell, source in zip(cells, sources, strict=True)]
    figures.cells += len(cells)
    figures.markdown += sum(cell["cell_type"] == "markdown" for cell in cells)
    for i, source in enumerate(sources):
        if not exported[i]: continue
        figures.lines.append(sum(bool(line.strip()) and not line.startswith("#|") for line in source.splitlines()))
        if not defines(source): continue
        figures.definitions += 1
        figures.shown += any(cells[j]["cell_type"] == "code" and not exported[j] for j in range(i + 1, min(i + 3, len(cells))))
        sentences = [line for line in sources[i - 1].splitlines() if line.strip() and not line.startswith("#")]
        figures.explained += cells[i - 1]["cell_type"] == "markdown" and bool(sentences)


def main() -> int:
    "Print the table; 1 when a notebook is never executed or too large"
    figures, faults = Figures(), []
    for file in sorted(ROOT.glob("nbs/**/*.ipynb")):
        if ".ipynb_checkpoints" in file.parts: continue
        text = file.read_text(encoding="utf-8")
        if "skip_exec: true" in text: faults.append(f"{file.relative_to(ROOT)} skips execution")
        if len(text) > LIMIT: faults.append(f"{file.relative_to(ROOT)} has {len(text):,} bytes, limit {LIMIT:,}; outputs left in it?")
        count(json.loads(text)["cells"], figures)
    head = ("", "exported lines (median / p90 / max)", "shown within 2 cells", "prose before", "markdown cells")
    rows = [head, ("one_shui", *figures.row()), *((name, *row) for name, row in OTHERS.items())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    for row in rows: print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for fault in faults: print(fault)
    return bool(faults)


if __name__ == "__main__": sys.exit(main())

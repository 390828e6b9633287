"""Figures of the notebooks beside those of well-known notebook-first projects, and the limits that they must keep.

Counts lines of exported cells, definitions shown at work within two cells, sentences before definitions, stored
outputs and pictures, size, and words: private ones that must not appear, terms of the field that must.
"""
import ast
import json
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Counted the same way in their sources
OTHERS = {"fastcore": ("6 / 16 / 51", "83 %", "12 %", "30 %"), "nbdev": ("9 / 22 / 49", "59 %", "7 %", "27 %"),
          "fasttransform": ("6 / 25 / 48", "64 %", "20 %", "47 %")}
PRIVATE = re.compile("|".join((  # Words of an earlier vocabulary
    r"\bportraits?\b", r"\bpictures?\b", r"\bwho (?:asks?|asked)\b", r"\basking people\b", r"\baskers?\b", r"\bstrangers?\b",
    r"\bplayed\b", r"\bplayers?\b", r"\brehears\w*", r"\bpractis\w*", r"\bby heart\b", r"\bJudge\b", r"\bhandover\b",
    r"\b[Hh]anded? over\b", r"\bmemory_gap\b", r"\bstrangers_score\b", r"\bplay_requests\b", r"\bgo_on\b", r"\bcarried_back\b",
    r"\bverdicts?\b", r"\bsiblings\b")))
DEFINED = {"ask", "describe", "verdict", "lend", "told", "needs", "later", "doubts", "rehearse_with", "Meter", "Spent", "Seen", "Place",
           "apart", "_pull", "_carry_back", "_play", "_judge", "_tired", "look", "back", "reach", "lose", "spares", "weighs",
           "know", "push", "do", "only",
           "plan", "say", "Answers", "Played"}
MACHINE = re.compile(r"/(?:home|root|work|Users|tmp|mnt)/\w|0x[0-9a-f]{6,}")  # What no stored result may hold
TERMS = ("memorization", "hyperparameter", "validation set", "retain set", "forget set", "support image", "membership inference",
         "baseline", "ablation")


@dataclass
class Figures:
    "Counts over some notebooks"
    lines: list[int] = field(default_factory=list)  # Of each exported cell, without blank ones and directives
    code_lines: int = 0
    long_lines: int = 0
    definitions: int = 0
    shown: int = 0
    explained: int = 0
    cells: int = 0
    markdown: int = 0
    with_outputs: int = 0
    images: int = 0
    size: int = 0
    private: dict[str, int] = field(default_factory=dict)  # By word
    places: list[str] = field(default_factory=list)        # Where private words stand
    text: str = ""

    def deciles(self) -> tuple[float, float, int]:
        "Median, 90th percentile and largest number of lines of an exported cell"
        return statistics.median(self.lines), statistics.quantiles(self.lines, n=10)[-1], max(self.lines)

    def row(self) -> tuple[str, str, str, str]:
        "As the others are printed"
        share = lambda part, whole: f"{100 * part / whole:.0f} %"
        return (" / ".join(f"{n:.0f}" for n in self.deciles()), share(self.shown, self.definitions),
                share(self.explained, self.definitions), share(self.markdown, self.cells))


def is_export(cell: dict) -> bool:
    "Does a cell become part of the package?"
    return cell["cell_type"] == "code" and bool(re.search(r"^#\|\s*export", "".join(cell["source"]), re.M))


def names_defined(source: str) -> set[str]:
    "Functions, classes, methods and annotated fields of a cell"
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef): names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {line.target.id for line in node.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)}
    return names


def defines(source: str) -> bool:
    "Does a cell define a function or class at its top level?"
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(source).body)


def count_words(text: str, where: str, figures: Figures) -> None:
    "Add private words of a text"
    for found in PRIVATE.finditer(text):
        word = found[0].lower()
        figures.private[word] = figures.private.get(word, 0) + 1
        start = text.rfind("\n", 0, found.start()) + 1
        figures.places.append(f"{where}: {text[start:found.end() + 30].strip()[:110]!r}")


def count_exported(cells: list[dict], sources: list[str], where: str, figures: Figures) -> None:
    "Add what a notebook defines"
    exported = [is_export(cell) for cell in cells]
    for i, source in enumerate(sources):
        if not exported[i]: continue
        figures.lines.append(sum(bool(line.strip()) and not line.startswith("#|") for line in source.splitlines()))
        for name in sorted(names_defined(source) & DEFINED):
            figures.private[name] = figures.private.get(name, 0) + 1
            figures.places.append(f"{where}: defines {name}")
        if not defines(source): continue
        figures.definitions += 1
        figures.shown += any(cells[j]["cell_type"] == "code" and not exported[j] for j in range(i + 1, min(i + 3, len(cells))))
        sentences = [line for line in sources[i - 1].splitlines() if line.strip() and not line.startswith("#")]
        figures.explained += cells[i - 1]["cell_type"] == "markdown" and bool(sentences)


def count(file: Path, figures: Figures) -> None:
    "Add a notebook"
    text = file.read_text(encoding="utf-8")
    cells, where = json.loads(text)["cells"], file.relative_to(ROOT).as_posix()
    sources = ["".join(cell["source"]) for cell in cells]
    figures.size += len(text.encode())
    figures.cells += len(cells)
    for cell, source in zip(cells, sources, strict=True):
        figures.markdown += cell["cell_type"] == "markdown"
        figures.text += source.lower() + "\n"
        if not where.endswith("04_legacy.ipynb"): count_words(source, where, figures)
        if cell["cell_type"] != "code": continue
        lines = [line for line in source.splitlines() if line.strip()]
        figures.code_lines += len(lines)
        figures.long_lines += sum(len(line) > 100 for line in lines)
        outputs = cell.get("outputs", [])
        figures.with_outputs += bool(outputs)
        figures.images += any("image/png" in out.get("data", {}) for out in outputs)
    count_exported(cells, sources, where, figures)


def faults(figures: Figures, files: list[Path]) -> list[str]:
    "Limits that are not kept"
    median, tenth, largest = figures.deciles()
    over_50 = sum(lines > 50 for lines in figures.lines)
    limits = [("median lines of an exported cell", median, 10), ("90th percentile of lines", tenth, 25),
              ("lines of the largest exported cell", largest, 60), ("exported cells over 50 lines", over_50, 5),
              ("% of code lines over 100 characters", 100 * figures.long_lines / figures.code_lines, 2),
              ("% of definitions not shown within two cells", 100 - 100 * figures.shown / figures.definitions, 25),
              ("MB of all notebooks", figures.size / 1e6, 12), ("private words", sum(figures.private.values()), 0),
              ("words in README.md", len((ROOT / "README.md").read_text(encoding="utf-8").split()), 1200)]
    found = [f"{what}: {value:.1f}, limit {limit}" for what, value, limit in limits if value > limit]
    least = [("cells with stored outputs", figures.with_outputs, 300), ("stored pictures", figures.images, 60)]
    found += [f"{what}: {value}, at least {limit}" for what, value, limit in least if value < limit]
    found += [f"the term {term!r} does not appear" for term in TERMS if term not in figures.text]
    for file in files:
        budget = 500_000 if "tutorials" in file.parts else 200_000
        if file.stat().st_size > budget: found.append(f"{file.relative_to(ROOT)} has {file.stat().st_size:,} bytes, limit {budget:,}")
        results = [cell.get("outputs", []) for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
        texts = "".join("".join(out.get("text", out.get("data", {}).get("text/plain", []))) for outs in results for out in outs)
        if place := MACHINE.search(texts): found.append(f"{file.relative_to(ROOT)} has stored {place[0]!r}, a place of one machine")
        if "skip_exec: true" in file.read_text(encoding="utf-8"): found.append(f"{file.relative_to(ROOT)} skips execution")
    return found


def main() -> int:
    "Print the figures; 1 when a limit is not kept"
    figures = Figures()
    files = [file for file in sorted(ROOT.glob("nbs/**/*.ipynb")) if ".ipynb_checkpoints" not in file.parts]
    for file in files: count(file, figures)
    count_words((ROOT / "README.md").read_text(encoding="utf-8"), "README.md", figures)
    head = ("", "exported lines (median / p90 / max)", "shown within 2 cells", "prose before", "markdown cells")
    rows = [head, ("one_shui", *figures.row()), *((name, *row) for name, row in OTHERS.items())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    for row in rows: print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"cells over 50 lines: {sum(n > 50 for n in figures.lines)}; lines over 100 characters: "
          f"{100 * figures.long_lines / figures.code_lines:.1f} %; cells with outputs: {figures.with_outputs}; "
          f"pictures: {figures.images}; {len(files)} notebooks, {figures.size / 1e6:.1f} MB")
    print("terms:", ", ".join(f"{term} {figures.text.count(term)}" for term in TERMS))
    if figures.private: print("private words:", ", ".join(f"{word} {n}" for word, n in sorted(figures.private.items())))
    if "--words" in sys.argv: print(*figures.places, sep="\n")
    found = faults(figures, files)
    for fault in found: print(fault)
    return bool(found)


if __name__ == "__main__": sys.exit(main())

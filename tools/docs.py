"""Build the documentation site from the notebooks and their stored results.

Each notebook becomes a page of its chapter. Above the source of an exported function or class, which is folded, stands
its signature with its comments. Everything in the site loads without a network. `make docs` runs this.
"""
import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import vl_convert

ROOT = Path(__file__).parent.parent
NBS, PAGES, SITE = ROOT / "nbs", ROOT / "build/pages", ROOT / "_docs"
CHAPTERS = {  # In reading order, with their titles
    "tutorials": "Tutorials", "data": "Data", "data/datasets": "Datasets", "models": "Models",
    "training": "Training", "evaluation": "Evaluation", "methods": "Methods",
    "methods/metaunlearn": "MetaUnlearn", "methods/key_edit": "KeyEdit", "experiments": "Experiments",
    "scale": "Grids on many machines", "requests": "Deletion requests", "cli": "Command line", "core": "Core"}
PROMISES = {
    "tutorials": "Short walks through one question each; every page runs in about a minute on drawn faces.",
    "data": "From images on disk to batches: datasets as tables, splits by identity, a cache, a loader.",
    "data/datasets": "Published face datasets in their own layouts, one page each.",
    "models": "Any network, its features, its file.",
    "training": "The fastai loop that trains the original and the retrained model.",
    "evaluation": "How good is a model, how well did it forget, and could an attacker tell?",
    "methods": "One unlearning method per page, with its formula, its code and its differences from the paper.",
    "methods/metaunlearn": "The method of the paper: a loss that is meta-learned on simulated requests.",
    "methods/key_edit": "A closed-form edit of one layer.",
    "experiments": "From a configuration to rows, tables and a report.",
    "scale": "A table of a paper as a grid of steps, on one machine or many.",
    "requests": "A real deletion request, from a letter with a photo to a receipt.",
    "cli": "The same from a terminal.",
    "core": "Errors, files, costs and intervals that every chapter uses."}

CONF = '''
project, author, root_doc = "one_shui", "the one_shui developers", "index"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]
html_theme, html_title = "furo", "one_shui"
html_theme_options = {"navigation_with_keys": True}
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath", "deflist"]
nb_execution_mode = "off"
html_static_path, html_css_files, html_js_files = ["_static"], ["site.css"], ["charts.js"]
html_show_sourcelink = False
html_extra_path = ["_extra"]
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
myst_html_meta = {meta}
'''
CHARTS = '''
(() => {
  const theme = () => document.body.dataset.theme;
  const dark = () => theme() === "dark" || theme() !== "light" && matchMedia("(prefers-color-scheme: dark)").matches;
  const line = () => dark() ? "#bbb" : "#444";
  const draw = () => document.querySelectorAll("script[data-chart]").forEach(s => vegaEmbed(
    "#" + s.dataset.chart, JSON.parse(s.textContent),
    { actions: false, renderer: "svg", theme: dark() ? "dark" : undefined,
      config: { background: "transparent", text: { color: dark() ? "#ddd" : "#222" }, rule: { color: line() } } }));
  const vega = document.currentScript.src.replace(/charts\\.js.*/, "vega.js");
  addEventListener("DOMContentLoaded", () => {
    if (document.querySelector("script[data-chart]")) {  // a megabyte, only for pages that have a chart
      const script = document.createElement("script");
      script.src = vega;
      script.onload = () => {
        draw();
        new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-theme"] });
      };
      document.head.append(script);
    }
    document.querySelectorAll("p.caption[role=heading]").forEach(p => p.setAttribute("aria-level", "2"));
    // what scrolls can be reached by keyboard
    document.querySelectorAll("pre, .output, .chart, .table-wrapper").forEach(e => { if (e.scrollWidth > e.clientWidth) e.tabIndex = 0; });
  });
})();
'''
CSS = '''
.content { width: 58em; max-width: 100%; }
.sidebar-drawer { width: calc(50% - 29em + 4em); min-width: 15em; }
article pre { font-size: .78em; }
table.dataframe { border: 0; border-collapse: collapse; font-size: .85em; }
.dataframe th, .dataframe td { padding: .3rem .6rem; border: 0; border-bottom: 1px solid var(--color-background-border); }
div.chart { overflow-x: auto; }
div.cell_output img { max-width: 100%; }
details.source { margin: 0 0 1.5em; }
details.source > summary { cursor: pointer; color: var(--color-foreground-secondary); font-size: .85em; }
'''


@cache
def setting(name: str) -> str:
    "A value of settings.ini"
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"][name]


def page_name(file: Path) -> str:
    "Where a notebook's page is, without a suffix: nbs/methods/10_ssd.ipynb is methods/ssd"
    place = file.relative_to(NBS)
    return (place.parent / re.sub(r"^\d\d_", "", place.stem)).as_posix()


def read(file: Path) -> list[dict]:
    "A notebook's cells, each with its source as one string"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return [dict(cell, source="".join(cell["source"])) for cell in cells]


def directives(source: str) -> set[str]:
    "What the `#|` lines of a cell say"
    return {line[2:].strip() for line in source.splitlines() if line.startswith("#|")}


def is_exported(source: str) -> bool:
    "Is a cell part of the package?"
    return any(line.split()[:1] in (["export"], ["exporti"]) for line in directives(source))


def without_directives(source: str) -> str:
    "A cell's code"
    return "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip("\n")


@cache
def symbols() -> dict[str, str]:
    "Pages of public names that one page alone defines"
    found: dict[str, set[str]] = {}
    for file in sorted(NBS.rglob("*.ipynb")):
        for cell in read(file):
            if cell["cell_type"] != "code" or not is_exported(cell["source"]): continue
            for node in ast.parse(without_directives(cell["source"])).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, set()).add(page_name(file))
    return {name: next(iter(pages)) for name, pages in found.items() if len(pages) == 1}


def relative(page: str, other: str) -> str:
    "The way from one page to another"
    return os.path.relpath(other, Path(page).parent)


def linked(text: str, page: str) -> str:
    "Markdown whose links lead to pages, and whose names of functions and classes are links"
    def to_page(found: re.Match) -> str:
        place = (NBS / page).parent / found[1]
        return f"]({Path(os.path.normpath(place.parent / re.sub(r'^[0-9]{2}_', '', place.name))).relative_to(NBS)}"

    def rebase(found: re.Match) -> str:
        target = to_page(found)[2:]
        return f"]({relative(page, target)}.ipynb"

    def to_symbol(found: re.Match) -> str:
        home = symbols().get(found[1])
        if home is None: return found[0]
        return f'<a href="{relative(page, home)}.html#{found[1].lower()}"><code>{found[1]}</code></a>'

    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)  # every second part is code
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"\]\(((?!https?:)[\w./]+)\.ipynb", rebase, parts[k])
        parts[k] = re.sub(r"(?<![\[\w`])`(\w+)`(?![\]`])", to_symbol, parts[k])
    return "".join(parts)


def chart(spec: dict, name: str) -> str:
    "A Vega-Lite spec as HTML that charts.js draws"
    label, text = html.escape(spec.get("description", "chart"), quote=True), json.dumps(spec).replace("</", "<\\/")
    return (f'<div class="chart" id="{name}" role="img" aria-label="{label}"></div>'
            f'<script type="application/json" data-chart="{name}">{text}</script>')


def folded(code: str) -> str:
    "Source that is shown when a reader opens it"
    return f'<details class="source"><summary>Source</summary>\n\n```python\n{code}\n```\n\n</details>'


def signature(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    "The head of a function, or of a class with its fields, as it is written"
    first = node.body[0]
    if isinstance(node, ast.FunctionDef):
        start = node.lineno - 1
        end = first.lineno - 1 if first.lineno > node.lineno else node.lineno
        return "\n".join(lines[start:end]).rstrip()
    head = lines[node.lineno - 1]
    fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
    return "\n".join([head, *(lines[number] for field in fields for number in range(field.lineno - 1, field.end_lineno or field.lineno))])


def documentation(source: str) -> str:
    "An exported cell as Markdown: signature and docstring of what is public in it, then its folded source"
    code = without_directives(source)
    lines, parts = code.splitlines(), []
    nodes = ast.parse(code).body
    if all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes): return ""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"): continue
        parts += [f'<span id="{node.name.lower()}"></span>\n\n### {node.name}', f"```python\n{signature(node, lines)}\n```"]
        if said := ast.get_docstring(node): parts.append(said.replace("\n", "\n\n") if "\n\n" not in said else said)
    return "\n\n".join([*parts, folded(code)])


def page_cell(cell: dict, page: str, number: int) -> dict | None:
    "A cell as myst-nb wants it; None to leave it out"
    source, marks = cell["source"], directives(cell["source"])
    if cell["cell_type"] == "markdown": return dict(cell_type="markdown", metadata={}, source=linked(source, page))
    if "hide" in marks or any(mark.startswith("default_exp") for mark in marks): return None
    if is_exported(source):
        text = documentation(source)
        return dict(cell_type="markdown", metadata={}, source=linked(text, page)) if text else None
    outputs = []
    for k, out in enumerate(cell.get("outputs", [])):
        specs = [spec for kind, spec in out.get("data", {}).items() if kind.startswith("application/vnd.vegalite")]
        if specs: out = dict(out, data={"text/html": chart(specs[0], f"{page.replace('/', '-')}-{number}-{k}")})
        outputs.append(out)
    return dict(cell_type="code", execution_count=None, metadata={}, source=without_directives(source), outputs=outputs)


def title_and_promise(cells: list[dict]) -> tuple[str, str]:
    "What a page is called, and its one-line promise"
    text = next(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    title = re.search(r"^# (.*)", text, re.M)
    promise = re.search(r"^> (.*)", text, re.M)
    return title[1] if title else "", promise[1] if promise else ""


def badges(file: Path) -> list[str]:
    "Links to the notebook's source and to Colab, once the project has a public address on GitHub"
    home = setting("git_url")
    if not home or "github.com/" not in home: return []
    path = f"blob/{setting('branch')}/nbs/{file.relative_to(NBS)}"
    return [f"[Source]({home}/{path}) · [Open in Colab](https://colab.research.google.com/github/{home.split('github.com/')[1]}/{path})"]


def write_page(name: str, cells: list[dict]) -> None:
    "A page as a notebook that Sphinx reads"
    (file := PAGES / f"{name}.ipynb").parent.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell, id=f"{name.replace('/', '-')}-{k}"[-64:]) for k, cell in enumerate(cells)]
    kernel = dict(kernelspec=dict(display_name="Python 3", language="python", name="python3"))
    file.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)), encoding="utf-8")


def markdown(source: str) -> dict:
    "A cell of text"
    return dict(cell_type="markdown", metadata={}, source=source)


def toctree(pages: list[str], *options: str) -> str:
    "A table of contents"
    return "\n".join(["```{toctree}", *options, "", *pages, "```"])


def write_notebook(file: Path) -> tuple[str, str]:
    "The page of one notebook; its title and promise"
    name, cells = page_name(file), read(file)
    title = title_and_promise(cells)
    shown = [page_cell(cell, name, number) for number, cell in enumerate(cells)]
    parts = [cell for cell in shown if cell is not None]
    parts[1:1] = [markdown(text) for text in badges(file)]
    if name == "index":
        parts.append(markdown(toctree([f"{chapter}/index" for chapter in CHAPTERS if "/" not in chapter], ":hidden:")))
    write_page(name, parts)
    return title


def write_chapter(chapter: str, pages: dict[str, tuple[str, str]]) -> None:
    "A chapter's own page: what is in it, in reading order"
    below = [other for other in CHAPTERS if Path(other).parent.as_posix() == chapter]
    rows = [f"* [{title}]({relative(chapter + '/index', name)}.ipynb): {promise}" for name, (title, promise) in pages.items()]
    rows += [f"* [{CHAPTERS[other]}]({relative(chapter + '/index', other)}/index.ipynb): {PROMISES[other]}" for other in below]
    names = [relative(chapter + "/index", name) for name in pages] + [f"{relative(chapter + '/index', other)}/index" for other in below]
    text = [f"# {CHAPTERS[chapter]}", PROMISES[chapter], "\n".join(rows), toctree(names, ":hidden:")]
    write_page(f"{chapter}/index", [markdown("\n\n".join(text))])


def reading_order(chapter: str, pages: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    "Pages of a chapter; tutorials in the order in which the first page names them"
    if chapter != "tutorials": return pages
    index = (NBS / "index.ipynb").read_text(encoding="utf-8")
    place = {name: index.find(f"{name}.ipynb") for name in pages}
    return dict(sorted(pages.items(), key=lambda item: (place[item[0]] < 0, place[item[0]])))


def write_static(said: dict[str, dict[str, tuple[str, str]]]) -> None:
    "Scripts, style, the card for previews, and a list of pages for language models"
    vega = f"(() => {{ {vl_convert.javascript_bundle()} }})();"
    for name, text in {"vega.js": vega, "charts.js": CHARTS, "site.css": CSS}.items():
        (PAGES / "_static" / name).write_text(text, encoding="utf-8")
    lines = [f"# one_shui\n\n> {setting('description')}"]
    for chapter, pages in said.items():
        rows = [f"- [{title}]({name}.html): {promise}" for name, (title, promise) in pages.items()]
        lines.append("\n".join([f"## {CHAPTERS[chapter]}", *rows]))
    (PAGES / "_extra/llms.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    home = f"{setting('doc_host')}{setting('doc_baseurl')}".rstrip("/") + "/" if setting("git_url") else ""
    meta = {"property=og:title": "one_shui", "property=og:description": setting("description"),
            "property=og:type": "website", "property=og:image": home + "_static/card.png"}
    (PAGES / "conf.py").write_text(CONF.replace("{meta}", repr(meta)))
    svg = (NBS / "images/gain.svg").read_text(encoding="utf-8")
    (PAGES / "_static/card.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))


def write_pages() -> int:
    "Everything that Sphinx reads; how many notebooks"
    shutil.rmtree(PAGES, ignore_errors=True)
    for folder in ("_static", "_extra"): (PAGES / folder).mkdir(parents=True)
    shutil.copytree(NBS / "images", PAGES / "images")
    files = [file for file in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in file.parts]
    said: dict[str, dict[str, tuple[str, str]]] = {chapter: {} for chapter in CHAPTERS}
    for file in files:
        name = page_name(file)
        words = write_notebook(file)
        if name != "index": said[Path(name).parent.as_posix()][name] = words
    said = {chapter: reading_order(chapter, pages) for chapter, pages in said.items()}
    for chapter, pages in said.items(): write_chapter(chapter, pages)
    write_static(said)
    return len(files)


def main() -> None:
    "Write the pages and build the site; a warning is an error"
    number = write_pages()
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", PAGES, SITE], check=True)
    shutil.rmtree(SITE.parent / "jupyter_execute", ignore_errors=True)  # myst-nb leaves it beside the site
    for name in ("index.html", "methods/metaunlearn/method.html", "searchindex.js"):
        if not (SITE / name).stat().st_size: raise SystemExit(f"{SITE / name} is empty")
    print(f"{number} notebooks: {SITE / 'index.html'}")


if __name__ == "__main__": main()

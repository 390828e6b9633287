"""Build the documentation site: run the notebooks, let nbdev process them, hand the pages to Sphinx.

Everything in the site loads without a network. `make docs` runs this.
"""
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path

import vl_convert
import yaml
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config

ROOT = Path(__file__).parent.parent
BUILD, KEPT, PAGES, SITE = ROOT / "build/nbs", ROOT / "build/executed", ROOT / "build/pages", ROOT / "_docs"
VERSION = 1  # Of how notebooks are run; another number runs them all again

LEARNING = """five_minutes own_faces deletion_request read_the_scores explore could_anyone_tell add_a_method why_hard unlike_photo why_keys
how_many wrong_size inputs_and_terms person_by_person the_attack_as_defined reproduce_a_table differences""".split()

CONF = '''
project, author, root_doc = "one_shui", "the one_shui developers", "index"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]
html_theme, html_title = "furo", "one_shui"
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
  const draw = () => document.querySelectorAll("script[data-chart]").forEach(s => vegaEmbed(
    "#" + s.dataset.chart, JSON.parse(s.textContent),
    { actions: false, renderer: "svg", theme: dark() ? "dark" : undefined,
      config: { background: "transparent", text: { color: dark() ? "#ddd" : "#222" } } }));
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
table.dataframe { border-collapse: collapse; }
.dataframe th, .dataframe td { padding: .3rem .6rem; border-bottom: 1px solid var(--color-background-border); }
div.chart { overflow-x: auto; }
'''


def digest(file: Path) -> str:
    """16 hex digits over a notebook's cells, what runs them, and the stored results and other notebooks that it reads;
    the package's other modules are left out on purpose
    """
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
    code = "\n".join(text for kind, text in cells if kind == "code")
    read = [table for table in sorted((ROOT / "data/results").iterdir()) if "data/results" in code and table.stem in code]
    if ".ipynb" in code: read += sorted((ROOT / "nbs").glob("*.ipynb"))
    told = [hashlib.sha256(found.read_bytes()).hexdigest() for found in (ROOT / "constraints.txt", *read)]
    return hashlib.sha256(json.dumps([cells, told, VERSION]).encode()).hexdigest()[:16]


def execute_one(file: Path, kept: Path) -> tuple[str, float]:
    "Run a notebook and keep it with its outputs; charts as Vega-Lite"
    started, flags = time.perf_counter(), [f"#| {flag}" for flag in (*get_config().tst_flags.split(), "eval: false")]
    os.chdir(file.parent)
    notebook, shell = read_nb(file), CaptureShell(file)
    shell.run("import altair; altair.renderers.enable('mimetype')")
    shell.run_all(notebook, exc_stop=True, preproc=lambda cell: any(flag in cell.source for flag in flags))
    write_nb(notebook, partial := kept.with_suffix(f".{os.getpid()}"))
    os.replace(partial, kept)
    return file.name, time.perf_counter() - started


def answer_and_leave(answer: Connection, file: Path, kept: Path) -> None:
    "Run a notebook in this process, and end it at once: helpers that joblib left behind would keep it waiting"
    answer.send(execute_one(file, kept))
    answer.close()
    sys.stdout.flush()
    os._exit(0)


def in_a_process(context: BaseContext, file: Path, kept: Path) -> tuple[str, float]:
    "Run a notebook in a process of its own"
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer_and_leave, args=(theirs, file, kept))
    process.start()
    theirs.close()
    try: return ours.recv()
    except EOFError: raise RuntimeError(f"{file.name} failed; its traceback is above") from None
    finally: process.join()


def execute() -> None:
    """Every notebook with its outputs into build/nbs. What was run before is taken from build/executed, unless its cells changed;
    after a change of one module, only its own notebook runs again (`make clean docs` runs them all).
    """
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(ROOT / "nbs", BUILD, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
    shutil.copytree(ROOT / "data/results", BUILD.parent / "data/results", dirs_exist_ok=True)  # where notebooks look for it
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = {file: KEPT / f"{file.stem}-{digest(file)}.ipynb" for file in sorted(BUILD.rglob("*.ipynb"))}
    todo = [file for file, copy in kept.items() if not copy.exists()]
    print(f"running {len(todo)} of {len(kept)} notebooks", flush=True)
    first = sorted(todo, key=lambda file: -max((seconds for name, seconds in timings().items() if name == file.name), default=99.))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two trainings side by side that share their threads take many times as long
    fresh = get_context("forkserver")  # a new process for each notebook, that has imported the package already
    fresh.set_forkserver_preload(["one_shui.experiments.audit_charts", "one_shui.cli.main", "one_shui.requests.own_model", "one_shui.experiments.tables", "execnb.shell"])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = timings()
        for done in as_completed([pool.submit(in_a_process, fresh, file, kept[file]) for file in first]):
            name, seconds = done.result()
            found[name] = round(seconds, 1)
            print(f"{name}: {seconds:.0f} s", flush=True)
    (KEPT / "seconds.json").write_text(json.dumps(found, indent=1, sort_keys=True))
    for file, copy in kept.items(): shutil.copyfile(copy, file)


def timings() -> dict[str, float]:
    "How long notebooks took last time"
    return json.loads((KEPT / "seconds.json").read_text()) if (KEPT / "seconds.json").exists() else {}


def split_title(file: Path) -> None:
    "Give a notebook's title and subtitle a cell of their own: nbdev makes them the page's head, and would drop what follows in that cell"
    notebook = json.loads(file.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    first = next((k for k, cell in enumerate(cells) if cell["cell_type"] == "markdown"), None)
    if first is None: return
    found = re.fullmatch(r"(# [^\n]*\n+(?:>[^\n]*\n?)+)\s*(\S.*)", "".join(cells[first]["source"]), re.S)
    if found is None: return
    cells[first:first + 1] = [dict(cells[first], source=text, id=f"head-{k}") for k, text in enumerate(found.groups())]
    file.write_text(json.dumps(notebook), encoding="utf-8")


def process() -> None:
    "nbdev's own processing: documentation of exported symbols, hidden cells, links"
    from nbdev.serve import proc_nbs
    for file in BUILD.rglob("*.ipynb"): split_title(file)
    proc_nbs(path=str(BUILD), force=True, n_workers=0)


def chart(spec: dict, name: str) -> str:
    "A Vega-Lite spec as HTML that charts.js draws"
    label, text = html.escape(spec.get("description", "chart"), quote=True), json.dumps(spec).replace("</", "<\\/")
    return (f'<div class="chart" id="{name}" role="img" aria-label="{label}"></div>'
            f'<script type="application/json" data-chart="{name}">{text}</script>')


def page_cell(cell: dict, page: str, number: int) -> dict | None:
    "A processed cell as myst-nb wants it; None to leave it out"
    source = "".join(cell["source"])
    if cell["cell_type"] == "raw":
        front = yaml.safe_load(source.strip().strip("-")) or {}
        return dict(cell_type="markdown", metadata={}, source=f"# {front.get('title', page)}\n\n*{front.get('description', '')}*")
    if cell["cell_type"] == "markdown":
        return None if "AUTOGENERATED" in source else dict(cell_type="markdown", metadata={}, source=own_links(source))
    options = dict(re.findall(r"^#\|\s*(\w+):\s*(\S+)", source, flags=re.M))
    source = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
    if options.get("output") == "asis":
        texts = ["".join(out.get("data", {}).get("text/markdown", "")) or "".join(out.get("text", "")) for out in cell["outputs"]]
        return dict(cell_type="markdown", metadata={}, source=symbol("\n\n".join(texts), page))
    for out in cell["outputs"]:
        for kind, spec in (out.get("data") or {}).items():
            if kind.startswith("application/vnd.vegalite"):
                out["data"] = {"text/html": chart(spec, f"{page}-{number}")}
                break
    tags = [tag for tag, option in (("remove-input", "echo"), ("remove-output", "output")) if options.get(option) == "false"]
    return dict(cell, source=source, metadata=dict(tags=tags))


def symbol(text: str, page: str) -> str:
    "Documentation of a symbol: a heading with an anchor"
    text = re.sub(r"^---\n+", "", text.strip())
    text = re.sub(r"\{target=\"_blank\"[^}]*\}", "", text)
    return re.sub(r"^(#+) (\w[\w.]*)\s*$", lambda m: f'<span id="{m[2].lower()}"></span>\n\n### {m[2]}', own_links(text), flags=re.M)


def own_links(text: str) -> str:
    "Links between notebooks as links between pages; without a public address, nothing links to sources"
    config = get_config()
    if not config.git_url: text = re.sub(r"\[source\]\([^)]*\)", "", text)
    page = re.escape(f"{config.doc_host}{config.doc_baseurl}".rstrip("/")) + r"/(\w+)\.html"
    link = re.compile(r"\[`?([^\]`]+)`?\]\(" + page + r"(#[\w.]+)?\)")
    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)  # every second part is code, where a link is just a name
    parts = [link.sub(r"\1" if k % 2 else r'<a href="\2.html\3"><code>\1</code></a>', part) for k, part in enumerate(parts)]
    return re.sub(r"\]\((?:\.\./|tutorials/)?(?:\d\d_)?(\w+)\.ipynb", r"](\1.ipynb", "".join(parts))


def badges(file: Path, page: str) -> list[dict]:
    "Links to the notebook's source and to Colab, once the project has a public address on GitHub"
    home = get_config().git_url
    if not home or "github.com/" not in home: return []
    path = f"blob/{get_config().branch}/nbs/{file.relative_to(ROOT / '_proc')}"
    text = f"[Source]({home}/{path}) · [Open in Colab](https://colab.research.google.com/github/{home.split('github.com/')[1]}/{path})"
    return [dict(cell_type="markdown", metadata={}, id=f"{page}-badges", source=text)]


def pages() -> None:
    "Write the pages, the table of contents and the static files"
    shutil.rmtree(PAGES, ignore_errors=True)
    (PAGES / "_static").mkdir(parents=True)
    shutil.copytree(ROOT / "nbs/images", PAGES / "images")
    names: dict[str, list[str]] = {"Tutorials": [], "Library": []}
    said: dict[str, str] = {}
    for file in sorted((ROOT / "_proc").rglob("*.ipynb")):
        notebook, page = json.loads(file.read_text(encoding="utf-8")), re.sub(r"^\d\d_", "", file.stem)
        cells = [page_cell(cell, page, number) for number, cell in enumerate(notebook["cells"])]
        notebook["cells"] = [dict(cell, id=f"{page}-{k}") for k, cell in enumerate(cells) if cell is not None]
        said[page] = re.sub(r"[#*\n]+", " ", "".join(notebook["cells"][0]["source"])).strip() if notebook["cells"] else ""
        notebook["cells"][1:1] = badges(file, page)
        if page != "index": names["Tutorials" if file.parent.name == "tutorials" else "Library"].append(page)
        if page == "index": index = notebook
        else: (PAGES / f"{page}.ipynb").write_text(json.dumps(dict(notebook, nbformat_minor=5)), encoding="utf-8")
    names["Tutorials"].sort(key=lambda page: LEARNING.index(page) if page in LEARNING else len(LEARNING))
    lines = [f"## {caption}\n" + "\n".join(f"- [{page}]({page}.html): {said[page]}" for page in of) for caption, of in names.items()]
    (PAGES / "_extra").mkdir()
    text = "\n\n".join(["# one_shui", f"> {get_config().description}", *lines])
    (PAGES / "_extra" / "llms.txt").write_text(text + "\n", encoding="utf-8")
    contents = "\n\n".join(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n" + "\n".join(of) + "\n```" for caption, of in names.items())
    index["cells"].append(dict(cell_type="markdown", id="contents", metadata={}, source=contents))
    (PAGES / "index.ipynb").write_text(json.dumps(dict(index, nbformat_minor=5)), encoding="utf-8")
    card, home = "_static/card.png", f"{get_config().doc_host}{get_config().doc_baseurl}".rstrip("/") + "/" if get_config().git_url else ""
    meta = {"property=og:title": "one_shui", "property=og:description": get_config().description, "property=og:type": "website",
            "property=og:image": home + card}
    (PAGES / "conf.py").write_text(CONF.replace("{meta}", repr(meta)))
    (PAGES / card).write_bytes(vl_convert.svg_to_png((ROOT / "nbs/images/gain.svg").read_text(encoding="utf-8"), scale=2))
    vega = f"(() => {{ {vl_convert.javascript_bundle()} }})();"
    for name, text in {"vega.js": vega, "charts.js": CHARTS, "site.css": CSS}.items():
        (PAGES / "_static" / name).write_text(text, encoding="utf-8")


def main() -> None:
    "All steps"
    execute()
    process()
    pages()
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", PAGES, SITE], check=True)
    shutil.rmtree(SITE.parent / "jupyter_execute", ignore_errors=True)  # myst-nb leaves it beside the site
    for name in ("index.html", "metaunlearn.html", "searchindex.js"):
        if not (SITE / name).stat().st_size: raise SystemExit(f"{SITE / name} is empty")
    print(f"site: {SITE / 'index.html'}")


if __name__ == "__main__": main()

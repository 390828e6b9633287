"""Run the notebooks and keep their results.

    python tools/run_notebooks.py            run all notebooks and write their outputs into them
    python tools/run_notebooks.py FILE ...   only these
    python tools/run_notebooks.py --check    run all notebooks as tests, and report stored results that differ
    python tools/run_notebooks.py --check --strict   the same; a difference is an error

Cells with a flag of settings.ini's `tst_flags` or with `eval: false` are not run. What is stored is the same on
every run on one kind of processor: no times, no paths, no ids. Charts are kept as Vega-Lite and as PNG.
"""
import argparse
import base64
import gc
import io
import json
import os
import re
import shutil
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "nbs/outputs.json"  # The processor and versions that stored outputs come from
PRELOAD = ["one_shui.experiments.run", "altair", "vl_convert", "execnb.shell", "sklearn.metrics"]
LIMIT = 600  # Seconds per notebook
CHART = "application/vnd.vegalite"
ORDER = ["text/html", "image/png", "text/markdown", "text/plain"]


def notebooks() -> list[Path]:
    "Every notebook, in reading order"
    found = (ROOT / "nbs").rglob("*.ipynb")
    return sorted(file for file in found if ".ipynb_checkpoints" not in file.parts)


def processor() -> dict[str, str]:
    "What decides the last bits of a result"
    import torch
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(line.split(":", 1) for line in lines if line.startswith(("model\t", "cpu family\t")))
    model = "/".join(value.strip() for _, value in sorted((k.strip(), v) for k, v in facts.items()))
    kinds = [name for name, has in torch.cpu.get_capabilities().items() if has is True]
    return dict(processor=model, instructions=" ".join(sorted(kinds)), torch=torch.__version__.split("+")[0])


def small_png(picture: bytes, colours: int = 128, width: int = 1000) -> str:
    "A picture as a palette PNG in base64, a third of the size"
    from PIL import Image
    image = Image.open(io.BytesIO(picture))
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A") if "A" in image.getbands() else None)
    if white.width > width: white = white.resize((width, round(white.height * width / white.width)))
    white.quantize(colours, dither=Image.Dither.NONE).save(packed := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def lean(spec: dict) -> dict:
    "A chart with the columns that it names, and numbers of five significant digits, which no eye can tell from more"
    data, datasets = spec.get("datasets", {}), {}
    drawing = json.dumps({key: part for key, part in spec.items() if key != "datasets"}, ensure_ascii=False)
    for number, (name, rows) in enumerate(data.items()):
        drawing = drawing.replace(name, f"data-{number}")  # altair's name is a digest of the data
        named = drawing.replace("\\", "")  # Vega-Lite escapes dots and brackets in names of columns
        datasets[f"data-{number}"] = [{column: row[column] for column in row if column in named} for row in rows]
    whole = json.dumps(json.loads(drawing) | {"datasets": datasets})
    return json.loads(whole, parse_float=lambda text: float(f"{float(text):.5g}"))


def chart_bundle(spec: dict, **_) -> dict:
    "A chart as Vega-Lite for the site and as PNG for every other reader"
    import altair
    import vl_convert
    picture = vl_convert.vegalite_to_png(spec, scale=1.25)
    version = altair.SCHEMA_VERSION.lstrip("v").split(".")[0]
    return {f"{CHART}.v{version}.json": lean(spec), "image/png": small_png(picture, 64)}


def plain_text(text: str) -> str:
    "Text without what changes from run to run: addresses, times, places of files"
    text = re.sub(r" at 0x[0-9a-f]{6,}", "", text).replace(str(ROOT), "(repository)")
    text = re.sub(r"\bdone in [\d.]+ s\b", "done", text)
    return re.sub(r"/tmp/[\w./-]+", "(temporary folder)", text)


def clean_data(data: dict) -> dict:
    "The forms of one result that are worth keeping"
    chart = next((kind for kind in data if kind.startswith(CHART)), None)
    if chart: return {chart: data[chart], "image/png": data["image/png"]}
    if "image/png" in data: return {"image/png": small_png(base64.b64decode(data["image/png"]))}
    kept = {kind: plain_text("".join(data[kind])) for kind in ORDER if kind in data}
    if "text/html" in kept:
        kept["text/html"] = re.sub(r"<style.*?</style>\n?", "", kept["text/html"], flags=re.S)
    return {kind: text.splitlines(keepends=True) for kind, text in kept.items()}


def clean_outputs(outputs: list[dict]) -> list[dict]:
    "Outputs of one cell, without messages, numbers of execution and metadata"
    kept: list[dict] = []
    for out in outputs:
        if out["output_type"] == "stream":
            if out.get("name") == "stderr": continue
            text = plain_text("".join(out["text"]))
            kept.append(dict(name="stdout", output_type="stream", text=text.splitlines(keepends=True)))
        elif out["output_type"] in ("execute_result", "display_data"):
            result = dict(data=clean_data(out["data"]), metadata={}, output_type=out["output_type"])
            if out["output_type"] == "execute_result": result["execution_count"] = None
            kept.append(result)
    return kept


def execute(file: Path) -> list[list[dict]]:
    "Run a notebook; the outputs of each of its cells"
    import altair
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    altair.renderers.register("stored", chart_bundle)
    flags = [f"#| {flag}" for flag in (*get_config().tst_flags.split(), "eval: false", "eval:false")]
    os.chdir(file.parent)
    notebook, shell = read_nb(file), CaptureShell(file)
    shell.run("import altair; altair.renderers.enable('stored')")
    skip = lambda cell: any(flag in cell.source for flag in flags)
    shell.run_all(notebook, exc_stop=True, preproc=skip)
    hidden = [cell.cell_type != "code" or skip(cell) or "#| hide" in cell.source for cell in notebook.cells]
    return [[] if hide else clean_outputs(cell.get("outputs", []))
            for hide, cell in zip(hidden, notebook.cells, strict=True)]


def work(file: Path, answer) -> None:
    "Run a notebook in this process, send what came out, and end at once"
    gc.freeze()  # garbage collection then skips what the imports made
    try: answer.send((execute(file), ""))
    except BaseException: answer.send((None, traceback.format_exc(limit=-6)))
    answer.close()
    sys.stdout.flush()
    os._exit(0)  # helpers that joblib started would keep it waiting


def in_a_process(context, file: Path) -> tuple[list | None, str, float]:
    "Run a notebook in a process of its own: outputs, error, seconds"
    start = time.perf_counter()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(file, theirs))
    process.start()
    theirs.close()
    try: outputs, error = ours.recv() if ours.poll(LIMIT) else (None, f"ran longer than {LIMIT} s")
    except EOFError: outputs, error = None, "its process ended without a result"
    process.kill()
    process.join()
    return outputs, error, time.perf_counter() - start


def texts(cells: list[dict], outputs: list[list[dict]]) -> list[tuple[str, list[str]]]:
    "For each cell with text results, its first line of code and these texts"
    found = []
    for cell, outs in zip(cells, outputs, strict=True):
        said = ["".join(out["text"]) if "text" in out else "".join(out["data"].get("text/plain", "")) for out in outs]
        code = [line for line in "".join(cell["source"]).splitlines() if line and not line.startswith("#|")]
        if any(said): found.append((code[0] if code else "", said))
    return found


def compare(file: Path, outputs: list[list[dict]]) -> list[str]:
    "Cells whose text results are not the stored ones"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    stored, fresh = texts(cells, [cell.get("outputs", []) for cell in cells]), texts(cells, outputs)
    if len(stored) != len(fresh): return [f"{len(stored)} cells have stored results, {len(fresh)} have results now"]
    return [f"{code}\n    stored: {before}\n    now:    {now}" for (code, before), (_, now) in zip(stored, fresh, strict=True)
            if before != now]


def store(file: Path, outputs: list[list[dict]]) -> None:
    "Write outputs into a notebook"
    notebook = json.loads(file.read_text(encoding="utf-8"))
    for cell, outs in zip(notebook["cells"], outputs, strict=True):
        if cell["cell_type"] == "code": cell.update(outputs=outs, execution_count=None)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    file.write_text(text, encoding="utf-8")


def longest_first(files: list[Path]) -> list[Path]:
    "Notebooks in the order of their last running times, so that both workers end together"
    log = ROOT / "build/notebook-seconds.json"
    seconds = json.loads(log.read_text()) if log.exists() else {}
    return sorted(files, key=lambda file: -seconds.get(file.relative_to(ROOT).as_posix(), file.stat().st_size / 1e3))


def main() -> int:
    "Run, then store or compare; 1 when a notebook fails (with --strict: or a stored text is out of date)"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the stored outputs instead of writing them")
    parser.add_argument("--strict", action="store_true", help="with --check: a stored result that differs is an error")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "TQDM_DISABLE": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    files = [file.resolve() for file in args.files] or notebooks()
    if not args.files and len(files) < 40: raise SystemExit(f"nbs/ has lost notebooks: {len(files)} are left")
    here, there = processor(), json.loads(RECORD.read_text()) if RECORD.exists() else {}
    exact = here == there
    shutil.rmtree(ROOT / "nbs/runs", ignore_errors=True)  # a run that is there already would not be computed
    context = get_context("forkserver")  # a fresh process for each notebook, with the imports done
    context.set_forkserver_preload(PRELOAD)
    failed, stale, seconds = [], [], {}
    with ThreadPoolExecutor(args.workers) as pool:
        jobs = {pool.submit(in_a_process, context, file): file for file in longest_first(files)}
        for job in as_completed(jobs):
            file, (outputs, error, taken) = jobs[job], job.result()
            name = file.relative_to(ROOT).as_posix()
            seconds[name] = round(taken, 1)
            print(f"{name}: {taken:.0f} s", flush=True)
            if outputs is None:
                failed.append(name)
                print(error, flush=True)
            elif not args.check: store(file, outputs)
            elif exact and (different := compare(file, outputs)):
                stale.append(name)
                print(f"{name}: stored results are out of date\n  " + "\n  ".join(different[:3]), flush=True)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/notebook-seconds.json").write_text(json.dumps(seconds, indent=1, sort_keys=True))
    if args.check and not exact:
        print("stored results come from another kind of processor, whose last bits differ; they were not compared")
    if not args.check and not args.files: RECORD.write_text(json.dumps(here, indent=1) + "\n")
    if failed: print(f"failed: {', '.join(sorted(failed))}")
    if stale: print(f"out of date: {', '.join(sorted(stale))}; run `make prepare` and look at the difference")
    return bool(failed or (stale and args.strict))


if __name__ == "__main__": sys.exit(main())

"""New processes that have the libraries imported already, which takes longer than most tests."""
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["one_shui.requests.forget", "one_shui.requests.own_model", "one_shui.cli.main",
                                "one_shui.experiments.tables", "one_shui.scale.run_grid", "timm", "hypothesis"])


def _child(target: Callable, arguments: tuple, files: list[Path], folder: Path | None, environment: dict) -> None:
    "Call a function with its output in two files"
    gc.freeze()  # garbage collection then skips what the imports made
    for number, file in enumerate(files, 1): os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    if folder: os.chdir(folder)
    target(*arguments)


def run_function(target: Callable, *arguments, folder: Path | None = None, **environment) -> subprocess.CompletedProcess:
    "A function in a new process; its exit code and what it printed, like `subprocess.run`"
    with TemporaryDirectory() as temporary:
        files = [Path(temporary) / name for name in ("out", "error")]
        process = CONTEXT.Process(target=_child, args=(target, arguments, files, folder, environment))
        process.start()
        process.join(600)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{target.__name__} ran longer than 600 s")
        return subprocess.CompletedProcess(arguments, process.exitcode, *(file.read_text() for file in files))


def _command(*arguments: str) -> None:
    from one_shui.cli.main import main
    sys.argv = ["one-shui", *arguments]
    main()


def one_shui(*arguments, **environment) -> subprocess.CompletedProcess:
    "Run a command of the package"
    return run_function(_command, *map(str, arguments), **environment)


def _script(file: str, *arguments: str) -> None:
    sys.argv = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent))
    runpy.run_path(file, run_name="__main__")


def run_script(file: Path, *arguments) -> subprocess.CompletedProcess:
    "Run a script with arguments"
    return run_function(_script, str(file), *map(str, arguments))


def _code(code: str, *arguments: str) -> None:
    sys.argv = ["-c", *arguments]
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for name in [name for name in sys.modules if name.partition(".")[0] == "one_shui"]: del sys.modules[name]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


def run_code(code: str, *arguments, folder: Path | None = None, **environment) -> subprocess.CompletedProcess:
    "Run code that imports the package anew, from PYTHONPATH"
    return run_function(_code, code, *map(str, arguments), folder=folder, **environment)

"""Bring generated files up to date (clean notebooks, exported modules, README) and say which were behind.

Without --write, files that were behind are put back as they were and the exit code is 1. Stored results of notebooks
are left as they are: tools/run_notebooks.py writes and checks them.
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def snapshot() -> dict[Path, bytes]:
    "Contents of every generated file"
    files = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("one_shui/**/*.py"), *ROOT.glob("nbs/images/*.svg"), ROOT / "README.md"]
    return {file: file.read_bytes() for file in files if ".ipynb_checkpoints" not in file.parts}


def main(write: bool) -> int:
    "Regenerate, compare"
    before = snapshot()
    for command in (["nbdev_clean"], ["nbdev_export"]): subprocess.run([BIN / command[0]], cwd=ROOT, check=True)
    subprocess.run([sys.executable, ROOT / "tools/readme.py"], cwd=ROOT, check=True)
    after = snapshot()
    behind = sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file))
    for file in behind: print(f"{'updated' if write else 'out of date'}: {file.relative_to(ROOT)}")
    if write or not behind: return 0
    for file in behind:
        if file in before: file.write_bytes(before[file])
        else: file.unlink()
    print("run `make prepare` and commit what it changes")
    return 1


if __name__ == "__main__": sys.exit(main("--write" in sys.argv[1:]))

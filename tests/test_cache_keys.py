"""A step is computed again when the code that it uses changes, and only then."""
import ast
import json
import shutil
from pathlib import Path

import pytest
from processes import run_code

import one_shui

ADDRESSES = """
import json, warnings
warnings.simplefilter("ignore")
from one_shui.experiments.audit import Audit
from one_shui.scale.grid import Grid
from one_shui.scale.jobs import build_jobs
toy = dict(n_people=30, n_photos=6, size=32)
config = dict(size=32, epochs=2, recipe="toy", toy=toy, arch_options=dict(width=8))
grid = Grid("tiny", config, dict(n_forget=[3], seed=[0]), ("gradient_ascent", "ssd"))
jobs = build_jobs(grid.cells, Audit())
print(json.dumps({f"{job.step.kind} {job.method}": job.step.address for job in jobs}))
"""


@pytest.fixture
def package(tmp_path) -> Path:
    "A copy of the package that a test may edit"
    source = Path(one_shui.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(source, tmp_path / "one_shui", ignore=ignored))


def addresses(package: Path) -> dict[str, str]:
    "Addresses of the steps of a small grid, by kind and method"
    done = run_code(ADDRESSES, folder=package.parent, PYTHONPATH=str(package.parent))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def changed(package: Path, before: dict[str, str]) -> set[str]:
    "Kinds of the steps whose address has changed"
    after = addresses(package)
    assert after.keys() == before.keys()
    return {name for name in before if after[name] != before[name]}


class RaiseFloats(ast.NodeTransformer):
    "Adds 1e-9 to every floating-point constant"

    def visit_Constant(self, node):
        if isinstance(node.value, float): node.value += 1e-9
        return node


class NewDocstrings(ast.NodeTransformer):
    "Replaces every docstring"

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = "Another text"
        return node


def edit(file: Path, transformer: ast.NodeTransformer) -> None:
    "Rewrite a module; comments are lost, which must not matter"
    tree = transformer.visit(ast.parse(file.read_text(encoding="utf-8")))
    assert ast.unparse(tree) != file.read_text(encoding="utf-8")
    file.write_text(ast.unparse(ast.fix_missing_locations(tree)) + "\n", encoding="utf-8")


def modules(package: Path, *folders: str) -> list[Path]:
    "Modules of some packages that hold code"
    files = [file for folder in folders for file in sorted((package / folder).rglob("*.py"))]
    return [file for file in files if file.name != "__init__.py"]


def test_an_attack_changes_no_training_step(package):
    before = addresses(package)
    edit(package / "evaluation/attacks.py", RaiseFloats())
    names = changed(package, before)
    assert {name.split()[0] for name in names} == {"score", "attack"}
    assert {name for name in before if name.split()[0] in ("score", "attack")} == names


def test_training_changes_every_step(package):
    before = addresses(package)
    edit(package / "training/fit.py", RaiseFloats())
    assert changed(package, before) == set(before)


def test_a_method_changes_its_own_steps(package):
    before = addresses(package)
    edit(package / "methods/ssd.py", RaiseFloats())
    assert changed(package, before) == {"prepare ssd", "unlearn ssd", "score ssd", "attack ssd"}


def test_documentation_changes_nothing(package):
    before = addresses(package)
    folders = ("data", "models", "training", "evaluation", "methods", "experiments", "scale")
    for file in modules(package, *folders): edit(file, NewDocstrings())
    assert changed(package, before) == set()


def test_another_method_changes_nothing(package):
    "A new line in the registry does not retrain the networks of the other methods"
    before, file = addresses(package), package / "methods/registry.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('    "ssd":', '    "new": "one_shui.methods.ssd:SSD",\n    "ssd":'), encoding="utf-8")
    assert '"new"' in file.read_text(encoding="utf-8")
    assert changed(package, before) == set()

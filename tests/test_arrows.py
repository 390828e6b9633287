"""The package's structure, drawn from its imports: chapters import only from chapters above them."""
import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import one_shui

ROOT = Path(one_shui.__file__).parent
ORDER = ["core", "data", "models", "training", "evaluation", "methods", "experiments", "scale", "requests", "cli"]


def imports(file: Path, top_level: bool = False) -> set[str]:
    "Modules of the package that a module imports; only those at its top level, or all"
    package = ["one_shui", *file.relative_to(ROOT).parent.parts]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import): found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("one_shui.") and module_file(name)}


def module_file(name: str) -> Path | None:
    "The file of a module, if there is one"
    file = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return file if file.exists() else None


def module_name(file: Path) -> str: return ".".join(["one_shui", *file.relative_to(ROOT).with_suffix("").parts])


MODULES = sorted(file for chapter in ORDER for file in (ROOT / chapter).rglob("*.py") if file.name != "__init__.py")


def chapter(name: str) -> str: return name.split(".")[1]


def test_every_module_belongs_to_a_chapter():
    shims = {"unlearn", "attacks", "scores", "key_edit", "metaunlearn", "experiment", "splits"}
    assert {file.stem for file in ROOT.glob("*.py")} <= shims | {"__init__", "_modidx"}
    assert {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()} == set(ORDER)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_chapter_imports_only_from_chapters_above_it(file):
    own = ORDER.index(chapter(module_name(file)))
    below = {name for name in imports(file) if name != "one_shui" and ORDER.index(chapter(name)) > own}
    assert not below, f"{module_name(file)} is in chapter {ORDER[own]} and imports {sorted(below)}, which come after it"


def test_no_two_modules_import_each_other():
    graph = {module_name(file): imports(file, top_level=True) for file in MODULES}
    try: TopologicalSorter(graph).prepare()
    except CycleError as error: pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


def test_an_arrow_the_wrong_way_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    for name, text in {"data/a.py": "from ..evaluation.b import x\n", "evaluation/b.py": "x = 1\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(AssertionError, match="imports .'one_shui.evaluation.b'"):
        test_a_chapter_imports_only_from_chapters_above_it(tmp_path / "data/a.py")

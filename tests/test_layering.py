"""Imports point down only (docs/design.md): who may import whom, read from the source."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ilrec"
# What each folder may import beside itself and ilrec.errors: one line a folder, from the bottom up.
ALLOWED = {
    "errors": set(),
    "processes": set(),
    "files": set(),
    "config": {"files", "ops"},
    "items": {"files"},
    "weights": {"files"},
    "ops": set(),
    "interactions": {"files", "config", "items"},
    "samples": {"files", "config", "items", "interactions"},
    "model": {"files", "config", "ops", "weights"},
    "ranking": {"files", "items", "ops", "model"},
    "collaborative": {"files", "config", "items", "ranking"},
    "training": {
        "processes",
        "files",
        "config",
        "items",
        "weights",
        "ops",
        "interactions",
        "samples",
        "model",
        "collaborative",
    },
    "merging": {"files", "weights", "model", "training"},
}
ENTRIES = {"", "train", "rank"}
ONLY_IN = {
    "deepspeed": {"training.zero3"},
    "triton": {"ops.triton_math", "ops.triton_rows", "ops.triton_tiles"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {f"ilrec.{module_name(path)}" for path in FILES}


def imports(source: str) -> set[str]:
    """The modules that a source text imports, by full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in ilrec are absolute"
            found |= {imported_module(str(node.module), alias.name) for alias in node.names}
    return found


def imported_module(module: str, name: str) -> str:
    """`from ilrec import train` imports a module of the package, `from ilrec import __version__`
    does not."""
    inside = f"{module}.{name}"
    return inside if inside in MODULES else module


def folder(name: str) -> str:
    """The first part of a module's name: a package, or a module that lies beside the packages."""
    return name.split(".")[0]


def test_every_form_of_import_is_seen():
    lines = (
        "import ilrec.ops",
        "from ilrec.samples import task",
        "from ilrec.samples.task import load_task",
        "from ilrec import __version__, train",
    )
    assert imports("\n".join(lines)) == {"ilrec.ops", "ilrec.samples.task", "ilrec", "ilrec.train"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    mine = folder(module_name(path))
    if mine in ENTRIES:
        return
    assert mine in ALLOWED, f"{mine}: new; say in docs/design.md and here what it may import"
    for imported in imports(path.read_text()):
        if imported.startswith("ilrec."):
            theirs = folder(imported.removeprefix("ilrec."))
            assert theirs in ALLOWED[mine] | {"errors", mine}, f"{path} imports {imported}"


def test_nothing_imports_the_entries():
    """ilrec/train.py and ilrec/rank.py wire and run; what others need of them lies in a package."""
    scripts = [*FILES, *(ROOT / "tools").rglob("*.py")]
    for path in scripts:
        assert not imports(path.read_text()) & {"ilrec.train", "ilrec.rank"}, path


def test_no_import_goes_round():
    """Also within a folder, where the table above says nothing."""
    graph = {
        f"ilrec.{module_name(path)}".rstrip("."): imports(path.read_text()) & MODULES
        for path in FILES
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_have_one_place(path):
    for package, places in ONLY_IN.items():
        if package in {i.split(".")[0] for i in imports(path.read_text())}:
            assert module_name(path) in places, f"{path} imports {package}"


def test_import_without_the_optional_packages():
    """`import ilrec` and its parts work where deepspeed, triton and flash-attn are missing."""
    hidden = "import sys; [sys.modules.__setitem__(n, None) for n in ('deepspeed', 'triton', 'flash_attn')]; "
    parts = "import ilrec, ilrec.ops, ilrec.config.sections, ilrec.merging.merge, ilrec.items.trie, ilrec.samples.task, ilrec.collaborative.sasrec"
    subprocess.run([sys.executable, "-c", hidden + parts], cwd=ROOT, check=True)


def test_no_module_shadows_a_library():
    """`deepspeed ilrec/train.py` puts ilrec/ first on sys.path: a file there must not be named like
    a package."""
    taken = {
        "kernels",
        "datasets",
        "evaluate",
        "tokenizers",
        "types",
        "accelerate",
        "logging",
        "resource",
    } | sys.stdlib_module_names
    assert not {path.stem for path in PACKAGE.iterdir()} & taken


def test_a_merge_imports_no_transformers():
    """Its memory is for tensors: transformers and peft take some 200 MB."""
    check = "import sys, ilrec.merging.merge, ilrec.merging.inspection; assert not {'peft', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)

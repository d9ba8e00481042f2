"""Imports point down only (docs/design.md). Read from the source: who imports whom."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ilrec"
# What each folder may import beside itself and ilrec.errors. From the bottom up.
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
    "ranking": {"processes", "files", "items", "ops", "interactions", "samples", "model"},
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
        "ranking",
        "collaborative",
    },
    "commands": {"files", "config", "ranking", "training"},
    "merging": {"files", "weights", "model", "training"},
    "serving": {
        "processes",
        "files",
        "config",
        "items",
        "weights",
        "interactions",
        "samples",
        "model",
        "ranking",
        "training",
    },
    "reporting": {"files", "config", "ranking", "training"},
}
# Experiments run the whole house, so they may import everything that is no entry.
ALLOWED["experiments"] = {*ALLOWED}
ENTRIES = {"", "train", "rank", "recommend", "commands", "cli", "__main__"}
PROGRAMS = {"ilrec.train", "ilrec.rank", "ilrec.recommend"}
# {package: the modules that may import it}
ONLY_IN = {
    "deepspeed": {"training.zero3", "training.ds_config"},
    "hashlib": {"files.digests"},
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


def test_every_form_of_import_is_found():
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
    assert mine in ALLOWED, f"{mine}: new; write in docs/design.md and here what it may import"
    for imported in imports(path.read_text()):
        if imported.startswith("ilrec."):
            theirs = folder(imported.removeprefix("ilrec."))
            assert theirs in ALLOWED[mine] | {"errors", mine}, f"{path} imports {imported}"


def test_nothing_imports_the_entries():
    """ilrec/train.py, ilrec/rank.py and the commands are programs. What others need of them lies in
    a package. The scripts in tools/ start commands, and import nothing else of them."""
    for path in FILES:
        for name in imports(path.read_text()):
            assert name not in PROGRAMS, path
            assert not name.startswith("ilrec.commands"), path  # ilrec/cli.py knows them by name
    for path in (ROOT / "tools").rglob("*.py"):
        assert not imports(path.read_text()) & PROGRAMS, path


def test_no_import_goes_round():
    """Also within a folder, about which the table above says nothing."""
    graph = {}
    for path in FILES:
        name = f"ilrec.{module_name(path)}".rstrip(".")
        graph[name] = imports(path.read_text()) & MODULES
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_some_packages_have_their_places(path):
    imported = {name.split(".")[0] for name in imports(path.read_text())}
    for package in imported & ONLY_IN.keys():
        assert module_name(path) in ONLY_IN[package], f"{path} imports {package}"


def test_import_without_the_optional_packages():
    """`import ilrec` and its parts work if deepspeed, triton and flash-attn are missing."""
    # None in sys.modules makes an import fail.
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('deepspeed', 'triton', 'flash_attn'))\n"
        "import ilrec, ilrec.ops, ilrec.config.sections, ilrec.merging.merge, ilrec.items.trie\n"
        "import ilrec.samples.task, ilrec.collaborative.sasrec, ilrec.training.setup\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_no_module_shadows_a_library():
    """`deepspeed ilrec/train.py` puts ilrec/ first on sys.path. So no file there may have the name
    of a package that anybody imports."""
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
    """transformers and peft cost 200 MB of memory, which a merge needs for tensors."""
    check = (
        "import sys, ilrec.merging.merge, ilrec.merging.inspection\n"
        "assert not {'peft', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)

"""Imports point down only (docs/design.md): who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ilrec"
BELOW = {"errors", "outputs"}
ALLOWED = {
    "errors": set(), "outputs": set(), "plain_json": set(), "plain_yaml": set(), "command_line": set(), "settings": {"plain_yaml"},
    "config": {"settings", "plain_json", "plain_yaml", "command_line"},
    "ops": set(), "items": {"config"}, "ranking": set(), "ranking.metrics": set(),
    "ranking.results": set(), "ranking.candidates": {"ranking.metrics"},
    "ranking.beam_search": {"items"}, "ranking.score_head": {"ops", "vocabulary_head"},
    "data": {"config", "settings", "items"}, "collaborative": {"config", "items", "ranking.candidates"}, "model_source": {"config"},
    "weights": set(), "families": set(), "merging.tensor_files": {"config"},
    "portable": {"config"}, "base_model": {"config", "model_source", "portable", "settings", "weights", "merging.tensor_files"},
    "vocabulary_head": set(),
    "merging": {"config", "model_source", "portable", "base_model", "families", "training", "merging.tensor_files"},
    "model": {"config", "ops", "vocabulary_head", "weights", "families"},
    "identity": {"config", "base_model", "model_source", "data", "collaborative", "training", "merging"},
    "entry": set(), "training": {"config", "ops", "items", "data", "collaborative", "model", "portable"},
}
ONLY_IN = {"deepspeed": {"training.zero3"}, "triton": {"ops.triton_math", "ops.triton_rows", "ops.triton_tiles"}}
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
    """`from ilrec import train` imports a module of the package, `from ilrec import __version__` does not."""
    inside = f"{module}.{name}"
    return inside if inside in MODULES else module


def owner(name: str) -> str:
    """`ranking.metrics` has rules of its own; elsewhere the first part decides."""
    return name if name in ALLOWED else name.split(".")[0]


def test_every_form_of_import_is_seen():
    lines = ("import ilrec.ops", "from ilrec.data import task", "from ilrec.data.task import load_task",
             "from ilrec import __version__, train")
    assert imports("\n".join(lines)) == {"ilrec.ops", "ilrec.data.task", "ilrec", "ilrec.train"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    name = module_name(path)
    if name in ("train", "rank", ""):
        return
    mine = owner(name)
    assert mine in ALLOWED, f"{name}: a new module; say in docs/design.md and here what it may import"
    for imported in imports(path.read_text()):
        if imported.startswith("ilrec."):
            theirs = owner(imported.removeprefix("ilrec."))
            assert theirs in ALLOWED[mine] | BELOW | {mine}, f"{name} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_heavy_packages_have_one_place(path):
    for package, places in ONLY_IN.items():
        if package in {i.split(".")[0] for i in imports(path.read_text())}:
            assert module_name(path) in places, f"{path} imports {package}"


def test_import_without_the_optional_packages():
    """`import ilrec` and its parts work where deepspeed, triton and flash-attn are missing."""
    hidden = "import sys; [sys.modules.__setitem__(n, None) for n in ('deepspeed', 'triton', 'flash_attn')]; "
    parts = "import ilrec, ilrec.ops, ilrec.config, ilrec.merging.merge, ilrec.items.trie, ilrec.data.task, ilrec.collaborative.sasrec"
    subprocess.run([sys.executable, "-c", hidden + parts], cwd=ROOT, check=True)


def test_no_module_shadows_a_library():
    """`deepspeed ilrec/train.py` puts ilrec/ first on sys.path: a file there must not be named like a package."""
    taken = {"kernels", "datasets", "evaluate", "tokenizers", "types", "accelerate", "logging", "resource"} | sys.stdlib_module_names
    assert not {path.stem for path in PACKAGE.iterdir()} & taken


def test_a_merge_imports_no_transformers():
    """Its memory is for tensors: transformers and peft take some 200 MB."""
    check = "import sys, ilrec.merging.merge, ilrec.merging.inspection; assert not {'peft', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)

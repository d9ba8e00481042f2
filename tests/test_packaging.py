"""setup.py declares every package that the code imports."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# {package: why setup.py does not declare it}
NOT_DECLARED = {"triton": "a CUDA build of torch brings its own"}


def declared() -> set[str]:
    """The packages that setup.py names, extras included, as the installed metadata has them."""
    requirements = importlib.metadata.requires("ilrec") or []
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]
    return {normal(name) for name in names}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PACKAGES_OF = importlib.metadata.packages_distributions()


def third_party(path: Path) -> set[str]:
    """The top-level names that a file imports, without Python's and the project's own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names - OWN - sys.stdlib_module_names


TOOLS = sorted((ROOT / "tools").rglob("*.py"))
SOURCES = [*sorted((ROOT / "ilrec").rglob("*.py")), *TOOLS]
# The benchmarks import each other by name.
OWN = {"ilrec", *(tool.stem for tool in TOOLS)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path):
    """A package that another one brings along today may be missing tomorrow."""
    for name in third_party(path) - NOT_DECLARED.keys():
        found = {normal(package) for package in PACKAGES_OF.get(name, [name])}
        assert found & declared(), f"{path.name} imports {name}, and setup.py does not declare it"

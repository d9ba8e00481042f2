"""What a user installs holds what the code imports."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# What comes with another package that is declared, or is imported only where it happens to be
# installed.
NOT_DECLARED = {"triton": "a CUDA build of torch brings its own"}


def declared() -> set[str]:
    """Names of the packages in setup.py, extras included, as the installed metadata has them."""
    requirements = importlib.metadata.requires("ilrec") or []
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PACKAGES_OF = importlib.metadata.packages_distributions()


def third_party(path: Path) -> set[str]:
    """Top-level names that a file imports and that are neither Python's nor the project's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    own = {"ilrec", *(tool.stem for tool in (ROOT / "tools").glob("*.py"))}
    return names - own - sys.stdlib_module_names


SOURCES = [*sorted((ROOT / "ilrec").rglob("*.py")), *sorted((ROOT / "tools").glob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path):
    """A package that comes along with another one today may not tomorrow."""
    for name in third_party(path) - NOT_DECLARED.keys():
        found = {normal(package) for package in PACKAGES_OF.get(name, [name])}
        assert found & declared(), f"{path.name} imports {name}, and setup.py does not declare it"

"""The steps of tools/quickstart.py: what is reused, and what is run again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from quickstart import Quickstart, flags

from ilrec.errors import InputError

# Adds a letter to its second argument's file: how often it ran can be read there.
APPEND = "import sys; open(sys.argv[2], 'a').write(sys.argv[1])"


class AppendStep:
    """Called with a letter, it runs the command and returns what the product holds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = directory / "input.txt"
        self.product = directory / "out" / "product.txt"
        self.source.write_text("one")
        self.product.parent.mkdir()

    def __call__(self, letter: str = "x") -> str:
        command = [sys.executable, "-c", APPEND, letter, str(self.product)]
        run = Quickstart(self.directory)
        run.step("append", command, inputs=[self.source], products=[self.product])
        return self.product.read_text()


@pytest.fixture
def step(tmp_path: Path) -> AppendStep:
    return AppendStep(tmp_path)


def test_a_step_that_is_done_is_reused(step, capsys):
    assert step() == step() == "x"
    assert capsys.readouterr().out.count("append: done before, reused") == 1


def test_a_step_whose_product_was_removed_is_run_again(step):
    step()
    step.product.unlink()
    assert step() == "x"


def test_other_words_or_inputs_run_again(step):
    step()
    assert step("y") == "xy"
    step.source.write_text("two")
    assert step("y") == "xyy"


def test_a_failure_names_the_step(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(InputError, match="stopped at step broken"):
        Quickstart(tmp_path).step("broken", command, inputs=[], products=[])


def test_a_command_that_writes_nothing_is_a_failure(tmp_path):
    command = [sys.executable, "-c", "pass"]
    with pytest.raises(InputError, match="step empty ended .* but did not write .*none"):
        Quickstart(tmp_path).step("empty", command, inputs=[], products=[tmp_path / "none"])


def test_flags():
    assert flags({"data": Path("d"), "max_steps": 2}) == ["--data", "d", "--max_steps", "2"]

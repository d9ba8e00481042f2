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


@pytest.fixture
def step(tmp_path: Path):
    """step(letter) runs the command and returns what its product holds."""
    source, product = tmp_path / "input.txt", tmp_path / "out" / "product.txt"
    source.write_text("one")

    def call(letter: str = "x") -> str:
        product.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-c", APPEND, letter, str(product)]
        Quickstart(tmp_path).step("append", command, inputs=[source], products=[product])
        return product.read_text()

    call.source, call.product = source, product
    return call


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

"""Grids: what rows take over from each other, their order, and the one message for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from ilrec.errors import InputError
from ilrec.experiments import grid, plan
from ilrec.experiments.grid_file import read_grid

SFT = {"recipe": "ilrec/recipes/sft.yaml", "fields": {"model": "base", "num_train_epochs": 2}}


def grid_file(directory: Path, rows: dict, **head) -> Path:
    path = directory / "grid.yaml"
    path.write_text(yaml.safe_dump({"data": "data", **head, "rows": rows}, sort_keys=False))
    return path


def test_rows_take_over_and_run_after_what_they_start_from(tmp_path):
    joint = {
        "recipe": "ilrec/recipes/joint.yaml",
        "model": "sft",
        "sasrec": "filter",
        "fields": {"beta": 0.2},
        "seeds": [3, 4],
    }
    rows = {
        "joint": joint,
        "short": {"like": "joint", "fields": {"num_train_epochs": 1}, "seeds": [3]},
        "sft": {**SFT, "seeds": [3, 4]},
        "filter": {"baseline": "sasrec", "fields": {"num_epochs": 1}},
    }
    grid = read_grid(grid_file(tmp_path, rows, shared={"lora_rank": 4, "model": "elsewhere"}))
    assert grid.listed == ["joint", "short", "sft", "filter"]
    order = list(grid.rows)
    assert order.index("joint") > max(order.index("sft"), order.index("filter"))
    short = grid.rows["short"]
    assert short.fields == {"beta": 0.2, "num_train_epochs": 1}
    assert short.seeds == (3,) and short.model == "sft"
    settings = grid.settings(grid.rows["joint"])
    # From the recipe, from what is shared, and from the row's fields.
    assert (settings["alpha"], settings["lora_rank"], settings["beta"]) == (0.5, 4, 0.2)
    assert "model" not in settings, "a row that starts from another has that one's model"
    assert (grid.source_seed("sft", 4), grid.source_seed("filter", 4)) == (4, 0)


# Each is the only row of a grid, named a.
ROW_MISTAKES = [
    ({"recipe": SFT["recipe"], "field": {}}, "unknown field 'field'; did you mean 'fields'"),
    ({}, "expected either recipe or baseline"),
    ({"baseline": "random"}, "expected baseline: popularity or item_knn or sasrec"),
    ({**SFT, "model": "b"}, "no row 'b'"),
    ({**SFT, "seeds": [1, 1]}, ".seeds: expected a list of different whole numbers"),
    ({**SFT, "seeds": 1}, ".seeds: expected a list of different whole numbers"),
    ({"baseline": "popularity", "seeds": [0, 1]}, ".seeds: popularity is the same for every seed"),
    ({**SFT, "fields": {"model": "m", "learning_rte": 1}}, ".fields: unknown field 'learning_rte'"),
    ({**SFT, "fields": {"model": "m", "num_readout_layers": 0}}, ".fields: num_readout_layers"),
    ({**SFT, "fields": {"seed": 1}}, ".fields.seed: the grid sets this itself"),
    ({**SFT, "script": "tools/none.py"}, ".script: no such file"),
    ({"baseline": "item_knn", "fields": {"similarity": "bm26"}}, "expected one of cosine, tfidf"),
    ({"like": "b"}, ".like: expected a row above this one"),
    ({"like": ["b"]}, "like: expected a text"),
]
# Keys of a grid whose only row, a, is sound.
HEAD_MISTAKES = [
    ({"split": "train"}, "split: expected valid or test"),
    ({"compare": [["a", "b"]]}, "compare: no row 'b'"),
    ({"compare": [["a"]]}, "compare: expected pairs of two rows"),
    ({"shared": {"betta": 1}}, "shared: unknown field 'betta'"),
    ({"num_beams": "many"}, "num_beams: expected a whole number"),
    ({"num_beams": 0}, "num_beams: expected 1 or more"),
]


def refusal(path: Path) -> str:
    """The message; it begins with the grid's file."""
    with pytest.raises(InputError) as caught:
        read_grid(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("row, message", ROW_MISTAKES, ids=[m[:40] for _, m in ROW_MISTAKES])
def test_a_mistake_in_a_row_is_named_with_its_place(row, message, tmp_path):
    found = refusal(grid_file(tmp_path, {"a": row}))
    assert "rows.a" in found and message in found


@pytest.mark.parametrize("head, message", HEAD_MISTAKES, ids=[m[:40] for _, m in HEAD_MISTAKES])
def test_a_mistake_elsewhere_is_named_with_its_place(head, message, tmp_path):
    assert message in refusal(grid_file(tmp_path, {"a": SFT}, **head))


def test_mistakes_between_rows(tmp_path):
    assert "'a b' is no name for a row" in refusal(grid_file(tmp_path, {"a b": SFT}))
    below = {"a": {"like": "b"}, "b": SFT}
    assert "rows.a.like: expected a row above this one" in refusal(grid_file(tmp_path, below))
    circle = {name: {"recipe": SFT["recipe"], "model": other} for name, other in ("ab", "ba")}
    assert "these wait for each other" in refusal(grid_file(tmp_path, circle))


def test_a_row_given_twice_is_refused(tmp_path):
    path = grid_file(tmp_path, {"a": SFT})
    path.write_text(path.read_text() + "  a: {baseline: popularity}\n")
    with pytest.raises(InputError, match=r"grid.yaml:\d+:\d+: not valid YAML: 'a' is there twice"):
        read_grid(path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/experiments").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_grids_are_sound(path, tmp_path):
    grid = read_grid(path, data=str(tmp_path))
    assert grid.listed and grid.compare


def test_without_a_checkout_the_package_s_files_are_found(tmp_path, monkeypatch):
    """Other paths are then those of the current directory, where commands run, too."""
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert grid.place("mine.yaml") == tmp_path / "mine.yaml"
    assert plan.from_root("mine.yaml") == "mine.yaml"
    recipe, script = "ilrec/recipes/sft.yaml", "ilrec/train.py"
    assert grid.place(recipe) == ROOT / recipe
    assert plan.from_root(script) == str(ROOT / script)

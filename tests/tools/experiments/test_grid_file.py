"""Grids: what rows take over from each other, their order, and the one message for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import yaml
from conftest import ROOT
from grid_file import read_grid

from ilrec.errors import InputError

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
    grid = read_grid(
        grid_file(
            tmp_path,
            {
                "joint": joint,
                "short": {"like": "joint", "fields": {"num_train_epochs": 1}, "seeds": [3]},
                "sft": {**SFT, "seeds": [3, 4]},
                "filter": {"baseline": "sasrec", "fields": {"num_epochs": 1}},
            },
            shared={"lora_rank": 4, "model": "elsewhere"},
        )
    )
    assert grid.listed == ["joint", "short", "sft", "filter"]
    order = list(grid.rows)
    assert order.index("joint") > max(order.index("sft"), order.index("filter"))
    short = grid.rows["short"]
    assert (
        short.fields == {"beta": 0.2, "num_train_epochs": 1}
        and short.seeds == (3,)
        and short.model == "sft"
    )
    settings = grid.settings(grid.rows["joint"])
    assert settings["beta"] == 0.2 and settings["lora_rank"] == 4 and settings["alpha"] == 0.5, (
        "recipe < shared < fields"
    )
    assert "model" not in settings, "a row that starts from another has that one's model"
    assert (grid.source_seed("sft", 4), grid.source_seed("filter", 4)) == (4, 0)


WRONG = [
    (
        {"a": {"recipe": "ilrec/recipes/sft.yaml", "field": {}}},
        {},
        "rows.a: unknown field 'field'; did you mean 'fields'",
    ),
    ({"a": {}}, {}, "rows.a: expected either recipe or baseline"),
    (
        {"a": {"baseline": "random"}},
        {},
        "rows.a: expected baseline: popularity or item_knn or sasrec",
    ),
    ({"a b": SFT}, {}, "'a b' is no name for a row"),
    ({"a": {**SFT, "model": "b"}}, {}, "rows.a: no row 'b'"),
    (
        {"a": {**SFT, "seeds": [1, 1]}},
        {},
        "rows.a.seeds: expected a list of different whole numbers",
    ),
    (
        {"a": {"baseline": "popularity", "seeds": [0, 1]}},
        {},
        "rows.a.seeds: popularity is the same for every seed",
    ),
    (
        {"a": {**SFT, "fields": {"model": "m", "learning_rte": 1}}},
        {},
        "rows.a.fields: unknown field 'learning_rte'",
    ),
    (
        {"a": {**SFT, "fields": {"model": "m", "num_readout_layers": 0}}},
        {},
        "rows.a.fields: num_readout_layers",
    ),
    (
        {"a": {**SFT, "fields": {"seed": 1}}},
        {},
        "rows.a.fields.seed: the grid sets this itself",
    ),
    ({"a": {**SFT, "script": "tools/none.py"}}, {}, "rows.a.script: no such file"),
    (
        {"a": {"baseline": "item_knn", "fields": {"similarity": "bm26"}}},
        {},
        "similarity: expected one of cosine, tfidf, bm25",
    ),
    ({"a": SFT}, {"split": "train"}, "split: expected valid or test"),
    ({"a": SFT}, {"compare": [["a", "b"]]}, "compare: no row 'b'"),
    ({"a": SFT}, {"compare": [["a"]]}, "compare: expected pairs of two rows"),
    ({"a": SFT}, {"shared": {"betta": 1}}, "shared: unknown field 'betta'"),
    ({"a": SFT}, {"num_beams": "many"}, "num_beams: expected a whole number"),
    ({"a": {"like": "b"}, "b": SFT}, {}, "rows.a.like: expected a row above this one"),
    (
        {
            "a": {"recipe": "ilrec/recipes/sft.yaml", "model": "b"},
            "b": {"recipe": "ilrec/recipes/sft.yaml", "model": "a"},
        },
        {},
        "these wait for each other",
    ),
]


@pytest.mark.parametrize("rows, head, message", WRONG, ids=[message[:40] for *_, message in WRONG])
def test_a_mistake_is_one_message_with_file_and_place(rows, head, message, tmp_path):
    path = grid_file(tmp_path, rows, **head)
    with pytest.raises(InputError) as caught:
        read_grid(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


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

"""The recommendation task: what a model that training starts from must agree on."""

from __future__ import annotations

import json
import logging

import pytest

from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.samples.task import load_task


@pytest.fixture
def task(data):
    return load_task(DataConfig(data=str(data)))


def test_a_model_that_learned_the_same_index_is_taken(task, tmp_path, caplog):
    task.write_item_index(tmp_path / "index.json")
    task.check_learned_index(tmp_path / "index.json")
    task.check_learned_index(tmp_path / "none.json")
    assert not caplog.records


def test_other_tokens_for_the_same_items_are_refused(task, tmp_path):
    """Two items have changed places: every token is known, and means something else."""
    path = tmp_path / "index.json"
    task.write_item_index(path)
    index = json.loads(path.read_text())
    index["3"], index["5"] = index["5"], index["3"]
    path.write_text(json.dumps(index))
    message = (
        r"index\.json: item '3' is .* there and .* in .* \(2 of 24 items differ\): "
        r".*--semantic_ids"
    )
    with pytest.raises(InputError, match=message):
        task.check_learned_index(path)


def test_another_catalogue_is_warned_of(task, tmp_path, caplog):
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"3": ["<a_9>"], "beyond": ["<a_8>"]}))
    with caplog.at_level(logging.WARNING):
        task.check_learned_index(path)
    assert "1 of 1 items differ): taken for another catalogue" in caplog.text


@pytest.mark.parametrize("content", ["[]", "3"])
def test_what_is_no_index_is_named(task, tmp_path, content):
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"index\.json: expected \{item: "):
        task.check_learned_index(path)

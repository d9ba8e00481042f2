"""What a `model:` names: adapters and their base; what is refused."""

import json

import pytest

from ilrec.errors import InputError
from ilrec.model.source import find_base, find_model, local_directory


def test_an_adapter_brings_its_base(base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base)})
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    source = find_model(str(tmp_path))
    assert (source.base, source.adapter) == (str(base), str(tmp_path))
    assert find_model(str(tmp_path), base="elsewhere/model").base == "elsewhere/model"


def test_a_moved_base_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/gone/base"})
    )
    with pytest.raises(
        InputError, match="base_model_name_or_path: no model directory at '/gone/base'"
    ):
        find_model(str(tmp_path))


def test_other_refusals(tmp_path):
    with pytest.raises(InputError, match="neither config.json nor adapter_config.json"):
        find_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match="expected the base model's directory or hub name, got nothing"
    ):
        find_base(tmp_path / "adapter_config.json")
    with pytest.raises(InputError, match="--base: no model directory at './elsewhere'"):
        find_base(tmp_path / "adapter_config.json", "./elsewhere")
    with pytest.raises(
        InputError,
        match="base model nobody/nothing: it is no directory, and the hub does not give it",
    ):
        local_directory("nobody/nothing")

"""An adapter is used only on the base that its manifest records."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ilrec.errors import InputError
from ilrec.model.source import ModelSource
from ilrec.training.manifest import MANIFEST
from ilrec.training.recorded_base import base_facts, check_base, check_source, require_base


@pytest.fixture
def base(tmp_path):
    directory = tmp_path / "base"
    directory.mkdir()
    save_file({"weight": torch.zeros(4, 4)}, directory / "model.safetensors")
    return directory


@pytest.fixture
def adapter(tmp_path, base):
    """An adapter whose manifest records the base."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    facts = base_facts(ModelSource(base=str(base)))
    (directory / MANIFEST).write_text(json.dumps({"base": facts}))
    return directory


def test_the_recorded_base_is_taken(adapter, base):
    check_base(adapter, base)
    check_source(ModelSource(base=str(base), adapter=str(adapter)))
    require_base(adapter, base_facts(ModelSource(base=str(base))))


def test_another_base_is_refused(adapter, base):
    save_file({"weight": torch.ones(4, 4)}, base / "model.safetensors")
    with pytest.raises(InputError, match="whose weights are others than those in .*--base"):
        check_base(adapter, base)
    with pytest.raises(InputError, match="whose weights are others"):
        check_source(ModelSource(base=str(base), adapter=str(adapter)))
    with pytest.raises(InputError, match="whose weights were others than those in .*base now"):
        require_base(adapter, base_facts(ModelSource(base=str(base))))


def test_what_records_no_base_is_taken(tmp_path, base):
    """A full model; an adapter that peft wrote; a base that is not in safetensors."""
    check_source(ModelSource(base=str(base)))
    check_base(tmp_path, base)
    (base / "model.safetensors").unlink()
    assert base_facts(ModelSource(base=str(base))) == {}

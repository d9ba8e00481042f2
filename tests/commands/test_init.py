"""`ilrec init`: a directory to work in, whose files are those of the project."""

from __future__ import annotations

import os

import pytest
from conftest import ROOT

from ilrec.commands.init import main
from ilrec.config.loading import load_config
from ilrec.errors import InputError

SOURCES = {"recipes": "ilrec/recipes", "ds_configs": "ds_configs", "slurm": "slurm"}


def test_files_are_copied_as_they_are(tmp_path, capsys):
    main([str(tmp_path / "mine")])
    for name, source in SOURCES.items():
        copied = {path.name: path for path in (tmp_path / "mine" / name).iterdir()}
        assert copied.keys() == {path.name for path in (ROOT / source).iterdir()}
        for path in copied.values():
            assert path.read_bytes() == (ROOT / source / path.name).read_bytes()
    assert os.access(tmp_path / "mine/slurm/submit.sh", os.X_OK)
    assert f"Next, in {tmp_path}/mine:" in capsys.readouterr().out
    recipe = tmp_path / "mine/recipes/stage1.yaml"
    assert load_config(recipe, {"model": "m", "data": "d"}).objective.beta == 0.1


def test_other_files_of_a_directory_stay(tmp_path):
    (tmp_path / "clicks.csv").write_text("user,item,time\n")
    main([str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {*SOURCES, "clicks.csv"}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "slurm").mkdir()
    with pytest.raises(InputError, match="slurm: exists already, and nothing is overwritten"):
        main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["slurm"], "nothing half there"

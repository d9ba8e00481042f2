"""Uploading final/: what is sent where, to a stand-in of the hub."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ilrec.config.loading import load_config
from ilrec.config.sections import TrainConfig
from ilrec.errors import InputError
from ilrec.training import hub


def config(directory: Path, **fields) -> TrainConfig:
    return load_config(None, {"model": "m", "data": "d", "output_dir": str(directory), **fields})


class StandIn:
    """Records the calls, or fails as without a network."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.calls: list[dict] = []
        self.fault = fault

    def create_repo(self, name, **options):
        self.calls.append({"name": name, **options})
        return SimpleNamespace(repo_id=name if "/" in name else f"me/{name}")

    def upload_folder(self, **options):
        if self.fault:
            raise self.fault
        self.calls.append(options)


def test_without_a_token_it_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert not hub.is_published(config(tmp_path))
    with pytest.raises(InputError, match="push_to_hub: this machine has no token"):
        hub.is_published(config(tmp_path, push_to_hub="true"))
    monkeypatch.setattr(hub, "get_token", lambda: "t")
    assert hub.is_published(config(tmp_path, push_to_hub="true"))


@pytest.mark.parametrize(
    ("fields", "name", "repository", "private", "revision"),
    [
        ({}, "run", "me/run", None, None),
        (
            {"hub_model_id": "us/films", "hub_private_repo": "true", "hub_revision": "v2"},
            "us/films",
            "us/films",
            True,
            "v2",
        ),
    ],
)
def test_final_is_uploaded(fields, name, repository, private, revision, tmp_path, monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
    hub.publish_final(config(tmp_path / "run", push_to_hub="true", **fields))
    made, sent = stand_in.calls
    assert made == {"name": name, "private": private, "exist_ok": True}
    final = tmp_path / "run" / "final"
    assert sent == {"repo_id": repository, "folder_path": final, "revision": revision}


def test_a_failed_upload_names_the_command_that_makes_up_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", lambda: StandIn(ConnectionError("no route")))
    message = r"is complete, but was not uploaded \(no route\); afterwards: hf upload run .*final"
    with pytest.raises(InputError, match=message):
        hub.publish_final(config(tmp_path / "run", push_to_hub="true"))


def test_its_fields_alone_are_refused(tmp_path):
    with pytest.raises(InputError, match="hub_model_id: expected push_to_hub: true with it"):
        config(tmp_path, hub_model_id="us/films")

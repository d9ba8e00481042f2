"""rank.py: what it reads from a model's directory, what it reports, and what it leaves if it cannot
write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_words import flags
from conftest import NUM_ITEMS, ROOT, launch
from safetensors.torch import load_file, save_file

from ilrec.config.sections import DTYPES
from ilrec.errors import InputError
from ilrec.items.embeddings import write_embeddings
from ilrec.rank import main
from ilrec.ranking.case_lists import progress
from ilrec.ranking.results import read_ranking, require_comparable
from ilrec.serving.trained import data_config
from ilrec.train import train

SFT = ROOT / "ilrec/recipes/sft.yaml"


@pytest.fixture(scope="module")
def trained(data, base, tmp_path_factory) -> Path:
    """The final/ of one step of sft: an adapter."""
    run = tmp_path_factory.mktemp("rank") / "run"
    train(flags(config=SFT, data=data, model=base, max_steps=1, output_dir=run))
    return run / "final"


def rank(model: Path, *words: str) -> None:
    main(["--model", str(model), "--num_beams", "5", *words])


@pytest.mark.parametrize(
    "failing",
    [
        "ilrec.files.outputs.os.replace",
        "ilrec.ranking.results.np.savez_compressed",
        "pathlib.Path.write_text",
    ],
)
def test_what_cannot_be_written_is_still_printed(trained, tmp_path, monkeypatch, capsys, failing):
    """The table is printed, one message follows, and both older files stay."""
    output = tmp_path / "there" / "ranking.json"
    output.parent.mkdir()
    output.write_text("older")
    output.with_suffix(".npz").write_text("older ranks")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, full_disk)
    message = r"ranking\.\w+: could not be written: No space left on device"
    with pytest.raises(InputError, match=message):
        rank(trained, "--output", str(output))
    monkeypatch.undo()
    assert "Hit@5" in capsys.readouterr().out
    left = {path.name: path.read_text() for path in output.parent.iterdir()}
    assert left == {"ranking.json": "older", "ranking.npz": "older ranks"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_precision_is_chosen_and_recorded(trained, tmp_path, dtype):
    rank(trained, "--output", str(tmp_path / "r.json"), "--dtype", dtype)
    protocol = json.loads((tmp_path / "r.json").read_text())["protocol"]
    weights = {"auto": "bfloat16" if torch.cuda.is_available() else "float32"}.get(dtype, dtype)
    assert protocol["dtype"] == weights
    assert protocol["score_dtype"] == "float32"
    ranks = read_ranking(tmp_path / "r.json").target_ranks
    assert len(ranks.ranks) == protocol["num_users"] == 30


def test_groups_are_printed_and_written(trained, tmp_path, capsys):
    """Users have histories of 2 to 6 training items. Embeddings replace the semantic IDs in which
    the diversity is measured."""
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4))
    names = [str(item) for item in range(NUM_ITEMS)]
    write_embeddings(tmp_path / "e.npy", vectors, names)
    diversity = {}
    for words in ([], ["--embeddings", str(tmp_path / "e.npy")]):
        rank(trained, "--output", str(tmp_path / "r.json"), "--by", "history,popularity", *words)
        ranking = read_ranking(tmp_path / "r.json")
        diversity[ranking.protocol["diversity_over"]] = ranking.measured.metrics["diversity@5"]
    assert (
        0 < diversity["semantic IDs"] < 1 and diversity["semantic IDs"] != diversity["embeddings"]
    )

    groups = ranking.measured.groups
    assert sum(group["num_cases"] for group in groups["history"].values()) == 30
    assert sum(group["num_targets"] for group in groups["popularity"].values()) == 30
    printed = capsys.readouterr().out
    for words in ("by history", "cases)", "by popularity", "head (", "coverage", "MRR"):
        assert words in printed
    with pytest.raises(InputError, match="--by: expected history or popularity, got 'age'"):
        rank(trained, "--by", "history,age")


@pytest.mark.parametrize(
    ("num_done", "num_mine", "num_users", "expected"),
    [
        (472, 472, 943, "943 of 943 users, 94.3 users/s, 0 s left"),  # The other rank has 471.
        (236, 472, 943, "471 of 943 users, 47.1 users/s, 10 s left"),
        (30, 30, 30, "30 of 30 users, 3.0 users/s, 0 s left"),
    ],
)
def test_progress_never_exceeds_the_users(num_done, num_mine, num_users, expected):
    assert progress(num_done, num_mine, num_users, 10.0) == expected


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    [
        (
            {"max_length": "long"},
            "d",
            r"ilrec\.yaml: max_length: expected a whole number, 1 or more, got 'long'",
        ),
        (
            {"item_format": "picture"},
            "d",
            r"ilrec\.yaml: item_format: expected one of semantic_id, title, got 'picture'",
        ),
        ({}, None, r"ilrec\.yaml: data: not set; give --data DIR"),
        (["a list"], "d", r"ilrec\.yaml: expected `field: value` lines, got \['a list'\]"),
    ],
)
def test_recorded_settings_are_checked(tmp_path, fields, data, message):
    (tmp_path / "ilrec.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(InputError, match=message):
        data_config(str(tmp_path), data)


def test_recorded_settings_are_taken(tmp_path):
    recorded = {"data": "there", "max_length": 77, "beta": 0.1}
    (tmp_path / "ilrec.yaml").write_text(yaml.safe_dump(recorded))
    config = data_config(str(tmp_path), None)
    assert (config.data, config.max_length) == ("there", 77)
    (tmp_path / "item_index.json").write_text("{}")
    config = data_config(str(tmp_path), "here")
    assert (config.data, config.semantic_ids) == ("here", str(tmp_path / "item_index.json"))


def test_a_moved_base_is_named_to_training_too_and_recorded(data, base, trained, tmp_path):
    """Every program takes --base and names it in its message. What is trained further records the
    new place."""
    moved, adapter = tmp_path / "moved", tmp_path / "adapter"
    shutil.copytree(base, moved)
    shutil.copytree(trained, adapter)
    config_file = adapter / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))

    words = flags(
        config=ROOT / "ilrec/recipes/stage1.yaml",
        data=data,
        model=adapter,
        max_steps=1,
        num_readout_layers=2,
        output_dir=tmp_path / "run",
    )
    message = "no model directory at '/gone/base'; .* name it with --base"
    with pytest.raises(InputError, match=message):
        train(words)
    with pytest.raises(InputError, match=message):
        rank(adapter)

    train([*words, "--base", str(moved)])
    rank(adapter, "--base", str(moved))
    rank(tmp_path / "run" / "final")
    written = json.loads((tmp_path / "run/final/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(moved)


def test_another_base_is_refused_by_training_and_ranking(data, base, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    weights = {name: tensor + 1 for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})

    message = "was trained on .*, whose weights are others than those in .*other; name the right"
    with pytest.raises(InputError, match=message):
        rank(trained, "--base", str(other))
    words = flags(config=SFT, data=data, base=other, output_dir=tmp_path / "run")
    with pytest.raises(InputError, match="whose weights are others"):
        train([*words, "--model", str(trained)])
    message = "is for an adapter, and .* is a full model; leave --base out"
    with pytest.raises(InputError, match=message):
        train([*words, "--model", str(base)])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_saved_lists_measure_the_same(trained, data, tmp_path, suffix):
    """Lists that a ranking saved, scored from their file: the same metrics and ranks, and a
    protocol that can be compared."""
    lists, model, again = (tmp_path / name for name in (f"tiny{suffix}", "m.json", "again.json"))
    rank(trained, "--output", str(model), "--save_lists", str(lists))
    main(flags(lists=lists, data=data, output=again))
    one, other = read_ranking(model), read_ranking(again)
    require_comparable([one, other])
    assert np.array_equal(one.target_ranks.ranks, other.target_ranks.ranks)
    for name, value in other.measured.metrics.items():
        assert value == one.measured.metrics[name], name
    assert other.protocol["method"] == "tiny" and other.protocol["lists"] == str(lists)


def test_lists_from_anywhere(data, tmp_path):
    """Plain ids, best first. User 0 had 0, 1, 2 and then 3: here at place 2 once item 1 of the
    history is left out. All other lists miss."""
    users = json.loads((data / "tiny.inter.json").read_text())
    assert users["0"] == [0, 1, 2, 3]
    lists = {user: [str((items[-1] + 11) % 24)] for user, items in users.items()}
    lists["0"] = ["1", "23", "3", "22", "21"]
    path = tmp_path / "mine.jsonl"

    def write(lists: dict) -> None:
        records = [{"user": user, "items": items} for user, items in lists.items()]
        path.write_text("\n".join(map(json.dumps, records)))

    write(lists)
    words = flags(lists=path, data=data, output=tmp_path / "r.json")
    main(words)
    metrics = read_ranking(tmp_path / "r.json").measured.metrics
    assert metrics["hit@1"] == 0
    assert metrics["hit@5"] == pytest.approx(1 / 30)
    assert metrics["mrr@5"] == pytest.approx(1 / 2 / 30)

    for change, message in (
        ({"0": ["3", "x"]}, r"mine\.jsonl:1: item 'x' is not in the catalogue of 24 items"),
        ({"0": ["3", "3"]}, r"mine\.jsonl:1: an item is there twice"),
        ({"0": "3"}, r"mine\.jsonl:1: items: expected a list, got '3'"),
        ({"0": [{"id": 1, "score": "x"}]}, r"mine\.jsonl:1: score: expected a number, got 'x'"),
        (dict.fromkeys(users, []), "all lists are empty"),
        ({"0": [{"id": 1, "score": 1}, {"id": 2, "score": 2}]}, "expected finite scores, best"),
    ):
        write(lists | change)
        with pytest.raises(InputError, match=message):
            main(words)
    del lists["7"]
    write(lists)
    with pytest.raises(InputError, match="no list for user '7' .1 of 30 users lack one"):
        main(words)
    with pytest.raises(InputError, match="--lists: give --output"):
        main(flags(lists=path, data=data))
    with pytest.raises(InputError, match="--model: expected the directory of a model, or --lists"):
        main([])


@pytest.mark.launch
def test_two_ranks_end_together_if_the_output_cannot_be_written(trained, tmp_path):
    result = launch("torchrun", "ilrec/rank.py", "--model", str(trained), "--output", str(tmp_path))
    assert result.returncode != 0
    assert not result.stdout.strip()
    assert result.stderr.count("error: ") == 1
    assert f"error: {tmp_path}: cannot be written: it is a directory" in result.stderr

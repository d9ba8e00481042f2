"""Sources that the library `datasets` reads give the data that a CSV file of the same rows gives;
and what cannot be read is refused with one message. All of them are local."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest

from ilrec.commands.prepare import main
from ilrec.errors import InputError
from ilrec.interactions.reading import read_interactions

COLUMNS = ["--user_column", "user", "--item_column", "item", "--time_column", "time"]
ROWS = {
    "user": [f"u{user}" for user in range(12) for _ in range(8)],
    "item": [(user + place) % 10 for user in range(12) for place in range(8)],
    # Whole numbers that a float would not hold.
    "time": [2**60 - 7 * place for user in range(12) for place in range(8)],
    "rating": [float(place) for user in range(12) for place in range(8)],
}


def prepared(output: Path, *words: str):
    main([*COLUMNS, "--k_core", "2", "--output", str(output), *words])
    return read_interactions(str(output), 0)


@pytest.fixture
def expected(tmp_path) -> str:
    """The fingerprint of the data, by way of a CSV file."""
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(ROWS)
        writer.writerows(zip(*ROWS.values(), strict=True))
    return prepared(tmp_path / "a", "--interactions", str(tmp_path / "rows.csv")).fingerprint


def write_source(kind: str, directory: Path) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    directory.mkdir()
    if kind == "saved":
        rows.save_to_disk(directory)
    elif kind == "saved splits":
        other = datasets.Dataset.from_dict({name: values[:1] for name, values in ROWS.items()})
        datasets.DatasetDict({"test": other, "train": rows}).save_to_disk(directory)
    elif kind == "json":
        rows.to_json(directory / "train.jsonl")
    else:
        # Two files, read one after the other.
        for number in range(2):
            rows.shard(2, number, contiguous=True).to_parquet(directory / f"train-{number}.parquet")


@pytest.mark.parametrize("kind", ["parquet", "json", "saved", "saved splits"])
def test_all_kinds_give_the_same_data(kind, expected, tmp_path):
    write_source(kind, tmp_path / "source")
    data = prepared(tmp_path / "out", "--dataset", str(tmp_path / "source"))
    assert data.fingerprint == expected
    assert (data.num_users, data.num_items) == (12, 10)


def test_ratings_filter_as_those_of_files(tmp_path):
    write_source("saved", tmp_path / "source")
    words = ["--dataset", str(tmp_path / "source"), "--rating_column", "rating", "--min_rating"]
    data = prepared(tmp_path / "out", *words, "3")
    assert data.sequences.lengths.tolist() == [5] * 12
    about = json.loads((tmp_path / "out/dataset.json").read_text())["about"]
    assert about["statistics"]["removed by below min_rating"] == 36


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("saved splits", ["--dataset_split", "valid"], "unknown split 'valid'; it has test, train"),
        ("parquet", ["--dataset_split", "valid"], "--dataset .*cannot read it.*valid"),
        (
            "parquet",
            ["--user_column", "who"],
            "source:1: expected a column 'who', found user, item",
        ),
        ("saved", ["--user_column", "who"], "source:1: expected a column 'who', found user, item"),
    ],
)
def test_what_the_source_lacks_is_named(kind, words, message, tmp_path):
    write_source(kind, tmp_path / "source")
    with pytest.raises(InputError, match=message):
        prepared(tmp_path / "out", "--dataset", str(tmp_path / "source"), *words)
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_and_a_missing_source_are_refused(tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/train.parquet").write_bytes(b"PAR1 is not enough")
    for source in ("damaged", "none/at-all"):
        with pytest.raises(InputError, match=f"{source}: the library datasets cannot read it"):
            prepared(tmp_path / "out", "--dataset", str(tmp_path / source))
    with pytest.raises(InputError, match="no-such-user/no-such-data: the library datasets cannot"):
        prepared(tmp_path / "out", "--dataset", "no-such-user/no-such-data")


def test_one_source_at_a_time(tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepared(tmp_path / "out", "--dataset", "a", "--interactions", "b.csv")
    assert "not allowed with argument --dataset" in capsys.readouterr().err

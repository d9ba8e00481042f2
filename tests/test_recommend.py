"""recommend.py: a record for each user whatever the processes, a job that goes on where it died,
and one message for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_words import flags
from conftest import NUM_ITEMS, NUM_USERS, launch

from ilrec import Recommender
from ilrec.errors import InputError
from ilrec.recommend import main
from ilrec.serving import job


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """The 30 users are four shards."""
    monkeypatch.setattr(job, "LEAST_USERS", 8)


@pytest.fixture
def many_histories(tmp_path) -> Path:
    """150 users, which are three shards."""
    path = tmp_path / "many.jsonl"
    records = []
    for user in range(150):
        items = [(user * 7 + place) % NUM_ITEMS for place in range(1 + user % 5)]
        records.append({"user": f"u{user}", "items": items})
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_every_user_of_the_data_gets_a_list(served, data, tmp_path, small_shards):
    """The whole history of each, in the order of the data, as JSON lines and as Parquet: what the
    Python API answers."""
    for name in ("lists.jsonl", "lists.parquet"):
        main(flags(model=served, output=tmp_path / name, top_k=3))
    records = read_lines(tmp_path / "lists.jsonl")
    assert pq.read_table(tmp_path / "lists.parquet").to_pylist() == records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.jsonl", "lists.parquet"]

    users = json.loads((data / "tiny.inter.json").read_text())
    assert [record["user"] for record in records] == [str(user) for user in range(NUM_USERS)]
    histories = [[str(item) for item in users[record["user"]]] for record in records]
    lists = Recommender.load(str(served)).recommend(histories, top_k=3)
    for record, ranked, history in zip(records, lists, histories, strict=True):
        assert [item["id"] for item in record["items"]] == [found.item_id for found in ranked]
        assert not {item["id"] for item in record["items"]} & {*history}
        for item, found in zip(record["items"], ranked, strict=True):
            assert item["rank"] == found.rank and item["title"] == found.title
            assert item["score"] == pytest.approx(found.score, abs=1e-4)


def test_users_and_items_are_chosen_by_files(served, tmp_path):
    (tmp_path / "users.txt").write_text("7\n3\n")
    (tmp_path / "stock.txt").write_text("1\n2\n3\n20\n")
    (tmp_path / "banned.txt").write_text("20\n")
    output = tmp_path / "lists.jsonl"
    words = flags(model=served, output=output, users=tmp_path / "users.txt")
    words += ["--only", str(tmp_path / "stock.txt")]
    main([*words, "--exclude", "none", str(tmp_path / "banned.txt")])
    found = {record["user"]: record["items"] for record in read_lines(output)}
    assert list(found) == ["7", "3"]
    for items in found.values():
        assert {item["id"] for item in items} == {"1", "2", "3"}
        assert sum(item["probability"] for item in items) == pytest.approx(1)


def test_a_job_that_died_goes_on(served, tmp_path, monkeypatch, small_shards):
    """It dies in its third shard. The second try makes two shards, and the output is that of a job
    that never died."""
    output, whole = tmp_path / "lists.jsonl", tmp_path / "whole.jsonl"
    words = flags(model=served, output=output)
    written = []

    def dying(path: Path, *rest) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)

    write = job.write_lists
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_lists", dying)
        with pytest.raises(KeyboardInterrupt):
            main(words)
    assert not output.exists()
    assert written == ["00000.jsonl", "00001.jsonl"]
    parts = tmp_path / "lists.jsonl.parts"
    before = {name: (parts / name).stat().st_mtime_ns for name in written}

    # Another question is refused, and nothing is lost.
    message = r"lists\.jsonl\.parts: holds shards of a job with another top_k \(10, now 5\)"
    with pytest.raises(InputError, match=message):
        main([*words, "--top_k", "5"])
    with pytest.raises(InputError, match="with another exclude"):
        main([*words, "--exclude", "none"])
    other = tmp_path / "other"
    shutil.copytree(served, other)
    with pytest.raises(InputError, match="with another weights"):
        changed = (other / "adapter_model.safetensors").read_bytes()
        # A bit of the last tensor.
        flipped = bytes([changed[-1] ^ 1])
        (other / "adapter_model.safetensors").write_bytes(changed[:-1] + flipped)
        main(flags(model=other, output=output))
    assert {name: (parts / name).stat().st_mtime_ns for name in written} == before

    made = []
    monkeypatch.setattr(
        job, "write_lists", lambda path, *rest: (made.append(path.name), write(path, *rest))
    )
    main([*words, "--batch_size", "3"])
    assert made == ["00002.jsonl", "00003.jsonl"]
    assert not parts.exists()
    main(flags(model=served, output=whole))
    assert [_ids(record) for record in read_lines(output)] == [
        _ids(record) for record in read_lines(whole)
    ]


def _ids(record: dict) -> tuple[str, list[str]]:
    return record["user"], [item["id"] for item in record["items"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--users", "u", "--split", "test"], "--users, --histories, --split: expected one of"),
        (["--exclude", "history", "none"], "--exclude: expected one of auto, history and none"),
        (["--exclude", "MISSING"], "MISSING: cannot be read: .*; expected one id on each line"),
        (["--only", "MISSING"], "MISSING: cannot be read"),
        (["--users", "MISSING"], "MISSING: "),
        (["--histories", "MISSING.csv"], r"MISSING.csv: "),
        (["--histories", "NEW"], r"new\.csv:2: item 'x' is not in the catalogue .* unknown: skip"),
        (["--only", "NEW"], r"new\.csv: item 'user,items' is not in the catalogue"),
        (["--top_k", "0"], "--top_k: expected a whole number, 1 or more, got '0'"),
        (["--num_beams", "3"], r"num_beams: expected 10 or more \(top_k\), got 3"),
        (["--output", "lists.csv"], r"lists\.csv: expected a name that ends in \.jsonl or"),
        (["--model", "/nowhere"], "no such directory: /nowhere"),
    ],
)
def test_what_is_wrong_is_named_before_a_model_is_read(
    served, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    Path("new.csv").write_text("user,items\nana,x\n")
    monkeypatch.setattr("ilrec.recommend.open_trained", lambda *_: pytest.fail("a model was read"))
    words = ["new.csv" if word == "NEW" else word for word in words]
    with pytest.raises(InputError, match=message):
        main([*flags(model=served, output="lists.jsonl"), *words])
    assert not list(tmp_path.glob("*.jsonl"))


def test_users_are_unknown_without_the_data(served, tmp_path):
    moved = tmp_path / "final"
    shutil.copytree(served, moved)
    lines = (moved / "ilrec.yaml").read_text().splitlines()
    lines = ['data: "/gone/data"' if line.startswith("data:") else line for line in lines]
    (moved / "ilrec.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="/gone/data is not there, so that no users are known"):
        main(flags(model=moved, output=tmp_path / "lists.jsonl"))
    (tmp_path / "h.jsonl").write_text('{"user": "ana", "items": ["1"]}')
    main(flags(model=moved, output=tmp_path / "lists.jsonl", histories=tmp_path / "h.jsonl"))
    assert [record["user"] for record in read_lines(tmp_path / "lists.jsonl")] == ["ana"]


@pytest.mark.launch
def test_two_ranks_write_what_one_process_does(served, many_histories, tmp_path):
    """150 users are three shards, of which one rank makes two. The first job of both ranks ends at
    an unknown item, with one message."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    main(flags(model=served, output=one, histories=many_histories))
    words = flags(model=served, output=two, histories=many_histories)
    result = launch("torchrun", "ilrec/recommend.py", *words)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert result.stdout.count("two.jsonl: 150 users") == 1
    assert two.read_text() == one.read_text()
    assert not Path(f"{two}.parts").exists()

    with open(many_histories, "a") as file:
        file.write('\n{"user": "new", "items": ["x"]}')
    result = launch("torchrun", "ilrec/recommend.py", *words)
    assert result.returncode != 0
    # Rank 1 says the same if the launcher is slow to end it.
    errors = {line for line in result.stderr.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1
    assert "many.jsonl:151: item 'x' is not in the catalogue" in errors.pop()

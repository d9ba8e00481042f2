"""`ilrec prepare`: from raw files to a directory that is trained on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from conftest import NUM_ITEMS, ROOT, launch

from ilrec.commands.prepare import main
from ilrec.errors import InputError
from ilrec.interactions import prepared
from ilrec.interactions.reading import read_interactions
from ilrec.interactions.splits import SplitRule
from ilrec.train import train


def write_reviews(directory: Path, bad_line: bool = False) -> tuple[Path, Path]:
    """Reviews and metadata in Amazon 2023's form: 12 users with 8 of 10 items each, and titles."""
    lines = []
    for user in range(12):
        for place in range(8):
            review = {
                "user_id": f"U{user}",
                "parent_asin": f"B{(user + place) % 10}",
                "timestamp": 1000 * user + place,
                "rating": 5.0,
                "text": "x" * 50,
            }
            lines.append(json.dumps(review))
    if bad_line:
        lines.append("{broken")
    titles = [{"parent_asin": f"B{i}", "title": f"Item &amp; {i}"} for i in range(10)]
    reviews, meta = directory / "reviews.jsonl", directory / "meta.jsonl"
    reviews.write_text("\n".join(lines) + "\n")
    meta.write_text("".join(json.dumps(title) + "\n" for title in titles))
    return reviews, meta


def words(directory: Path, *more: str, bad_line: bool = False) -> list[str]:
    """A command line for new reviews in `directory`. Flags in `more` replace its own."""
    reviews, meta = write_reviews(directory, bad_line)
    own = {
        "--preset": "amazon_2023",
        "--interactions": str(reviews),
        "--items": str(meta),
        "--output": str(directory / "out"),
    }
    line = []
    for flag, value in own.items():
        if flag not in more:
            line += [flag, value]
    return [*line, *more]


@pytest.mark.launch
def test_reviews_are_prepared_and_trained_on(base, tmp_path):
    result = launch("python", "tools/prepare_data.py", *words(tmp_path))
    assert result.returncode == 0, result.stderr
    # The table begins with the numbers of users, items and interactions.
    assert [line.split()[-1] for line in result.stdout.splitlines()[:3]] == ["12", "10", "96"]
    dataset = read_interactions(tmp_path / "out", 5)
    assert list(dataset.titles) == [f"Item & {i}" for i in range(10)]
    assert dataset.sequences[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    options = {
        "config": ROOT / "ilrec/recipes/sft.yaml",
        "data": tmp_path / "out",
        "item_format": "title",
        "model": base,
        "max_steps": 1,
        "output_dir": tmp_path / "run",
    }
    train([f"--{name}={value}" for name, value in options.items()])
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert recorded == manifest["fingerprint"]


def test_a_directory_is_taken_as_it_is_with_its_semantic_ids(data, tmp_path):
    main(["--interactions", str(data), "--output", str(tmp_path / "out"), "--name", "mine"])
    ours, theirs = read_interactions(tmp_path / "out", 5), read_interactions(data, 5)
    assert ours.num_items == NUM_ITEMS
    assert list(ours.item_ids) == theirs.item_ids
    assert list(ours.user_ids) == theirs.user_ids
    assert [row.tolist() for row in ours.sequences] == [row.tolist() for row in theirs.sequences]
    assert ours.name == "mine"
    copied = (tmp_path / "out" / "tiny.index.json").read_text()
    assert copied == (data / "tiny.index.json").read_text()


def test_times_in_milliseconds_are_kept_and_split_by(tmp_path):
    """User u has an item on each of the first six days of 2023, and the test begins on the fifth
    day. Item 4 is at midnight, which is from the date on."""
    rows = "".join(
        f"u,i{day},{1_672_531_200_000 + 86_400_000 * day + (day == 3)}\n" for day in range(6)
    )
    (tmp_path / "clicks.csv").write_text("user,item,ts\n" + rows)
    columns = ["--user_column", "user", "--item_column", "item", "--time_column", "ts"]
    files = ["--interactions", str(tmp_path / "clicks.csv"), "--output", str(tmp_path / "out")]
    main([*files, *columns, "--k_core", "0"])
    dataset = read_interactions(tmp_path / "out", 0, SplitRule(1, "2023-01-05"))
    assert dataset.times[0].tolist()[:2] == [1_672_531_200, 1_672_617_600]
    assert dataset.training_sequences()[0].tolist() == [0, 1, 2]
    assert dataset.evaluation("test").targets[0].tolist() == [4, 5]


def test_a_bad_line_leaves_nothing_behind(tmp_path, capsys):
    with pytest.raises(InputError, match=r"reviews\.jsonl:97: not valid JSON"):
        main(words(tmp_path, bad_line=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.jsonl", "reviews.jsonl"]
    main(words(tmp_path, "--max_bad_lines", "1", bad_line=True))
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["malformed", "lines", "skipped", "1"] in table


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("where", "name"), [(prepared, "fingerprint_of"), (shutil, "copyfile")])
def test_an_interruption_leaves_nothing_behind(data, tmp_path, monkeypatch, where, name):
    """It comes while the files are written, or when only the semantic IDs are missing."""
    monkeypatch.setattr(where, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["--interactions", str(data), "--output", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.launch
def test_a_cancelled_job_leaves_nothing_behind(tmp_path):
    """SIGTERM, as SLURM sends it, comes between the .arrow files and dataset.json."""
    program = (
        "import os, runpy, signal, sys; from ilrec.interactions import prepared; "
        "prepared.fingerprint_of = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        "runpy.run_path('tools/prepare_data.py', run_name='__main__')"
    )
    result = launch("python", "-c", program, *words(tmp_path))
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.jsonl", "reviews.jsonl"]


def test_how_the_data_were_made_is_recorded(tmp_path):
    """The filters are those that were used, the defaults among them."""
    main(words(tmp_path, "--max_items", "6", "--min_rating", "4"))
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())["about"]
    assert about["filters"] == {
        "k_core": 5,
        "repeats": "first",
        "min_items": 3,
        "max_items": 6,
        "min_rating": 4.0,
    }
    # 12 users have 8 items, of which 6 are kept.
    assert about["statistics"]["removed by max_items"] == 12 * 2
    assert about["command"][-2:] == ["--min_rating", "4"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "FULL"], r"full: exists already"),
        (
            ["--output", "meta.jsonl/out"],
            r"meta\.jsonl/out: cannot be written: nothing can be made in .*meta\.jsonl "
            r"\(Not a directory\)",
        ),
        (["--interactions", "reviews.jsonl", "no.jsonl"], r"no\.jsonl: no such file or directory"),
        (["--items", "no.jsonl"], r"no\.jsonl: no such file or directory"),
        (
            ["--k_core", "50"],
            r"out: no interaction is left of 96 \(removed by repeats 0, k_core 96",
        ),
    ],
)
def test_refusals(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "mine").mkdir(parents=True)
    places = {"FULL": str(tmp_path / "full")}
    line = words(tmp_path, *(places.get(word, word) for word in more))
    with pytest.raises(InputError, match=message):
        main(line)
    assert not (tmp_path / "out").exists()


def test_columns_must_be_named(data, tmp_path):
    file = tmp_path / "x.json"
    shutil.copyfile(data / "tiny.inter.json", file)
    output = ["--output", str(tmp_path / "out")]
    common = ["--interactions", str(file), "--user_column", "u", "--time_column", "t", *output]
    with pytest.raises(
        InputError,
        match=r"--item_column: not set; .* or give --preset \(amazon_2018, amazon_2023\)",
    ):
        main(common)
    with pytest.raises(InputError, match="--rating_column: not set"):
        main([*common, "--item_column", "i", "--min_rating", "3"])


def test_a_directory_takes_no_options_of_files(data, tmp_path):
    output = ["--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--repeats: not with a directory"):
        main(["--interactions", str(data), "--repeats", "all", *output])
    with pytest.raises(InputError, match="--quoted_tsv: not with a directory"):
        main(["--interactions", str(data), "--quoted_tsv", *output])
    with pytest.raises(InputError, match="--interactions: not with a directory"):
        main(["--interactions", str(data), str(data), *output])


def write_clicks(path: Path) -> list[str]:
    """Four users with the same four items, i0 to i3; a command line that reads them."""
    lines = ["u\ti\tt"]
    for user in range(4):
        for place in range(4):
            lines.append(f"u{user}\ti{(user + place) % 4}\t{place}")
    path.write_text("\n".join(lines) + "\n")
    columns = ["--user_column", "u", "--item_column", "i", "--time_column", "t"]
    return ["--interactions", str(path), *columns, "--k_core", "1"]


def test_a_quote_in_tsv_is_a_character(tmp_path, capsys):
    """Also one that opens a title. The table says how many fields look as if they were quoted."""
    line = write_clicks(tmp_path / "clicks.tsv")
    items = tmp_path / "items.tsv"
    items.write_text('i\ttitle\ni0\t"Open\ni1\tClose"\ni2\t"Both"\ni3\tPlain\n')
    main([*line, "--items", str(items), "--output", str(tmp_path / "out")])
    titles = list(read_interactions(tmp_path / "out", 0).titles)
    assert titles == ['"Open', 'Close"', '"Both"', "Plain"]
    assert "lines with fields within quotes  1, first at items.tsv:4" in capsys.readouterr().out


def test_quoted_tsv_is_read_as_it_was_meant(tmp_path, capsys):
    """With --quoted_tsv a title may have line breaks and doubled quotes in it."""
    line = write_clicks(tmp_path / "clicks.tsv")
    items = tmp_path / "items.tsv"
    items.write_text('i\ttitle\ni0\t"Two\nlines"\ni1\t"a ""b"" c"\ni2\tBoth\ni3\tPlain\n')
    main([*line, "--items", str(items), "--output", str(tmp_path / "out"), "--quoted_tsv"])
    titles = list(read_interactions(tmp_path / "out", 0).titles)
    assert titles == ["Two lines", 'a "b" c', "Both", "Plain"]
    assert "records that span lines" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())["about"]
    assert about["statistics"]["records that span lines"] == "1, first at items.tsv:2"

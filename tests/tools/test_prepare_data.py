"""tools/prepare_data.py: from raw files to a directory that is trained on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from conftest import NUM_ITEMS, ROOT, launch
from prepare_data import main

from ilrec.errors import InputError
from ilrec.interactions import prepared
from ilrec.interactions.reading import read_interactions
from ilrec.train import train


def write_reviews(directory: Path, bad_line: bool = False) -> tuple[Path, Path]:
    """Amazon 2023's form: 12 users with 8 of 10 items each, and titles."""
    rows = [
        {
            "user_id": f"U{u}",
            "parent_asin": f"B{(u + i) % 10}",
            "timestamp": 1000 * u + i,
            "rating": 5.0,
            "text": "x" * 50,
        }
        for u in range(12)
        for i in range(8)
    ]
    lines = [json.dumps(row) for row in rows] + (["{broken"] if bad_line else [])
    reviews, meta = directory / "reviews.jsonl", directory / "meta.jsonl"
    reviews.write_text("\n".join(lines) + "\n")
    meta.write_text(
        "".join(
            json.dumps({"parent_asin": f"B{i}", "title": f"Item &amp; {i}"}) + "\n"
            for i in range(10)
        )
    )
    return reviews, meta


def words(directory: Path, *more: str, bad_line: bool = False) -> list[str]:
    """A command line; flags in `more` stand in place of its own."""
    reviews, meta = write_reviews(directory, bad_line)
    own = {
        "--preset": "amazon_2023",
        "--interactions": str(reviews),
        "--items": str(meta),
        "--output": str(directory / "out"),
    }
    return [
        *(word for flag, value in own.items() if flag not in more for word in (flag, value)),
        *more,
    ]


@pytest.mark.launch
def test_reviews_are_prepared_and_trained_on(base, tmp_path):
    result = launch("python", "tools/prepare_data.py", *words(tmp_path))
    assert result.returncode == 0, result.stderr
    assert [line.split()[-1] for line in result.stdout.splitlines()[:3]] == ["12", "10", "96"]
    dataset = read_interactions(tmp_path / "out", 5)
    assert list(dataset.titles) == [f"Item & {i}" for i in range(10)]
    assert dataset.sequences[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    train(
        [
            "--config",
            str(ROOT / "ilrec/recipes/sft.yaml"),
            "--data",
            str(tmp_path / "out"),
            "--item_format",
            "title",
            "--model",
            str(base),
            "--max_steps",
            "1",
            "--output_dir",
            str(tmp_path / "run"),
        ]
    )
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    assert recorded == json.loads((tmp_path / "out" / "dataset.json").read_text())["fingerprint"]


def test_a_directory_is_taken_as_it_is_with_its_semantic_ids(data, tmp_path):
    main(["--interactions", str(data), "--output", str(tmp_path / "out"), "--name", "mine"])
    ours, theirs = read_interactions(tmp_path / "out", 5), read_interactions(data, 5)
    assert (
        list(ours.item_ids) == theirs.item_ids
        and list(ours.user_ids) == theirs.user_ids
        and ours.num_items == NUM_ITEMS
    )
    assert [row.tolist() for row in ours.sequences] == [row.tolist() for row in theirs.sequences]
    assert ours.name == "mine"
    assert (tmp_path / "out" / "tiny.index.json").read_text() == (
        data / "tiny.index.json"
    ).read_text()


def test_a_bad_line_leaves_nothing_behind(tmp_path, capsys):
    with pytest.raises(InputError, match=r"reviews\.jsonl:97: not valid JSON"):
        main(words(tmp_path, bad_line=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.jsonl", "reviews.jsonl"]
    main(words(tmp_path, "--max_bad_lines", "1", bad_line=True))
    assert ["malformed", "lines", "skipped", "1"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("where", "name"), [(prepared, "fingerprint_of"), (shutil, "copyfile")])
def test_an_interruption_leaves_nothing_behind(data, tmp_path, monkeypatch, where, name):
    """While the files are written, and when all but the semantic IDs are there."""
    monkeypatch.setattr(where, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(["--interactions", str(data), "--output", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.launch
def test_a_cancelled_job_leaves_nothing_behind(tmp_path):
    """SIGTERM, as SLURM sends it, comes between the .arrow files and dataset.json."""
    program = (
        "import os, runpy, signal, sys; from ilrec.data import prepared; "
        "prepared.fingerprint_of = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        "runpy.run_path('tools/prepare_data.py', run_name='__main__')"
    )
    result = launch("python", "-c", program, *words(tmp_path))
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.jsonl", "reviews.jsonl"]


def test_how_the_data_were_made_is_recorded(tmp_path):
    """The filters as they were used, also those that nobody named."""
    main(words(tmp_path, "--max_items", "6", "--min_rating", "4"))
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())["about"]
    assert about["filters"] == {
        "k_core": 5,
        "repeats": "first",
        "min_items": 3,
        "max_items": 6,
        "min_rating": 4.0,
    }
    assert about["statistics"]["removed by max_items"] == 12 * 2 and about["command"][-2:] == [
        "--min_rating",
        "4",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "FULL"], r"full: exists already"),
        (
            ["--output", "meta.jsonl/out"],
            r"meta\.jsonl/out: cannot be written: nothing can be made in .*meta\.jsonl \(Not a directory\)",
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
    with pytest.raises(InputError, match=message):
        main(
            words(tmp_path, *(str(tmp_path / "full") if word == "FULL" else word for word in more))
        )
    assert not (tmp_path / "out").exists()


def test_columns_must_be_named(data, tmp_path):
    shutil.copyfile(data / "tiny.inter.json", tmp_path / "x.json")
    common = ["--output", str(tmp_path / "out")]
    with pytest.raises(
        InputError,
        match=r"--item_column: not set; .* or give --preset \(amazon_2018, amazon_2023\)",
    ):
        main(
            [
                "--interactions",
                str(tmp_path / "x.json"),
                "--user_column",
                "u",
                "--time_column",
                "t",
                *common,
            ]
        )
    with pytest.raises(InputError, match="--rating_column: not set"):
        named = [word for name in ("user", "item", "time") for word in (f"--{name}_column", name)]
        main(["--interactions", str(tmp_path / "x.json"), *named, "--min_rating", "3", *common])
    with pytest.raises(InputError, match="--repeats: not with a directory"):
        main(["--interactions", str(data), "--repeats", "all", *common])


def test_quotes_in_tsv_are_kept_or_read_and_the_report_says_so(tmp_path, capsys):
    """A title that opens a quote stays one line; what a program quoted is read as it meant with
    --quoted_tsv."""
    clicks, items = tmp_path / "clicks.tsv", tmp_path / "items.tsv"
    clicks.write_text(
        "u\ti\tt\n" + "".join(f"u{u}\ti{(u + k) % 4}\t{k}\n" for u in range(4) for k in range(4))
    )
    words = [
        "--interactions",
        str(clicks),
        "--items",
        str(items),
        "--user_column",
        "u",
        "--item_column",
        "i",
        "--time_column",
        "t",
        "--k_core",
        "1",
        "--output",
    ]
    items.write_text('i\ttitle\ni0\t"Open\ni1\tClose"\ni2\t"Both"\ni3\tPlain\n')
    main([*words, str(tmp_path / "plain")])
    assert list(read_interactions(tmp_path / "plain", 0).titles) == [
        '"Open',
        'Close"',
        '"Both"',
        "Plain",
    ]
    assert "lines with fields within quotes  1, first at items.tsv:4" in capsys.readouterr().out
    items.write_text('i\ttitle\ni0\t"Two\nlines"\ni1\t"a ""b"" c"\ni2\tBoth\ni3\tPlain\n')
    main([*words, str(tmp_path / "quoted"), "--quoted_tsv"])
    assert list(read_interactions(tmp_path / "quoted", 0).titles) == [
        "Two lines",
        'a "b" c',
        "Both",
        "Plain",
    ]
    assert "records that span lines" in capsys.readouterr().out
    about = json.loads((tmp_path / "quoted" / "dataset.json").read_text())["about"]
    assert about["statistics"]["records that span lines"] == "1, first at items.tsv:2"

"""tools/report.py: which runs and rankings are in the report, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from made_reports import SFT, STAGE1, write_ranks, write_run
from report import main

from ilrec.errors import InputError


@pytest.fixture
def runs(tmp_path) -> Path:
    """sft and stage1, of which stage1 has been ranked."""
    write_run(tmp_path / "runs" / "sft", SFT)
    stage1 = write_run(tmp_path / "runs" / "stage1", STAGE1, beta=0.1)
    write_ranks(stage1 / "final" / "ranking.json", [1, 20, 3])
    return tmp_path / "runs"


def test_a_run_brings_its_own_ranking(runs, tmp_path, capsys):
    output = tmp_path / "out" / "report.png"
    main([str(runs / "sft"), f"second={runs / 'stage1'}", "--output", str(output)])
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.html", "report.png"]
    head, row, *places = capsys.readouterr().out.splitlines()
    assert row.split()[:3] == ["second", "-", "0.6667"]
    assert places == [f"picture: {output}", f"page: {output.with_suffix('.html')}"]
    assert "second" in output.with_suffix(".html").read_text()


def test_a_named_ranking_replaces_the_runs_own(runs, tmp_path, capsys):
    merged = write_ranks(tmp_path / "merged.json", [1, 2, 3])
    words = [str(runs / "stage1"), "--rank", f"sft={merged}", f"stage1={merged}"]
    main([*words, "--output", str(tmp_path / "report.png")])
    rows = capsys.readouterr().out.splitlines()[1:3]
    assert [row.split()[:3] for row in rows] == [["sft", "-", "1.0000"], ["stage1", "-", "1.0000"]]


def test_rankings_that_are_not_comparable_are_reported(runs, tmp_path, capsys):
    other = write_ranks(tmp_path / "other.json", [1, 2], users_sha256="v")
    output = str(tmp_path / "report.png")
    main([str(runs / "stage1"), "--rank", f"other={other}", "--output", output])
    assert "do not compare these numbers: they differ in users_sha256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to report; name runs"),
        (["--rank", "ranking.json"], "--rank: expected NAME=FILE, got 'ranking.json'"),
        (["=there"], "RUN: =there: expected NAME=PATH with a name of its own"),
        (["a=there", "a=elsewhere"], "RUN: a=elsewhere: expected NAME=PATH with a name of its own"),
        (["nowhere"], "no such file; expected the output_dir of ilrec/train.py"),
    ],
)
def test_mistakes_leave_nothing(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(words)
    assert list(tmp_path.iterdir()) == []

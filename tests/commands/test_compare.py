"""ilrec compare: its numbers by hand, what it refuses, and the table and picture that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ilrec.commands.compare import main, short_names
from ilrec.errors import InputError
from ilrec.ranking.measuring import Measured
from ilrec.ranking.metrics import TargetRanks, ranking_metrics
from ilrec.ranking.results import SAME, write_ranking

USERS = np.arange(100)


def ranking(directory: Path, name: str, num_found: int, cutoffs=(5, 10), **protocol) -> str:
    """The target is the first item for so many of 100 users, and the 50th for the others."""
    ranks = TargetRanks.one_each(np.where(USERS < num_found, 1, 50))
    path = directory / name / "ranking.json"
    measured = Measured(ranking_metrics(ranks, cutoffs), {})
    write_ranking(path, measured, {**dict.fromkeys(SAME, "x"), **protocol}, ranks)
    return str(path)


@pytest.fixture
def three(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [ranking(Path(), *pair) for pair in (("sft", 20), ("same", 20), ("better", 50))]


def lines_of(text: str) -> dict[tuple[str, str], list[str]]:
    found = {}
    for line in text.splitlines()[1:]:
        if not line:
            break
        name, metric, *rest = line.split()
        found[name, metric] = rest
    return found


def test_differences_to_the_first(three, capsys):
    """30 of 100 users are found more: +.3, which is +150 % of .2. The standard error is
    sqrt(.3 x .7 / 100) = .046. Holm multiplies the smallest of four p values by four."""
    main(three)
    out = capsys.readouterr().out
    lines = lines_of(out)
    assert set(lines) == {(n, m) for n in ("same", "better") for m in ("NDCG@10", "Hit@10")}
    value, baseline, difference, low, _, high, relative, p, p_holm = lines["better", "Hit@10"]
    assert (value, baseline, difference, relative) == ("0.5000", "0.2000", "+0.3000", "+150.0%")
    assert float(low) == pytest.approx(0.3 - 1.96 * 0.046, abs=0.012)
    assert float(high) == pytest.approx(0.3 + 1.96 * 0.046, abs=0.012)
    assert (p, p_holm) == ("0.0001", "0.0004")
    assert (
        lines["same", "Hit@10"][2:]
        == ["+0.0000", "+0.0000", "to", "+0.0000", "+0.0%"] + ["1.0000"] * 2
    )
    assert "Differences to sft: x split, 100 users, 100 cases." in out


def test_another_baseline_and_metrics(three, capsys):
    main([*three, "--baseline", three[2], "--metrics", "mrr@5"])
    lines = lines_of(capsys.readouterr().out)
    assert set(lines) == {("sft", "MRR@5"), ("same", "MRR@5")}
    assert lines["sft", "MRR@5"][:3] == ["0.2000", "0.5000", "-0.3000"]


def test_names_are_as_short_as_they_can_be():
    paths = ["runs/sft/final/ranking.json", "runs/sasrec/valid.json"]
    assert short_names(paths) == ["sft/final", "sasrec/valid"]
    assert short_names(["a/ranking.json", "a/valid.json"]) == ["a", "a/valid"]


def test_short_lists_are_compared_at_what_they_have(three, tmp_path, capsys):
    main([three[0], ranking(tmp_path, "short", 30, cutoffs=(1, 5))])
    assert {metric for _, metric in lines_of(capsys.readouterr().out)} == {"NDCG@5", "Hit@5"}


def test_table_and_picture(three, tmp_path):
    table, picture = tmp_path / "c.md", tmp_path / "c.png"
    main([*three, "--output", str(table), str(picture)])
    text = table.read_text()
    assert text.startswith("| model | metric | value | baseline | difference | 95 % interval |")
    assert "| better | Hit@10 | 0.5000 | 0.2000 | +0.3000 |" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_refusals(three, tmp_path):
    other = ranking(tmp_path, "other", 20, users_sha256="y")
    for words, message in (
        ([three[0], other], r"other/ranking\.json: other users than sft/ranking\.json \(users_sha"),
        ([three[0], three[0]], "expected two or more different rankings"),
        ([*three, "--baseline", other], "--baseline: expected one of the files given"),
        ([*three, "--metrics", "ndcg@20"], "'ndcg@20' is not measured for single cases in all"),
        ([*three, "--output", "x.doc"], r"x\.doc: expected a name that ends in one of"),
        ([three[0], "nowhere.json"], r"nowhere\.json: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            main(words)

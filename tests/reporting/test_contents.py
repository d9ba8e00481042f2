"""What a report reads: runs, rankings and their intervals, and what they are compared with."""

from __future__ import annotations

import pytest
from made_reports import SFT, STAGE1, write_ranks, write_run

from ilrec.errors import InputError
from ilrec.reporting.contents import (
    choose_baseline,
    differing_protocol,
    ranking_of,
    run_of,
)


def test_intervals_over_users(tmp_path):
    """100 users, half of them hits. The standard error of the mean is sqrt(.5 * .5 / 100) = .05, so
    that 95 % lie within .098 of it; the bootstrap's steps are .01."""
    ranking = ranking_of("a", write_ranks(tmp_path / "a.json", [1, 11] * 50))
    low, high = ranking.intervals["hit@10"]
    assert low == pytest.approx(0.5 - 0.098, abs=0.0101)
    assert high == pytest.approx(0.5 + 0.098, abs=0.0101)
    assert ranking.intervals["hit@10"] == ranking.intervals["ndcg@10"]


def test_without_ranks_there_are_no_intervals(tmp_path):
    path = write_ranks(tmp_path / "a.json", [1, 2])
    path.with_suffix(".npz").unlink()
    ranking = ranking_of("a", path)
    assert ranking.metrics["hit@10"] == 1
    assert ranking.intervals == {}


@pytest.mark.parametrize("text", ["[]", "{}", '{"metrics": 3}'])
def test_what_is_no_ranking(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: no metrics in it"):
        ranking_of("a", tmp_path / "a.json")


def test_a_run_without_settings_can_be_read(tmp_path):
    directory = write_run(tmp_path / "run", SFT)
    assert run_of("run", directory).is_baseline
    (directory / "config.yaml").unlink()
    run = run_of("run", directory)
    assert (run.lines, run.settings, run.is_baseline) == (SFT, {}, False)


def test_a_log_cut_short_is_named(tmp_path):
    directory = write_run(tmp_path / "run", SFT)
    (directory / "metrics.jsonl").write_text('{"step": 1}\n{"step"')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not JSON"):
        run_of("run", directory)
    with pytest.raises(InputError, match="no such file; expected the output_dir"):
        run_of("run", tmp_path)


def test_the_baseline_is_the_first_run_with_plain_cross_entropy(tmp_path):
    names = ("popularity", "stage1", "sft")
    rankings = [ranking_of(name, write_ranks(tmp_path / f"{name}.json", [1])) for name in names]
    runs = [
        run_of("stage1", write_run(tmp_path / "stage1", STAGE1, beta=0.1)),
        run_of("sft", write_run(tmp_path / "sft", SFT)),
    ]
    assert choose_baseline(rankings, runs, None) == "sft"
    assert choose_baseline(rankings, runs[:1], None) == "popularity"
    assert choose_baseline(rankings, runs, "stage1") == "stage1"
    assert choose_baseline(rankings[:1], [], None) is None
    with pytest.raises(InputError, match="--baseline: expected one of popularity, stage1, sft"):
        choose_baseline(rankings, runs, "joint")


def test_differences_of_protocol(tmp_path):
    a = ranking_of("a", write_ranks(tmp_path / "a.json", [1, 2], num_beams=5))
    b = ranking_of("b", write_ranks(tmp_path / "b.json", [1, 2], num_beams=9))
    c = ranking_of(
        "c", write_ranks(tmp_path / "c.json", [1, 2, 3], split="valid", users_sha256="v")
    )
    assert differing_protocol([a, b]) == []
    assert differing_protocol([a, b, c]) == ["split", "users_sha256"]

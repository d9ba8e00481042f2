"""The files of a ranking, what is refused of them, and the tables."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.ranking.measuring import Measured
from ilrec.ranking.metrics import NOT_RANKED, TargetRanks
from ilrec.ranking.results import (
    SAME,
    check_ranking,
    format_cutoffs,
    format_groups,
    format_table,
    read_ranking,
    require_comparable,
    targets_digest,
    write_ranking,
)

MEASURED = Measured({"hit@5": 0.5}, {"history": {"3": {"num_cases": 2, "hit@5": 0.5}}})
RANKS = TargetRanks(np.array([7, NOT_RANKED, 1]), np.array([0, 1, 1]), np.array([4, 9]))
PROTOCOL = dict.fromkeys(SAME, "x")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "new" / "ranking.json"
    write_ranking(path, MEASURED, PROTOCOL, RANKS)
    return path


def test_what_is_written_is_read(written):
    assert sorted(path.name for path in written.parent.iterdir()) == ["ranking.json", "ranking.npz"]
    ranking = read_ranking(written)
    assert ranking.measured == MEASURED and ranking.protocol == PROTOCOL
    for name in ("ranks", "cases", "users"):
        found = getattr(ranking.target_ranks, name)
        assert found.dtype == np.int64 and found.tolist() == getattr(RANKS, name).tolist()


def test_the_ranks_are_small(tmp_path):
    """Two bytes for a user's number and a rank, before compression."""
    many = 20_000
    ranks = np.random.default_rng(0).integers(1, 9999, many)
    write_ranking(tmp_path / "r.json", MEASURED, PROTOCOL, TargetRanks.one_each(ranks))
    assert (tmp_path / "r.npz").stat().st_size < 4 * many


def test_damaged_and_older_files_are_refused(written):
    ranks = written.with_suffix(".npz")
    whole = ranks.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no archive"):
        ranks.write_bytes(content)
        with pytest.raises(
            InputError, match=r"ranking\.npz: the ranks beside ranking\.json cannot"
        ):
            read_ranking(written)
    np.savez(ranks, ranks=[1, 2], targets_per_case=[1], users=[0])
    with pytest.raises(InputError, match="its arrays do not fit together"):
        read_ranking(written)
    ranks.unlink()
    with pytest.raises(InputError, match=r"ranking\.npz: .*No such file.*; copy both files again"):
        read_ranking(written)

    written.write_text(json.dumps({"metrics": {}, "protocol": {}}))
    with pytest.raises(InputError, match=r"ranking\.json: an older version wrote it, without"):
        read_ranking(written)
    written.write_text("[]")
    with pytest.raises(InputError, match=r"ranking\.json: expected what ilrec/rank\.py writes"):
        read_ranking(written)


@pytest.mark.parametrize("field", SAME)
def test_rankings_of_something_else_are_not_compared(written, tmp_path, field):
    first = read_ranking(written)
    require_comparable([first, first])
    other = replace(first, path=tmp_path / "B.json", protocol={**PROTOCOL, field: "y"})
    message = rf"B\.json: other {SAME[field]} than .*ranking\.json \({field}: y and x\)"
    with pytest.raises(InputError, match=message):
        require_comparable([first, other])
    unknown = {name: value for name, value in PROTOCOL.items() if name != field}
    with pytest.raises(InputError, match=rf"B\.json: its protocol has no {field}"):
        require_comparable([first, replace(other, protocol=unknown)])


def test_targets_have_a_digest():
    """The same items shared out among the cases in another way are other targets."""

    def digest(users: list[int], *targets: list[int]) -> str:
        rows = Ragged.from_rows(targets)
        return targets_digest(Cases(np.array(users), rows, rows))

    assert digest([0, 1], [5], [6, 7]) == digest([0, 1], [5], [6, 7])
    others = {digest([0, 2], [5], [6, 7]), digest([0, 1], [5, 6], [7]), digest([0, 1], [5], [6, 8])}
    assert len(others | {digest([0, 1], [5], [6, 7])}) == 4


def test_a_name_for_the_ranks_is_no_name_for_the_metrics(tmp_path):
    with pytest.raises(InputError, match="ranking.npz: this name is for the ranks"):
        check_ranking(tmp_path / "ranking.npz")
    check_ranking(tmp_path / "ranking.json")


def test_table():
    rows = {"sft": {"hit@5": 0.25}, "stage1": {"hit@5": 0.5, "ndcg@5": 0.125}}
    table = format_table(rows, ("hit@5", "ndcg@5"))
    assert table.splitlines() == [
        "           Hit@5    NDCG@5",
        "sft       0.2500         -",
        "stage1    0.5000    0.1250",
    ]


def test_tables_of_the_other_metrics_and_of_groups():
    metrics = {"hit@5": 0.1, "mrr@5": 0.25, "mrr@10": 0.5, "coverage@10": 0.75}
    assert format_cutoffs(metrics).splitlines() == [
        "                @5       @10",
        "MRR         0.2500    0.5000",
        "coverage         -    0.7500",
    ]
    groups = {"3 to 5": {"num_cases": 1200, "hit@5": 0.25}, "cold": {"num_targets": 0}}
    assert format_groups(groups, ["hit@5"]).splitlines() == [
        "                         Hit@5",
        "3 to 5 (1,200 cases)    0.2500",
        "cold (0 targets)             -",
    ]

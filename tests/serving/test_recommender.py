"""The Python API: its lists are those of rank.py, its parts of the catalogue are exact, and what it
refuses."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NUM_ITEMS

from ilrec import Recommender
from ilrec.errors import InputError
from ilrec.ranking.case_lists import rank_cases
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import item_trie

HISTORIES = [["0", "1", "2"], ["5"], ["7", "3", "20", "11", "4"]]


@pytest.fixture(scope="module")
def recommender(served) -> Recommender:
    return Recommender.load(str(served))


def brute_force(recommender: Recommender, history: list[str]) -> np.ndarray:
    """float64 [I]: the log-probability of every item, each in a forward pass of its own."""
    builder, model = recommender.trained.builder, recommender.trained.model
    prompt = builder.prompt_ids([int(item) for item in history])
    scores = []
    for item in range(NUM_ITEMS):
        response = builder.response_ids(item)
        ids = torch.tensor([prompt + response], device=recommender.trained.device)
        with torch.no_grad():
            logps = model(ids).logits[0].double().log_softmax(-1)
        places = range(len(prompt) - 1, ids.shape[1] - 1)
        scores.append(sum(float(logps[p, t]) for p, t in zip(places, response, strict=True)))
    return np.array(scores)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_lists_are_those_of_the_ranking(recommender, split):
    """Item by item and score by score, of all users."""
    trained = recommender.trained
    cases = trained.task.dataset.evaluation(split)
    items_CK, scores_CK = rank_cases(
        trained.model,
        EvaluationSamples(cases, trained.builder),
        item_trie(trained.builder).to(trained.device),
        trained.pad_token_id,
        20,
        64,
        trained.device,
        "unseen",
    )
    histories = [[str(item) for item in history] for history in cases.histories]
    lists = recommender.recommend(histories, top_k=20)
    for ranked, items_K, scores_K in zip(lists, items_CK, scores_CK, strict=True):
        kept = items_K >= 0
        assert [int(found.item_id) for found in ranked] == items_K[kept].tolist()
        assert [found.score for found in ranked] == scores_K[kept].tolist()
        assert [found.rank for found in ranked] == list(range(1, len(ranked) + 1))


@pytest.mark.parametrize(
    ("only", "exclude"),
    [(None, None), (["3", "9", "17", "20", "0"], None), (None, ["1", "2", "23"]), (["8"], None)],
)
def test_parts_of_the_catalogue_are_exact(recommender, only, exclude):
    """With a beam for each item: the allowed items in the order of their scores, which are those of
    the whole catalogue. These users have no item twice, so that ids alone leave the history out,
    too."""
    lists = recommender.recommend(
        HISTORIES, top_k=NUM_ITEMS, only=only, exclude=exclude, num_beams=NUM_ITEMS
    )
    for history, ranked in zip(HISTORIES, lists, strict=True):
        scores = brute_force(recommender, history)
        allowed = [item for item in map(str, range(NUM_ITEMS)) if only is None or item in only]
        if exclude is not None:
            allowed = [item for item in allowed if item not in {*exclude, *history}]
        expected = sorted(allowed, key=lambda item: -scores[int(item)])
        assert [found.item_id for found in ranked] == expected
        assert [found.score for found in ranked] == pytest.approx(
            [scores[int(item)] for item in expected], abs=1e-4
        )


def test_probabilities_are_those_within_the_list(recommender):
    (ranked,) = recommender.recommend([["0"]], top_k=4)
    total = sum(math.exp(found.score) for found in ranked)
    for found in ranked:
        assert found.probability == pytest.approx(math.exp(found.score) / total)
    assert ranked[0].title == recommender.catalogue.titles[int(ranked[0].item_id)]


def test_histories_are_left_out_by_rule(recommender):
    def recommended(**fields) -> set[str]:
        (ranked,) = recommender.recommend([["0", "1"]], top_k=NUM_ITEMS, **fields)
        return {found.item_id for found in ranked}

    assert len(recommended(exclude=None)) == NUM_ITEMS
    assert recommended() == recommended(exclude="history") == recommended(exclude=None) - {"0", "1"}
    assert recommended(exclude=["5"]) == recommended() - {"5"}
    assert recommended(only=["0", "7"]) == {"7"}


def test_a_batch_does_not_change_a_list(recommender):
    together = recommender.recommend(HISTORIES, batch_size=2)
    for history, ranked in zip(HISTORIES, together, strict=True):
        (alone,) = recommender.recommend([history])
        assert [found.item_id for found in alone] == [found.item_id for found in ranked]


def test_unknown_items_are_skipped_if_wanted(recommender):
    lists = recommender.recommend([["0", "new"], ["new"], []], unknown="skip", only=["1", "newer"])
    assert [len(ranked) for ranked in lists] == [1, 0, 0]
    assert lists[0] == recommender.recommend([["0"]], only=["1"])[0]
    assert recommender.recommend([]) == []


@pytest.mark.parametrize(
    ("histories", "fields", "message"),
    [
        ([["0"], ["new"]], {}, "history 1: item 'new' is not in the catalogue of 24 items"),
        ([["0"], []], {}, "history 1: is empty, and the model has learned to go on from at least"),
        (["012"], {}, "history 0: expected a list of item ids, got '012'"),
        ([["0"]], {"only": ["new"]}, "only: item 'new' is not in the catalogue"),
        ([["0"]], {"exclude": ["new"]}, "exclude: item 'new' is not in the catalogue"),
        ([["0"]], {"exclude": "all"}, "exclude: expected auto, history, None or a list of item"),
        ([["0"]], {"only": []}, "only, exclude: no item is left that may be recommended"),
        ([["0"]], {"only": ["1"], "exclude": ["1"]}, "only, exclude: no item is left"),
        ([["0"]], {"top_k": 0}, "top_k: expected 1 or more, got 0"),
        ([["0"]], {"num_beams": 9}, r"num_beams: expected 10 or more \(top_k\), got 9"),
        ([["0"]], {"unknown": "drop"}, "unknown: expected error or skip, got 'drop'"),
    ],
)
def test_what_cannot_be_meant_is_refused(recommender, histories, fields, message):
    with pytest.raises(InputError, match=message):
        recommender.recommend(histories, **fields)


def test_threads_share_a_recommender(recommender):
    """Eight threads with other parts of the catalogue, all at once, get what each gets alone."""
    requests = [{"only": [str(item) for item in range(start, 24, 2)]} for start in range(8)]
    alone = [recommender.recommend(HISTORIES, **request) for request in requests]
    found: dict[int, list] = {}

    def work(number: int) -> None:
        for _ in range(3):
            found[number] = recommender.recommend(HISTORIES, **requests[number])

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(8)] == alone


def test_without_the_data_the_item_index_is_the_catalogue(recommender, served, tmp_path, caplog):
    """The model has been moved, and the data of its training is gone: the same lists, without
    titles."""
    moved = tmp_path / "final"
    shutil.copytree(served, moved)
    settings = (moved / "ilrec.yaml").read_text()
    data = recommender.trained.task.config.data
    assert data in settings
    (moved / "ilrec.yaml").write_text(settings.replace(data, "/gone/data"))
    alone = Recommender.load(str(moved))
    assert "/gone/data is not there: items have no titles" in caplog.text
    with_data = recommender.recommend(HISTORIES)
    assert alone.recommend(HISTORIES) == [
        [found._replace(title=None) for found in ranked] for ranked in with_data
    ]
    assert Recommender.load(str(moved), data=data).recommend(HISTORIES) == with_data
    (moved / "item_index.json").unlink()
    with pytest.raises(InputError, match="/gone/data: expected one of"):
        Recommender.load(str(moved))


def test_a_merged_model_recommends_as_its_adapter(recommender, served, tmp_path):
    from ilrec.merging.merge import merge
    from ilrec.merging.sources import open_source

    with open_source(str(served)) as opened:
        merge(opened, tmp_path / "merged")
    merged = Recommender.load(str(Path(tmp_path / "merged")), device="cpu", dtype="float32")
    for one, other in zip(
        merged.recommend(HISTORIES), recommender.recommend(HISTORIES), strict=True
    ):
        assert [found.item_id for found in one] == [found.item_id for found in other]

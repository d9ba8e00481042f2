"""The ranking of a method that scores every item: its metrics, and what write_ranking takes beside
them. ilrec/rank.py does the same for a model that searches."""

from __future__ import annotations

from typing import Any

from ilrec.interactions.dataset import InteractionDataset
from ilrec.ranking.beyond_accuracy import Distance
from ilrec.ranking.candidates import Score, choose_candidates, rank_by_scores
from ilrec.ranking.measuring import Measured, measure
from ilrec.ranking.metrics import TargetRanks
from ilrec.ranking.results import CUTOFFS, protocol_of


def measure_scorer(
    dataset: InteractionDataset,
    split: str,
    score: Score,
    candidates: str,
    distance: Distance | None = None,
    **more: Any,
) -> tuple[Measured, dict[str, Any], TargetRanks]:
    """Every target of a split, ranked among all candidates by its score.

    candidates: auto, all or unseen. distance: between two items, for the diversity of lists. more:
    what the protocol says of the method.
    """
    candidates = choose_candidates(candidates, dataset.sequences)
    cases = dataset.evaluation(split)
    items_CK, target_ranks = rank_by_scores(cases, score, candidates, max(CUTOFFS))
    measured = measure(dataset, cases, items_CK, target_ranks, CUTOFFS, distance)
    return measured, protocol_of(dataset, cases, split, candidates, **more), target_ranks

"""Recommender: a trained model that answers with items.

    from ilrec import Recommender
    recommender = Recommender.load("runs/merged")
    recommender.recommend([["B07", "B02"]], top_k=5)

The lists are those of ilrec/rank.py, by the same search. docs/recommend.md tells more.

Shapes: B users of a batch, K ranked items.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ilrec.config.evaluation import NUM_BEAMS
from ilrec.config.parsers import BATCH_SIZE, TOP_K
from ilrec.config.sections import ModelConfig
from ilrec.errors import InputError
from ilrec.ranking.candidates import choose_candidates
from ilrec.ranking.case_lists import best_items, longest_first
from ilrec.samples.collators import padded_prompts
from ilrec.serving.catalogue import Catalogue, Part, check_unknown
from ilrec.serving.trained import Trained, open_trained, served_task

# Parts of the catalogue whose tries are kept for later requests. A shop has few of them (one for
# each country), and each takes about as much memory as the whole trie at most.
KEPT_PARTS = 8
# What `exclude` may be beside None and ids: the history by the rule of ilrec/rank.py, or always.
AUTO, HISTORY = "auto", "history"


class Recommendation(NamedTuple):
    """rank: from 1 on. title: None if the data has no titles. score: log-probability of the item
    under the model. probability: renormalised over the list, whose probabilities sum to 1."""

    rank: int
    item_id: str
    title: str | None
    score: float
    probability: float


@dataclass(frozen=True)
class Request:
    """How lists are made. unseen: without the items of the history. part: the items that may be in
    a list."""

    top_k: int
    num_beams: int
    unseen: bool
    part: Part


class Recommender:
    """Answers histories with items. One instance may be used by many threads."""

    def __init__(self, trained: Trained, catalogue: Catalogue | None = None) -> None:
        self.trained = trained
        self.catalogue = catalogue or Catalogue(trained.task.dataset)
        # The cache of a search belongs to one search at a time.
        self._lock = threading.Lock()
        self._part = functools.lru_cache(KEPT_PARTS)(self._make_part)

    @classmethod
    def load(
        cls,
        directory: str,
        data: str | None = None,
        base: str = "",
        dtype: str = "auto",
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> Recommender:
        """The model in a directory: the final/ of a run (adapter or full model), or a merged one.

        data: the data directory, if it is not where the model was trained. base: the adapter's base
        model, if it has been moved. dtype: of the weights; auto: bfloat16 on CUDA, float32 on the
        CPU. device: None: CUDA if there is any. Raises InputError if something is missing.
        """
        settings = ModelConfig(
            model=str(directory), base=base, dtype=dtype, trust_remote_code=trust_remote_code
        )
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        task = served_task(str(directory), data)
        return cls(open_trained(settings, task, torch.device(device)))

    def recommend(
        self,
        histories: Iterable[Sequence[str]],
        top_k: int = TOP_K,
        exclude: str | Iterable[str] | None = AUTO,
        only: Iterable[str] | None = None,
        num_beams: int | None = None,
        unknown: str = "error",
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Recommendation]]:
        """A list for each history of item ids, oldest first. A list is shorter than top_k if fewer
        items may be in it.

        exclude: "history": no item of a user's history; None: every item may be recommended;
            "auto": history, if no user of the data has an item twice (the rule of ilrec/rank.py);
            item ids: these for nobody, and the history by the rule of auto.
        only: ids of the items that may be recommended; None: all.
        num_beams: width of the search, at least top_k; None: as ilrec/rank.py, or top_k if that is
            more.
        unknown: what happens to ids that are not in the catalogue. error: InputError, as for an
            empty history. skip: they are left out, and a history of which nothing is left gets an
            empty list.
        Raises InputError for what cannot be meant.
        """
        check_unknown(unknown)
        rule, excluded = _exclusion(exclude)
        request = self.request(
            top_k,
            checked_beams(top_k, num_beams),
            rule,
            None if only is None else self.catalogue.numbers(only, "only", unknown),
            self.catalogue.numbers(excluded, "exclude", unknown),
        )
        rows = []
        for place, history in enumerate(histories):
            where = f"history {place}"
            if isinstance(history, str):
                raise InputError(f"{where}: expected a list of item ids, got {history!r:.80}")
            row = self.catalogue.numbers(history, where, unknown)
            if not len(row) and unknown == "error":
                raise InputError(
                    f"{where}: is empty, and the model has learned to go on from at least one "
                    "item; leave it out, or give unknown: skip for an empty list"
                )
            rows.append(row)
        return self.lists(rows, request, batch_size)

    def request(
        self,
        top_k: int,
        num_beams: int,
        rule: str | None,
        only: np.ndarray | None,
        without: np.ndarray,
    ) -> Request:
        """What `recommend` asks for, in numbers. rule: auto, history or None. only: the items that
        may be recommended. without: items that nobody gets. Raises InputError if none is left."""
        allowed_I = np.full(len(self.catalogue), only is None)
        if only is not None:
            allowed_I[only] = True
        allowed_I[without] = False
        if not allowed_I.any():
            raise InputError("only, exclude: no item is left that may be recommended")
        unseen = self._auto_is_unseen if rule == AUTO else rule == HISTORY
        return Request(top_k, num_beams, unseen, self._part(np.packbits(allowed_I).tobytes()))

    def lists(
        self,
        rows: Sequence[np.ndarray],
        request: Request,
        batch_size: int = BATCH_SIZE,
        report: Callable[[int], object] = lambda num_done: None,
    ) -> list[list[Recommendation]]:
        """The list of each history of item numbers, oldest first; an empty one for an empty
        history. report: is told after each batch how many histories are done."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        order = longest_first(lengths, self.trained.builder.max_history_items)
        order = order[lengths[order] > 0]
        found: list[list[Recommendation]] = [[] for _ in rows]
        for begin in range(0, len(order), batch_size):
            places = order[begin : begin + batch_size].tolist()
            lists = self._search([rows[place] for place in places], request)
            for place, ranked in zip(places, lists, strict=True):
                found[place] = ranked
            report(begin + len(places))
        return found

    def _search(self, rows: list[np.ndarray], request: Request) -> list[list[Recommendation]]:
        """The lists of one batch."""
        prompts = [self.trained.builder.prompt_ids(row) for row in rows]
        excluded = request.part.inside(rows) if request.unseen else None
        with self._lock:
            items_BK, scores_BK = best_items(
                self.trained.model,
                padded_prompts(prompts, self.trained.pad_token_id),
                request.part.trie,
                request.num_beams,
                self.trained.device,
                excluded,
            )
        numbers_BK = request.part.outside(items_BK)
        pairs = zip(numbers_BK, scores_BK.numpy(), strict=True)
        return [
            ranked_list(self.catalogue, numbers_K, scores_K, request.top_k)
            for numbers_K, scores_K in pairs
        ]

    @functools.cached_property
    def _auto_is_unseen(self) -> bool:
        return choose_candidates(AUTO, self.trained.task.dataset.sequences) == "unseen"

    def _make_part(self, allowed: bytes) -> Part:
        """allowed: a bit for each item of the catalogue, packed."""
        bits = np.frombuffer(allowed, dtype=np.uint8)
        items_I = np.flatnonzero(np.unpackbits(bits, count=len(self.catalogue)))
        return Part.of(items_I, self.trained.builder, self.trained.device)


def ranked_list(
    catalogue: Catalogue, numbers_K: np.ndarray, scores_K: np.ndarray, top_k: int
) -> list[Recommendation]:
    """The first top_k items of a list, best first. Number -1 is no item."""
    kept = np.flatnonzero(numbers_K >= 0)[:top_k]
    numbers, scores = numbers_K[kept].tolist(), scores_K[kept].astype(np.float64)
    probabilities = np.exp(scores - scores.max(initial=-np.inf))
    probabilities /= probabilities.sum()
    ranked = []
    for place, number in enumerate(numbers):
        ranked.append(
            Recommendation(
                place + 1,
                catalogue.item_ids[number],
                None if catalogue.titles is None else catalogue.titles[number],
                float(scores[place]),
                float(probabilities[place]),
            )
        )
    return ranked


def checked_beams(top_k: int, num_beams: int | None) -> int:
    """The width of the search. None: as ilrec/rank.py, or top_k if that is more. Raises InputError
    if it is too small for the list."""
    if top_k < 1:
        raise InputError(f"top_k: expected 1 or more, got {top_k}")
    if num_beams is None:
        return max(top_k, NUM_BEAMS)
    if num_beams < top_k:
        raise InputError(
            f"num_beams: expected {top_k} or more (top_k), got {num_beams}; a search finds as many "
            "items as it has beams"
        )
    return num_beams


def _exclusion(exclude: str | Iterable[str] | None) -> tuple[str | None, Iterable[str]]:
    """(the rule for the history: auto, history or None; the ids that nobody gets)."""
    if exclude is None:
        return None, ()
    if not isinstance(exclude, str):
        return AUTO, exclude
    if exclude not in (AUTO, HISTORY):
        raise InputError(
            f"exclude: expected {AUTO}, {HISTORY}, None or a list of item ids, got {exclude!r}"
        )
    return exclude, ()

"""Rewards are made where batches are made: the data loader's workers do it, and no rank differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ilrec.collaborative.sasrec import SASRec
from ilrec.collaborative.token_reward import continuations, token_rewards
from ilrec.items.trie import ItemTrie


class ContinuationCollator:
    """Adds to a collated batch the tokens that continue an item at each target's place, and the
    collaborative filter's rewards of them (method.md, step 4), which are 0 without a filter."""

    def __init__(
        self,
        collate: Callable[[Sequence[dict]], dict[str, Tensor]],
        sasrec: SASRec | None,
        trie: ItemTrie,
    ) -> None:
        self.collate, self.sasrec, self.trie = collate, sasrec, trie

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(samples)
        targets = [
            (sample["items"], place)
            for sample in samples
            for place in range(len(sample["items"]) - sample["num_targets"], len(sample["items"]))
        ]
        target_items = [int(items[place]) for items, place in targets]
        if self.sasrec is None:
            batch["token_rewards"] = continuations(target_items, self.trie)
        else:
            probabilities_BI = self.sasrec.item_probabilities(
                [items[:place] for items, place in targets]
            )
            batch["token_rewards"] = token_rewards(probabilities_BI, target_items, self.trie)
        return batch

"""Token rewards are made where batches are made. So the data loader's workers do it, and the
rewards do not depend on the rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ilrec.collaborative.cross_fitting import RewardFilter
from ilrec.collaborative.token_reward import continuations, token_rewards
from ilrec.items.trie import ItemTrie


class ContinuationCollator:
    """Adds `token_rewards` to a collated batch: the tokens with which an item can go on at each
    supervised place, and the collaborative filter's rewards of these tokens (docs/method.md).

    reward_filter: None gives all tokens the reward 0.
    """

    def __init__(
        self,
        collate: Callable[[Sequence[dict]], dict[str, Tensor]],
        reward_filter: RewardFilter | None,
        trie: ItemTrie,
    ) -> None:
        self.collate = collate
        self.reward_filter = reward_filter
        self.trie = trie

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(samples)

        # The last num_targets items of a sample are targets, and each sees the items before it.
        histories, target_items, users = [], [], []
        for sample in samples:
            items = sample["items"]
            for place in range(len(items) - sample["num_targets"], len(items)):
                histories.append(items[:place])
                target_items.append(int(items[place]))
                users.append(sample["user"])

        if self.reward_filter is None:
            batch["token_rewards"] = continuations(target_items, self.trie)
        else:
            probabilities_BI = self.reward_filter.item_probabilities(histories, users)
            batch["token_rewards"] = token_rewards(probabilities_BI, target_items, self.trie)
        return batch

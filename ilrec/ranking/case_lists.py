"""The best items of every case, by beam search, with the cases shared among the processes.

Shapes: C cases, K ranked items.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ilrec.interactions.cases import Cases
from ilrec.items.trie import ItemTrie
from ilrec.processes import rank, world_size
from ilrec.ranking.beam_search import trie_beam_search
from ilrec.ranking.candidates import drop_history_from_lists
from ilrec.samples.collators import PromptCollator
from ilrec.samples.prefixes import EvaluationSamples

logger = logging.getLogger("ilrec.rank")
SECONDS_BETWEEN_PROGRESS = 10


def evenly_spread(num_wanted: int, num_users: int) -> slice:
    """Which users are ranked: num_wanted of them, evenly spread over all; 0: all.

    They are the same for every model, so that two rankings can be compared user by user.
    """
    wanted = min(num_wanted, num_users) or num_users
    step = num_users // wanted
    return slice(0, wanted * step, step)


def of_some_users(cases: Cases, num_wanted: int) -> Cases:
    """All cases of num_wanted users, evenly spread over those that have cases; 0: of all."""
    users = np.unique(cases.users)
    chosen = users[evenly_spread(num_wanted, len(users))]
    return cases[np.isin(cases.users, chosen)]


@torch.no_grad()
def rank_cases(
    model: torch.nn.Module,
    samples: EvaluationSamples,
    trie: ItemTrie,
    pad_token_id: int,
    num_beams: int,
    batch_size: int,
    device: torch.device,
    candidates: str,
    synced_ranks: bool = False,
) -> tuple[Tensor, Tensor]:
    """The num_beams best items of each case, best first, on the CPU: items int64 [C, K] and scores
    float32 [C, K] (log-probabilities). Where there are fewer items, -1 with score -inf.

    The processes share the cases, and each returns the lists of all. candidates: all; or unseen: no
    item of a case's history is in its list. synced_ranks: all processes call the model equally
    often, as one that is sharded among them needs (ZeRO-3).
    """
    histories = samples.cases.histories
    order = longest_first(histories.lengths, samples.builder.max_history_items)
    mine = _share(order).tolist()
    loader = DataLoader(
        Subset(samples, mine), batch_size=batch_size, collate_fn=PromptCollator(pad_token_id)
    )

    items_parts, scores_parts = [], []
    num_done = 0
    started = reported = time.monotonic()
    for batch in loader:
        cases = mine[num_done : num_done + batch_size]
        excluded = [histories[case] for case in cases] if candidates == "unseen" else None
        items_BK, scores_BK = best_items(
            model, batch, trie, num_beams, device, excluded, synced_ranks
        )
        items_parts.append(items_BK)
        scores_parts.append(scores_BK)
        num_done += len(cases)
        if rank() == 0 and time.monotonic() - reported > SECONDS_BETWEEN_PROGRESS:
            reported = time.monotonic()
            logger.info("%s", progress(num_done, len(mine), len(samples), reported - started))

    return (
        _gather(torch.cat(items_parts), torch.from_numpy(order)),
        _gather(torch.cat(scores_parts), torch.from_numpy(order)),
    )


def longest_first(lengths: np.ndarray, max_history_items: int) -> np.ndarray:
    """The order in which histories of these lengths are ranked.

    Those of similar length share a batch, so that little of it is padding. The longest come first:
    if memory is short, the run ends at its start.
    """
    return np.argsort(-np.minimum(lengths, max_history_items), kind="stable")


def best_items(
    model: torch.nn.Module,
    batch: Mapping[str, Tensor],
    trie: ItemTrie,
    num_beams: int,
    device: torch.device,
    excluded: Sequence[np.ndarray] | None,
    synced_ranks: bool = False,
) -> tuple[Tensor, Tensor]:
    """The lists of one batch of prompts, on the CPU: items int64 [B, K] and scores float32 [B, K].

    batch: input_ids and attention_mask as PromptCollator makes them. excluded: for each prompt the
    items that its list must not have; their places are -1.
    """
    items_BK, scores_BK = trie_beam_search(
        model,
        batch["input_ids"].to(device),
        batch["attention_mask"].to(device),
        trie,
        num_beams,
        excluded,
        synced_ranks,
    )
    items_BK = items_BK.cpu()
    # An excluded item comes along if it shares a leaf with one that is not excluded.
    if excluded is not None:
        items_BK = drop_history_from_lists(items_BK, excluded)
    return items_BK, scores_BK.cpu()


def _share(order: np.ndarray) -> np.ndarray:
    """This process's cases. All have the same number of them, and so of batches: where one has one
    less, it ranks the first case once more, which _gather leaves out."""
    mine = order[rank() :: world_size()]
    is_short = len(mine) * world_size() < len(order)
    return np.append(mine, order[:1]) if is_short else mine


def progress(num_done: int, num_mine: int, num_users: int, seconds: float) -> str:
    """A line of the log about all users, from this process's share of them, which stands for
    all."""
    share = num_done / num_mine
    num_ranked = int(share * num_users)
    seconds_left = seconds / share - seconds
    return (
        f"{num_ranked} of {num_users} users, {num_ranked / seconds:.1f} users/s, "
        f"{seconds_left:.0f} s left"
    )


def _gather(rows: Tensor, order: Tensor) -> Tensor:
    """The shares of all processes, put back into the order of the cases: [C, K].

    order: cases as they were dealt out, one to each process in turn. Each case is in one share.
    """
    # A share may have a repeated case at its end.
    shares: list = [rows]
    if world_size() > 1:
        shares = [None] * world_size()
        dist.all_gather_object(shares, rows)
    merged = rows.new_empty(len(order), rows.shape[1])
    for process, share in enumerate(shares):
        places = order[process :: world_size()]
        merged[places] = share[: len(places)]
    return merged

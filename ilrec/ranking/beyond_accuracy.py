"""What recommendations are like, whether or not they find the targets: how much of the catalogue
they use, how popular and how different their items are.

Shapes: C cases, K ranked items (best first; -1 is no item), I items, L levels of a semantic ID, D
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# How far apart two items are, from 0 to 1 or 2: (items int64 [C], items [C]) -> float64 [C].
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Embeddings of so many cases are compared at a time: copies of all would not fit into memory.
CASES_AT_ONCE = 4096


def coverage(items_CK: np.ndarray, num_items: int) -> float:
    """The share of the catalogue that is recommended to anyone (RecBole's ItemCoverage)."""
    return len(np.unique(items_CK[items_CK >= 0])) / num_items


def gini(items_CK: np.ndarray, num_items: int) -> float:
    """The Gini coefficient of how often each item of the catalogue is recommended (RecBole's
    GiniIndex): 0 if all are recommended equally often, near 1 if few items make up all lists.

        sum over i of (2 i - I - 1) n_i / (I sum n_i)      n_1 <= n_2 <= ... <= n_I, also zeros
    """
    counts_I = np.sort(np.bincount(items_CK[items_CK >= 0], minlength=num_items))
    weights_I = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights_I * counts_I).sum() / (num_items * max(1, counts_I.sum())))


def self_information(counts_I: np.ndarray) -> np.ndarray:
    """-log2 p(i) of each item in bits, where p(i) is its share of the training interactions:
    float64 [I].

    Its mean over a list is the list's novelty (Vargas and Castells, RecSys 2011: free discovery,
    here without a discount by rank; Zhou et al., PNAS 2010). An item that training never saw counts
    as chosen once, because its information would be infinite.
    """
    return np.log2(max(1, counts_I.sum())) - np.log2(np.maximum(counts_I, 1))


def mean_of_items(items_CK: np.ndarray, values_I: np.ndarray) -> float:
    """A value of items, averaged over each list and then over lists. Empty lists do not count."""
    is_item_CK = items_CK >= 0
    sums_C = np.where(is_item_CK, values_I[items_CK], 0.0).sum(axis=1)
    lengths_C = is_item_CK.sum(axis=1)
    return _mean_ratio(sums_C, lengths_C)


def diversities(
    items_CK: np.ndarray, distance: Distance, cutoffs: Sequence[int]
) -> dict[int, float]:
    """{K: intra-list diversity of the first K items}: the mean distance of two items of a list
    (Smyth and McClave 2001; one minus the intra-list similarity of Ziegler et al. 2005), averaged
    over lists. A list with fewer than two items does not count; NaN if there is no other."""
    sums_C, pairs_C = np.zeros(len(items_CK)), np.zeros(len(items_CK), dtype=np.int64)
    found = {}
    for length in range(1, max(cutoffs) + 1):
        last_C = items_CK[:, length - 1]
        # The pairs that the list's newest item makes with those before it.
        for place in range(length - 1):
            other_C = items_CK[:, place]
            is_pair_C = (last_C >= 0) & (other_C >= 0)
            sums_C += np.where(is_pair_C, distance(last_C, other_C), 0.0)
            pairs_C += is_pair_C
        if length in cutoffs:
            found[length] = _mean_ratio(sums_C, pairs_C)
    return found


def _mean_ratio(sums_C: np.ndarray, sizes_C: np.ndarray) -> float:
    """The mean of sum / size over the cases whose size is not 0."""
    counts_C = sizes_C > 0
    if not counts_C.any():
        return float("nan")
    return float((sums_C[counts_C] / sizes_C[counts_C]).mean())


def prefix_distance(semantic_ids: Sequence[Sequence[str]]) -> Distance:
    """1 - the length of the common prefix of two semantic IDs / the length of the longer one."""
    levels_I = np.array([len(codes) for codes in semantic_ids])
    codes_IL = _numbered(semantic_ids, levels_I)

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        is_equal_CL = (codes_IL[first] == codes_IL[second]) & (codes_IL[first] >= 0)
        prefix_C = np.cumprod(is_equal_CL, axis=1).sum(axis=1)
        return 1 - prefix_C / np.maximum(levels_I[first], levels_I[second])

    return distance


def _numbered(semantic_ids: Sequence[Sequence[str]], levels_I: np.ndarray) -> np.ndarray:
    """The codes as numbers: int32 [I, L]; -1 behind the end of a shorter ID."""
    numbers: dict[str, int] = {}
    codes_IL = np.full((len(semantic_ids), levels_I.max(initial=0)), -1, dtype=np.int32)
    for item, codes in enumerate(semantic_ids):
        for level, code in enumerate(codes):
            codes_IL[item, level] = numbers.setdefault(code, len(numbers))
    return codes_IL


def cosine_distance(embeddings_ID: np.ndarray) -> Distance:
    """1 - the cosine of two items' embeddings. It is 1 for an embedding of zeros."""
    norms_I1 = np.linalg.norm(embeddings_ID, axis=1, keepdims=True)
    directions_ID = embeddings_ID / np.where(norms_I1 > 0, norms_I1, 1.0)

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        cosines_C = np.empty(len(first))
        for start in range(0, len(first), CASES_AT_ONCE):
            block = slice(start, start + CASES_AT_ONCE)
            a, b = directions_ID[first[block]], directions_ID[second[block]]
            cosines_C[block] = np.einsum("cd,cd->c", a, b)
        return 1 - cosines_C

    return distance

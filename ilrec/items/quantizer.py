"""Residual k-means: item embeddings -> codes, coarse to fine, the tokens of a semantic ID.

Each level clusters what the levels before it left unexplained. Items that end up with the same
codes are moved to the nearest free code of the last level. If its codebook is full,
`resolve_collisions` adds a token instead.

Shapes: I items, D dimensions, L levels, C centres of a level, G items with the same first codes.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from ilrec.errors import InputError

# Above this many items a full k-means takes minutes for each level. Mini-batches come within a few
# percent of its inertia.
MINI_BATCH_ITEMS = 100_000


def residual_kmeans(
    embeddings_ID: np.ndarray, num_levels: int, codebook_size: int, seed: int
) -> np.ndarray:
    """float [I, D] -> codes int64 [I, num_levels].

    Raises InputError for no items and for values that are not finite.
    """
    if len(embeddings_ID) == 0 or not np.isfinite(embeddings_ID).all():
        raise InputError(
            "semantic IDs: the item embeddings are empty or hold NaN or infinite values; "
            "train the embeddings again"
        )
    residual_ID = embeddings_ID.astype(np.float64, copy=True)
    centres_CD = residual_ID
    codes = []
    for level in range(num_levels):
        # A k-means cannot have more clusters than distinct points.
        size = min(codebook_size, len(np.unique(residual_ID, axis=0)))
        algorithm = KMeans if len(residual_ID) <= MINI_BATCH_ITEMS else MiniBatchKMeans
        fitted = algorithm(n_clusters=size, n_init=1, random_state=seed + level).fit(residual_ID)
        codes.append(fitted.labels_.astype(np.int64))
        centres_CD = fitted.cluster_centers_
        # The residual of the last level stays: collisions are resolved by distance to its centres.
        if level < num_levels - 1:
            residual_ID -= centres_CD[codes[-1]]
    return _separate(np.stack(codes, axis=1), residual_ID, centres_CD, codebook_size)


def _separate(
    codes_IL: np.ndarray, residual_ID: np.ndarray, centres_CD: np.ndarray, codebook_size: int
) -> np.ndarray:
    """Give colliding items other last codes. The item nearest to the shared centre keeps it."""
    # Only items that agree in all codes but the last can collide.
    groups: dict[tuple, list[int]] = defaultdict(list)
    for item, codes in enumerate(codes_IL.tolist()):
        groups[tuple(codes[:-1])].append(item)

    for items in groups.values():
        last_codes = codes_IL[items, -1]
        if len(items) == len(np.unique(last_codes)):
            continue
        distances_GC = np.linalg.norm(residual_ID[items, None] - centres_CD[None], axis=-1)
        # Codes without a centre are free too. There are some if the level had fewer distinct points
        # than codes; they count as farther away than all others.
        num_unused = codebook_size - len(centres_CD)
        unused = np.full((len(items), num_unused), np.inf)
        all_distances = np.concatenate([distances_GC, unused], axis=1)
        codes_IL[items, -1] = _assign(all_distances, last_codes)
    return codes_IL


def _assign(distances_GC: np.ndarray, wanted_G: np.ndarray) -> np.ndarray:
    """For each of G items the nearest code that no nearer item has taken, or its wanted code if
    none is free."""
    free = np.ones(distances_GC.shape[1], dtype=bool)
    assigned = wanted_G.copy()
    own_distances_G = distances_GC[np.arange(len(wanted_G)), wanted_G]
    for item in np.argsort(own_distances_G, kind="stable"):
        if not free.any():
            break
        if not free[wanted_G[item]]:
            candidates = np.flatnonzero(free)
            assigned[item] = candidates[np.argmin(distances_GC[item, candidates])]
        free[assigned[item]] = False
    return assigned


def codebook_use(codes_IL: np.ndarray, codebook_size: int) -> list[float]:
    """The share of the codebook that is used, for each level."""
    return [len(np.unique(codes)) / codebook_size for codes in codes_IL.T]

"""Settings of item-kNN, a baseline."""

from __future__ import annotations

from dataclasses import dataclass

from ilrec.config.settings import Section, setting

# What implicit calls them.
SIMILARITIES = {
    "cosine": "CosineRecommender",
    "tfidf": "TFIDFRecommender",
    "bm25": "BM25Recommender",
}


@dataclass
class ItemKNNConfig(Section):
    """Items near those of the history (Sarwar et al. 2001); all items of the history count
    alike."""

    similarity: str = setting(
        "cosine",
        "between the users of two items: cosine, tfidf or bm25",
        choices=tuple(SIMILARITIES),
    )
    num_neighbours: int = setting(100, "similar items kept for each item", at_least=1)

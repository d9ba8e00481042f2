"""ILRec: an LLM recommender trained with self-hard negatives from its own intermediate layers
(arXiv 2602.17410)."""

__version__ = "0.1.0"

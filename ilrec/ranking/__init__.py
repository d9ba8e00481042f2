"""Ranking over the full catalogue: trie-constrained beam search and its metrics."""

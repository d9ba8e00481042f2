"""Ranking of the full catalogue: beam search over the trie of all items, and its metrics.

Reading order: candidates.py (which items may be recommended), score_head.py (logits in float32),
beam_search.py (the best items of each user), case_lists.py (of all cases), metrics.py (the targets'
ranks, Hit, NDCG, MRR, recall), beyond_accuracy.py (coverage, novelty, diversity, ...), groups.py,
measuring.py (all of these), results.py (ranking.json and the tables), comparison.py.

Three items, spelled 3 7 19, 3 8 19 and 4 7 19, and one user of a tiny random Llama whose next item
is number 2:

    trie_beam_search(...)          items [[1, 0, 2]], scores [[-10.7919, -15.0247, -18.6486]]
    target_ranks_from_lists(...)   ranks [3]
    ranking_metrics(..., (1, 5))   {'hit@1': 0.0, 'hit@5': 1.0, 'ndcg@1': 0.0, 'ndcg@5': 0.5, ...}
"""

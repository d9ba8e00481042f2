"""ILRec: an LLM recommender trained with self-hard negatives from its own intermediate layers
(arXiv 2602.17410).

Two programs: train.py trains one stage, rank.py ranks the full catalogue. The packages in the order
in which data passes through them: config and files (settings, small files), interactions (who had
which item), items (semantic IDs, the trie of all items), samples (prompts and batches),
collaborative (SASRec and its rewards), model (the LM and its head), ops (the loss), training,
ranking, merging (an adapter into its base), and reporting. weights reads tensor files for several
of them; processes.py is how every program starts and ends, errors.py the one exception for bad
input.

docs/design.md tells why it is laid out so, docs/method.md where each equation is computed.
"""

__version__ = "0.1.0"

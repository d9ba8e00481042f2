"""ILRec: an LLM recommender trained with self-hard negatives from its own intermediate layers
(arXiv 2602.17410).

Three programs: train.py trains one stage, rank.py ranks the full catalogue, recommend.py writes
lists of items for users. Recommender is the same from Python. cli.py is the command `ilrec`, which
starts these and the programs in commands/. The packages in the order in which data passes through
them: config and files (settings, small files), interactions (who had which item), items (semantic
IDs, the trie of all items), samples (prompts and batches), collaborative (SASRec and its rewards),
model (the LM and its head), ops (the loss), training, ranking, merging (an adapter into its base),
serving (recommendations), and experiments (grids of methods). weights reads tensor files for
several of them; processes.py is how every program starts and ends, errors.py the one exception for
bad input.

docs/design.md tells why it is laid out so, docs/method.md where each equation is computed.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Recommender, imported when it is asked for: `import ilrec` alone takes no time."""
    if name == "Recommender":
        from ilrec.serving.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Settings of SASRec, the light collaborative filter, and which items may come next."""

from __future__ import annotations

from dataclasses import dataclass

from ilrec.config.settings import Section, require, setting

# The items that may come next. all: every item; unseen: every item that is not in the history;
# auto: unseen if no user of the data has an item twice, else all.
CANDIDATES = ("auto", "all", "unseen")


@dataclass
class SASRecConfig(Section):
    """The light collaborative filter (Kang & McAuley 2018). Used by `ilrec sasrec`."""

    hidden_size: int = setting(64, "embedding and state size", at_least=1)
    num_layers: int = setting(2, "transformer blocks", at_least=1)
    num_heads: int = setting(2, "attention heads", at_least=1)
    dropout: float = setting(
        0.2, "dropout on embeddings, attention and feed-forward", at_least=0, below=1
    )
    max_history_items: int = setting(
        50, "positions: at most this many past items are read", at_least=1
    )
    candidates: str = setting(
        "auto",
        "all; unseen: no item of the history can come next; auto: unseen if no user has an item "
        "twice",
        choices=CANDIDATES,
    )
    label_smoothing: float = setting(
        0.0,
        "share of the target's probability that is spread over all candidates",
        at_least=0,
        below=1,
    )
    learning_rate: float = setting(
        3e-3, "AdamW learning rate; falls linearly to 0 over num_epochs", above=0
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", at_least=0)
    batch_size: int = setting(32, "windows per step", at_least=1)
    num_epochs: int = setting(100, "at most this many epochs", at_least=1)
    patience: int = setting(
        10, "stop after this many epochs without a better validation NDCG@10", at_least=1
    )
    num_folds: int = setting(
        0,
        "0: one filter, trained on all users; N, 2 or more: also one for each of N folds of users, "
        "trained on the other users; it gives the rewards of its fold, and has not seen them",
        at_least=0,
    )
    seed: int = setting(0, "random seed", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.hidden_size % self.num_heads == 0,
            "hidden_size",
            self.hidden_size,
            "a multiple of num_heads",
        )
        # The filter of a single fold would be trained on nobody.
        require(self.num_folds != 1, "num_folds", self.num_folds, "0, or 2 and more")

"""A small SASRec for the tests."""

from __future__ import annotations

import torch

from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sasrec import SASRecConfig

NUM_ITEMS = 12
CONFIG = SASRecConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    dropout=0.1,
    max_history_items=5,
    learning_rate=1e-2,
    weight_decay=0.0,
    batch_size=16,
    num_epochs=8,
    patience=8,
    seed=3,
)


def make_model() -> SASRec:
    """Untrained, with embeddings far enough apart for a change of item or position to show."""
    torch.manual_seed(0)
    model = SASRec(NUM_ITEMS, CONFIG)
    for parameter in (model.items.weight, model.positions.weight):
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()

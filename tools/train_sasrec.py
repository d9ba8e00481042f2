"""Train SASRec, the light collaborative filter, and measure it and popularity on the full
catalogue.

    python tools/train_sasrec.py --data DIR --output runs/sasrec [--config FILE.yaml] [--hidden_size
    128 ...]

Any field of SASRecConfig (ilrec/config/sections.py) may be given as --field value. The output
directory holds the model, which
`sasrec:` in a recipe names; ranking.json and popularity.json, test figures; and item_embeddings.npy
with item_embeddings.ids.json, the item of each row, for semantic IDs.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.collaborative.sasrec import popularity_scores, train_sasrec
from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import build_section, parse_overrides
from ilrec.config.sections import DataConfig, SASRecConfig
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.files.reading import read_yaml
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.reading import read_interactions
from ilrec.items.embeddings import write_embeddings
from ilrec.processes import run_entry
from ilrec.ranking.candidates import choose_candidates, rank_by_scores
from ilrec.ranking.metrics import ranking_metrics
from ilrec.ranking.results import CUTOFFS, format_table, protocol_of, write_ranking

logger = logging.getLogger("ilrec.sasrec")


def sasrec_config(path: str | None, overrides: dict) -> SASRecConfig:
    """Defaults < YAML < command line, as for ilrec/train.py."""
    values = {name: (value, str(path)) for name, value in (read_yaml(path) if path else {}).items()}
    values |= {name: (value, "command line") for name, value in overrides.items()}
    known = SASRecConfig.__dataclass_fields__
    for name, (_, source) in values.items():
        if name not in known:
            raise InputError(f"{source}: unknown field {name!r}{nearest(name, known)}")
    return build_section(SASRecConfig, values)


def measure(
    dataset: InteractionDataset, score, name: str
) -> tuple[dict[str, float], dict[str, Any], torch.Tensor]:
    """`score(histories) -> [B, I]` on every test user against the full catalogue: metrics, protocol
    and ranks, for write_ranking."""
    candidates = choose_candidates("auto", dataset.sequences)
    ranks = rank_by_scores(*dataset.evaluation("test"), score, candidates)
    protocol = protocol_of(
        "test", len(ranks), candidates, dataset.num_items, method=name, **dataset.numbering()
    )
    return ranking_metrics(ranks, CUTOFFS), protocol, ranks


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--data", required=True, help="data directory (LC-Rec JSON or RecBole atomic files)"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="directory to write; what an earlier run left is replaced",
    )
    parser.add_argument("--config", help="YAML file with SASRecConfig fields")
    parser.add_argument(
        "--k_core", type=int, default=DataConfig().k_core, help="RecBole files: k-core filter"
    )
    arguments, rest = parser.parse_pairs(argv)
    config = sasrec_config(arguments.config, parse_overrides(rest))
    check_directory(arguments.output)
    dataset = read_interactions(arguments.data, arguments.k_core)
    training = dataset.training_sequences()
    model = train_sasrec(
        training, dataset.num_items, config, dataset.evaluation("valid"), logger.info
    )
    popularity_I = torch.as_tensor(popularity_scores(training, dataset.num_items))
    popularity = measure(dataset, lambda h: popularity_I.expand(len(h), -1), "popularity")
    sasrec = measure(dataset, model.item_probabilities, "SASRec")
    try:
        model.save(arguments.output, dataset.item_ids)
        embeddings_ID = model.item_embeddings().detach().cpu().numpy()
        write_embeddings(arguments.output / "item_embeddings.npy", embeddings_ID, dataset.item_ids)
        write_ranking(arguments.output / "popularity.json", *popularity)
        write_ranking(arguments.output / "ranking.json", *sasrec)
    finally:  # also what cannot be written is said
        print(
            format_table({"popularity": popularity[0], "SASRec": sasrec[0]}, tuple(sasrec[0])),
            flush=True,
        )


if __name__ == "__main__":
    run_entry(main)

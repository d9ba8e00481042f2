"""Train SASRec, the light collaborative filter, and measure it and popularity on the full
catalogue.

    ilrec sasrec --data DIR --output runs/sasrec \\
        [--config FILE.yaml] [--hidden_size 128 ...]

Any field of SASRecConfig (docs/fields.md) may be given as --field value. The output
directory holds the model, which `sasrec:` in a recipe names; ranking.json and popularity.json with
the test metrics; and, for semantic IDs, item_embeddings.npy with item_embeddings.ids.json, which
says which item each row belongs to.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from ilrec.collaborative.cross_fitting import fold_directory, train_folds
from ilrec.collaborative.popularity import popularity_scores
from ilrec.collaborative.sasrec_training import train_sasrec
from ilrec.config.command_line import ArgumentParser
from ilrec.config.data_flags import add_data_flags, data_config
from ilrec.config.loading import build_section, parse_overrides
from ilrec.config.sasrec import SASRecConfig
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.files.reading import read_yaml
from ilrec.interactions.reading import read_data
from ilrec.items.embeddings import write_embeddings
from ilrec.ranking.results import compared_columns, format_table, write_ranking
from ilrec.ranking.scorers import measure_scorer

logger = logging.getLogger("ilrec.sasrec")


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The program's own flags, and the `--field=value` words of SASRecConfig."""
    parser = ArgumentParser(__doc__)
    add_data_flags(parser)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="directory to write; files of an earlier run are replaced",
    )
    parser.add_argument("--config", help="YAML file with SASRecConfig fields")
    parser.add_fields("fields", SASRecConfig)
    return parser.parse_pairs(argv)


def sasrec_config(path: str | None, overrides: dict) -> SASRecConfig:
    """The fields from defaults < YAML file < command line, as for ilrec/train.py.

    Raises InputError if a field is unknown or its value is not allowed.
    """
    # Each value carries its source, which a message about it names.
    values = {}
    if path:
        for name, value in read_yaml(path).items():
            values[name] = (value, str(path))
    for name, value in overrides.items():
        values[name] = (value, "command line")
    known = SASRecConfig.__dataclass_fields__
    for name, (_, source) in values.items():
        if name not in known:
            raise InputError(f"{source}: unknown field {name!r}{nearest(name, known)}")
    return build_section(SASRecConfig, values)


def main(argv: list[str]) -> None:
    arguments, rest = parse_arguments(argv)
    config = sasrec_config(arguments.config, parse_overrides(rest))
    # Mistakes in settings, output and data are found before the training.
    check_directory(arguments.output)
    dataset = read_data(data_config(arguments))
    # The best epoch is chosen by the validation items; the test items are used below alone.
    training = dataset.training_sequences()
    cases = dataset.evaluation("valid")
    valid = cases.histories, cases.next_items()
    model = train_sasrec(training, dataset.num_items, config, valid, logger.info)
    folds = train_folds(training, dataset.num_items, config, valid, logger.info)
    # Popularity is what every recommender has to beat.
    popularity_I = torch.as_tensor(popularity_scores(training, dataset.num_items))
    popularity = measure_scorer(
        dataset,
        "test",
        lambda histories: popularity_I.expand(len(histories), -1),
        "auto",
        method="popularity",
    )
    sasrec = measure_scorer(dataset, "test", model.item_probabilities, "auto", method="SASRec")

    # The table is printed even if the files cannot be written: training took long.
    try:
        for fold, of_fold in enumerate(folds):
            of_fold.save(
                fold_directory(arguments.output, fold), dataset.item_ids, str(dataset.rule)
            )
        model.save(arguments.output, dataset.item_ids, str(dataset.rule))
        embeddings_ID = model.item_embeddings().detach().cpu().numpy()
        write_embeddings(arguments.output / "item_embeddings.npy", embeddings_ID, dataset.item_ids)
        write_ranking(arguments.output / "popularity.json", *popularity)
        write_ranking(arguments.output / "ranking.json", *sasrec)
    finally:
        metrics = {"popularity": popularity[0].metrics, "SASRec": sasrec[0].metrics}
        print(format_table(metrics, compared_columns(metrics["SASRec"])), flush=True)

"""Rank the full catalogue for every user by trie-constrained beam search, and measure the lists.

    # one process
    ilrec rank --model runs/stage2/final --data DIR --split test --num_beams 20

    # two ranks, which share the users; torchrun starts it, too
    deepspeed --num_gpus 2 ilrec/rank.py --model runs/stage2/final --data DIR

    # lists that another program made
    ilrec rank --lists lists.jsonl --data DIR --output theirs/ranking.json

--model is the final/ of a run (adapter or full model) or a merged model. Two files are written
beside the model's weights, or at --output: ranking.json (metrics, also of groups, and the protocol
that they were measured under) and ranking.npz (the rank of every target). Older ones are replaced,
both or neither. A model card beside the weights gets the metrics, too. Each user, or each of
--num_users, is ranked exactly once. docs/metrics.md defines the metrics.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# A script's own folder is first on sys.path. The package lies in the folder above.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import answer_help
from ilrec.config.parsers import rank_parser

if __name__ == "__main__":
    answer_help(rank_parser(__doc__))

import numpy as np
import torch

from ilrec.config.loading import build_section
from ilrec.config.sections import DataConfig, ModelConfig
from ilrec.errors import InputError
from ilrec.files.outputs import check_file
from ilrec.interactions.cases import Cases
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.reading import read_data
from ilrec.items.embeddings import read_embeddings
from ilrec.items.semantic_ids import SemanticId
from ilrec.processes import rank, run_entry, start_processes
from ilrec.ranking.beyond_accuracy import Distance, cosine_distance, prefix_distance
from ilrec.ranking.candidates import choose_candidates, drop_history_from_lists
from ilrec.ranking.case_lists import of_some_users, rank_cases
from ilrec.ranking.measuring import GROUPED_BY, Measured, measure
from ilrec.ranking.metrics import target_ranks_from_lists
from ilrec.ranking.results import (
    CUTOFFS,
    check_ranking,
    compared_columns,
    format_cutoffs,
    format_groups,
    format_table,
    protocol_of,
    write_ranking,
)
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import RecommendationTask, item_trie, load_task
from ilrec.serving.catalogue import Catalogue
from ilrec.serving.lists import check_suffix, read_lists, write_lists
from ilrec.serving.recommender import ranked_list
from ilrec.serving.trained import data_config, open_trained
from ilrec.training.model_card import record_results

# --flag: its smallest value.
AT_LEAST = {"num_beams": 1, "batch_size": 1, "num_users": 0}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    arguments = rank_parser(__doc__).parse_args(argv)
    for name, least in AT_LEAST.items():
        value = getattr(arguments, name)
        if value < least:
            raise InputError(f"--{name}: expected {least} or more, got {value}")
    arguments.by = [name for name in arguments.by.split(",") if name]
    for name in arguments.by:
        if name not in GROUPED_BY:
            raise InputError(f"--by: expected {' or '.join(GROUPED_BY)}, got {name!r}")
    if not arguments.model and not arguments.lists:
        raise InputError("--model: expected the directory of a model, or --lists FILE")
    if arguments.lists and not arguments.output:
        raise InputError("--lists: give --output FILE.json, too")
    if arguments.lists and arguments.save_lists:
        raise InputError("--save_lists: is for the lists of a model, and --lists are there already")
    return arguments


def item_distance(
    dataset: InteractionDataset, semantic_ids: Sequence[SemanticId] | None, embeddings: str | None
) -> tuple[Distance | None, str]:
    """(how far apart two items are, what that is measured over). None for items without semantic
    IDs and embeddings."""
    if embeddings:
        vectors = read_embeddings(Path(embeddings), dataset.item_ids)
        return cosine_distance(vectors), "embeddings"
    if semantic_ids is not None:
        return prefix_distance(semantic_ids), "semantic IDs"
    return None, "nothing"


class Lists(NamedTuple):
    """The lists of some cases, and what their protocol says of how they were made.

    items_CK: int64, -1 is no item. scores_CK: float. num_ranked: how many items a list could have;
    it says nothing about a larger K.
    """

    cases: Cases
    candidates: str
    items_CK: np.ndarray
    scores_CK: np.ndarray
    num_ranked: int
    facts: dict[str, Any]


def main(argv: list[str]) -> None:
    # Mistakes of the user are found first, before a model is read.
    arguments = parse_arguments(argv)
    output = Path(arguments.output or Path(arguments.model) / "ranking.json")
    if rank() == 0:  # Only rank 0 writes. The launcher ends the others.
        check_ranking(output)
        if arguments.save_lists:
            check_file(arguments.save_lists)
    if arguments.save_lists:
        check_suffix(Path(arguments.save_lists))
    if arguments.model:
        config = data_config(arguments.model, arguments.data)
    else:
        config = build_section(DataConfig, {"data": (arguments.data or "", "--data")})
    if arguments.lists:
        dataset = read_data(config)
        distance, diversity_over = item_distance(dataset, None, arguments.embeddings)
        lists = lists_of_file(arguments, dataset)
    else:
        task = load_task(config)
        dataset = task.dataset
        distance, diversity_over = item_distance(dataset, task.semantic_ids, arguments.embeddings)
        lists = lists_of_model(arguments, task)
    if rank() != 0:
        return

    cutoffs = [k for k in CUTOFFS if k <= lists.num_ranked]
    cases = lists.cases
    target_ranks = target_ranks_from_lists(lists.items_CK, lists.scores_CK, cases)
    measured = measure(dataset, cases, lists.items_CK, target_ranks, cutoffs, distance)

    # Numbers of two protocols must not be compared, so the protocol is written beside the metrics.
    protocol = protocol_of(
        dataset,
        cases,
        arguments.split,
        lists.candidates,
        data=config.data,
        **lists.facts,
        diversity_over=diversity_over,
    )
    try:
        write_ranking(output, measured, protocol, target_ranks)
        if arguments.save_lists:
            save_lists(Path(arguments.save_lists), dataset, lists)
    finally:
        # The tables are printed even if the files cannot be written: the work must not be lost.
        print_tables(name_of(arguments), measured, arguments.by)
    if not arguments.lists and output.parent.resolve() == Path(arguments.model).resolve():
        record_results(output.parent, dataset.name, measured.metrics, protocol)


def name_of(arguments: argparse.Namespace) -> str:
    """What the table calls the lists."""
    if arguments.lists:
        return Path(arguments.lists).stem
    return Path(arguments.model).parent.name or arguments.model


def lists_of_model(arguments: argparse.Namespace, task: RecommendationTask) -> Lists:
    """Every case of the chosen users is ranked once, by all processes together."""
    device = start_processes()
    settings = ModelConfig(
        model=arguments.model,
        base=arguments.base,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    trained = open_trained(settings, task, device)
    cases = of_some_users(task.dataset.evaluation(arguments.split), arguments.num_users)
    candidates = choose_candidates(arguments.candidates, task.dataset.sequences)
    items_CK, scores_CK = rank_cases(
        trained.model,
        EvaluationSamples(cases, trained.builder),
        item_trie(trained.builder).to(device),
        trained.pad_token_id,
        arguments.num_beams,
        arguments.batch_size,
        device,
        candidates,
    )
    facts = {
        "num_beams": arguments.num_beams,
        "checkpoint": str(Path(arguments.model).resolve()),
        "dtype": str(trained.model.dtype).split(".")[-1],
        "score_dtype": "float32",
    }
    lists = items_CK.numpy(), scores_CK.numpy()
    return Lists(cases, candidates, *lists, arguments.num_beams, facts)


def lists_of_file(arguments: argparse.Namespace, dataset: InteractionDataset) -> Lists:
    """The lists that --lists names, under the rules for a model's: no item of the history if the
    candidates are unseen."""
    cases = of_some_users(dataset.evaluation(arguments.split), arguments.num_users)
    candidates = choose_candidates(arguments.candidates, dataset.sequences)
    path = Path(arguments.lists)
    items_CK, scores_CK = read_lists(path, dataset, cases)
    if candidates == "unseen":
        items_CK = drop_history_from_lists(torch.from_numpy(items_CK), cases.histories).numpy()
    facts = {"method": path.stem, "lists": str(path.resolve())}
    return Lists(cases, candidates, items_CK, scores_CK, items_CK.shape[1], facts)


def save_lists(path: Path, dataset: InteractionDataset, lists: Lists) -> None:
    """A record for each case: a user with several has several, oldest first."""
    catalogue = Catalogue(dataset)
    users = (dataset.user_ids[number] for number in lists.cases.users.tolist())
    pairs = zip(lists.items_CK, lists.scores_CK, strict=True)
    ranked = (ranked_list(catalogue, items, scores, lists.num_ranked) for items, scores in pairs)
    write_lists(path, users, ranked)


def print_tables(name: str, measured: Measured, grouped_by: list[str]) -> None:
    columns = compared_columns(measured.metrics)
    print(format_table({name: measured.metrics}, columns))
    print(f"\n{format_cutoffs(measured.metrics)}", flush=True)
    for by in grouped_by:
        print(f"\nby {by}\n{format_groups(measured.groups[by], columns)}", flush=True)


if __name__ == "__main__":
    run_entry(main)

"""Rank the full catalogue for every user by trie-constrained beam search, and measure the lists.

    # one process
    ilrec rank --model runs/stage2/final --data DIR --split test --num_beams 20

    # two ranks, which share the users; torchrun starts it, too
    deepspeed --num_gpus 2 ilrec/rank.py --model runs/stage2/final --data DIR

--model is the final/ of a run (adapter or full model) or a merged model. Two files are written
beside the model's weights, or at --output: ranking.json (metrics, also of groups, and the protocol
that they were measured under) and ranking.npz (the rank of every target). Older ones are replaced,
both or neither. A model card beside the weights gets the metrics, too. Each user, or each of
--num_users, is ranked exactly once. docs/metrics.md defines the metrics.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# A script's own folder is first on sys.path. The package lies in the folder above.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import answer_help
from ilrec.config.parsers import rank_parser

if __name__ == "__main__":
    answer_help(rank_parser(__doc__))

import numpy as np

from ilrec.config.sections import ModelConfig
from ilrec.errors import InputError
from ilrec.items.embeddings import read_embeddings
from ilrec.processes import rank, run_entry, start_processes
from ilrec.ranking.beyond_accuracy import Distance, cosine_distance, prefix_distance
from ilrec.ranking.candidates import choose_candidates
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
    targets_digest,
    write_ranking,
)
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import RecommendationTask, item_trie, load_task
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
    return arguments


def item_distance(task: RecommendationTask, embeddings: str | None) -> tuple[Distance | None, str]:
    """(how far apart two items are, what that is measured over). None for items without semantic
    IDs and embeddings."""
    if embeddings:
        vectors = read_embeddings(Path(embeddings), task.dataset.item_ids)
        return cosine_distance(vectors), "embeddings"
    if task.semantic_ids is not None:
        return prefix_distance(task.semantic_ids), "semantic IDs"
    return None, "nothing"


def main(argv: list[str]) -> None:
    # Mistakes of the user are found first, before a model is read.
    arguments = parse_arguments(argv)
    output = Path(arguments.output or Path(arguments.model) / "ranking.json")
    if rank() == 0:  # Only rank 0 writes. The launcher ends the others.
        check_ranking(output)
    config = data_config(arguments.model, arguments.data)
    task = load_task(config)
    distance, diversity_over = item_distance(task, arguments.embeddings)
    device = start_processes()

    settings = ModelConfig(
        model=arguments.model,
        base=arguments.base,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    trained = open_trained(settings, task, device)

    # Every case of the chosen users is ranked once.
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
    if rank() != 0:
        return

    # A list of num_beams items says nothing about a larger K.
    cutoffs = [k for k in CUTOFFS if k <= arguments.num_beams]
    target_ranks = target_ranks_from_lists(items_CK.numpy(), scores_CK.numpy(), cases)
    measured = measure(task.dataset, cases, items_CK.numpy(), target_ranks, cutoffs, distance)

    # Numbers of two protocols must not be compared, so the protocol is written beside the metrics.
    protocol = protocol_of(
        arguments.split,
        len(np.unique(cases.users)),
        candidates,
        task.dataset.num_items,
        num_beams=arguments.num_beams,
        data=config.data,
        checkpoint=str(Path(arguments.model).resolve()),
        dtype=str(trained.model.dtype).split(".")[-1],
        score_dtype="float32",
        diversity_over=diversity_over,
        targets_sha256=targets_digest(cases),
        **task.dataset.ranking_facts(arguments.split, cases),
    )
    name = Path(arguments.model).parent.name or arguments.model
    try:
        write_ranking(output, measured, protocol, target_ranks)
    finally:
        # The tables are printed even if the files cannot be written: the work must not be lost.
        print_tables(name, measured, arguments.by)
    if output.parent.resolve() == Path(arguments.model).resolve():
        record_results(output.parent, task.dataset.name, measured.metrics, protocol)


def print_tables(name: str, measured: Measured, grouped_by: list[str]) -> None:
    columns = compared_columns(measured.metrics)
    print(format_table({name: measured.metrics}, columns))
    print(f"\n{format_cutoffs(measured.metrics)}", flush=True)
    for by in grouped_by:
        print(f"\nby {by}\n{format_groups(measured.groups[by], columns)}", flush=True)


if __name__ == "__main__":
    run_entry(main)

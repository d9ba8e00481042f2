"""Recommend items to users: all users of the data, some of them, or histories from a file.

    # one process: what every user of the data might want next
    ilrec recommend --model runs/merged --output lists.jsonl

    # two ranks, which share the users; torchrun starts it, too
    deepspeed --num_gpus 2 ilrec/recommend.py --model runs/merged --data DIR --output lists.parquet

    # users that the data does not have
    ilrec recommend --model runs/merged --histories new_users.jsonl --output lists.jsonl

--model is the final/ of a run (adapter or full model) or a merged model. The output has a record
for each user: its items with rank, id, title, score (log-probability) and probability (within the
list). The lists are those of ilrec/rank.py. A job that died goes on where it was if the same
command is given again. docs/recommend.md describes inputs and outputs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# A script's own folder is first on sys.path. The package lies in the folder above.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import answer_help
from ilrec.config.parsers import HISTORIES, recommend_parser

if __name__ == "__main__":
    answer_help(recommend_parser(__doc__))

import numpy as np

from ilrec.config.sections import ModelConfig
from ilrec.errors import InputError
from ilrec.files.digests import file_digest
from ilrec.files.outputs import check_directory, check_file
from ilrec.model.source import find_model
from ilrec.processes import rank, run_entry, start_processes
from ilrec.samples.task import RecommendationTask
from ilrec.serving.catalogue import Catalogue
from ilrec.serving.histories import Histories, of_split, of_users, read_histories, read_ids
from ilrec.serving.job import Job
from ilrec.serving.lists import check_suffix
from ilrec.serving.recommender import AUTO, HISTORY, Recommender, checked_beams
from ilrec.serving.trained import open_trained, served_task, weights_of

NONE = "none"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    arguments = recommend_parser(__doc__).parse_args(argv)
    inputs = [arguments.users, arguments.histories, arguments.split != HISTORIES[0]]
    if sum(map(bool, inputs)) > 1:
        raise InputError("--users, --histories, --split: expected one of them")
    rules = [word for word in arguments.exclude if word in (AUTO, HISTORY, NONE)]
    if len(rules) > 1:
        raise InputError(f"--exclude: expected one of auto, history and none, got {rules}")
    rule = rules[0] if rules else AUTO
    arguments.exclude_rule = None if rule == NONE else rule
    arguments.exclude = [Path(word) for word in arguments.exclude if word not in rules]
    return arguments


def main(argv: list[str]) -> None:
    # Mistakes of the user are found first, before a model is read.
    arguments = parse_arguments(argv)
    num_beams = checked_beams(arguments.top_k, arguments.num_beams)
    job = Job(Path(arguments.output))
    if rank() == 0:  # Only rank 0 writes the output. The launcher ends the others.
        check_file(job.output)
        check_directory(job.parts)
    check_suffix(job.output)
    settings = ModelConfig(
        model=arguments.model,
        base=arguments.base,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    source = find_model(settings.model, settings.base)
    task = served_task(arguments.model, arguments.data)
    catalogue = Catalogue(task.dataset)
    only, without = candidate_files(arguments, catalogue)
    device = start_processes()

    # The histories, and what an earlier try has left.
    decisive = {**settings_of(arguments, num_beams, task), "weights": weights_of(source)}
    if arguments.histories:
        path = Path(arguments.histories)
        job.begin(decisive, lambda: read_histories(path, catalogue, arguments.unknown))
        histories = job.kept_histories()
    else:
        histories = users_of_data(arguments, task)
        job.begin(decisive)

    recommender = Recommender(open_trained(settings, task, device), catalogue)
    request = recommender.request(arguments.top_k, num_beams, arguments.exclude_rule, only, without)
    job.run(recommender, request, histories, arguments.batch_size)
    if rank() == 0:
        print(f"{job.output}: {len(histories):,} users", flush=True)


def candidate_files(
    arguments: argparse.Namespace, catalogue: Catalogue
) -> tuple[np.ndarray | None, np.ndarray]:
    """(the items of --only, those of the files of --exclude), as numbers."""

    def numbers(path: Path) -> np.ndarray:
        return catalogue.numbers(read_ids(path), str(path), arguments.unknown)

    only = numbers(Path(arguments.only)) if arguments.only else None
    excluded = [numbers(path) for path in arguments.exclude]
    return only, np.concatenate([np.empty(0, dtype=np.int64), *excluded])


def users_of_data(arguments: argparse.Namespace, task: RecommendationTask) -> Histories:
    if not task.dataset.num_users:
        raise InputError(
            f"{task.config.data} is not there, so that no users are known; give --data DIR, or "
            "--histories FILE"
        )
    if arguments.users:
        return of_users(task.dataset, Path(arguments.users), arguments.unknown)
    return of_split(task.dataset, arguments.split)


def settings_of(
    arguments: argparse.Namespace, num_beams: int, task: RecommendationTask
) -> dict[str, Any]:
    """What decides the lists, beside the weights."""
    files = {"users": arguments.users, "histories": arguments.histories, "only": arguments.only}
    digests = {name: content_of(path) if path else "" for name, path in files.items()}
    excluded = [content_of(path) for path in arguments.exclude]
    return {
        "output format": Path(arguments.output).suffix,
        **{name: facts["sha256"] for name, facts in task.identity().items()},
        "split": arguments.split,
        **digests,
        "exclude": [arguments.exclude_rule or NONE, *excluded],
        "unknown": arguments.unknown,
        "top_k": arguments.top_k,
        "num_beams": num_beams,
        "dtype": arguments.dtype,
    }


def content_of(path: str | Path) -> str:
    """A digest of a file's content. Raises InputError if it cannot be read."""
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


if __name__ == "__main__":
    run_entry(main)

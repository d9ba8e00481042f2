"""Prepare raw interactions: one directory, which training and ranking memory-map. docs/data.md
describes it.

    ilrec prepare --preset amazon_2023 --interactions Office.jsonl.gz \\
        --items meta_Office.jsonl.gz --output data/office
    ilrec prepare --interactions a.csv b.csv --user_column user --item_column item \\
        --time_column ts --output data/mine
    ilrec prepare --dataset HUB_NAME_OR_DIR --preset amazon_2023 --output data/office
    ilrec prepare --interactions LCREC_OR_RECBOLE_DIR --output data/theirs

Files are JSON lines, CSV, TSV (each also .gz) or Parquet; their names say which. In TSV files a
quote is a character like any other, unless --quoted_tsv is given. They are read line by line: in
memory are 16 bytes for each interaction (user 4, item 4, time 8; 24 if times have fractions) and
each user's and item's name once.

A malformed line is reported as FILE:LINE. It ends the import, or is skipped, up to --max_bad_lines
of them. The output is complete or not there, even if the import is interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from ilrec.config.command_line import ArgumentParser
from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.files.outputs import check_new
from ilrec.interactions.dataset import MIN_ITEMS_PER_USER, InteractionDataset
from ilrec.interactions.dataset_sources import DatasetSource
from ilrec.interactions.findings import Findings
from ilrec.interactions.importers import PRESETS, Columns, read_files, read_titles
from ilrec.interactions.preparation import (
    Filters,
    format_statistics,
    prepare,
    statistics,
    with_titles,
)
from ilrec.interactions.prepared import new_directory, write_prepared
from ilrec.interactions.reading import read_interactions

logger = logging.getLogger("ilrec.prepare")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--interactions",
        nargs="+",
        type=Path,
        help="files, or one LC-Rec or RecBole directory",
    )
    source.add_argument(
        "--dataset",
        metavar="NAME_OR_DIR",
        help="what the library datasets reads: a name on the hub, a directory of Parquet, CSV or "
        "JSON files, or one that save_to_disk wrote",
    )
    parser.add_argument(
        "--dataset_config", default=DatasetSource.config, help="of --dataset (default: its own)"
    )
    parser.add_argument(
        "--dataset_split",
        default=DatasetSource.split,
        help=f"of --dataset (default {DatasetSource.split})",
    )
    parser.add_argument("--items", type=Path, help="file with the items' titles")
    parser.add_argument(
        "--output", required=True, type=Path, help="directory to write; new or empty"
    )
    parser.add_argument("--name", help="of the data set (default: the output directory's)")
    add_format_options(parser)
    add_filter_options(parser)
    return parser.parse_args(argv)


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """How the files are read."""
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="the column names of a well-known release"
    )
    columns = parser.add_argument_group("names of the columns, if no preset names them")
    for field in dataclasses.fields(Columns):
        columns.add_argument(f"--{field.name}_column")
    # None, not False, if it is not given: import_directory can then refuse it.
    parser.add_argument(
        "--quoted_tsv",
        action="store_true",
        default=None,
        help="fields of TSV files may be quoted, as pandas writes them; without this, a quote is "
        "a character",
    )
    parser.add_argument(
        "--max_bad_lines",
        type=int,
        default=0,
        help="how many malformed lines are skipped before the import ends (default 0)",
    )


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """Which interactions are kept."""
    filters = parser.add_argument_group("filters (docs/data.md: what, and in which order)")
    filters.add_argument(
        "--k_core",
        type=int,
        help=f"least interactions of a user and of an item (default {DataConfig().k_core})",
    )
    filters.add_argument(
        "--repeats",
        choices=("first", "all"),
        help="which of a user's interactions with the same item are kept (default first)",
    )
    filters.add_argument(
        "--min_items",
        type=int,
        help=f"least items of a user (default {MIN_ITEMS_PER_USER}; fewer help split_time alone)",
    )
    filters.add_argument(
        "--max_items", type=int, help="keep only so many of a user's newest items (default: all)"
    )
    filters.add_argument("--min_rating", type=float, help="leave out interactions rated lower")


def named_columns(arguments: argparse.Namespace) -> Columns:
    """The preset's columns, or those that are named. Raises InputError if one is missing."""
    given = {}
    for field in dataclasses.fields(Columns):
        name = getattr(arguments, f"{field.name}_column")
        if name is not None:
            given[field.name] = name
    if arguments.preset:
        return dataclasses.replace(PRESETS[arguments.preset], **given)

    # The file of titles usually calls the item as the interactions do.
    given.setdefault("title_item", given.get("item", ""))
    given.setdefault("title", "title")
    needed = ["user", "item", "time"]
    if arguments.min_rating is not None:
        needed.append("rating")
    for column in needed:
        if column not in given:
            raise InputError(
                f"--{column}_column: not set; name the file's column, or give --preset "
                f"({', '.join(sorted(PRESETS))})"
            )
    return Columns(**given)


def check_paths(arguments: argparse.Namespace) -> None:
    """Raises InputError for a mistake that would otherwise be found after an hour of reading."""
    check_new(arguments.output)
    paths = list(arguments.interactions or [])
    if arguments.items:
        paths.append(arguments.items)
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")


def named_filters(arguments: argparse.Namespace) -> Filters:
    """The filters that are given, and the defaults of the others."""
    # Options that are not given are None: the defaults stand in Filters alone.
    given = {}
    for field in dataclasses.fields(Filters):
        value = getattr(arguments, field.name)
        if value is not None:
            given[field.name] = value
    return Filters(**given)


def import_files(
    arguments: argparse.Namespace, findings: Findings
) -> tuple[InteractionDataset, dict[str, int]]:
    """The data set of the files after all filters, and how many interactions each of them
    removed."""
    # Options are checked before the files are read, which takes minutes for large ones.
    columns = named_columns(arguments)
    filters = named_filters(arguments)
    quoted = bool(arguments.quoted_tsv)
    sources = arguments.interactions
    if arguments.dataset:
        sources = [
            DatasetSource(arguments.dataset, arguments.dataset_config, arguments.dataset_split)
        ]
    raw = read_files(sources, columns, findings, arguments.min_rating, quoted)
    logger.info(
        "%s interactions of %s users with %s items read",
        f"{len(raw.users):,}",
        f"{len(raw.user_names):,}",
        f"{len(raw.item_names):,}",
    )
    dataset, removed = prepare(raw, arguments.name or arguments.output.resolve().name, filters)
    # Titles are read last, so that only those of the items that are left are kept in memory.
    if arguments.items is not None:
        titles = read_titles(arguments.items, columns, dataset.item_ids, findings, quoted)
        dataset = with_titles(dataset, titles)
    return dataset, {"below min_rating": raw.num_below_rating, **removed}


def import_directory(arguments: argparse.Namespace) -> InteractionDataset:
    """An LC-Rec or RecBole directory as it is: published data is filtered already, apart from
    RecBole's, which gets its k-core here."""
    options = ("items", "preset", "repeats", "min_items", "max_items", "min_rating", "quoted_tsv")
    ignored = [name for name in options if getattr(arguments, name) is not None]
    if len(arguments.interactions) > 1:
        ignored.append("interactions")
    if ignored:
        raise InputError(
            f"--{ignored[0]}: not with a directory, which is taken as it is; expected "
            "--interactions DIRECTORY alone (and --k_core for RecBole files)"
        )
    k_core = DataConfig().k_core if arguments.k_core is None else arguments.k_core
    dataset = read_interactions(arguments.interactions[0], k_core)
    return dataclasses.replace(dataset, name=arguments.name or dataset.name)


def write(
    dataset: InteractionDataset, output: Path, about: dict[str, Any], indices: list[Path]
) -> None:
    """Writes the prepared directory with its semantic IDs, or nothing."""
    # Semantic IDs are found by the items' ids, which stay as they are.
    with new_directory(output) as beside:
        write_prepared(dataset, beside, about)
        for index in indices:
            shutil.copyfile(index, beside / index.name)


def main(argv: list[str]) -> None:
    # SLURM ends a job with SIGTERM, which by itself ends Python at once. An exit cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments = parse_arguments(argv)
    check_paths(arguments)
    findings = Findings(arguments.max_bad_lines)
    # A directory of a published data set is taken as it is; files go through all filters.
    about: dict[str, Any] = {"command": [Path(sys.argv[0]).name, *argv]}
    removed: dict[str, int] = {}
    indices: list[Path] = []
    if arguments.interactions and arguments.interactions[0].is_dir():
        dataset = import_directory(arguments)
        indices = sorted(arguments.interactions[0].glob("*.index.json"))
    else:
        dataset, removed = import_files(arguments, findings)
        filters = dataclasses.asdict(named_filters(arguments))
        about["filters"] = {**filters, "min_rating": arguments.min_rating}

    # What the table shows is also recorded in dataset.json.
    found: dict[str, Any] = statistics(dataset) | findings.report()
    for step, count in removed.items():
        if count:
            found[f"removed by {step}"] = count
    found["users left out"] = dataset.num_dropped_users
    about["statistics"] = found
    # The table is printed even if the directory cannot be written: reading took long.
    try:
        write(dataset, arguments.output, about, indices)
    finally:
        print(format_statistics(found), flush=True)

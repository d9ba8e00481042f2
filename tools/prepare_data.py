"""Raw interactions -> one prepared directory, which training and ranking memory-map. docs/data.md
says what is in it.

    python tools/prepare_data.py --preset amazon_2023 --interactions Office.jsonl.gz --items
    meta_Office.jsonl.gz --output data/office python tools/prepare_data.py --interactions a.csv
    b.csv --user_column user --item_column item --time_column ts --output data/mine python
    tools/prepare_data.py --interactions LCREC_OR_RECBOLE_DIR --output data/theirs

Files are JSON lines, CSV, TSV (each also .gz) or Parquet, as their names say; in TSV a quote is a
character, unless --quoted_tsv. A malformed line is named and ends the import, or is skipped up to
--max_bad_lines; nothing half written remains, also when the import is interrupted.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.config.command_line import ArgumentParser
from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.files.outputs import check_new
from ilrec.interactions.dataset import MIN_ITEMS_PER_USER, InteractionDataset
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
from ilrec.processes import run_entry

logger = logging.getLogger("ilrec.prepare")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--interactions",
        required=True,
        nargs="+",
        type=Path,
        help="files, or one LC-Rec or RecBole directory",
    )
    parser.add_argument("--items", type=Path, help="file of titles")
    parser.add_argument(
        "--output", required=True, type=Path, help="directory to write; new or empty"
    )
    parser.add_argument("--name", help="of the data set (default: the output directory's)")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="the columns of a well-known release"
    )
    columns = parser.add_argument_group("columns, where no preset names them")
    for field in dataclasses.fields(Columns):
        columns.add_argument(f"--{field.name}_column")
    filters = parser.add_argument_group("filters (docs/data.md: what, and in which order)")
    filters.add_argument(
        "--k_core",
        type=int,
        help=f"least interactions of a user and an item (default {DataConfig().k_core})",
    )
    filters.add_argument(
        "--repeats",
        choices=("first", "all"),
        help="of a user's interactions with one item (default first)",
    )
    filters.add_argument(
        "--min_items",
        type=int,
        help=f"least items of a user (default and least: {MIN_ITEMS_PER_USER})",
    )
    filters.add_argument(
        "--max_items", type=int, help="keep only so many of a user's newest items (default: all)"
    )
    filters.add_argument("--min_rating", type=float, help="leave out interactions rated lower")
    parser.add_argument(
        "--quoted_tsv",
        action="store_true",
        default=None,
        help="fields of TSV files may be quoted, as pandas writes them; else a quote is a character",
    )
    parser.add_argument(
        "--max_bad_lines", type=int, default=0, help="malformed lines to skip before giving up"
    )
    return parser.parse_args(argv)


def named_columns(arguments: argparse.Namespace) -> Columns:
    """The preset's columns, or those named; what is missing is said."""
    given = {
        field.name: getattr(arguments, f"{field.name}_column")
        for field in dataclasses.fields(Columns)
    }
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.preset:
        return dataclasses.replace(PRESETS[arguments.preset], **given)
    given.setdefault("title_item", given.get("item", ""))
    given.setdefault("title", "title")
    missing = [name for name in ("user", "item", "time") if name not in given]
    if missing or (arguments.min_rating is not None and "rating" not in given):
        names = missing or ["rating"]
        raise InputError(
            f"--{names[0]}_column: not set; name the file's column, or give --preset ({', '.join(sorted(PRESETS))})"
        )
    return Columns(**given)


def check_paths(arguments: argparse.Namespace) -> None:
    """What would otherwise be found out after an hour of reading."""
    check_new(arguments.output)
    for path in (*arguments.interactions, *filter(None, [arguments.items])):
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")


def named_filters(arguments: argparse.Namespace) -> Filters:
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Filters)}
    return Filters(**{name: value for name, value in given.items() if value is not None})


def import_files(
    arguments: argparse.Namespace, findings: Findings
) -> tuple[InteractionDataset, dict[str, int]]:
    """Files through all filters; how many interactions each removed."""
    columns, filters, quoted = (
        named_columns(arguments),
        named_filters(arguments),
        bool(arguments.quoted_tsv),
    )
    raw = read_files(arguments.interactions, columns, findings, arguments.min_rating, quoted)
    logger.info(
        "%s interactions of %s users with %s items read",
        f"{len(raw.users):,}",
        f"{len(raw.user_names):,}",
        f"{len(raw.item_names):,}",
    )
    dataset, removed = prepare(raw, arguments.name or arguments.output.resolve().name, filters)
    if arguments.items is not None:
        titles = read_titles(arguments.items, columns, dataset.item_ids, findings, quoted)
        dataset = with_titles(dataset, titles)
    return dataset, {"below min_rating": raw.num_below_rating, **removed}


def import_directory(arguments: argparse.Namespace) -> InteractionDataset:
    """An LC-Rec or RecBole directory as it is: published data are filtered already (RecBole's get
    their k-core)."""
    names = ("items", "preset", "repeats", "min_items", "max_items", "min_rating", "quoted_tsv")
    ignored = [name for name in names if getattr(arguments, name) is not None]
    if ignored or len(arguments.interactions) > 1:
        raise InputError(
            f"--{(ignored or ['interactions'])[0]}: not with a directory, which is taken as it is; expected "
            "--interactions DIRECTORY alone (and --k_core for RecBole files)"
        )
    k_core = DataConfig().k_core if arguments.k_core is None else arguments.k_core
    dataset = read_interactions(arguments.interactions[0], k_core)
    return dataclasses.replace(dataset, name=arguments.name or dataset.name)


def write(
    dataset: InteractionDataset, output: Path, about: dict[str, Any], indices: list[Path]
) -> None:
    """The prepared directory, semantic IDs and all, or nothing."""
    with new_directory(output) as beside:
        write_prepared(dataset, beside, about)
        for index in indices:
            shutil.copyfile(index, beside / index.name)


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    check_paths(arguments)
    findings = Findings(arguments.max_bad_lines)
    removed: dict[str, int] = {}
    directory = arguments.interactions[0] if arguments.interactions[0].is_dir() else None
    if directory:
        dataset = import_directory(arguments)
    else:
        dataset, removed = import_files(arguments, findings)
    found: dict[str, Any] = statistics(dataset) | findings.report()
    found |= {f"removed by {step}": count for step, count in removed.items() if count}
    found["users left out"] = dataset.num_dropped_users
    about: dict[str, Any] = {"command": [Path(sys.argv[0]).name, *argv], "statistics": found}
    if not directory:
        about["filters"] = dataclasses.asdict(named_filters(arguments)) | {
            "min_rating": arguments.min_rating
        }
    try:
        write(
            dataset,
            arguments.output,
            about,
            sorted(directory.glob("*.index.json")) if directory else [],
        )
    finally:
        print(format_statistics(found), flush=True)


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # an exit cleans up; the signal's own end does not
    run_entry(main)

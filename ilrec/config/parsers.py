"""The command lines of ilrec/train.py, ilrec/rank.py and ilrec/recommend.py.

They lie apart from the programs so that `--help` is answered before torch and transformers are
imported, which takes seconds.
"""

from __future__ import annotations

import argparse

from ilrec.config.command_line import ArgumentParser
from ilrec.config.evaluation import NUM_BEAMS
from ilrec.config.sasrec import CANDIDATES
from ilrec.config.sections import DTYPES, SECTIONS, ModelConfig

# The flag of a dry run. Unlike all others of ilrec/train.py it takes no value.
CHECK = "--check"
# Users per batch and rank, of ranking and recommending.
BATCH_SIZE = 64
# Items recommended to each user.
TOP_K = 10
# What happens to ids that are not in the catalogue.
UNKNOWN = ("error", "skip")
# Which histories of the data directory are recommended for.
HISTORIES = ("all", "valid", "test")


def train_parser(description: str | None) -> ArgumentParser:
    """description: the help's first lines, the program's docstring."""
    parser = ArgumentParser(
        description,
        epilog="Every other field of transformers.TrainingArguments may be given, too, under its "
        "own name\n(docs/fields.md).",
    )
    parser.add_argument("--config", help="recipe (YAML)")
    parser.add_argument(
        "--ds_config", "--deepspeed", dest="ds_config", help="DeepSpeed configuration (JSON)"
    )
    # The deepspeed launcher gives every rank this flag. The environment has the number, too.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument(
        CHECK, action="store_true", help="a dry run: report, train and write nothing"
    )
    for section, cls in SECTIONS.items():
        parser.add_fields(section, cls)
    return parser


def rank_parser(description: str | None) -> ArgumentParser:
    """description: the help's first lines, the program's docstring."""
    parser = ArgumentParser(description)
    _add_model(parser, required=False)  # --lists takes its place.
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument(
        "--candidates",
        choices=CANDIDATES,
        default="auto",
        help="all; unseen: no item of the history; auto: unseen if no user of the data has an item "
        "twice",
    )
    parser.add_argument(
        "--num_beams",
        type=int,
        default=NUM_BEAMS,
        help="items ranked per user; metrics go up to this K",
    )
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, help="users per batch and rank"
    )
    parser.add_argument(
        "--num_users",
        type=int,
        default=0,
        help="only so many users, evenly spread over the data's; 0: all",
    )
    parser.add_argument(
        "--by",
        default="",
        metavar="WHAT[,WHAT]",
        help="also print the metrics of groups by history or popularity (docs/metrics.md)",
    )
    parser.add_argument(
        "--embeddings",
        help="FILE.npy with FILE.ids.json: the diversity of lists is measured over these item "
        "embeddings (default: over semantic IDs)",
    )
    _add_model_flags(parser)
    parser.add_argument(
        "--output", help="where to write; what is there is replaced (default: MODEL/ranking.json)"
    )
    parser.add_argument(
        "--save_lists", metavar="FILE", help="also write the lists: FILE.jsonl or FILE.parquet"
    )
    parser.add_argument(
        "--lists",
        metavar="FILE",
        help="measure these lists in place of a model's (docs/recommend.md); give --data and "
        "--output, and --model only for how its data was split",
    )
    return parser


def recommend_parser(description: str | None) -> ArgumentParser:
    """description: the help's first lines, the program's docstring."""
    parser = ArgumentParser(description)
    _add_model(parser)
    parser.add_argument(
        "--output", required=True, help="FILE.jsonl or FILE.parquet; what is there is replaced"
    )
    parser.add_argument(
        "--users", help="only these users of the data: a text file, one id on each line"
    )
    parser.add_argument(
        "--histories",
        help="histories of other users, by item ids: JSON lines, CSV, TSV or Parquet "
        "(docs/recommend.md)",
    )
    parser.add_argument(
        "--split",
        choices=HISTORIES,
        default=HISTORIES[0],
        help="histories of the data's users: all items (all), or those before the targets of a "
        "split",
    )
    parser.add_number("--top_k", int, at_least=1, default=TOP_K, help="items for each user")
    parser.add_number(
        "--num_beams",
        int,
        at_least=1,
        help=f"width of the search (default: {NUM_BEAMS}, as in ranking, or top_k if that is more)",
    )
    parser.add_number(
        "--batch_size", int, at_least=1, default=BATCH_SIZE, help="users per batch and rank"
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=["auto"],
        metavar="WHAT",
        help="history: no item of a user's history; none: every item may come; auto: history if no "
        "user of the data has an item twice; and files with ids of items that nobody gets, one on "
        "each line",
    )
    parser.add_argument(
        "--only", metavar="FILE", help="ids of the items that may be recommended, one on each line"
    )
    parser.add_argument(
        "--unknown",
        choices=UNKNOWN,
        default=UNKNOWN[0],
        help="what happens to users and items that are not known: error, or skip",
    )
    _add_model_flags(parser)
    return parser


def _add_model(parser: ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--model", required=required, help="final/ of a run, or a merged model directory"
    )
    parser.add_argument(
        "--data", help="data directory (default: the one that the model was trained on)"
    )


def _add_model_flags(parser: ArgumentParser) -> None:
    """How the model is loaded."""
    parser.add_argument("--base", default="", help="the adapter's base model, if it has been moved")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=ModelConfig().dtype,
        help="of the weights; auto: bfloat16 on CUDA, float32 on the CPU. Logits and scores are "
        "float32",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the base model"
    )
    # The deepspeed launcher gives every rank this flag. The environment has the number, too.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)

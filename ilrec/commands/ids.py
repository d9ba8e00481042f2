"""Build semantic IDs: residual k-means over item embeddings, no two items with the same code.

    ilrec ids --data DIR \\
        --embeddings runs/sasrec/item_embeddings.npy --output DIR/ids.index.json

--embeddings: an array [items, dims] NAME.npy, made by any model, and beside it NAME.ids.json, a
JSON list with the item id of each row. The rows may be in any order. `ilrec sasrec` writes
both files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.config.sections import DataConfig
from ilrec.files.outputs import check_file
from ilrec.interactions.reading import read_interactions
from ilrec.items.embeddings import read_embeddings
from ilrec.items.quantizer import codebook_use, residual_kmeans
from ilrec.items.semantic_ids import format_codes, resolve_collisions, write_semantic_ids


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--data",
        required=True,
        help="data directory: prepared by `ilrec prepare`, LC-Rec JSON or RecBole files",
    )
    parser.add_argument(
        "--embeddings", required=True, type=Path, help="NAME.npy, with NAME.ids.json beside it"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="index file to write (*.index.json), in place of an older one",
    )
    parser.add_argument("--num_levels", type=int, default=3, help="codes per item")
    parser.add_argument("--codebook_size", type=int, default=64, help="codes per level")
    parser.add_argument(
        "--k_core",
        type=int,
        default=DataConfig().k_core,
        help="RecBole files only: least interactions of a user and of an item",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the k-means")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    # Clustering a large catalogue takes minutes: an output that cannot be written is refused first.
    check_file(arguments.output)
    dataset = read_interactions(arguments.data, arguments.k_core)
    # read_embeddings puts the rows into the data's order of items.
    embeddings_ID = read_embeddings(arguments.embeddings, dataset.item_ids)
    # Each level clusters what the level before left over: the codes go from coarse to fine.
    codes_IL = residual_kmeans(
        embeddings_ID, arguments.num_levels, arguments.codebook_size, arguments.seed
    )
    # Items that k-means could not tell apart get one more token.
    plain = format_codes(codes_IL)
    semantic_ids = resolve_collisions(plain)
    write_semantic_ids(arguments.output, dataset.item_ids, semantic_ids)

    # A level of which a small share is used hardly tells items apart.
    shares = codebook_use(codes_IL, arguments.codebook_size)
    use = ", ".join(f"{share:.0%}" for share in shares)
    num_extra = sum(before != after for before, after in zip(plain, semantic_ids, strict=True))
    print(
        f"{arguments.output}: {dataset.num_items} items, {arguments.num_levels} levels of "
        f"{arguments.codebook_size} codes; use per level {use}; {num_extra} items needed an extra "
        "token; collisions left: 0",
        flush=True,
    )

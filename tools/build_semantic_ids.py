"""Build semantic IDs: residual k-means over item embeddings, no two items with the same code.

    python tools/build_semantic_ids.py --data DIR --embeddings runs/sasrec/item_embeddings.npy --output ids.index.json

--embeddings: a float array [items, dims] (.npy) in the data's item order, as tools/train_sasrec.py writes it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.config import DataConfig
from ilrec.data.interactions import read_interactions
from ilrec.entry import run_entry
from ilrec.errors import InputError
from ilrec.items.quantizer import codebook_use, residual_kmeans
from ilrec.items.semantic_ids import format_codes, resolve_collisions, write_semantic_ids
from ilrec.outputs import check_file

logger = logging.getLogger("ilrec.semantic_ids")


def read_embeddings(path: Path, num_items: int) -> np.ndarray:
    try:
        embeddings_ID = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--embeddings: {path} cannot be read as a .npy array: {error}") from None
    if embeddings_ID.ndim != 2 or len(embeddings_ID) != num_items:
        raise InputError(f"--embeddings: {path}: expected [{num_items}, dims], one row per item of the data, "
                         f"got shape {list(embeddings_ID.shape)}")
    return embeddings_ID


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data directory (LC-Rec JSON or RecBole atomic files)")
    parser.add_argument("--embeddings", required=True, type=Path, help=".npy array [items, dims]")
    parser.add_argument("--output", required=True, type=Path, help="index file to write (*.index.json), in place of an older one")
    parser.add_argument("--num_levels", type=int, default=3, help="codes per item")
    parser.add_argument("--codebook_size", type=int, default=64, help="codes per level")
    parser.add_argument("--k_core", type=int, default=DataConfig().k_core, help="RecBole files: k-core filter")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    check_file(arguments.output)
    dataset = read_interactions(arguments.data, arguments.k_core)
    embeddings_ID = read_embeddings(arguments.embeddings, dataset.num_items)
    codes_IL = residual_kmeans(embeddings_ID, arguments.num_levels, arguments.codebook_size, arguments.seed)
    plain = format_codes(codes_IL)
    semantic_ids = resolve_collisions(plain)
    write_semantic_ids(arguments.output, dataset.item_ids, semantic_ids)
    use = ", ".join(f"{share:.0%}" for share in codebook_use(codes_IL, arguments.codebook_size))
    num_extra = sum(a != b for a, b in zip(plain, semantic_ids, strict=True))
    print(f"{arguments.output}: {dataset.num_items} items, {arguments.num_levels} levels of {arguments.codebook_size} codes; "
          f"use per level {use}; {num_extra} items needed an extra token; collisions left: 0", flush=True)


if __name__ == "__main__":
    run_entry(main)

"""Merge a LoRA adapter into its base: a plain Hugging Face model directory that ranks as the
adapter does.

    ilrec merge --adapter runs/stage2/final --output merged [--verify]
    ilrec merge --inspect runs/stage2

--adapter may be final/, any checkpoint-N, even of a run that is still training or was killed, or an
adapter written by peft. Memory does not grow with the model. W + scaling B A is computed in float32
and rounded once. The output is written as OUTPUT.tmp and renamed at the end: a directory named
OUTPUT is complete.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.outputs import check_new
from ilrec.merging.inspection import describe
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source

logger = logging.getLogger("ilrec.merge_lora")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--adapter", help="final/ or checkpoint-N of a LoRA run, or any peft adapter directory"
    )
    parser.add_argument("--output", type=Path, help="model directory to write; new or empty")
    parser.add_argument(
        "--base", default="", help="base model, if it is no longer at the recorded place"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what to write (default: the base's own, tensor by tensor)",
    )
    parser.add_argument("--workers", type=int, help="threads (default: one per core, at most 8)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the merged model's logits with those of base and adapter",
    )
    parser.add_argument(
        "--inspect",
        type=Path,
        metavar="DIR",
        help="print what is in a run, checkpoint, adapter or model, and merge nothing",
    )
    arguments = parser.parse_args(argv)
    if not arguments.inspect and not (arguments.adapter and arguments.output):
        parser.error("--adapter and --output are needed (or --inspect DIR)")
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers: expected a positive number, got {arguments.workers}")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    if arguments.inspect:
        print(describe(arguments.inspect), flush=True)
        return
    # Before a base is downloaded or shards are put together, which can take long.
    check_new(arguments.output)
    begun = time.monotonic()
    # Inside, because --verify reads the adapter again: that of a checkpoint in shards is put
    # together in a temporary folder.
    with open_source(arguments.adapter, arguments.base) as source:
        merged = merge(source, arguments.output, dtype=arguments.dtype, workers=arguments.workers)
        logger.info(
            "%s + %s -> %s (%s parameters, %s, %.1f s)",
            source.base,
            source.adapter,
            merged.output,
            f"{merged.num_parameters:,}",
            "/".join(merged.record["dtypes"]),
            time.monotonic() - begun,
        )
        if arguments.verify:
            # Imports transformers and peft, some 200 MB that the merge itself does without.
            from ilrec.merging.verification import verify

            logger.info("verified: %s", verify(merged.output, source))

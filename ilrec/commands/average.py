"""Average the weights of several models, such as the last checkpoints of a run.

    ilrec average --models runs/sft/checkpoint-1500 runs/sft/final \\
        --output runs/sft-average
    python ilrec/rank.py --model runs/sft-average --data DIR --split valid

Full models only; merge adapters first (`ilrec merge`). Memory does not grow with the models.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.merging.averaging import average

logger = logging.getLogger("ilrec.average_checkpoints")


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--models", required=True, nargs="+", type=Path, help="model directories, two or more"
    )
    parser.add_argument("--output", required=True, type=Path, help="new or empty directory")
    arguments = parser.parse_args(argv)
    average(arguments.models, arguments.output)
    logger.info("the mean of %d models: %s", len(arguments.models), arguments.output)

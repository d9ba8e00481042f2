"""Start a project: copy the recipes, the DeepSpeed configurations and the SLURM job templates into
a directory, to be edited there.

    ilrec init DIR

Nothing is overwritten: a directory that has one of them already is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory

PACKAGE = Path(__file__).resolve().parents[1]
# The folders that are copied, with what each holds.
FOLDERS = {
    "recipes": "the settings of each stage",
    "ds_configs": "DeepSpeed: ZeRO-2, ZeRO-3, with offload, on the CPU",
    "slurm": "job templates; site.sh holds what a site and a user set",
}
NEXT = """
Next, in {directory}:
  ilrec prepare --interactions FILE.csv --user_column user --item_column item \\
      --time_column time --output data
  ilrec sasrec --data data --output runs/sasrec
  ilrec ids --data data --embeddings runs/sasrec/item_embeddings.npy \\
      --output data/ids.index.json
  ilrec train --config recipes/sft.yaml --model MODEL --data data
  ilrec rank --model runs/sft/final
  MODEL=... DATA=data slurm/submit.sh        # both stages and the ranking, on a cluster"""


def source(folder: str) -> Path:
    """Where a folder lies: in the installed package, or at the top of a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "directory", type=Path, help="directory to copy into; made if it is missing"
    )
    directory = parser.parse_args(argv).directory
    # All places are checked before the first copy, so that nothing is half there.
    check_directory(directory)
    for folder in FOLDERS:
        if (directory / folder).exists():
            raise InputError(
                f"{directory / folder}: exists already, and nothing is overwritten; move it away "
                "or name another directory"
            )
    for folder, meaning in FOLDERS.items():
        # Modes are copied, too: slurm/submit.sh stays executable.
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source(folder), directory / folder, ignore=no_caches)
        print(f"{directory / folder}: {meaning}")
    print(NEXT.format(directory=directory), flush=True)

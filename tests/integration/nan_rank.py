"""Run by test_nan_runs.py: `ilrec/train.py` with a decoder layer that writes NaN on rank 1, in its
second micro-step of one kind.

Every rank that ends with an InputError leaves its text in ERRORS/error-RANK.txt, before the entry
point handles it.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from ilrec.errors import InputError
from ilrec.model.objective import attach_objective
from ilrec.processes import run_entry
from ilrec.train import train
from ilrec.training import setup

RANK = int(os.environ["RANK"])
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--poison", choices=("training", "evaluation"), required=True)
parser.add_argument("--errors", type=Path, required=True)
own, rest = parser.parse_known_args()


def poisoned(model, *args) -> None:
    attach_objective(model, *args)
    layer = model.get_decoder().layers[2]
    calls = 0

    def write_nan(module, inputs, output):
        nonlocal calls
        if module.training == (own.poison == "training"):
            calls += 1
            if calls == 2 and RANK == 1:
                return output * float("nan")
        return output

    layer.register_forward_hook(write_nan)


def train_and_note(argv: list[str]) -> None:
    try:
        train(argv)
    except InputError as error:
        (own.errors / f"error-{RANK}.txt").write_text(str(error))
        raise


# ilrec.training.setup attaches the objective to the model that it has loaded.
setup.attach_objective = poisoned
sys.argv[1:] = rest
run_entry(train_and_note)

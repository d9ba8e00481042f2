"""Where do the negatives have to come from? ilrec/train.py with that one part exchanged, for
docs/experiments.

    python tools/experiments/train_ablation.py --negatives last_layer --config
    ilrec/recipes/stage1.yaml --data DIR ... python tools/experiments/train_ablation.py --negatives
    random     --config ilrec/recipes/stage1.yaml --data DIR ...

last_layer: the last layer's own probable tokens are its negatives, not those of the layers below
    (no distillation: it has no student).
random: as many tokens as the readout layers would have proposed for each label, drawn at random;
    everything else as it is.

Not settings of ilrec/train.py: nobody should train so. The parts exchanged are the PyTorch ones,
hence backend row_slab on the CPU.

Shapes: N supervised tokens, C candidates, S negatives of all tokens in one flat list.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ilrec import train as entry
from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.model.objective import CrossLayerMixin
from ilrec.ops import row_math
from ilrec.processes import run_entry


def readout_of_last_layer(
    model: Any, hidden_states: tuple[Tensor, ...], supervised_BT: Tensor
) -> Tensor:
    """In place of CrossLayerMixin._readout: the last layer's states, normed already, as the only
    readout layer: [1, N, H]."""
    if model._objective.distillation_weight > 0:
        raise InputError(
            "distillation_weight: expected 0 with --negatives last_layer, which has no layer to teach"
        )
    return hidden_states[-1][:, :-1][supervised_BT].detach()[None]


def random_negatives(
    z_NC: Tensor,
    ze_NC: Tensor,
    label_logits_N: Tensor,
    label_ze_N: Tensor,
    labels_N: Tensor,
    task: Any,
    start: int,
) -> row_math.Negatives:
    """In place of row_math._negatives: the same number for each label, distinct and never the
    label, weighed by the readout alike."""
    hard = propose(z_NC, ze_NC, label_logits_N, label_ze_N, labels_N, task, start)
    if task.objective.negative_tokens != "all":
        raise InputError("negative_tokens: expected all with --negatives random")
    num_others = z_NC.shape[1] - 1
    shuffled = torch.randperm(num_others, device=z_NC.device)
    first_N = torch.randint(num_others, labels_N.shape, device=z_NC.device)
    # Row n takes |S_n| neighbours of one random order of all tokens but its label, from a random
    # place on.
    place_S = (
        torch.arange(len(hard.rows_S), device=z_NC.device)
        - (hard.counts_N.cumsum(0) - hard.counts_N)[hard.rows_S]
    )
    others_S = shuffled[(first_N[hard.rows_S] + place_S) % num_others]
    tokens_S = others_S + (others_S >= labels_N[hard.rows_S])
    weights_S, _ = row_math.segment_softmax(
        ze_NC[hard.rows_S, tokens_S], hard.rows_S, len(labels_N)
    )
    return row_math.Negatives(
        hard.rows_S, tokens_S, weights_S, z_NC[hard.rows_S, tokens_S], hard.counts_N
    )


propose = row_math._negatives
EXCHANGES = {
    "last_layer": (CrossLayerMixin, "_readout", readout_of_last_layer),
    "random": (row_math, "_negatives", random_negatives),
}


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--negatives", required=True, choices=sorted(EXCHANGES))
    arguments, rest = parser.parse_pairs(argv)
    if torch.cuda.is_available():
        raise InputError(
            "tools/experiments/train_ablation.py runs on the CPU only: hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    setattr(*EXCHANGES[arguments.negatives])
    layers = ["--num_readout_layers", "1"] if arguments.negatives == "last_layer" else []
    entry.train(
        [*rest, "--backend", "row_slab", *layers], variant={"negatives": arguments.negatives}
    )


if __name__ == "__main__":
    run_entry(main)

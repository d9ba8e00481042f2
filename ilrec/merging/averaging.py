"""The mean of several models' weights, streamed: of the last checkpoints of a run, for example.

The mean of weights along one training run often generalises better than its last point
(Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
arXiv 1803.05407). The result is a plain model directory, like that of a merge.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ilrec import __version__
from ilrec.errors import InputError
from ilrec.files.outputs import check_new, write_text
from ilrec.merging.merge import renamed_when_whole, write_json
from ilrec.merging.model_files import copy_files, write_generation_config
from ilrec.merging.sources import MergeSource
from ilrec.model.portable import make_portable
from ilrec.training.manifest import MANIFEST, find_fault
from ilrec.training.model_card import CARD, derived_card, place_name
from ilrec.weights.fingerprint import weights_fingerprint
from ilrec.weights.tensor_files import MERGEABLE, StoredTensor, read_tensors
from ilrec.weights.tensor_writer import NewTensor, TensorWriter

RECORD = "AVERAGE.json"
# Of each model at a time; memory does not grow with the models.
BLOCK_BYTES = 4 * 2**20


def average(models: Sequence[Path], output: Path) -> None:
    """Write the mean of `models` to `output`, a new or empty directory. Every model counts equally.

    models: directories of full models with tensors of the same names, shapes and dtypes; two or
        more. All other files come from the last one.
    The mean is computed in float64 and rounded once to the dtype of the models. Raises InputError
    if a model is an adapter, is damaged or differs in its tensors, if a mean is not finite, or if
    `output` exists or cannot be written. Nothing half written is left.
    """
    if len(models) < 2:
        raise InputError(f"expected two or more models to average, got {len(models)}")
    check_new(output)
    tensors = [read_model(model) for model in models]
    require_same_tensors(models, tensors)

    with renamed_when_whole(output) as beside:
        write_means(tensors, beside)
        last = models[-1]
        source = MergeSource(base=last, adapter=last, weights=last)
        copy_files(source, beside)
        write_generation_config(last, beside)
        event = (
            f"The mean of {len(models)} models: {', '.join(place_name(str(m)) for m in models)}."
        )
        write_text(beside / CARD, derived_card(last, output.name, event))
        write_json(beside / RECORD, make_record(models), indent=1)
        # Last: a directory without config.json is no model for anyone.
        shutil.copy(last / "config.json", beside / "config.json")
        make_portable(beside)


def read_model(model: Path) -> dict[str, StoredTensor]:
    """The tensors of a full model, complete and undamaged, or an InputError."""
    if not model.is_dir():
        raise InputError(f"{model}: no such directory; expected a model, such as a checkpoint-N")
    if (model / "adapter_config.json").exists():
        raise InputError(
            f"{model}: an adapter, and the mean of low-rank factors is not the mean of their "
            "updates; merge each one first (`ilrec merge`) and average the merged models"
        )
    fault = find_fault(model) if (model / MANIFEST).exists() else ""
    if fault:
        raise InputError(f"{model} {fault}; leave it out, or copy it again")
    return read_tensors(model)


def require_same_tensors(
    models: Sequence[Path], tensors: Sequence[dict[str, StoredTensor]]
) -> None:
    """All models have the tensors of the first one; InputError names the first difference."""
    first = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors[0].items()}
    for model, own in zip(models, tensors, strict=True):
        for name in sorted(first.keys() | own.keys()):
            found = (own[name].dtype, own[name].shape) if name in own else None
            if found != first.get(name):
                raise InputError(
                    f"{model}: {name} is {found or 'missing'}, and {first.get(name) or 'missing'} "
                    f"in {models[0]}; expected models of one kind, such as one run's checkpoints"
                )
    for name, (dtype, _) in first.items():
        if dtype not in MERGEABLE:
            raise InputError(
                f"{models[0]}: {name} has dtype {dtype}, of which there is no mean; expected one "
                f"of {', '.join(MERGEABLE)}"
            )


def write_means(tensors: Sequence[dict[str, StoredTensor]], directory: Path) -> None:
    """All means into safetensors files, block by block, with a progress bar on a terminal."""
    news = [NewTensor(name, tensor.dtype, tensor.shape) for name, tensor in tensors[0].items()]
    writer = TensorWriter(directory, news)
    total = sum(new.num_bytes for new in news)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as progress:
        for name, first in tensors[0].items():
            step = max(1, BLOCK_BYTES // max(1, first.row_bytes))
            for start in range(0, first.num_rows, step):
                stop = min(start + step, first.num_rows)
                writer.write_rows(name, start, mean_rows(tensors, name, start, stop))
                progress.update((stop - start) * first.row_bytes)
    writer.close()


def mean_rows(
    tensors: Sequence[dict[str, StoredTensor]], name: str, start: int, stop: int
) -> Tensor:
    """Rows start to stop of the mean, in the tensors' dtype."""
    blocks = [own[name].rows(start, stop) for own in tensors]
    total = torch.zeros(blocks[0].shape, dtype=torch.float64)
    for block in blocks:
        total += block
    if not total.isfinite().all():
        places = ", ".join(str(own[name].path) for own in tensors)
        raise InputError(f"{name}: NaN or inf in rows {start} to {stop} of one of {places}")
    return (total / len(blocks)).to(blocks[0].dtype)


def make_record(models: Sequence[Path]) -> dict[str, Any]:
    """AVERAGE.json: which models went in, told apart by their fingerprints."""
    inputs = [{"directory": model.name, "weights": weights_fingerprint(model)} for model in models]
    return {"mean_of": inputs, "versions": {"ilrec": __version__, "torch": torch.__version__}}

"""The base model that a run recorded. An adapter is used only on the weights it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.model.source import ModelSource, local_directory
from ilrec.training.manifest import MANIFEST, read_recorded
from ilrec.training.together import agreed
from ilrec.weights.fingerprint import weights_fingerprint


def base_facts(source: ModelSource) -> dict[str, Any]:
    """What a manifest records of the base: {"name", "weights": a fingerprint}.

    Empty if the base is not in safetensors. Every rank calls it and gets what rank 0 has read.
    """

    # A fingerprint takes about 1 KiB of each tensor, so one rank reads it for all.
    def read() -> dict[str, Any]:
        with contextlib.suppress(InputError):
            weights = weights_fingerprint(local_directory(source.base))
            return {"name": source.base, "weights": weights}
        return {}

    return agreed(read)


def check_source(source: ModelSource) -> None:
    """check_base for a model that is trained further or ranked. Does nothing for a full model."""
    if source.adapter:
        check_base(Path(source.adapter), local_directory(source.base))


def check_base(adapter: Path, base: Path) -> None:
    """Raises InputError if `adapter` was trained on other weights than those in `base`.

    An adapter from elsewhere records no base and passes.
    """
    if not (adapter / MANIFEST).exists():
        return
    recorded = read_recorded(adapter, "base")
    if recorded and recorded["weights"] != weights_fingerprint(base):
        raise InputError(
            f"{adapter} was trained on {recorded['name']}, whose weights are others than those in "
            f"{base}; name the right base with --base"
        )


def require_base(checkpoint: str | Path, base: Mapping[str, Any]) -> None:
    """Raises InputError if the checkpoint was trained on other weights than this run's base.

    base: base_facts of this run. A base in the run's own directory (from scratch, from GGUF) may
    have been made again, by another version of a library that draws other weights.
    """
    # A base that is not in safetensors has no fingerprint, and cannot be compared.
    recorded = read_recorded(Path(checkpoint), "base")
    if recorded and base and recorded["weights"] != base["weights"]:
        raise InputError(
            f"{checkpoint} was trained on {recorded['name']}, whose weights were others than those "
            f"in {base['name']} now; put them back, or start anew with --resume never or another "
            "--output_dir"
        )

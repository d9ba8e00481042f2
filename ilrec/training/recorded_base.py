"""An adapter is used on the weights that it was trained on, where the run recorded which."""

from __future__ import annotations

from pathlib import Path

from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.model.source import ModelSource, local_directory
from ilrec.training.checkpoints import MANIFEST
from ilrec.weights.fingerprint import weights_fingerprint


def check_source(source: ModelSource) -> None:
    """As check_base, for what is trained further or ranked; nothing for a full model."""
    if source.adapter:
        check_base(Path(source.adapter), local_directory(source.base))


def check_base(adapter: Path, base: Path) -> None:
    """The weights are those the adapter was trained on, where the run recorded which."""
    manifest = adapter / MANIFEST
    recorded = read_json(manifest).get("base") if manifest.exists() else None
    if recorded and recorded["weights"] != weights_fingerprint(base):
        raise InputError(
            f"{adapter} was trained on {recorded['name']}, whose weights are others than those in {base}; name the right "
            "base with --base"
        )

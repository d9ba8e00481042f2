"""Describes what is in a run's directory, a checkpoint, an adapter or a merged model. Only headers
and JSON are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.merging.adapter import Adapter, read_adapter
from ilrec.merging.adapter_settings import CONFIG
from ilrec.merging.plan import text_config
from ilrec.training.manifest import MANIFEST
from ilrec.weights.tensor_files import StoredTensor, read_tensors

# So many metrics of a run's log are shown.
NUM_METRICS = 6


def describe(directory: Path) -> str:
    """Lines of `name  value`. A run's directory has one block of lines for each model in it.

    Raises InputError if there is no model and no adapter.
    """
    if not directory.is_dir():
        raise InputError(f"--inspect: no such directory: {directory}")
    if _is_adapter(directory) or _is_model(directory):
        return _block(directory)

    # The order of a run: the base that it started from, its checkpoints, its result.
    places = [directory / "base", *_checkpoints(directory), directory / "final"]
    models = [path for path in places if _is_adapter(path) or _is_model(path)]
    if not models:
        raise InputError(
            f"--inspect: {directory} has neither {CONFIG} nor config.json, and no final/ or "
            "checkpoint-N with one of them; name a run, a checkpoint, an adapter or a model"
        )
    return "\n\n".join(_block(path) for path in models)


def _is_adapter(directory: Path) -> bool:
    return (directory / CONFIG).exists()


def _is_model(directory: Path) -> bool:
    return (directory / "config.json").exists()


def _checkpoints(directory: Path) -> list[Path]:
    """By their steps: checkpoint-9 comes before checkpoint-10."""
    found = directory.glob("checkpoint-*")
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _block(directory: Path) -> str:
    """The directory's name, and below it what is known of the model in it."""
    facts = _adapter_facts(directory) if _is_adapter(directory) else _model_facts(directory)
    facts |= _run_facts(directory)
    width = max(map(len, facts))
    lines = [str(directory)]
    for name, value in facts.items():
        if value not in (None, ""):
            lines.append(f"  {name:<{width}}  {value}")
    return "\n".join(lines)


def _adapter_facts(directory: Path) -> dict[str, Any]:
    """What is known of an adapter; of one that cannot be merged, the reason."""
    config = read_json(directory / CONFIG)
    kind = f"{config.get('peft_type', '?')} adapter"
    if config.get("use_dora"):
        kind += " (DoRA)"
    facts = {"kind": kind, "base": config.get("base_model_name_or_path")}
    # An adapter that cannot be merged is still worth describing.
    try:
        adapter = read_adapter(directory)
    except InputError as error:
        return facts | {"not mergeable": error}
    facts |= _change_facts(adapter)
    return facts | {
        "parameters": _count(adapter.tensors),
        "stored as": _dtypes(adapter.tensors),
    }


def _change_facts(adapter: Adapter) -> dict[str, Any]:
    """What the adapter does to its base: low-rank updates, trained token rows, whole tensors."""
    # Names end in `.q_proj.weight`: the last but one part says which matrices are adapted.
    updates = []
    modules = set()
    rows = []
    whole = []
    for name, change in adapter.changes.items():
        if change.low_rank:
            updates.append(change.low_rank)
            modules.add(name.split(".")[-2])
        if change.token_ids:
            first, last = min(change.token_ids), max(change.token_ids)
            rows.append(f"{len(change.token_ids)} of {name} ({first} to {last})")
        if change.whole:
            whole.append(name)
    return {
        "rank": _values(update.a.shape[0] for update in updates),
        "scaling": _values(f"{update.scaling:.6g}" for update in updates),
        "targets": f"{len(updates)} matrices: {', '.join(sorted(modules))}",
        "trained tokens": "; ".join(rows),
        "whole": ", ".join(sorted(whole)),
    }


def _model_facts(directory: Path) -> dict[str, Any]:
    """What is known of a full model, and which base and adapter it was merged from."""
    config = read_json(directory / "config.json")
    text = text_config(config)
    tensors = read_tensors(directory)
    merged_from = ""
    if (directory / "MERGE.json").exists():
        record = read_json(directory / "MERGE.json")
        merged_from = f"{record['adapter']['directory']} on {record['base']['directory']}"
    return {
        "kind": f"full model: {', '.join(config.get('architectures') or ['?'])}",
        "merged from": merged_from,
        "layers": text.get("num_hidden_layers"),
        "hidden size": text.get("hidden_size"),
        "vocabulary": text.get("vocab_size"),
        "tied embeddings": "yes" if text.get("tie_word_embeddings") else "no",
        "parameters": _count(tensors),
        "stored as": _dtypes(tensors),
    }


def _run_facts(directory: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says, and the last metrics that its run logged until then;
    nothing for a directory without a manifest."""
    path = directory / MANIFEST
    if not path.exists():
        return {}
    manifest = read_json(path)
    step = manifest.get("step")
    return {
        "step": step,
        "ranks": manifest.get("world_size"),
        "trained on": manifest.get("base", {}).get("name"),
        "metrics": _metrics(directory.parent / "metrics.jsonl", step),
    }


def _metrics(path: Path, last_step: int | None) -> str:
    """Some metrics of the newest line of a run's log that is not newer than `last_step`."""
    if not path.exists():
        return ""
    newest: dict[str, Any] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        # Some lines hold other things than a step's losses, such as an evaluation.
        if "loss" in line and (last_step is None or line["step"] <= last_step):
            newest = line
    if not newest:
        return ""
    shown = [f"{name} {value:.4g}" for name, value in newest.items() if isinstance(value, float)]
    return f"{', '.join(shown[:NUM_METRICS])} (step {newest['step']})"


def _values(values: Iterable[Any]) -> str:
    """The different ones among the values, in order."""
    return ", ".join(str(value) for value in sorted(set(values)))


def _count(tensors: Mapping[str, StoredTensor]) -> str:
    return f"{sum(math.prod(tensor.shape) for tensor in tensors.values()):,}"


def _dtypes(tensors: Mapping[str, StoredTensor]) -> str:
    return _values(tensor.dtype for tensor in tensors.values())

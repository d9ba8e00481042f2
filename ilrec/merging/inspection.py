"""What is in a run's directory, a checkpoint, an adapter or a merged model: read from headers and
JSON alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.merging.adapter import CONFIG, Adapter, read_adapter
from ilrec.merging.plan import text_config
from ilrec.training.manifest import MANIFEST
from ilrec.weights.tensor_files import StoredTensor, read_tensors

NUM_METRICS = 6


def describe(directory: Path) -> str:
    """Lines of `what  value`; of a run's directory, one block for each model in it. Raises
    InputError where there is none."""
    if not directory.is_dir():
        raise InputError(f"--inspect: no such directory: {directory}")
    if _kind(directory):
        return _block(directory)
    inside = [
        path
        for path in (directory / "base", *_checkpoints(directory), directory / "final")
        if _kind(path)
    ]
    if not inside:
        raise InputError(
            f"--inspect: {directory} has neither {CONFIG} nor config.json, nor has final/ or a checkpoint-N in it"
        )
    return "\n\n".join(_block(path) for path in inside)


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))


def _kind(directory: Path) -> str:
    return next((name for name in (CONFIG, "config.json") if (directory / name).exists()), "")


def _block(directory: Path) -> str:
    facts = _adapter_facts(directory) if _kind(directory) == CONFIG else _model_facts(directory)
    facts |= _run_facts(directory)
    width = max(map(len, facts))
    return "\n".join(
        [
            str(directory),
            *(
                f"  {name:<{width}}  {value}"
                for name, value in facts.items()
                if value not in (None, "")
            ),
        ]
    )


def _adapter_facts(directory: Path) -> dict[str, Any]:
    config = read_json(directory / CONFIG)
    facts = {
        "kind": f"{config.get('peft_type', '?')} adapter{' (DoRA)' if config.get('use_dora') else ''}",
        "base": config.get("base_model_name_or_path"),
    }
    try:
        adapter = read_adapter(directory)
    except InputError as error:
        return facts | {"not mergeable": error}
    return (
        facts
        | _low_rank_facts(adapter)
        | {"parameters": _count(adapter.tensors), "stored as": _dtypes(adapter.tensors)}
    )


def _low_rank_facts(adapter: Adapter) -> dict[str, Any]:
    updates = {name: change.low_rank for name, change in adapter.changes.items() if change.low_rank}
    modules = sorted({name.split(".")[-2] for name in updates})
    whole = sorted(name for name, change in adapter.changes.items() if change.whole)
    rows = [
        f"{len(change.token_ids)} of {name} ({min(change.token_ids)} to {max(change.token_ids)})"
        for name, change in adapter.changes.items()
        if change.token_ids
    ]
    return {
        "rank": _values(update.a.shape[0] for update in updates.values()),
        "scaling": _values(f"{update.scaling:.6g}" for update in updates.values()),
        "targets": f"{len(updates)} matrices: {', '.join(modules)}",
        "trained tokens": "; ".join(rows),
        "whole": ", ".join(whole),
    }


def _model_facts(directory: Path) -> dict[str, Any]:
    config, tensors = read_json(directory / "config.json"), read_tensors(directory)
    text = text_config(config)
    merged = read_json(directory / "MERGE.json") if (directory / "MERGE.json").exists() else {}
    return {
        "kind": f"full model: {', '.join(config.get('architectures') or ['?'])}",
        "merged from": merged
        and f"{merged['adapter']['directory']} on {merged['base']['directory']}",
        "layers": text.get("num_hidden_layers"),
        "hidden size": text.get("hidden_size"),
        "vocabulary": text.get("vocab_size"),
        "tied embeddings": "yes" if text.get("tie_word_embeddings") else "no",
        "parameters": _count(tensors),
        "stored as": _dtypes(tensors),
    }


def _run_facts(directory: Path) -> dict[str, Any]:
    """Step, ranks, and the last numbers that the run logged until then."""
    path = directory / MANIFEST
    if not path.exists():
        return {}
    manifest = read_json(path)
    return {
        "step": manifest.get("step"),
        "ranks": manifest.get("world_size"),
        "trained on": manifest.get("base", {}).get("name"),
        "metrics": _metrics(directory.parent / "metrics.jsonl", manifest.get("step")),
    }


def _metrics(path: Path, step: int | None) -> str:
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )
    line: dict = next(
        (
            line
            for line in reversed(lines)
            if "loss" in line and (step is None or line["step"] <= step)
        ),
        {},
    )
    shown = [f"{name} {value:.4g}" for name, value in line.items() if isinstance(value, float)][
        :NUM_METRICS
    ]
    return f"{', '.join(shown)} (step {line['step']})" if line else ""


def _values(values: Any) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def _count(tensors: Mapping[str, StoredTensor]) -> str:
    return f"{sum(math.prod(tensor.shape) for tensor in tensors.values()):,}"


def _dtypes(tensors: Mapping[str, StoredTensor]) -> str:
    return _values(tensor.dtype for tensor in tensors.values())

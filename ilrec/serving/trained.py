"""A trained model with everything that it recommends with: settings, items, tokenizer, samples.

ilrec/rank.py measures with it, and recommender.py serves with it.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ilrec.config.loading import build_section
from ilrec.config.sections import DataConfig, ModelConfig
from ilrec.errors import InputError
from ilrec.files.digests import file_digest
from ilrec.files.reading import read_json, read_yaml
from ilrec.interactions.dataset import assemble
from ilrec.model.adapters import add_item_tokens, load_adapter
from ilrec.model.loading import load_base, load_tokenizer
from ilrec.model.source import ModelSource, find_model
from ilrec.ranking.score_head import score_in_float32
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.task import ITEM_INDEX, RecommendationTask, load_task, make_task
from ilrec.training.recorded_base import base_facts, check_source
from ilrec.weights.fingerprint import weights_fingerprint

logger = logging.getLogger(__name__)


def data_config(model_directory: str, data: str | None) -> DataConfig:
    """The data settings that the model was trained with.

    data: another place of the same data. It does not change how users and items are rendered.
    """
    path = Path(model_directory) / "ilrec.yaml"
    if not path.exists():
        raise InputError(
            f"{model_directory}: no ilrec.yaml in it, so how it renders users and items is "
            "unknown; give the final/ of a run, or what `ilrec merge` wrote"
        )
    known = DataConfig.__dataclass_fields__
    fields = {name: (value, str(path)) for name, value in read_yaml(path).items() if name in known}
    if data:
        fields["data"] = (data, "--data")
    # The model's own semantic IDs, whatever the data directory has now.
    index = Path(model_directory) / ITEM_INDEX
    if index.exists():
        fields["semantic_ids"] = (str(index), str(path))
    config = build_section(DataConfig, fields)
    if not config.data:
        raise InputError(f"{path}: data: not set; give --data DIR")
    return config


def served_task(model_directory: str, data: str | None) -> RecommendationTask:
    """The task that a model recommends for.

    The catalogue, with titles, and the users come from the data directory. Where the one that the
    model was trained on is gone, the catalogue is that of the model's own item index, without
    titles and users. Raises InputError if there is neither.
    """
    config = data_config(model_directory, data)
    has_index = Path(config.semantic_ids) == Path(model_directory) / ITEM_INDEX
    if Path(config.data).exists() or data or not has_index or config.item_format == "title":
        return load_task(config)
    logger.warning(
        "%s is not there: items have no titles, users are unknown, and the items of a history are "
        "left out unless exclude says otherwise; give --data DIR",
        config.data,
    )
    index = read_json(config.semantic_ids)
    digest = file_digest(config.semantic_ids)
    return make_task(config, assemble(Path(model_directory).name, {}, list(index), {}, digest))


@dataclass(frozen=True)
class Trained:
    """model: ready to rank, its logits are float32. builder: makes the prompts it was trained on.
    pad_token_id: of the tokenizer."""

    source: ModelSource
    task: RecommendationTask
    builder: SampleBuilder
    model: Any
    pad_token_id: int
    device: torch.device


def open_trained(settings: ModelConfig, task: RecommendationTask, device: torch.device) -> Trained:
    """Load the model that the settings name. Raises InputError if something is missing or does not
    fit the task."""
    source = find_model(settings.model, settings.base)
    check_source(source)
    tokenizer = load_tokenizer(source, settings.trust_remote_code)
    # The builder comes before the model, because it refuses a wrong tokenizer.
    builder = task.sample_builder(tokenizer)
    model = load_trained(settings, source, tokenizer, device)
    return Trained(source, task, builder, model, int(tokenizer.pad_token_id), device)


def load_trained(
    config: ModelConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> torch.nn.Module:
    """The trained model, ready to rank: its logits are float32."""
    base_model = load_base(source, config)
    add_item_tokens(base_model, tokenizer)
    model: PreTrainedModel | PeftModel = base_model
    if source.adapter:
        model = load_adapter(base_model, source.adapter, is_trainable=False)
    torch.nn.Module.to(model, device).eval()
    score_in_float32(model)
    return model


def weights_of(source: ModelSource) -> dict[str, str]:
    """Fingerprints of the weights, for a record of what a model has made. Every rank calls it.

    Weights that are not in safetensors have none.
    """
    found = {"base": base_facts(source).get("weights", "")}
    if source.adapter:
        with contextlib.suppress(InputError):
            found["adapter"] = weights_fingerprint(Path(source.adapter), "adapter_model")
    return found

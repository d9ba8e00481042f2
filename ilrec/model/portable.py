"""Makes files that transformers 5 wrote readable for transformers 4.

Servers run the older version for years. Version 5 moved and renamed settings. Version 4 does not
find them there and silently takes its defaults, which gives a model with wrong positions. So
config.json gets both forms. Does not import transformers.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json

# Model types whose logits were compared in both versions
# (tests/integration/test_older_transformers.py).
TRIED_MODELS = frozenset(
    "arcee ernie4_5 exaone4 gemma gemma3_text glm glm4 helium llama ministral mistral mixtral "
    "olmo olmo2 olmoe phi3 qwen2 qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2".split()
)
TRIED_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")
# {version 5's name of a setting: version 4's}. Those of rope are handled in _older_rope.
RENAMED = {"dtype": "torch_dtype", "num_local_experts": "num_experts"}
# Version 5 keeps a tokenizer in tokenizer.json alone, and this class of version 4 takes that file
# as it is. Version 4's other classes change what they read: LlamaTokenizerFast replaces the
# post-processor.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Classes that pad on the left by default, in both versions.
LEFT_PADDED = ("CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer")
logger = logging.getLogger(__name__)


def make_portable(directory: Path) -> None:
    """Rewrite the configurations of a model, an adapter or a tokenizer. Warn if that was never
    tried with this type of model.

    Raises InputError if one of them is no JSON. A second call changes nothing.
    """
    if (directory / "config.json").exists():
        config = portable_config(read_json(directory / "config.json"))
        _write(directory / "config.json", config)
        if not _is_tried(config):
            _warn_untried(str(config.get("model_type")), config["transformers_version"])
    state, path = directory / "tokenizer.json", directory / "tokenizer_config.json"
    if state.exists() and path.exists():
        _write(path, portable_tokenizer_config(read_json(path), read_json(state)))


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, and its text_config, with version 4's names beside version 5's.

    A file that version 4 wrote comes back as it is.
    """
    written = {**config, **_older_rope(config.get("rope_parameters") or {})}
    for name, older in RENAMED.items():
        if config.get(name) is not None:
            written[older] = config[name]
    if isinstance(config.get("text_config"), Mapping):
        written["text_config"] = portable_config(config["text_config"])
    return written


def _is_tried(config: Mapping[str, Any]) -> bool:
    """Whether version 4 is known to read this configuration as version 5 does."""
    major, *_ = str(config.get("transformers_version", "4")).split(".")
    if int(major) < 5:
        return True
    if config.get("model_type") not in TRIED_MODELS:
        return False
    rope = config.get("rope_parameters") or {}
    layers = rope if "full_attention" in rope else {"full_attention": rope}
    for layer, parameters in layers.items():
        kind = (parameters or {}).get("rope_type", "default")
        # Version 4 has no field for a scaling of the local layers.
        scales_locally = layer == "sliding_attention" and kind != "default"
        if kind not in TRIED_ROPES or scales_locally:
            return False
    return True


@functools.cache
def _warn_untried(model_type: str, version: str) -> None:
    """Warns once in a process, which may write many checkpoints of one model."""
    logger.warning(
        "model type %s was not tried with transformers 4, which may not know it or misread what is "
        "written here; install transformers>=%s where it is served",
        model_type,
        version,
    )


def _older_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """rope_parameters in version 4's fields. They are those of the model, or given for each kind of
    layer.

    For example {rope_type: default, rope_theta: 10000.0} gives {rope_theta: 10000.0, rope_scaling:
    None}.
    """
    if "full_attention" in parameters:
        local = parameters.get("sliding_attention") or {}
        older = {}
        if "rope_theta" in local:
            older["rope_local_base_freq"] = local["rope_theta"]
        return older | _older_rope(parameters["full_attention"] or {})
    if not parameters:
        return {}
    older = {}
    scaling: dict[str, Any] = {}
    for name, value in parameters.items():
        place = older if name in ("rope_theta", "partial_rotary_factor") else scaling
        place[name] = value
    is_scaled = scaling.get("rope_type", "default") != "default"
    return {**older, "rope_scaling": scaling if is_scaled else None}


def portable_tokenizer_config(
    config: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    """tokenizer_config.json in a form that both versions read alike. One that version 5 did not
    write (`backend`) comes back as it is.

    state: tokenizer.json.
    """
    # A tokenizer with code of its own (auto_map) is loaded by that code, whatever stands here.
    written = dict(config)
    if config.get("backend") != "tokenizers" or "auto_map" in config:
        return written
    if config.get("tokenizer_class") in LEFT_PADDED:
        written.setdefault("padding_side", "left")
    written["tokenizer_class"] = TOKENIZER_CLASS
    # Without this version 4 would also return token_type_ids, which generate() refuses.
    written.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(config.get("extra_special_tokens"), list):
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    # Version 4 overwrites this setting of the pre-tokenizer with what it finds here, or with false.
    prefix_space = (state.get("pre_tokenizer") or {}).get("add_prefix_space")
    if prefix_space is not None:
        written["add_prefix_space"] = prefix_space
    return written


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

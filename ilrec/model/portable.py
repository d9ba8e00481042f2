"""Files that transformers 4 reads as transformers 5 does, which wrote them.

Servers run the older one for years. Version 5 moved settings and renamed them; version 4 does not
look where they are now and goes on with its defaults: a model whose positions are wrong, without a
word. So config.json carries both forms. Imports no transformers.
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

# Model types whose logits were compared in both (tests/integration/test_older_transformers.py).
TRIED_MODELS = frozenset(
    "arcee ernie4_5 exaone4 gemma gemma3_text glm glm4 helium llama ministral mistral mixtral olmo olmo2 "
    "olmoe phi3 qwen2 qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2".split()
)
TRIED_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")
# {version 5's name of a setting: version 4's}, beside those of rope.
RENAMED = {"dtype": "torch_dtype", "num_local_experts": "num_experts"}
# It reads tokenizer.json, which is all that version 5 keeps of a tokenizer, as it is. Version 4's
# own
# classes change what they read: LlamaTokenizerFast writes the post-processor anew.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Classes that pad on the left where nothing else is said, in both versions.
LEFT_PADDED = ("CodeLlamaTokenizer", "CohereTokenizer", "GemmaTokenizer", "LlamaTokenizer")
logger = logging.getLogger(__name__)


def make_portable(directory: Path) -> None:
    """Rewrite the configurations of a model, an adapter or a tokenizer; warn where that was not
    tried.

    Raises InputError where one of them is no JSON. Called again, it changes nothing.
    """
    if (directory / "config.json").exists():
        config = portable_config(read_json(directory / "config.json"))
        _write(directory / "config.json", config)
        if not _is_tried(config):
            _say_untried(str(config.get("model_type")), config["transformers_version"])
    if (directory / "tokenizer.json").exists() and (directory / "tokenizer_config.json").exists():
        path = directory / "tokenizer_config.json"
        _write(
            path,
            portable_tokenizer_config(read_json(path), read_json(directory / "tokenizer.json")),
        )


def portable_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, and its text_config, with version 4's names beside version 5's.

    What version 4 wrote stays as it is.
    """
    written = {**config, **_older_rope(config.get("rope_parameters") or {})}
    written |= {
        older: config[name] for name, older in RENAMED.items() if config.get(name) is not None
    }
    if isinstance(config.get("text_config"), Mapping):
        written["text_config"] = portable_config(config["text_config"])
    return written


def _is_tried(config: Mapping[str, Any]) -> bool:
    """Whether version 4 reads what version 5 wrote; it has no field for a scaling of local
    layers."""
    if int(str(config.get("transformers_version", "4")).split(".")[0]) < 5:
        return True
    rope = config.get("rope_parameters") or {}
    layers = rope if "full_attention" in rope else {"full_attention": rope}
    kinds = {layer: (layers[layer] or {}).get("rope_type", "default") for layer in layers}
    return (
        config.get("model_type") in TRIED_MODELS
        and set(kinds.values()) <= set(TRIED_ROPES)
        and kinds.get("sliding_attention", "default") == "default"
    )


@functools.cache
def _say_untried(model_type: str, version: str) -> None:
    """Once in a process, which writes many checkpoints of one model."""
    logger.warning(
        "model type %s: what is written was not tried with transformers 4, which may not know or misread "
        "it; where it is served, install transformers>=%s",
        model_type,
        version,
    )


def _older_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """rope_parameters, of the model or by the kind of layer, in version 4's fields."""
    if "full_attention" in parameters:
        local = parameters.get("sliding_attention") or {}
        theta = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        return theta | _older_rope(parameters["full_attention"] or {})
    if not parameters:
        return {}
    apart = {
        name: parameters[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if name in parameters
    }
    scaling = {name: value for name, value in parameters.items() if name not in apart}
    return apart | {
        "rope_scaling": None if scaling.get("rope_type", "default") == "default" else scaling
    }


def portable_tokenizer_config(
    config: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    """tokenizer_config.json as both read it, where version 5 wrote it (`backend`).

    state: tokenizer.json.
    """
    written = dict(config)
    if config.get("backend") != "tokenizers" or "auto_map" in config:
        return written
    if config.get("tokenizer_class") in LEFT_PADDED:
        written.setdefault("padding_side", "left")
    written["tokenizer_class"] = TOKENIZER_CLASS
    # Version 4 would return token_type_ids, too, which generate() refuses.
    written.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(config.get("extra_special_tokens"), list):
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    # Version 4 sets it in the pre-tokenizer to what it finds here, or to false.
    prefix_space = (state.get("pre_tokenizer") or {}).get("add_prefix_space")
    if prefix_space is not None:
        written["add_prefix_space"] = prefix_space
    return written


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

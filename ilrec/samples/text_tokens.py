"""A piece of text that stands inside a prompt -> token ids.

Some tokenizers put a space before each text that they are given (Llama 2, Mistral: "," becomes
"▁,"). A prompt is made of pieces that are tokenized one by one, and only the first of them begins a
text.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# For each kind of pre-tokenizer the setting with which it adds no space.
NO_SPACE: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}
# The keys under which a step in tokenizer.json holds further steps.
INNER_STEPS = ("normalizers", "pretokenizers")


def inside_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer without the space that it puts before a text; the same object if it puts
    none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    # The tokenizer is rewritten in its own description, tokenizer.json, because its parts cannot
    # be changed one by one.
    state = json.loads(backend.to_str())
    inside = dict(state)
    for part in ("normalizer", "pre_tokenizer"):
        inside[part] = _without_space(state[part])
    if inside == state:
        return tokenizer
    changed = copy.copy(tokenizer)
    # There is no public way to exchange the backend.
    changed._tokenizer = Tokenizer.from_str(json.dumps(inside))  # type: ignore[attr-defined]
    return changed


def _without_space(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of tokenizer.json that adds no space, or None if nothing is left of it."""
    if step is None or step["type"] == "Prepend":
        return None
    changed = step | NO_SPACE.get(step["type"], {})
    for name in INNER_STEPS:
        if name in step:
            parts = [_without_space(part) for part in step[name]]
            changed[name] = [part for part in parts if part]
    return changed

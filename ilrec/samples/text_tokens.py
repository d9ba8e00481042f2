"""Text that stands inside a prompt -> token ids.

Some tokenizers put a space before every text that they are given (Llama 2, Mistral: "," becomes
"▁,"). A prompt is made of pieces, each tokenized by itself, and only the first begins a text.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# How each kind of pre-tokenizer says that it adds no space.
NO_SPACE: dict[str, dict[str, Any]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


def inside_text(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer without the space that it puts before a text; itself where it puts none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    state = json.loads(backend.to_str())
    inside = state | {part: _without_space(state[part]) for part in ("normalizer", "pre_tokenizer")}
    if inside == state:
        return tokenizer
    changed = copy.copy(tokenizer)
    # There is no public way to exchange it.
    changed._tokenizer = Tokenizer.from_str(json.dumps(inside))  # type: ignore[attr-defined]
    return changed


def _without_space(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step as in tokenizer.json, None where nothing is left of it."""
    if step is None or step["type"] == "Prepend":
        return None
    inner = {
        name: [kept for part in step[name] if (kept := _without_space(part))]
        for name in ("normalizers", "pretokenizers")
        if name in step
    }
    return step | NO_SPACE.get(step["type"], {}) | inner

"""Writes what lies beside the tensors of a merged model: config.json, tokenizer, generation
settings, and the files that ranking needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json
from ilrec.merging.plan import MergePlan
from ilrec.merging.sources import MergeSource

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
# {name beside the merged model: name in a run's directory}. Ranking reads these files, so that it
# writes users and items as they were written in training. final/ has them beside the adapter, under
# the first name; those of a checkpoint lie in its run's directory, under the second.
RANKING_FILES = {"item_index.json": "item_index.json", "ilrec.yaml": "config.yaml"}


def merged_config(config: dict, plan: MergePlan, dtype: str | None) -> dict:
    """The base's config.json with what the merge decides: tied or not, the vocabulary's size, and
    the dtype if one was asked for."""
    decided: dict = {"tie_word_embeddings": plan.is_tied}
    if plan.vocab_size is not None:
        decided["vocab_size"] = plan.vocab_size
    if "text_config" in config:
        # A multi-modal model: its language model's settings are in a section of their own.
        text = {**config["text_config"], **decided}
        merged = {**config, "text_config": text, "tie_word_embeddings": plan.is_tied}
    else:
        merged = {**config, **decided}
    # transformers 4 calls it torch_dtype. make_portable writes that name again, with the new value.
    if dtype:
        merged.pop("torch_dtype", None)
        merged["dtype"] = dtype
    return merged


def tokenizer_directory(source: MergeSource) -> Path:
    """Where the merged model's tokenizer is: beside the adapter if there is one, because the
    adapter's tokenizer knows the item tokens."""
    has_own = (source.adapter / "tokenizer_config.json").exists()
    return source.adapter if has_own else source.base


def check_tokenizer(plan: MergePlan, directory: Path) -> None:
    """Raises InputError if a token of tokenizer.json has no row in the embedding.

    A tokenizer in another file is not checked here; --verify uses it.
    """
    if plan.vocab_size is None or not (directory / "tokenizer.json").exists():
        return
    largest = max(read_tokenizer(directory).get_vocab(with_added_tokens=True).values())
    if largest >= plan.vocab_size:
        raise InputError(
            f"{directory}/tokenizer.json: has tokens up to number {largest}, the merged model has "
            f"rows for {plan.vocab_size} tokens: this is the tokenizer of another model, or rows "
            "were added and not saved"
        )


def read_tokenizer(directory: Path) -> Tokenizer:
    """tokenizer.json. Raises InputError if it is not a tokenizer."""
    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise InputError(
            f"{directory}/tokenizer.json: not a tokenizer: {error}; copy it again"
        ) from None


def copy_files(source: MergeSource, output: Path) -> None:
    """Copies the tokenizer, a model's own code, and the files that ranking needs."""
    tokenizer = tokenizer_directory(source)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, output / name)
    # config.json names such code in its auto_map.
    for file in source.base.glob("*.py"):
        shutil.copy(file, output / file.name)
    for name, name_in_run in RANKING_FILES.items():
        for path in (source.adapter / name, source.adapter.parent / name_in_run):
            if path.exists():
                shutil.copy(path, output / name)
                break


def write_generation_config(base: Path, output: Path) -> None:
    """Writes a generation_config.json that says only which tokens end and pad.

    Sampling settings of the base (temperature, top_p) are left out: they would break beam search.
    """
    path = base / "generation_config.json"
    given = read_json(path) if path.exists() else read_json(base / "config.json")
    # Models without a generation_config.json have these numbers in config.json.
    kept = {}
    for name, value in given.items():
        if name.endswith("_token_id") and value is not None:
            kept[name] = value
    kept |= special_tokens(output)
    write_text(output / "generation_config.json", json.dumps(kept, indent=2) + "\n")


def special_tokens(directory: Path) -> dict[str, int]:
    """eos_token_id and pad_token_id of the tokenizer in `directory`, which are those that the model
    was trained with. The end token pads if there is no padding token."""
    files = (directory / "tokenizer.json", directory / "tokenizer_config.json")
    if not all(file.exists() for file in files):
        return {}
    config = read_json(directory / "tokenizer_config.json")
    tokenizer = read_tokenizer(directory)
    found = {}
    for kind in ("eos", "pad"):
        token = config.get(f"{kind}_token")
        text = token["content"] if isinstance(token, dict) else token
        number = tokenizer.token_to_id(text) if text else None
        if number is not None:
            found[f"{kind}_token_id"] = number
    if "eos_token_id" in found:
        found.setdefault("pad_token_id", found["eos_token_id"])
    return found

"""What lies beside the tensors of a merged model: its config.json, tokenizer, generation settings,
and what ranking needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json
from ilrec.merging.plan import Plan
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
# What ranking needs to render users and items as in training; a checkpoint's lies in its run's
# directory.
RANKING_FILES = {"item_index.json": "item_index.json", "ilrec.yaml": "config.yaml"}


def merged_config(config: dict, plan: Plan, dtype: str | None) -> dict:
    """The base's config.json with what the merge decides, where the language model's settings
    are."""
    text = {**config.get("text_config", config), "tie_word_embeddings": plan.is_tied}
    if plan.vocab_size is not None:
        text["vocab_size"] = plan.vocab_size
    merged = (
        {**config, "text_config": text, "tie_word_embeddings": plan.is_tied}
        if "text_config" in config
        else text
    )
    if dtype:
        merged.pop("torch_dtype", None)
        merged["dtype"] = dtype
    return merged


def tokenizer_directory(source: MergeSource) -> Path:
    """The adapter's tokenizer knows the item tokens."""
    return source.adapter if (source.adapter / "tokenizer_config.json").exists() else source.base


def check_tokenizer(plan: Plan, directory: Path) -> None:
    """Every token has a row. Where the tokenizer is not in tokenizer.json, --verify is what checks
    it."""
    if (directory / "tokenizer.json").exists() and plan.vocab_size is not None:
        largest = max(read_tokenizer(directory).get_vocab(with_added_tokens=True).values())
        if largest >= plan.vocab_size:
            raise InputError(
                f"{directory}/tokenizer.json: has tokens up to number {largest}, the merged model rows for "
                f"{plan.vocab_size} tokens: the tokenizer of another model, or rows that were added and not saved"
            )


def read_tokenizer(directory: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise InputError(
            f"{directory}/tokenizer.json: not a tokenizer: {error}; copy it again"
        ) from None


def copy_files(source: MergeSource, output: Path) -> None:
    tokenizer = tokenizer_directory(source)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, output / name)
    for file in source.base.glob("*.py"):  # a model's own code, which its config.json refers to
        shutil.copy(file, output / file.name)
    for name, in_run in RANKING_FILES.items():
        found = next(
            (
                path
                for path in (source.adapter / name, source.adapter.parent / in_run)
                if path.exists()
            ),
            None,
        )
        if found:
            shutil.copy(found, output / name)


def write_generation_config(base: Path, output: Path) -> None:
    """Only which tokens end and pad: sampling settings left over from the base (temperature, top_p)
    would break beam search."""
    path = base / "generation_config.json"
    given = read_json(path) if path.exists() else read_json(base / "config.json")
    kept = {
        name: value
        for name, value in given.items()
        if name.endswith("_token_id") and value is not None
    }
    kept |= special_tokens(output)
    write_text(output / "generation_config.json", json.dumps(kept, indent=2) + "\n")


def special_tokens(directory: Path) -> dict[str, int]:
    """The tokenizer's own end and padding token: with these the model was trained."""
    if not (
        (directory / "tokenizer.json").exists() and (directory / "tokenizer_config.json").exists()
    ):
        return {}
    config, tokenizer = read_json(directory / "tokenizer_config.json"), read_tokenizer(directory)
    found = {}
    for kind in ("eos", "pad"):
        token = config.get(f"{kind}_token")
        number = (
            tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token)
            if token
            else None
        )
        if number is not None:
            found[f"{kind}_token_id"] = number
    return {"pad_token_id": found["eos_token_id"], **found} if "eos_token_id" in found else found

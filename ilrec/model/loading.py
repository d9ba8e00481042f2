"""Where a model comes from: a Hugging Face directory or hub name, a GGUF file, an earlier stage, or
from scratch.

A GGUF file or a model from scratch is first written as a plain Hugging Face directory. Everything
that comes after then reads one kind of directory, also under ZeRO-3, which shards the weights while
they are read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ilrec.config.sections import ModelConfig
from ilrec.config.settings import LARGEST_WHOLE, require
from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json
from ilrec.model.loading_fault import loading_fault, reported_by_any_rank
from ilrec.model.portable import make_portable
from ilrec.model.source import ModelSource, local_directory
from ilrec.weights.tensor_files import holds_another_head, read_tensors

# Vocabulary of the tokenizer that is trained for a model from scratch, unless `init` has a
# vocab_size. It is enough for the words of a prompt and for titles in pieces. Semantic-ID tokens
# are added to it.
SCRATCH_VOCAB_SIZE = 512
# The file in such a directory that records what its model was made of.
ORIGIN = "made_of.json"
EOS, PAD = "</s>", "<pad>"
# What transformers and torch raise for a wrong field of `init`, whether or not they check it.
WRONG_INIT = (
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    StrictDataclassError,
)
FLASH_ATTENTION = "flash_attention_2"
# What transformers raises for files that it cannot read. For tensors that do not fit it raises a
# RuntimeError, which begins like one of UNFIT.
UNREADABLE = (OSError, ImportError, ValueError, SafetensorError)
UNFIT = ("Error(s) in loading state_dict", "We encountered some issues during automatic conversion")


def materialise(
    config: ModelConfig,
    directory: Path,
    texts: Iterable[str],
    seed: int,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write the model from scratch, or the GGUF file's, into `directory`. Called on one rank.

    It is written beside the directory and then renamed, so that what is there is always whole.
    origin: JSON, what the model is made of. A directory made of the same is kept; any other is
        replaced.
    """
    record = json.dumps(origin or {}, sort_keys=True)
    if (directory / ORIGIN).exists() and (directory / ORIGIN).read_text(encoding="utf-8") == record:
        return
    beside = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)

    if config.init is not None:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, _vocab_size(config.init))
        model: PreTrainedModel = _from_scratch(config.init, tokenizer, seed)
    else:
        model, tokenizer = _from_gguf(Path(config.model))

    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    make_portable(beside)
    write_text(beside / ORIGIN, record)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(beside, directory)


def write_skeleton(config: ModelConfig, directory: Path, texts: Iterable[str], seed: int) -> None:
    """What materialise() writes except the weights: config.json and the tokenizer, for a dry run.

    Raises InputError as materialise() does, for `init` also if its sizes do not fit together.
    """
    if config.init is not None:
        tokenizer: Any = train_tokenizer(texts, _vocab_size(config.init))
        with torch.device("meta"):
            settings: Any = _from_scratch(config.init, tokenizer, seed).config
    else:
        where = _gguf_place(Path(config.model))
        tokenizer = AutoTokenizer.from_pretrained(**where)
        settings = AutoConfig.from_pretrained(**where)
    settings.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def is_materialised(config: ModelConfig) -> bool:
    return config.init is not None or config.model.endswith(".gguf")


def _vocab_size(init: dict) -> int:
    value = init.get("vocab_size", SCRATCH_VOCAB_SIZE)
    require(
        type(value) is int and 0 < value <= LARGEST_WHOLE,
        "init: vocab_size",
        value,
        "a positive whole number",
    )
    return value


def _from_scratch(init: dict, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    known = set(LlamaConfig().to_dict())
    for name in init:
        if name not in known:
            raise InputError(
                f"init: unknown field {name!r}; expected fields of a Hugging Face LlamaConfig, for "
                "example hidden_size, intermediate_size, num_hidden_layers, num_attention_heads"
            )
    # The tokenizer may have learned fewer tokens than `init` asked for: its number counts.
    fields = {
        **init,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    set_seed(seed)
    try:
        model = LlamaForCausalLM(LlamaConfig(**fields))
        # Sizes that do not fit together fail only in the forward pass.
        with torch.random.fork_rng(), torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64))
    except WRONG_INIT as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"init: not a valid Llama configuration: {type(error).__name__}: {reason}"
        ) from error
    return model


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be written with it, no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS)


def _gguf_place(path: Path) -> dict[str, str]:
    """What transformers' from_pretrained takes for a GGUF file. Raises InputError if it cannot be
    read."""
    if not path.exists():
        raise InputError(f"model: no such GGUF file: {path}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"model: {path} is a GGUF file, and the package that reads it is missing: pip install "
            "gguf"
        )
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def _from_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    where: Any = _gguf_place(path)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    if fault := loading_fault(report["missing_keys"], report["unexpected_keys"]):
        raise InputError(f"model: {path}: {fault}; convert or download it again")
    # transformers dequantises the weights while it reads them, but still takes the model for
    # quantised and would refuse to save it.
    model.hf_quantizer = None  # type: ignore[assignment]
    model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer. One without a padding token pads with its end token, which is fine,
    because padding is masked and never a label.

    Raises InputError if there is none, or if it has no end token or other numbers than its file.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.tokenizer, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"model: no tokenizer could be read from {source.tokenizer}: {_first_line(error)}"
        ) from error
    _check_numbers(tokenizer, source.tokenizer)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{source.tokenizer}: its tokenizer has no end-of-sequence token, with which every "
            "item ends; set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_numbers(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises InputError if a token has another number than in its file.

    The library numbers added tokens anew, one after the other, whatever the file says.
    """
    file = "tokenizer.json"
    if Path(name).is_dir():
        path: Any = Path(name) / file
    else:
        path = try_to_load_from_cache(name, file)
    if not isinstance(path, str | Path) or not Path(path).exists():
        return
    vocabulary = tokenizer.get_vocab()
    for token in read_json(path).get("added_tokens", []):
        number = vocabulary.get(token["content"], token["id"])
        if number != token["id"]:
            raise InputError(
                f"{path}: {token['content']!r} has number {token['id']} there and is read as "
                f"{number}, which is the row of another token, because some numbers before it are "
                "not in use; give each of them a name in model.vocab"
            )


def load_base(
    source: ModelSource, config: ModelConfig, device: str | None = None
) -> PreTrainedModel:
    """The full model, in the configured precision and attention.

    device: where its tensors go; None: as transformers decides. On "meta" they have shapes and no
        values, and only the headers of the files are read.
    Raises InputError, on every rank, if a parameter is in no file or has another shape there.
    """
    # Every fault is kept as a text first. Under ZeRO-3 only one rank may see it, and all ranks have
    # to stop.
    model, fault = None, ""
    try:
        # Tensors of another shape are reported by the check below, all of them, and not by an error
        # about the first one.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.base,
            config=read_config(source, config.trust_remote_code),
            dtype=choose_dtype(config.dtype),
            attn_implementation=choose_attention(config.attn_implementation),
            trust_remote_code=config.trust_remote_code,
            device_map=device,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        model, report = loaded
        misfits = []
        for name, found, wanted in report["mismatched_keys"]:
            misfits.append(f"{name}: {list(found)}, expected {list(wanted)}")
        fault = loading_fault(report["missing_keys"], report["unexpected_keys"], misfits)
    except UNREADABLE as error:
        fault = f"could not be loaded: {_first_line(error)}"
    except RuntimeError as error:
        if not str(error).startswith(UNFIT):
            raise
        fault = " ".join(str(error).split())[:400]
    fault = reported_by_any_rank(fault)
    if fault or model is None:
        raise InputError(
            f"model: {source.base}: {fault}; copy or download it again, or mend its config.json"
        )
    return model


def skeleton_base(source: ModelSource, config: ModelConfig) -> PreTrainedModel:
    """The model of a directory without weights (write_skeleton), on "meta"."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            read_config(source),
            dtype=choose_dtype(config.dtype),
            attn_implementation=choose_attention(config.attn_implementation),
        )


def read_config(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's config.json.

    If it says that head and embedding are tied, but the files hold a head that differs from the
    embedding, the configuration that is returned says untied.
    """
    config = AutoConfig.from_pretrained(source.base, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    if text.tie_word_embeddings:
        directory = local_directory(source.base)
        if any(directory.glob("*.safetensors")) and holds_another_head(read_tensors(directory)):
            config.tie_word_embeddings = text.tie_word_embeddings = False
    return config


def choose_dtype(dtype: str) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, dtype)


def choose_attention(name: str) -> str:
    if name != "auto":
        known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
        if name not in known and "/" not in name:  # owner/kernel names one of the hub
            expected = ", ".join(sorted(known))
            raise InputError(f"attn_implementation: expected auto, {expected}, got {name!r}")
        return name
    fast = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return FLASH_ATTENTION if fast else "sdpa"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

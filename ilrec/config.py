"""Every setting, once: its default, its help text and its checks.

Precedence: defaults here < the YAML recipe < the command line (`--field value`). YAML and command line are flat: a field's
name says enough, and no two sections share one. Sections exist for the code, so that each part is handed only its own.

    deepspeed ilrec/train.py --ds_config ds_configs/zero3_cpu.json --config ilrec/recipes/stage1.yaml --beta 0.2
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ilrec.errors import InputError
from ilrec.outputs import whole_file


def setting(default: Any, help: str) -> Any:
    """One setting: its default and the line that documents it (docs and error messages read it from here)."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{name}: expected {expected}, got {value!r}")


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, "one of " + ", ".join(choices))


DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class ModelConfig:
    """The causal LM, its adapter and its new tokens."""

    model: str = setting("", "model directory, hub name, .gguf file, or the final/ of an earlier stage (adapter or full)")
    base: str = setting("", "the adapter's base model, where it has moved from the place that the adapter records")
    init: dict | None = setting(None, "make a model from scratch instead: Hugging Face config fields of a Llama")
    adapter: str = setting("lora", "lora: train low-rank adapters; none: train all parameters")
    lora_rank: int = setting(16, "rank of the low-rank updates")
    lora_alpha: int = setting(32, "the updates are scaled by lora_alpha / lora_rank")
    lora_dropout: float = setting(0.05, "dropout before the low-rank updates")
    lora_target_modules: str | list[str] = setting("all-linear", "modules to adapt, or all-linear (every one but the head)")
    train_item_tokens: bool = setting(True, "under lora, train the semantic-ID tokens' embedding and head rows too")
    dtype: str = setting("auto", "auto (bfloat16 on CUDA, float32 on CPU), bfloat16, float16 or float32")
    attn_implementation: str = setting("auto", "auto (flash_attention_2 where installed and on CUDA, else sdpa) or a name")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, more time")
    trust_remote_code: bool = setting(False, "run code that comes with the model; asked for on the command line, never by a recipe")

    def __post_init__(self) -> None:
        _one_of("adapter", self.adapter, ("lora", "none"))
        _one_of("dtype", self.dtype, DTYPES)
        _require(self.lora_rank > 0, "lora_rank", self.lora_rank, "a positive number")
        _require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "a share in [0, 1)")
        _require(self.init is None or not self.model, "init", self.init, "init or model, not both")
        has_no_base = self.init is not None or self.model.endswith(".gguf")
        _require(not (self.base and has_no_base), "base", self.base, "none, because the model to start from is no adapter")


@dataclass
class DataConfig:
    """Interactions, prompts and what fits into one sample."""

    data: str = setting("", "data directory: prepared by tools/prepare_data.py, LC-Rec JSON (*.inter.json) or RecBole (*.inter)")
    item_format: str = setting("semantic_id", "what is generated: semantic_id (LC-Rec style) or title (BIGRec style)")
    semantic_ids: str = setting("", "semantic-ID index file; empty: the *.index.json in the data directory")
    k_core: int = setting(5, "RecBole files only: keep users and items with at least this many interactions")
    supervision: str = setting("last_item", "last_item: one sample per prefix of a history; every_item: one per user, the loss on "
                               "every item after the first")
    max_history_items: int = setting(20, "at most this many past items in a prompt, the newest ones")
    max_tokens_per_batch: int = setting(0, "token budget of a rank's micro-step, padding included, in place of "
                                        "per_device_train_batch_size, with samples of like length together; 0: none")
    batch_layout: str = setting("auto", "with max_tokens_per_batch: padded, or flattened (one row without padding); auto: "
                                "flattened with flash_attention_2")
    max_length: int = setting(512, "tokens of prompt and response; a longer history loses its oldest items")
    prompt_prefix: str | None = setting(None, "text before the history; null: the format's own")
    prompt_separator: str | None = setting(None, "text between two items of the history; null: the format's own")
    prompt_suffix: str | None = setting(None, "text after the history; null: the format's own")

    def __post_init__(self) -> None:
        _one_of("item_format", self.item_format, ("semantic_id", "title"))
        _one_of("supervision", self.supervision, ("last_item", "every_item"))
        _one_of("batch_layout", self.batch_layout, ("auto", "padded", "flattened"))
        _require(self.max_tokens_per_batch >= 0, "max_tokens_per_batch", self.max_tokens_per_batch, "0 (no budget) or more")
        _require(self.supervision == "last_item" or not self.prompt_suffix, "prompt_suffix", self.prompt_suffix,
                 "none under supervision: every_item, where a target follows each item; use prompt_prefix")
        _require(self.k_core >= 0, "k_core", self.k_core, "0 (no filter) or more")
        _require(self.max_history_items > 0, "max_history_items", self.max_history_items, "a positive number")
        _require(self.max_length > 0, "max_length", self.max_length, "a positive number of tokens")


@dataclass
class ObjectiveConfig:
    """The ILRec objective (arXiv 2602.17410; equations in docs/method.md). All weights 0 is plain SFT."""

    beta: float = setting(0.0, "cross-layer preference optimisation: size of the penalty on hard negatives")
    distillation_weight: float = setting(0.0, "lambda: weight of cross-layer preference distillation")
    reward_weight: float = setting(0.0, "mu: weight of the collaborative reward; needs sasrec")
    num_readout_layers: int = setting(4, "K: this many layers below the last one propose hard negatives")
    threshold: str = setting("probability", "probability: Pe(v) >= alpha Pe(y); logit: ze(v) >= alpha z(y)")
    alpha: float = setting(0.5, "the share of the label's readout probability (or logit) that makes a token a hard negative")
    max_negatives: int = setting(0, "M: keep at most this many hard negatives per token; 0 keeps all")
    negative_tokens: str = setting("all", "tokens that can be negatives: all; items (those that occur in an item); continuations "
                                   "(those with which an item of the catalogue goes on at this place)")
    distillation_target: str = setting("ensemble", "what learns from the last layer: ensemble or per_layer")
    reward_tokens: str = setting("negatives", "tokens that share the reward's soft target: negatives (S and the label), or "
                                 "continuations (every token with which an item of the catalogue goes on)")
    reward_temperature: float = setting(1.0, "T: soft target is reward ** (1 / T), normalised")
    sasrec: str = setting("", "directory of a trained SASRec (tools/train_sasrec.py), read when reward_weight > 0")
    backend: str = setting("auto", "vocabulary operation: auto, reference, row_slab or vocab_stream (CUDA with Triton)")
    slab_mib: int = setting(0, "memory for logits, in MiB; 0: what was measured best for the device (ilrec/ops/row_slab.py)")

    def __post_init__(self) -> None:
        _one_of("threshold", self.threshold, ("probability", "logit"))
        _one_of("negative_tokens", self.negative_tokens, ("all", "items", "continuations"))
        _one_of("distillation_target", self.distillation_target, ("ensemble", "per_layer"))
        _one_of("reward_tokens", self.reward_tokens, ("negatives", "continuations"))
        _one_of("backend", self.backend, ("auto", "reference", "row_slab", "vocab_stream"))
        for name in ("beta", "distillation_weight", "reward_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.alpha > 0, "alpha", self.alpha, "a positive number")
        _require(self.reward_temperature > 0, "reward_temperature", self.reward_temperature, "a positive number")
        _require(self.num_readout_layers > 0, "num_readout_layers", self.num_readout_layers, "a positive number")
        _require(self.slab_mib >= 0, "slab_mib", self.slab_mib, "0 (the device's own) or more")
        _require(self.max_negatives >= 0, "max_negatives", self.max_negatives, "0 (no cap) or more")
        _require(self.reward_weight == 0 or bool(self.sasrec), "sasrec", self.sasrec,
                 "a directory written by tools/train_sasrec.py, because reward_weight > 0")


@dataclass
class TrainingConfig:
    """Handed to transformers.TrainingArguments under the same names."""

    output_dir: str = setting("", "run directory: config, metrics, checkpoints and final/ go here")
    num_train_epochs: float = setting(1.0, "passes over the training samples")
    max_steps: int = setting(-1, "stop after this many optimizer steps instead; -1: by epochs")
    per_device_train_batch_size: int = setting(8, "samples per rank and micro-step")
    per_device_eval_batch_size: int = setting(16, "samples per rank in evaluation")
    gradient_accumulation_steps: int = setting(1, "micro-steps per optimizer step")
    learning_rate: float = setting(1e-4, "peak learning rate")
    lr_scheduler_type: str = setting("cosine", "Hugging Face scheduler name")
    warmup_steps: float = setting(0.03, "steps of linear warm-up; below 1: share of all steps")
    weight_decay: float = setting(0.0, "AdamW weight decay")
    max_grad_norm: float = setting(1.0, "gradient norm to clip at")
    logging_steps: int = setting(10, "optimizer steps between log lines")
    eval_strategy: str = setting("no", "no, steps or epoch: when the loss on the validation items is measured")
    eval_steps: int = setting(500, "steps between evaluations with eval_strategy: steps")
    save_steps: int = setting(500, "optimizer steps between checkpoints")
    save_total_limit: int = setting(2, "checkpoints kept")
    dataloader_num_workers: int = setting(0, "processes that prepare samples, per rank")
    seed: int = setting(0, "random seed of initialisation, order and dropout")
    resume: str = setting("auto", "auto: go on from the newest complete checkpoint in output_dir; never; or a checkpoint")

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a positive number")
        _one_of("eval_strategy", self.eval_strategy, ("no", "steps", "epoch"))


# Items that may come next: all; unseen: those that are not in the history; auto: unseen if no user has an item twice.
CANDIDATES = ("auto", "all", "unseen")


@dataclass
class SASRecConfig:
    """The light collaborative filter (Kang & McAuley 2018). Used by tools/train_sasrec.py."""

    hidden_size: int = setting(64, "embedding and state size")
    num_layers: int = setting(2, "transformer blocks")
    num_heads: int = setting(2, "attention heads")
    dropout: float = setting(0.2, "dropout on embeddings, attention and feed-forward")
    max_history_items: int = setting(50, "positions: at most this many past items are read")
    candidates: str = setting("auto", "all; unseen: no item of the history is a next one; auto: unseen if no user has an item twice")
    label_smoothing: float = setting(0.0, "share of the target's probability that is spread over all candidates")
    learning_rate: float = setting(3e-3, "AdamW learning rate; falls linearly to 0 over num_epochs")
    weight_decay: float = setting(0.0, "AdamW weight decay")
    batch_size: int = setting(32, "windows per step")
    num_epochs: int = setting(100, "at most this many epochs")
    patience: int = setting(10, "stop after this many epochs without a better validation NDCG@10")
    seed: int = setting(0, "random seed")

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "max_history_items", "batch_size", "num_epochs", "patience"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        _one_of("candidates", self.candidates, CANDIDATES)
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        _require(self.hidden_size % self.num_heads == 0, "hidden_size", self.hidden_size, "a multiple of num_heads")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "a share in [0, 1)")


@dataclass
class TrainConfig:
    """All that ilrec/train.py can be told."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    training: TrainingConfig

    def flat(self) -> dict[str, Any]:
        """The settings as one flat mapping, as a recipe holds them."""
        return {k: v for section in (self.model, self.data, self.objective, self.training)
                for k, v in dataclasses.asdict(section).items()}


SECTIONS: dict[str, type] = {
    "model": ModelConfig, "data": DataConfig, "objective": ObjectiveConfig, "training": TrainingConfig}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; InputError names file, line and column where it is missing or malformed."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a YAML file of `field: value` lines") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected `field: value` lines, got a {type(content).__name__}")
    return content


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`--field value` and `--field=value` pairs; values are read as YAML. A flag without a value is an error."""
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"command line: expected --field value, got {word!r}")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise InputError(f"command line: --{name} has no value; write --{name} VALUE")
            value = rest.pop(0)
        try:
            overrides[name] = yaml.safe_load(value) if value else ""  # to YAML nothing is null
        except yaml.YAMLError:
            overrides[name] = value
    return overrides


def load_config(path: str | Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Defaults < recipe < command line, checked. Raises InputError naming the place and the field."""
    merged: dict[str, tuple[Any, str]] = {}
    for values, source in ((read_yaml(path) if path else {}, str(path)), (overrides, "command line")):
        merged.update({name: (value, source) for name, value in values.items()})
    if merged.get("trust_remote_code", (False, ""))[0] and "trust_remote_code" not in overrides:
        raise InputError(f"{path}: trust_remote_code: a recipe must not decide that code from elsewhere is run; remove it and give "
                         "--trust_remote_code true, if you trust the model's authors")
    owners = {f.name: section for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
    for name, (_, source) in merged.items():
        if name not in owners:
            raise InputError(f"{source}: unknown field {name!r}{nearest(name, owners)}")
    sections = {}
    for section, cls in SECTIONS.items():
        mine = {name: pair for name, pair in merged.items() if owners[name] == section}
        sections[section] = build_section(cls, mine)
    config = TrainConfig(**sections)
    _check_together(config, str(path) if path else "command line")
    return config


def nearest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known fields: {', '.join(sorted(known))}"


def build_section(cls: type, values: dict[str, tuple[Any, str]]) -> Any:
    """One dataclass from {field: (value, where it was given)}, types checked."""
    hints = typing.get_type_hints(cls)
    checked = {name: _coerce(value, hints[name], name, source) for name, (value, source) in values.items()}
    try:
        return cls(**checked)
    except InputError as error:
        sources = " and ".join(sorted({source for _, source in values.values()})) or "defaults"
        raise InputError(f"{sources}: {error}") from None


def _coerce(value: Any, hint: Any, name: str, source: str) -> Any:
    """The value in its field's type. YAML reads 1e-4 as a string and 1 as an int; both are meant as numbers."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        plain = typing.get_origin(option) or option
        if plain is types.NoneType and value is None:
            return None
        if plain is float and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
        if isinstance(value, plain) and isinstance(value, bool) == (plain is bool):
            return value
    expected = " or ".join("null" if o is types.NoneType else getattr(o, "__name__", str(o)) for o in options)
    raise InputError(f"{source}: {name}: expected {expected}, got {type(value).__name__} {value!r}")


def _check_together(config: TrainConfig, source: str) -> None:
    for section, name, meaning in ((config.data, "data", "the data directory"),
                                   (config.training, "output_dir", "the run directory")):
        if not getattr(section, name):
            raise InputError(f"{source}: {name}: not set; expected {meaning}: add `{name}: PATH` or --{name} PATH")
    if not config.model.model and config.model.init is None:
        raise InputError(f"{source}: model: not set; name a model (--model PATH) or give init: {{...}} for one from scratch")


def write_yaml(path: str | Path, config: TrainConfig) -> None:
    """The resolved settings, readable again by load_config."""
    write_text(path, yaml.safe_dump(config.flat(), sort_keys=False, allow_unicode=True))


def write_text(path: str | Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """JSON content; InputError names file, line and column where it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None

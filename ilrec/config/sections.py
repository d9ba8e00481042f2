"""Every setting of training, once: its default, its help text and its checks. The sections of the
objective, the training loop, the evaluation and of SASRec lie beside this file.

Defaults here < the YAML recipe < the command line (`--field value`). A recipe and a command line
are flat: no two sections of a training run share a field's name. The sections exist for the code,
so that each part gets only its own settings. settings.py tells how a value is read.

    deepspeed ilrec/train.py --ds_config ds_configs/zero3_cpu.json \
        --config ilrec/recipes/stage1.yaml --beta 0.2
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ilrec.config.dates import split_dates
from ilrec.config.evaluation import EvaluationConfig
from ilrec.config.objective import ObjectiveConfig
from ilrec.config.settings import Section, require, setting
from ilrec.config.training import TrainingConfig

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class ModelConfig(Section):
    """The causal LM, its adapter and its new tokens."""

    model: str = setting(
        "",
        "model directory, hub name, .gguf file, or the final/ of an earlier stage (adapter or "
        "full model)",
    )
    base: str = setting(
        "", "the adapter's base model, if it is no longer at the place that the adapter records"
    )
    init: dict | None = setting(
        None, "make a model from scratch instead: Hugging Face config fields of a Llama"
    )
    adapter: str = setting(
        "lora",
        "lora: train low-rank adapters; none: train all parameters",
        choices=("lora", "none"),
    )
    lora_rank: int = setting(16, "rank of the low-rank updates", at_least=1)
    lora_alpha: int = setting(32, "the updates are scaled by lora_alpha / lora_rank", at_least=1)
    lora_dropout: float = setting(0.05, "dropout before the low-rank updates", at_least=0, below=1)
    lora_target_modules: str | list[str] = setting(
        "all-linear", "modules to adapt, or all-linear (every one but the head)"
    )
    train_item_tokens: bool = setting(
        True, "under lora, train the semantic-ID tokens' embedding and head rows too"
    )
    dtype: str = setting(
        "auto",
        "auto (bfloat16 on CUDA, float32 on CPU), bfloat16, float16 or float32",
        choices=DTYPES,
    )
    attn_implementation: str = setting(
        "auto", "auto (flash_attention_2 where installed and on CUDA, else sdpa) or a name"
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    trust_remote_code: bool = setting(
        False,
        "run code that comes with the model; only the command line may set it, not a recipe",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init is None or not self.model, "init", self.init, "init or model, not both")
        require(self.init != {}, "init", self.init, "fields of a Llama, such as hidden_size")
        require(
            bool(self.lora_target_modules),
            "lora_target_modules",
            self.lora_target_modules,
            "names of modules, or all-linear",
        )
        # A model from scratch or from GGUF is written as a full model; no adapter is involved.
        has_no_base = self.init is not None or self.model.endswith(".gguf")
        require(
            not (self.base and has_no_base),
            "base",
            self.base,
            "none, because the model to start from is no adapter",
        )


@dataclass
class DataConfig(Section):
    """Interactions, prompts and what fits into one sample."""

    data: str = setting(
        "",
        "data directory: written by `ilrec prepare`, LC-Rec JSON (*.inter.json) or RecBole "
        "atomic files (*.inter)",
    )
    item_format: str = setting(
        "semantic_id",
        "what is generated: semantic_id (LC-Rec style) or title (BIGRec style)",
        choices=("semantic_id", "title"),
    )
    semantic_ids: str = setting(
        "", "semantic-ID index file; empty: the *.index.json in the data directory"
    )
    k_core: int = setting(
        5,
        "RecBole files only: keep users and items with at least this many interactions",
        at_least=0,
    )
    num_targets: int = setting(
        1,
        "the last so many items of each user are test targets, and as many before them validation "
        "targets",
        at_least=1,
    )
    split_time: str = setting(
        "",
        "split by time instead: test targets are all items from this date on, such as 2023-01-01; "
        "of two dates (2022-10-01,2023-01-01) validation begins at the first",
    )
    supervision: str = setting(
        "last_item",
        "last_item: one sample per prefix of a history; every_item: one per user, the loss on "
        "every item after the first",
        choices=("last_item", "every_item"),
    )
    max_history_items: int = setting(
        20, "at most this many past items in a prompt, the newest ones", at_least=1
    )
    max_tokens_per_batch: int = setting(
        0,
        "at most this many tokens, padding included, in a micro-step of one rank; replaces "
        "per_device_train_batch_size and puts samples of similar length together; 0: not used",
        at_least=0,
    )
    batch_layout: str = setting(
        "auto",
        "for max_tokens_per_batch: padded, or flattened (one row without padding); auto: "
        "flattened if attention is flash_attention_2",
        choices=("auto", "padded", "flattened"),
    )
    max_length: int = setting(
        512, "tokens of prompt and response; a longer history loses its oldest items", at_least=1
    )
    prompt_prefix: str | None = setting(None, "text before the history; null: the format's own")
    prompt_separator: str | None = setting(
        None, "text between two items of the history; null: the format's own"
    )
    prompt_suffix: str | None = setting(None, "text after the history; null: the format's own")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_split()
        require(
            self.supervision == "last_item" or not self.prompt_suffix,
            "prompt_suffix",
            self.prompt_suffix,
            "none under supervision: every_item, where a target follows each item; use "
            "prompt_prefix",
        )
        require(
            self.batch_layout != "flattened" or self.max_tokens_per_batch > 0,
            "batch_layout",
            self.batch_layout,
            "auto or padded without max_tokens_per_batch, which sets the size of a flattened batch",
        )

    def _check_split(self) -> None:
        if not self.split_time:
            return
        require(
            self.num_targets == 1,
            "num_targets",
            self.num_targets,
            "1 with split_time, which makes all later items targets",
        )
        try:
            split_dates(self.split_time)
        except ValueError as error:
            expected = "a date such as 2023-01-01, or two with a comma, the earlier one first"
            require(False, "split_time", self.split_time, f"{expected} ({error})")


@dataclass
class TrainConfig:
    """All settings of a training run. DeepSpeed's own are in its configuration file."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    # Other fields of transformers.TrainingArguments, those that were given.
    training_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The settings as one flat mapping, as a recipe holds them."""
        flat: dict[str, Any] = {}
        for section in SECTIONS:
            flat |= dataclasses.asdict(getattr(self, section))
        return flat | self.training_arguments


# The sections of a training run. SASRec is trained by a program of its own.
SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}

"""Every setting of training, once: its default, its help text and its checks. The sections of the
evaluation and of SASRec lie beside this file.

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
from ilrec.config.settings import Section, require, setting
from ilrec.errors import InputError
from ilrec.ops.objective import (
    BACKENDS,
    DISTILLATION_TARGETS,
    NEGATIVE_TOKENS,
    NEGATIVES_FROM,
    REWARD_TOKENS,
    THRESHOLDS,
    Objective,
)

DTYPES = ("auto", "bfloat16", "float16", "float32")
# The members of transformers.SchedulerType that depend on the step alone. The last three need
# lr_scheduler_kwargs.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
# Where the numbers of the log may go: names of transformers' integrations.
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "swanlab", "none")
# Where the polynomial schedule of transformers ends (its lr_end). The peak must lie above it.
POLYNOMIAL_END = 1e-7


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
class ObjectiveConfig(Section):
    """The ILRec objective (arXiv 2602.17410; equations in docs/method.md). All weights 0 is plain
    SFT."""

    beta: float = setting(
        0.0,
        "cross-layer preference optimisation: size of the penalty on hard negatives",
        at_least=0,
    )
    distillation_weight: float = setting(
        0.0, "lambda: weight of cross-layer preference distillation", at_least=0
    )
    reward_weight: float = setting(
        0.0, "mu: weight of the collaborative reward; needs sasrec", at_least=0
    )
    num_readout_layers: int = setting(
        4, "K: this many layers below the last one propose hard negatives", at_least=1
    )
    threshold: str = setting(
        "probability",
        "probability: Pe(v) >= alpha Pe(y); logit: ze(v) >= alpha z(y)",
        choices=THRESHOLDS,
    )
    alpha: float = setting(
        0.5,
        "the share of the label's readout probability (or logit) that makes a token a hard "
        "negative",
        above=0,
    )
    max_negatives: int = setting(
        0, "M: keep at most this many hard negatives per token; 0 keeps all", at_least=0
    )
    negative_tokens: str = setting(
        "all",
        "tokens that can be negatives: all; items (those that occur in an item); continuations "
        "(those with which an item of the catalogue goes on at this place)",
        choices=NEGATIVE_TOKENS,
    )
    negatives_from: str = setting(
        "readout",
        "readout: the method, the layers below the last one propose the hard negatives. For "
        "ablations: last_layer (the last layer's own probable tokens; needs distillation_weight "
        "0) or random (as many tokens, drawn at random; needs negative_tokens all)",
        choices=NEGATIVES_FROM,
    )
    weight_temperature: float = setting(
        1.0,
        "the hard negatives are weighted by softmax(ze / weight_temperature); 1 / K gives the "
        "weights of the authors' code, which sums the K layers' logits",
        above=0,
    )
    distillation_target: str = setting(
        "ensemble",
        "what learns from the last layer: ensemble or per_layer",
        choices=DISTILLATION_TARGETS,
    )
    reward_tokens: str = setting(
        "negatives",
        "tokens that share the reward's soft target: negatives (S and the label), or "
        "continuations (every token with which an item of the catalogue goes on)",
        choices=REWARD_TOKENS,
    )
    reward_temperature: float = setting(
        1.0, "T: soft target is reward ** (1 / T), normalised", above=0
    )
    sasrec: str = setting(
        "", "directory of a trained SASRec (`ilrec sasrec`), read when reward_weight > 0"
    )
    backend: str = setting(
        "auto",
        "vocabulary operation: auto, reference, row_slab or vocab_stream (CUDA with Triton)",
        choices=BACKENDS,
    )
    slab_mib: int = setting(
        0,
        "memory for logits, in MiB; 0: what was measured best for the device "
        "(ilrec/ops/row_slab.py)",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.reward_weight == 0 or bool(self.sasrec),
            "sasrec",
            self.sasrec,
            "a directory written by `ilrec sasrec`, because reward_weight > 0",
        )
        self.vocabulary_objective()

    def vocabulary_objective(self) -> Objective:
        """The settings that the vocabulary operation looks at. Raises InputError if they contradict
        each other."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(Objective)}
        try:
            return Objective(**settings)
        except ValueError as error:
            raise InputError(str(error)) from None


@dataclass
class TrainingConfig(Section):
    """The training loop.

    transformers.TrainingArguments has the same fields, except `resume`. Its other fields may be
    given, too (docs/fields.md).
    """

    output_dir: str = setting("", "run directory: config, metrics, checkpoints and final/ go here")
    num_train_epochs: float = setting(1.0, "passes over the training samples", above=0)
    max_steps: int = setting(
        -1, "stop after this many optimizer steps instead; -1: by epochs", at_least=-1
    )
    per_device_train_batch_size: int = setting(8, "samples per rank and micro-step", at_least=1)
    gradient_accumulation_steps: int = setting(1, "micro-steps per optimizer step", at_least=1)
    learning_rate: float = setting(1e-4, "peak learning rate", above=0)
    lr_scheduler_type: str = setting(
        "cosine",
        "schedule of transformers; its own arguments are lr_scheduler_kwargs",
        choices=SCHEDULES,
    )
    warmup_steps: float = setting(
        0.03, "steps of linear warm-up; below 1: share of all steps", at_least=0
    )
    weight_decay: float = setting(0.0, "AdamW weight decay", at_least=0)
    max_grad_norm: float = setting(1.0, "gradient norm to clip at; 0: no clipping", at_least=0)
    logging_steps: int = setting(10, "optimizer steps between log lines", at_least=1)
    save_steps: int = setting(500, "optimizer steps between checkpoints", at_least=1)
    save_total_limit: int = setting(
        2, "checkpoints kept, the newest ones, and with save_best the best one; 0: all", at_least=0
    )
    dataloader_num_workers: int = setting(0, "processes that prepare samples, per rank", at_least=0)
    report_to: str | list[str] = setting(
        "tensorboard",
        "where the log goes beside metrics.jsonl: one tracker or a list of them; each but "
        "tensorboard needs its package",
        choices=TRACKERS,
    )
    seed: int = setting(0, "random seed of initialisation, order and dropout", at_least=0)
    resume: str = setting(
        "auto",
        "auto: go on from the newest complete checkpoint in output_dir; never; or a checkpoint",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_steps != 0, "max_steps", self.max_steps, "a number of steps, or -1: by epochs"
        )
        # transformers reads a value below 1 as a share of all steps, else as a number of steps.
        require(
            self.warmup_steps < 1 or self.warmup_steps.is_integer(),
            "warmup_steps",
            self.warmup_steps,
            "a whole number of steps, or a share below 1",
        )
        require(
            self.lr_scheduler_type != "polynomial" or self.learning_rate > POLYNOMIAL_END,
            "learning_rate",
            self.learning_rate,
            f"a number above {POLYNOMIAL_END}, where lr_scheduler_type: polynomial ends",
        )
        require(
            self.report_to == "none" or "none" not in self.report_to,
            "report_to",
            self.report_to,
            "none alone, or the names of trackers",
        )
        require(bool(self.resume), "resume", self.resume, "auto, never or a checkpoint")


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

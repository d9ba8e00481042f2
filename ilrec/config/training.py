"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from ilrec.config.settings import Section, require, setting

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

"""Every setting in words, made from the dataclasses that declare them.

`--help` has the same words (command_line.py). docs/fields.md is this module's output:

    python -m ilrec.config.reference > docs/fields.md
"""

from __future__ import annotations

import dataclasses
import inspect

from ilrec.config.item_knn import ItemKNNConfig
from ilrec.config.other_names import ANSWERS
from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import SECTIONS
from ilrec.config.settings import default_words, type_words
from ilrec.files.markdown import markdown_table

INTRODUCTION = """\
# All fields

Made from the dataclasses in ilrec/config by `python -m ilrec.config.reference`. `--help` of each
program prints the same.

A field is given in a recipe (`field: value`) or on the command line (`--field value`). The order
is: defaults, then the recipe, then the command line. A value is read as its type requires: text is
taken literally, a boolean is `true` or `false`, a list is `[a, b]`, a mapping is `{a: 1}`.
"""
TRAINING_ARGUMENTS = """\
## Other fields of transformers.TrainingArguments

Every other field of
[transformers.TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments)
may be given in the same ways, under its own name: `optim`, `adam_beta2`, `lr_scheduler_kwargs`,
`neftune_noise_alpha`, `save_strategy`, `logging_first_step`, `run_name`,
`dataloader_prefetch_factor` and so on. Type and choices are those of the installed version. What is
not given keeps transformers' default. What is given is part of the run's identity, except what
[clusters.md](clusters.md) lists.
"""
OTHER_NAMES = """\
## Names from elsewhere

These are not taken: names that other programs use, and fields of transformers.TrainingArguments
that this trainer decides itself. Whoever gives one is told what is here in its place.
"""


def reference() -> str:
    """The text of docs/fields.md."""
    parts = [INTRODUCTION]
    for name, cls in SECTIONS.items():
        parts.append(_section(f"ilrec/train.py: {name}", cls))
    parts.append(TRAINING_ARGUMENTS)
    parts.append(_section("tools/train_sasrec.py", SASRecConfig))
    parts.append(_section("tools/experiments/rank_baselines.py", ItemKNNConfig))
    names_of: dict[str, list[str]] = {}
    for name, answer in ANSWERS.items():
        names_of.setdefault(answer, []).append(f"`{name}`")
    rows = [(", ".join(names), answer) for answer, names in names_of.items()]
    parts.append(OTHER_NAMES + "\n" + markdown_table(("name", "here"), rows))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _section(title: str, cls: type) -> str:
    rows = []
    for field in dataclasses.fields(cls):
        default = f"`{default_words(cls, field.name)}`"
        rows.append(
            (f"`{field.name}`", default, type_words(cls, field.name), field.metadata["help"])
        )
    table = markdown_table(("field", "default", "takes", "meaning"), rows)
    return f"## {title}\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\n{table}"


if __name__ == "__main__":
    print(reference(), end="")

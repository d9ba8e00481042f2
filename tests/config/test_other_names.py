"""Names that people bring from elsewhere: each is answered by what exists here."""

import dataclasses
import re

import pytest

from ilrec.config.loading import load_config
from ilrec.config.other_names import ANSWERS, REASONS, RENAMED
from ilrec.config.parsers import train_parser
from ilrec.config.sections import SECTIONS
from ilrec.config.training_arguments import known_fields
from ilrec.errors import InputError

DECLARED = {f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls)}
TAKEN = DECLARED | (known_fields().keys() - ANSWERS.keys())
GIVEN = {"data": "d", "output_dir": "o", "model": "m"}


def test_what_is_called_otherwise_is_a_field():
    assert set(RENAMED) <= TAKEN


@pytest.mark.parametrize("reason", REASONS.values())
def test_an_answer_names_what_exists(reason):
    flags = {option.lstrip("-") for option in train_parser(None)._option_string_actions}
    quoted = re.findall(r"`(-*)(\w+)", reason)
    for dashes, name in quoted:
        assert name in (flags if dashes else TAKEN)


def test_no_field_is_answered_as_another_name():
    assert not DECLARED & ANSWERS.keys()


def test_every_name_is_answered_once():
    names = [name for names in (*RENAMED.values(), *REASONS) for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lr", "command line: lr: no field of a training run: it is called `learning_rate`"),
        ("bf16", "bf16: .*the precision is `dtype: bfloat16`"),
        ("deepspeed", "deepspeed: .*on the command line: `--ds_config FILE`"),
        ("remove_unused_columns", "remove_unused_columns: .*batches are made by this program"),
        ("warmup_ratio", "warmup_ratio: .*`warmup_steps` below 1"),
    ],
)
def test_the_user_is_told(name, message):
    with pytest.raises(InputError, match=message):
        load_config(None, {**GIVEN, name: "1"})

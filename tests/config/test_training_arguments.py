"""Fields of transformers.TrainingArguments under their own names: types, and what is refused."""

import dataclasses
import subprocess
import sys

import pytest
from conftest import ROOT
from transformers import TrainingArguments

from ilrec.config.loading import load_config, parse_overrides, write_yaml
from ilrec.config.other_names import ANSWERS
from ilrec.config.sections import SECTIONS
from ilrec.config.training_arguments import known_fields
from ilrec.errors import InputError

GIVEN = {"data": "d", "output_dir": "o", "model": "m"}
DECLARED = {f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls)}
PASSED_ON = sorted(known_fields().keys() - DECLARED - ANSWERS.keys())


def given(**fields) -> dict:
    return load_config(None, {**GIVEN, **fields}).training_arguments


def test_values_from_a_command_line_are_read_in_their_types():
    words = ["--adam_beta2", "0.95", "--optim=adafactor", "--logging_first_step", "true"]
    words += ["--lr_scheduler_kwargs", "{num_cycles: 2}", "--run_name", "007"]
    words += ["--dataloader_prefetch_factor", "null", "--neftune_noise_alpha", "5"]
    assert given(**parse_overrides(words)) == {
        "adam_beta2": 0.95,
        "optim": "adafactor",
        "logging_first_step": True,
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "run_name": "007",
        "dataloader_prefetch_factor": None,
        "neftune_noise_alpha": 5.0,
    }


@pytest.mark.parametrize("name", PASSED_ON)
def test_the_default_of_every_field_is_a_value_of_it(name):
    default = TrainingArguments.__dataclass_fields__[name].default
    expected = getattr(default, "value", default)
    assert given(**{name: expected}) == {name: expected}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adam_beta2": "high"}, "command line: adam_beta2: expected a number, got 'high'"),
        ({"logging_first_step": "maybe"}, "logging_first_step: expected true or false"),
        ({"optim": "adam"}, "optim: expected one of adamw_torch, .* got 'adam'"),
        ({"optim": "galore_adamw"}, "optim: .*does not take the model's layers apart"),
        ({"save_strategy": "best"}, "save_strategy: expected no, steps or epoch, got 'best'"),
        ({"log_level": "loud"}, "log_level: expected one of detail, debug"),
        ({"lr_scheduler_kwargs": "x.json"}, "lr_scheduler_kwargs: expected a mapping"),
        ({"adam_beta": "1"}, "unknown field 'adam_beta'; did you mean 'adam_beta[12]'"),
        ({"zzz": "1"}, "unknown field 'zzz'; --help and docs/fields.md list all fields"),
        ({"dataloader_prefetch_factor": "2"}, "expected dataloader_num_workers above 0 with it"),
        (
            {"dataloader_drop_last": "true", "max_tokens_per_batch": "64"},
            "dataloader_drop_last: expected false with max_tokens_per_batch",
        ),
        ({"eval_on_start": "true"}, "eval_on_start: expected eval_strategy: steps or epoch"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(InputError, match=message):
        given(**fields)


def test_a_run_records_what_was_given(tmp_path):
    config = load_config(None, {**GIVEN, "optim": "sgd", "lr_scheduler_kwargs": {"num_cycles": 2}})
    write_yaml(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml", {}) == config
    assert config.flat()["optim"] == "sgd"


@pytest.mark.parametrize("program", ["ilrec/train.py", "ilrec/rank.py"])
def test_help_is_printed_without_the_large_libraries(program):
    # None in sys.modules makes an import fail.
    check = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'transformers', 'numpy'))\n"
        f"sys.argv = [{program!r}, '--help']\n"
        f"runpy.run_path({program!r}, run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fields = DECLARED if program == "ilrec/train.py" else {"num_beams"}
    assert not {name for name in fields if f"  --{name} " not in result.stdout}

"""Settings from defaults, recipe and command line: precedence, types, and one clear message for
each kind of mistake."""

import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from strange_values import TEXT

from ilrec.config.loading import load_config, parse_overrides, write_yaml
from ilrec.errors import InputError

# What every run must be given.
GIVEN = {"data": "d", "output_dir": "o", "model": "m"}
TEXT_FIELDS = (
    "data",
    "output_dir",
    "model",
    "semantic_ids",
    "sasrec",
    "prompt_prefix",
    "prompt_separator",
    "prompt_suffix",
)
RECIPES = sorted((ROOT / "ilrec" / "recipes").glob("*.yaml"))


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_precedence(tmp_path):
    path = recipe(tmp_path, "beta: 0.2\nlearning_rate: 3e-4\n")
    config = load_config(path, {**GIVEN, "beta": 0.3})
    assert config.objective.beta == 0.3  # command line
    assert config.training.learning_rate == 3e-4  # recipe; plain YAML reads 3e-4 as text
    assert config.objective.num_readout_layers == 4  # default


def test_command_line_values_are_read_as_their_field_says():
    words = ["--data", "d", "--output_dir", "o"]
    words += ["--beta", "1e-1", "--seed", "3", "--init=null", "--gradient_checkpointing", "True"]
    words += ["--model", "no", "--prompt_prefix", "''", "--prompt_suffix", ""]
    words += ["--lora_target_modules", "[q_proj, v_proj]"]
    flat = load_config(None, parse_overrides(words)).flat()
    expected = {
        "beta": 0.1,
        "seed": 3,
        "init": None,
        "gradient_checkpointing": True,
        # Text stays as it is, whatever YAML would make of it.
        "model": "no",
        "prompt_prefix": "''",
        "prompt_suffix": "",
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    assert {name: flat[name] for name in expected} == expected


@given(text=TEXT, field=st.sampled_from(TEXT_FIELDS))
def test_text_arrives_to_the_letter(text, field):
    """On the command line, alone and after an equals sign, and in the recipe that a run writes and
    a later one reads."""
    if field in GIVEN:
        text = text or "x"  # These may not be empty.
    given_ = {**GIVEN, field: text}

    pairs = [f"--{name}={value}" for name, value in given_.items()]
    config = load_config(None, parse_overrides(pairs))
    assert config.flat()[field] == text
    if not text.startswith("--"):
        words = [word for name, value in given_.items() for word in (f"--{name}", value)]
        assert load_config(None, parse_overrides(words)) == config

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        write_yaml(path, config)
        assert load_config(path, {}) == config


def test_a_recipe_says_no_and_small_numbers_as_people_do(tmp_path):
    path = recipe(
        tmp_path,
        "eval_strategy: no\ngradient_checkpointing: yes\nlearning_rate: 1e-4\n"
        "output_dir: 007\ndata: 12:30\nmodel: on\n",
    )
    flat = load_config(path, {}).flat()
    expected = {
        "eval_strategy": "no",
        "gradient_checkpointing": True,
        "learning_rate": 1e-4,
        "output_dir": "007",
        "data": "12:30",
        "model": "on",
    }
    assert {name: flat[name] for name in expected} == expected


def test_round_trip(tmp_path):
    config = load_config(None, {**GIVEN, "prompt_suffix": "", "lora_target_modules": ["q_proj"]})
    write_yaml(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml", {}) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load(path):
    overrides = {"data": "d"} if path.stem == "quickstart" else {"data": "d", "model": "m"}
    load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("bet: 1\n", GIVEN, r"recipe.yaml: unknown field 'bet'; did you mean 'beta'"),
        (
            "",
            {**GIVEN, "learning_rat": 1},
            "command line: unknown field 'learning_rat'; did you mean 'learning_rate'",
        ),
        ("beta: high\n", GIVEN, "recipe.yaml: beta: expected a number, 0 or more, got 'high'"),
        ("seed: 1.5\n", GIVEN, "recipe.yaml: seed: expected a whole number, 0 or more, got 1.5"),
        ("seed: true\n", GIVEN, "recipe.yaml: seed: expected a whole number, 0 or more, got True"),
        ("beta: -1\n", GIVEN, "recipe.yaml: beta: expected a number, 0 or more, got -1"),
        ("threshold: logits\n", GIVEN, "threshold: expected one of probability, logit"),
        ("reward_weight: 0.1\n", GIVEN, "sasrec: expected a directory"),
        ("beta: [\n", GIVEN, r"recipe.yaml:2:1: not valid YAML"),
        (
            "trust_remote_code: true\n",
            GIVEN,
            "recipe.yaml: trust_remote_code: a recipe must not decide.*--trust_remote_code true",
        ),
        ("- beta\n", GIVEN, "expected `field: value` lines, got .'beta'"),
        (
            "output_dir: 2024\n",
            {},
            "output_dir: expected text, got 2024; YAML takes it for a whole number: "
            'write .* output_dir: "..."',
        ),
        (
            "data: 1e3\n",
            {},
            "data: expected text, got 1000.0; YAML takes it for a number: write text in quotes",
        ),
        ("beta: 1\nbeta: 2\n", GIVEN, r"recipe.yaml:2:1: not valid YAML: 'beta' is there twice"),
        ("1: 2\n", GIVEN, "expected `field: value` lines"),
        ("seed: 010\n", GIVEN, "seed: expected a whole number, 0 or more, got '010'"),
        ("max_steps: 1_000\n", GIVEN, "max_steps: expected a whole number.* got '1_000'"),
        ("beta: .nan\n", GIVEN, "beta: expected a number, 0 or more, got nan"),
        (
            "lr_scheduler_type: cosin\n",
            GIVEN,
            "expected one of linear, cosine, .* got 'cosin'; did you mean 'cosine'",
        ),
        ("logging_steps: 0\n", GIVEN, "logging_steps: expected a whole number, 1 or more, got 0"),
        ("max_steps: 0\n", GIVEN, "max_steps: expected a number of steps, or -1"),
        (
            "warmup_steps: 2.5\n",
            GIVEN,
            "warmup_steps: expected a whole number of steps, or a share",
        ),
        (
            "lora_target_modules: [q_proj, 3]\n",
            GIVEN,
            r"lora_target_modules: expected text or a list.* got \['q_proj', 3\]",
        ),
        (
            "batch_layout: flattened\n",
            GIVEN,
            "batch_layout: expected auto or padded without max_tokens_per_batch",
        ),
        ("", {**GIVEN, "lora_target_modules": "[q_proj"}, r"lora_target_modules: .*not valid YAML"),
        ("", {**GIVEN, "data": "a\0b"}, "data: expected text .*NUL"),
        ("", {**GIVEN, "data": "a\udcff"}, "data: expected text .*UTF-8"),
        ("", {**GIVEN, "seed": str(10**30)}, "seed: expected a whole number"),
        ("", {"data": "d", "output_dir": "o"}, "model: not set"),
        ("", {"model": "m", "output_dir": "o"}, "data: not set"),
    ],
)
def test_mistakes(tmp_path, text, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(recipe(tmp_path, text), overrides)


def test_a_missing_recipe(tmp_path):
    with pytest.raises(InputError, match="no such file; expected a YAML file"):
        load_config(tmp_path / "none.yaml", GIVEN)

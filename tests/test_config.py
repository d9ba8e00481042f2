"""Settings: precedence, types, and one clear message per kind of mistake."""

import dataclasses
from pathlib import Path

import pytest

from ilrec.config import SECTIONS, load_config, parse_overrides, read_json, write_yaml
from ilrec.errors import InputError

GIVEN = {"data": "d", "output_dir": "o", "model": "m"}
RECIPES = sorted((Path(__file__).parent.parent / "ilrec" / "recipes").glob("*.yaml"))


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_precedence(tmp_path):
    path = recipe(tmp_path, "beta: 0.2\nlearning_rate: 3e-4\n")
    config = load_config(path, {**GIVEN, "beta": 0.3})
    assert config.objective.beta == 0.3  # command line
    assert config.training.learning_rate == 3e-4  # YAML, which reads 3e-4 as a string
    assert config.objective.num_readout_layers == 4  # default


def test_command_line_values():
    assert parse_overrides(["--beta", "0.2", "--init=null", "--model", "a/b", "--prompt_prefix", "''", "--prompt_suffix", ""]) == {
        "beta": 0.2, "init": None, "model": "a/b", "prompt_prefix": "", "prompt_suffix": ""}


def test_round_trip(tmp_path):
    config = load_config(None, {**GIVEN, "prompt_suffix": "", "lora_target_modules": ["q_proj"]})
    write_yaml(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml", {}) == config


def test_no_two_sections_share_a_field():
    names = [f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_load(path):
    overrides = {"data": "d"} if path.stem == "quickstart" else {"data": "d", "model": "m"}
    load_config(path, overrides)


@pytest.mark.parametrize(("text", "overrides", "message"), [
    ("bet: 1\n", GIVEN, r"recipe.yaml: unknown field 'bet'; did you mean 'beta'"),
    ("", {**GIVEN, "learning_rat": 1}, "command line: unknown field 'learning_rat'; did you mean 'learning_rate'"),
    ("beta: high\n", GIVEN, "recipe.yaml: beta: expected float, got str 'high'"),
    ("seed: 1.5\n", GIVEN, "recipe.yaml: seed: expected int, got float"),
    ("seed: true\n", GIVEN, "recipe.yaml: seed: expected int, got bool"),
    ("beta: -1\n", GIVEN, "recipe.yaml: beta: expected 0 or more"),
    ("threshold: logits\n", GIVEN, "threshold: expected one of probability, logit"),
    ("reward_weight: 0.1\n", GIVEN, "sasrec: expected a directory"),
    ("beta: [\n", GIVEN, r"recipe.yaml: not readable as YAML: .*line 2"),
    ("trust_remote_code: true\n", GIVEN, "recipe.yaml: trust_remote_code: a recipe must not decide.*--trust_remote_code true"),
    ("- beta\n", GIVEN, "expected `field: value` lines, got a list"),
    ("", {"data": "d", "output_dir": "o"}, "model: not set"),
    ("", {"model": "m", "output_dir": "o"}, "data: not set"),
])
def test_mistakes(tmp_path, text, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(recipe(tmp_path, text), overrides)


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match="no such file; expected a YAML file"):
        load_config(tmp_path / "none.yaml", GIVEN)
    (tmp_path / "bad.json").write_text('{"a": }')
    with pytest.raises(InputError, match=r"bad.json:1:7: not valid JSON"):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize("words", [["--beta"], ["beta", "1"]])
def test_malformed_command_line(words):
    with pytest.raises(InputError, match="command line"):
        parse_overrides(words)

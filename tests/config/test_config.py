"""Settings: precedence, types, and one clear message per kind of mistake."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SchedulerType, get_scheduler

from ilrec.config.loading import build_section, load_config, parse_overrides, write_yaml
from ilrec.config.sections import POLYNOMIAL_END, SCHEDULES, SECTIONS, SASRecConfig
from ilrec.errors import InputError
from ilrec.files.reading import read_json

GIVEN = {"data": "d", "output_dir": "o", "model": "m"}
PLACES = ["--data", "d", "--output_dir", "o"]
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
# What UTF-8 can hold, and what YAML or a command line could take for something else.
LOOKS_LIKE = [
    "no",
    "null",
    "~",
    "1e-4",
    "010",
    "2024",
    "1_000",
    "12:30",
    "2024-01-01",
    ".inf",
    "=",
    "<<",
    "- a",
    "a: b",
    "# a",
    "a #b",
    "'a'",
    '"',
    "{a",
    "[a",
    "&a",
    "*a",
    "!a",
    "| ",
    "@a",
    "%a",
    "--",
    "---",
    "--data",
    "-1",
    "\n",
    "\r\n",
    "\x85",
    "\u2028",
    " ",
]
TEXT = st.one_of(
    st.sampled_from(LOOKS_LIKE),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.text()
    | st.sampled_from(
        [
            10**400,
            -1,
            0,
            0.5,
            "1",
            "nan",
            "1e999",
            "[",
            "{",
            "[1]",
            "{a: 1}",
            "0" * 5000,
            "9" * 5000,
            "[" * 3000,
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)
RECIPES = sorted((Path(__file__).parents[2] / "ilrec" / "recipes").glob("*.yaml"))


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


def test_command_line_values_are_read_as_their_field_says():
    words = [
        "--beta",
        "1e-1",
        "--init=null",
        "--model",
        "no",
        "--prompt_prefix",
        "''",
        "--prompt_suffix",
        "",
        "--seed",
        "3",
        "--gradient_checkpointing",
        "True",
        "--lora_target_modules",
        "[q_proj, v_proj]",
        *PLACES,
    ]
    flat = load_config(None, parse_overrides(words)).flat()
    expected = {
        "beta": 0.1,
        "init": None,
        "model": "no",
        "prompt_prefix": "''",
        "prompt_suffix": "",
        "seed": 3,
        "gradient_checkpointing": True,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    assert {name: flat[name] for name in expected} == expected


@given(text=TEXT, field=st.sampled_from(TEXT_FIELDS))
def test_text_arrives_to_the_letter(text, field):
    """On the command line, alone and after an equals sign, and in the recipe that a run writes and
    a later one reads."""
    given_ = {**GIVEN, field: text or "x"} if field in GIVEN else {**GIVEN, field: text}
    text = given_[field]
    config = load_config(
        None, parse_overrides([f"--{name}={value}" for name, value in given_.items()])
    )
    assert config.flat()[field] == text
    if not text.startswith("--"):
        words = [word for name, value in given_.items() for word in (f"--{name}", value)]
        assert load_config(None, parse_overrides(words)) == config
    with tempfile.TemporaryDirectory() as directory:
        write_yaml(Path(directory) / "config.yaml", config)
        assert load_config(Path(directory) / "config.yaml", {}) == config


def test_a_recipe_says_no_and_small_numbers_as_people_do(tmp_path):
    path = recipe(
        tmp_path,
        "eval_strategy: no\ngradient_checkpointing: yes\nlearning_rate: 1e-4\n"
        "output_dir: 007\ndata: 12:30\nmodel: on\n",
    )
    flat = load_config(path, {}).flat()
    names = (
        "eval_strategy",
        "gradient_checkpointing",
        "learning_rate",
        "output_dir",
        "data",
        "model",
    )
    assert [flat[name] for name in names] == ["no", True, 1e-4, "007", "12:30", "on"]


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
            'output_dir: expected text, got 2024; YAML takes it for a whole number: write .* output_dir: "..."',
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


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match="no such file; expected a YAML file"):
        load_config(tmp_path / "none.yaml", GIVEN)
    (tmp_path / "bad.json").write_text('{"a": }')
    with pytest.raises(InputError, match=r"bad.json:1:7: not valid JSON"):
        read_json(tmp_path / "bad.json")


@given(section=st.sampled_from([*SECTIONS.values(), SASRecConfig]), value=ANYTHING, data=st.data())
def test_every_field_takes_a_value_or_says_why_not(section, value, data):
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(section)]))
    try:
        kept = getattr(build_section(section, {name: (value, "here")}), name)
    except InputError as error:
        assert str(error).startswith("here: ")
    else:
        assert kept == value or isinstance(value, (str, int, float))


@pytest.mark.parametrize("section", [*SECTIONS.values(), SASRecConfig])
def test_defaults_are_in_their_domains(section):
    assert dataclasses.asdict(section()) == {
        name: f.default for name, f in section.__dataclass_fields__.items()
    }


def test_schedules_are_those_of_the_library_that_need_nothing_more():
    """The others need arguments (ValueError, TypeError) or the loss."""
    needs_nothing = set()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    for schedule in SchedulerType:
        with contextlib.suppress(ValueError, TypeError):
            made = get_scheduler(schedule, optimizer, num_warmup_steps=1, num_training_steps=2)
            if isinstance(made, torch.optim.lr_scheduler.LambdaLR):
                needs_nothing.add(schedule.value)
    assert set(SCHEDULES) == needs_nothing
    optimizer.defaults["lr"] = POLYNOMIAL_END
    with pytest.raises(ValueError, match="lr_end"):
        get_scheduler("polynomial", optimizer, num_warmup_steps=1, num_training_steps=2)

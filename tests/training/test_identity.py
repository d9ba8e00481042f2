"""A run's identity: every setting but those that may change, and the contents of what they name."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from ilrec.collaborative.sasrec import SASRec
from ilrec.config.loading import load_config
from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import SECTIONS, TrainConfig
from ilrec.config.training_arguments import known_fields
from ilrec.samples.task import load_task
from ilrec.training.identity import MAY_CHANGE, run_identity
from ilrec.weights.fingerprint import BLOCK_BYTES, NUM_BLOCKS, file_fingerprint

FIELDS = {f.name: section for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)}


@pytest.fixture
def config(data, base) -> TrainConfig:
    return load_config(
        None,
        {"data": str(data), "output_dir": "o", "model": str(base), "lr_scheduler_type": "constant"},
    )


@pytest.fixture
def identity(data):
    """identity(config, ...) on the tiny data, which is read once."""
    task = load_task(load_config(None, {"data": str(data), "output_dir": "o", "model": "m"}).data)

    def call(
        config: TrainConfig, ds_config: dict | None = None, world_size: int = 1, **variant
    ) -> dict:
        return run_identity(config, task, ds_config, world_size, variant)

    return call


def other(value):
    """Another value of the same kind. It need not be a valid one."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else f"{value}-other"


@pytest.mark.parametrize(
    "name", [name for name in FIELDS if name not in ("model", "base", "init", "dtype")]
)
def test_every_setting_counts_unless_it_may_change(name, config, identity):
    """A field that is added to the configuration counts without being named anywhere."""
    before = identity(config)
    section = getattr(config, FIELDS[name])
    assert name in before or name in MAY_CHANGE
    if name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        return  # Their product counts, in a test below.
    object.__setattr__(section, name, other(getattr(section, name)))
    assert (identity(config) == before) == (name in MAY_CHANGE)


def test_what_may_change_is_a_setting_and_documented():
    assert FIELDS.keys() | known_fields().keys() >= MAY_CHANGE
    text = (ROOT / "docs" / "clusters.md").read_text()
    assert not {name for name in MAY_CHANGE if f"`{name}`" not in text}


def test_a_field_of_training_arguments_counts_if_it_is_given(config, identity):
    before = identity(config)
    config.training_arguments = {"adam_beta2": 0.95, "run_name": "mine"}
    after = identity(config)
    assert changed(before, after) == ["training_arguments"]
    assert after["training_arguments"] == {"adam_beta2": 0.95}


def test_precision_is_what_auto_means_here(config, identity):
    auto = identity(config)
    config.model.dtype = "float32"
    assert (identity(config) == auto) == (not torch.cuda.is_available())
    config.model.dtype = "float16"
    assert identity(config)["dtype"] == "float16"


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)


def digests(identity: dict) -> dict[str, str]:
    """{name: digest} of all that lies in files."""
    named = {name: value for name, value in identity.items() if isinstance(value, dict)}
    return {name: value["sha256"] for name, value in named.items() if "sha256" in value}


def changed(before: dict, after: dict) -> list[str]:
    return [name for name in after if after[name] != before[name]]


@pytest.mark.parametrize(
    "harm, name",
    [
        (lambda base: edit_weights(base / "model.safetensors"), "base"),
        (lambda base: edit(base / "config.json", rope_theta=5.0), "base_config"),
        (lambda base: edit(base / "tokenizer_config.json", eos_token="<pad>"), "tokenizer"),
    ],
)
def test_a_base_is_known_by_its_contents(harm, name, config, identity, base, tmp_path):
    before = identity(config)
    moved = shutil.copytree(base, tmp_path / "moved")
    edit(moved / "config.json", transformers_version="4.57.6")
    config.model.model = str(moved)
    same = identity(config)
    assert digests(same) == digests(before)
    harm(moved)
    after = identity(config)
    assert changed(same, after) == [name]


def test_an_adapter_is_known_by_itself_and_its_base(config, identity, base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "lora_alpha": 8})
    )
    save_file({"a": torch.zeros(4, 4)}, tmp_path / "adapter_model.safetensors")
    config.model.model = str(tmp_path)
    before = identity(config)
    save_file({"a": torch.ones(4, 4)}, tmp_path / "adapter_model.safetensors")
    edit(tmp_path / "adapter_config.json", lora_alpha=16)
    assert changed(before, identity(config)) == ["adapter_weights", "adapter_config"]


def test_weights_of_any_format_are_told_apart(config, identity, base, tmp_path):
    model = shutil.copytree(base, tmp_path / "bin")
    (model / "model.safetensors").unlink()
    config.model.model = str(model)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save({"w": torch.randn(3)}, model / "pytorch_model.bin")
        found.append(identity(config)["base"]["sha256"])
    config.model.model = str(tmp_path / "model.gguf")
    for content in (b"GGUF1", b"GGUF2"):
        (tmp_path / "model.gguf").write_bytes(content)
        found.append(identity(config)["gguf"]["sha256"])
    assert len(set(found)) == 4


def test_a_large_file_is_sampled_and_its_ends_count(tmp_path):
    path = tmp_path / "large"
    size = NUM_BLOCKS * BLOCK_BYTES * 3
    found = []
    for place in (None, 0, size // 2, size - 1):
        path.write_bytes(b"\0" * size)
        if place is not None:
            with open(path, "r+b") as file:
                file.seek(place)
                file.write(b"x" * min(BLOCK_BYTES * 4, size - place))
        found.append(file_fingerprint(path))
    assert len(set(found)) == 4


def test_a_filter_counts_if_it_is_used(config, identity, tmp_path):
    config.objective.sasrec = str(tmp_path)
    SASRec(24, SASRecConfig(hidden_size=8)).save(tmp_path, map(str, range(24)))
    assert identity(config)["sasrec"] is None
    config.objective.reward_weight = 0.1
    first = identity(config)["sasrec"]["sha256"]
    SASRec(24, SASRecConfig(hidden_size=8)).save(tmp_path, map(str, range(24)))
    assert identity(config)["sasrec"]["sha256"] != first


@pytest.mark.parametrize(
    "schedule, warmup, may",
    [
        ("constant", 0.03, True),
        ("constant_with_warmup", 10, True),
        ("constant_with_warmup", 0, True),
        ("inverse_sqrt", 5, True),
        ("constant_with_warmup", 0.03, False),
        ("cosine", 0, False),
        ("linear", 10, False),
        ("one that comes", 0, False),
    ],
)
def test_more_steps_if_no_learning_rate_depends_on_them(schedule, warmup, may, config, identity):
    config.training.lr_scheduler_type = schedule
    config.training.warmup_steps = warmup
    found = []
    for steps, epochs in ((-1, 1.0), (-1, 2.0), (10, 1.0), (20, 1.0), (20, 3.0)):
        config.training.max_steps = steps
        config.training.num_train_epochs = epochs
        found.append(identity(config))
    is_the_same = all(one == found[0] for one in found)
    assert is_the_same == may
    assert found[3] == found[4], "max_steps decides if it is given"


def test_what_one_step_learns_from_counts_however_it_is_cut(config, identity):
    def cut(size: int, accumulation: int, ranks: int) -> dict:
        config.training.per_device_train_batch_size = size
        config.training.gradient_accumulation_steps = accumulation
        return identity(config, world_size=ranks)

    assert cut(2, 2, 2) == cut(2, 4, 1) == cut(8, 1, 1) != cut(2, 2, 1)
    config.data.max_tokens_per_batch = 100
    assert cut(2, 2, 2) == cut(8, 4, 1) != cut(2, 4, 2)
    before = cut(2, 2, 2)
    config.data.batch_layout = "flattened"
    assert cut(2, 2, 2) != before


def test_another_program_says_what_else_it_depends_on(config, identity):
    plain = identity(config)
    random = identity(config, negatives="random")
    last_layer = identity(config, negatives="last_layer")
    assert plain != random != last_layer != plain

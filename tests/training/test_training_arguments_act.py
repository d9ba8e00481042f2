"""Fields of transformers.TrainingArguments act in a run, and what transformers refuses is told."""

import json
from pathlib import Path

import pytest
import yaml
from command_words import flags
from conftest import ROOT

from ilrec.errors import InputError
from ilrec.train import train

SHORT = {
    "max_steps": 3,
    "num_readout_layers": 2,
    "logging_steps": 1,
    "lora_dropout": 0,
    "per_device_train_batch_size": 4,
}


@pytest.fixture
def run(data, base, tmp_path):
    """run(name, field=value, ...): a short run of stage1. Returns its training log lines."""

    def call(name: str, **fields) -> list[dict]:
        directory = tmp_path / name
        config = ROOT / "ilrec" / "recipes" / "stage1.yaml"
        given = {"model": base, "data": data, "output_dir": directory, **SHORT, **fields}
        train(flags(config=config, **given))
        return logged(directory)

    return call


def logged(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(
    "fields",
    [
        {"adam_beta2": 0.5},
        {"optim": "sgd"},
        {"neftune_noise_alpha": 5},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 5e-5}'},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_training_changes(run, tmp_path, fields):
    fast = {"learning_rate": 1e-2, "warmup_steps": 0}
    before, after = run("before", **fast), run("after", **fast, **fields)
    assert after[-1]["loss"] != before[-1]["loss"]
    recorded = yaml.safe_load((tmp_path / "after" / "config.yaml").read_text())
    assert recorded.keys() >= fields.keys()


def test_the_same_training(run):
    """What says how samples are loaded and logged changes no number. Batches by token budget have
    a loader of their own, which takes the options, too."""
    same = {"max_tokens_per_batch": 512}
    before = run("before", **same)
    loading = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3}
    persistent = {"dataloader_persistent_workers": True, "run_name": "mine"}
    after = run("after", **same, **loading, **persistent, include_num_input_tokens_seen="all")
    assert [line["loss"] for line in after] == [line["loss"] for line in before]
    assert after[-1]["num_input_tokens_seen"] > 0


def test_the_first_step_is_logged(run):
    lines = run("run", logging_steps=2, logging_first_step=True)
    assert [line["step"] for line in lines] == [1, 2, 3]


def test_checkpoints_at_the_end_of_an_epoch(run, tmp_path):
    """They hold no partial sums: a log line comes before each. The run goes on from one."""
    fields = {"max_tokens_per_batch": 512, "save_strategy": "epoch", "logging_steps": 1000}
    lines = run("run", **fields, max_steps=-1, num_train_epochs=2, save_total_limit=0)
    steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert len(steps) == 2
    assert [line["step"] for line in lines] == steps
    (tmp_path / "run" / f"checkpoint-{steps[1]}" / "manifest.json").unlink()
    again = run("run", **fields, max_steps=-1, num_train_epochs=2, save_total_limit=0)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


def test_no_checkpoints(run, tmp_path):
    run("run", save_strategy="no")
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim": "adamw_bnb_8bit"}, "optim: adamw_bnb_8bit cannot be used .*bitsandbytes"),
        ({"lr_scheduler_kwargs": "{cycles: 2}"}, "{'cycles': 2} does not fit .* cosine: .*cycles"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": "{num_cycles: 2}"},
            "lr_scheduler_kwargs: expected none, because constant takes no arguments",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "lr_scheduler_kwargs: {} does not fit lr_scheduler_type warmup_stable_decay: .*decay",
        ),
        (
            {"torch_empty_cache_steps": 0},
            "settings of the training loop: .*torch_empty_cache_steps",
        ),
        ({"report_to": "[tensorboard, swanlab]"}, "swanlab is not installed; pip install swanlab"),
    ],
)
def test_what_transformers_refuses(run, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        run("run", **fields)
    assert not (tmp_path / "run" / "config.yaml").exists()

"""Evaluation while training: equal to rank.py, without a trace in the weights; the best checkpoint,
early stopping, and going on after a kill or a signal."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import ROOT
from safetensors.torch import load_file

from ilrec.errors import InputError
from ilrec.rank import main as rank_main
from ilrec.train import train
from ilrec.training.evaluation import ValidationRanking
from ilrec.training.manifest import MANIFEST
from ilrec.training.stop import STOPPED

COMMON = flags(
    config=ROOT / "ilrec" / "recipes" / "sft.yaml",
    num_readout_layers=2,
    logging_steps=5,
    lora_rank=4,
    lora_dropout=0.1,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=2e-2,
)


def run(data: Path, base: Path, output: Path, **fields) -> int:
    return train([*COMMON, *flags(data=data, model=base, output_dir=output, **fields)])


def evaluated(directory: Path, name: str = "eval_ndcg@10") -> dict[int, float]:
    """{step: value}"""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def assert_same_weights(mine: Path, theirs: Path) -> None:
    (name,) = [path.name for path in theirs.glob("*model.safetensors")]
    expected = load_file(theirs / name)
    for tensor, value in load_file(mine / name).items():
        assert torch.equal(value, expected[tensor]), tensor


def ranked(model: Path, output: Path, **fields) -> dict[str, float]:
    """The metrics of ilrec/rank.py on the validation items."""
    rank_main(flags(model=model, split="valid", output=output, **fields))
    return json.loads(output.read_text())["metrics"]


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_checkpointing": True},
        {"adapter": "none", "item_format": "title", "eval_users": 7},
        {"dtype": "bfloat16"},  # Without DeepSpeed, accelerate puts autocast on the forward.
    ],
)
def test_it_measures_what_rank_does_and_leaves_no_trace(fields, data, base, tmp_path):
    """The last evaluation is of the weights in final/; the same run without evaluations ends with
    the same weights, in spite of dropout."""
    length = {"max_steps": 8, **fields}
    run(data, base, tmp_path / "with", eval_strategy="steps", eval_steps=3, **length)
    run(data, base, tmp_path / "without", **length)
    assert_same_weights(tmp_path / "with" / "final", tmp_path / "without" / "final")

    # In batches of the same users: padding changes what bfloat16 rounds.
    same = {
        "num_users": fields.get("eval_users", 0),
        "dtype": fields.get("dtype", "auto"),
        "batch_size": 16,
    }
    metrics = ranked(tmp_path / "with" / "final", tmp_path / "r.json", **same)
    for name in ("ndcg@10", "hit@10"):
        values = evaluated(tmp_path / "with", f"eval_{name}")
        assert list(values) == [3, 6, 8]
        assert values[8] == metrics[name]
    assert 0 < metrics["ndcg@10"] < 1


@pytest.fixture
def scripted(monkeypatch):
    """scripted(values): the evaluations of a run give these values. One that is an action is
    called, and the evaluation gives what it returns."""

    def script(values: list) -> None:
        left = iter(values)

        def measure(self, model):
            value = next(left)
            value = value() if callable(value) else value
            return {"hit@10": 1.0, "ndcg@10": value}

        monkeypatch.setattr(ValidationRanking, "measure", measure)

    return script


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 5, "max_steps": 20}
BEST |= {"save_best": True, "save_total_limit": 1}


def test_the_best_checkpoint_is_kept_and_becomes_final(data, base, tmp_path, scripted):
    """Evaluations at 2, 4, ... 20: the best is at 4, its equal at 8 does not replace it, and it is
    there beside the newest."""
    scripted([0.1, 0.3, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    run(data, base, tmp_path, **BEST)
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-20", "checkpoint-4"]
    assert_same_weights(tmp_path / "final", tmp_path / "checkpoint-4")

    manifest = json.loads((tmp_path / "final" / MANIFEST).read_text())
    assert manifest["step"] == 4
    assert manifest["best"] == {"step": 4, "metric": "ndcg@10", "value": 0.3}
    # Nothing of the training's state, and all that ranking needs.
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert not names & {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"}
    assert 0 < ranked(tmp_path / "final", tmp_path / "r.json")["hit@20"]


def test_early_stopping_counts_evaluations_since_the_best(data, base, tmp_path, scripted):
    scripted([0.1, 0.1, 0.2, 0.1, 0.15])
    run(data, base, tmp_path, early_stopping_patience=2, **BEST)
    assert list(evaluated(tmp_path)) == [2, 4, 6, 8, 10]
    assert json.loads((tmp_path / "final" / MANIFEST).read_text())["step"] == 6


def test_a_lower_loss_is_better(data, base, tmp_path):
    run(data, base, tmp_path, eval_metric="loss", eval_users=9, **BEST)
    losses = evaluated(tmp_path, "eval_loss")
    best = min(losses, key=losses.get)
    assert json.loads((tmp_path / "final" / MANIFEST).read_text())["step"] == best


def test_every_epoch_is_evaluated_before_its_checkpoint(data, base, tmp_path):
    """30 users of 4 to 8 items, of which two are held out, give 90 samples: 5 steps an epoch."""
    fields = BEST | {"eval_strategy": "epoch", "max_steps": 12, "per_device_train_batch_size": 18}
    run(data, base, tmp_path, **fields)
    assert list(evaluated(tmp_path)) == [5, 10, 12]
    for step in (10, 12):
        state = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        if state.exists():
            history = json.loads(state.read_text())["log_history"]
            assert [line["step"] for line in history if "eval_ndcg@10" in line][-1] == step


class Killed(Exception):
    pass


def kill():
    raise Killed


VALUES = [0.1, 0.4, 0.2, 0.3, 0.1, 0.1]


def test_a_killed_evaluation_is_repeated_and_patience_goes_on(data, base, tmp_path, scripted):
    """Killed in the evaluation after step 8, and resumed from step 5: the same evaluations, the
    same end and the same final/ as of a run that nobody disturbed."""
    fields = BEST | {"early_stopping_patience": 4}
    scripted(VALUES)
    run(data, base, tmp_path / "whole", **fields)
    scripted([*VALUES[:3], kill])
    with pytest.raises(Killed):
        run(data, base, tmp_path / "killed", **fields)
    scripted(VALUES[2:])
    run(data, base, tmp_path / "killed", **fields)
    for name in ("whole", "killed"):
        assert list(evaluated(tmp_path / name).values()) == VALUES
    assert_same_weights(tmp_path / "killed" / "final", tmp_path / "whole" / "final")
    assert_same_weights(tmp_path / "killed" / "final", tmp_path / "killed" / "checkpoint-4")


def test_a_signal_in_an_evaluation_lets_it_end(data, base, tmp_path, scripted):
    """The checkpoint of that step has its result."""

    def interrupt() -> float:
        os.kill(os.getpid(), signal.SIGUSR1)
        return 0.3

    scripted([0.1, 0.2, interrupt])
    assert run(data, base, tmp_path, **BEST) == STOPPED
    history = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    values = [line["eval_ndcg@10"] for line in history["log_history"] if "eval_ndcg@10" in line]
    assert values == [0.1, 0.2, 0.3]

    scripted([0.1] * 7)
    assert run(data, base, tmp_path, **BEST) == 0
    assert list(evaluated(tmp_path)) == list(range(2, 21, 2))
    assert json.loads((tmp_path / "final" / MANIFEST).read_text())["step"] == 6


def test_a_lost_best_checkpoint_is_reported(data, base, tmp_path, scripted, caplog):
    scripted([0.5, 0.1])
    run(data, base, tmp_path, **{**BEST, "max_steps": 4, "lr_scheduler_type": "constant"})
    shutil.rmtree(tmp_path / "checkpoint-2")
    scripted([0.2, 0.1])
    run(data, base, tmp_path, **{**BEST, "max_steps": 8, "lr_scheduler_type": "constant"})
    assert "checkpoint-2 is not there, which was the best (ndcg@10 0.5000 after" in caplog.text
    assert json.loads((tmp_path / "final" / MANIFEST).read_text())["step"] == 6


def test_a_damaged_best_checkpoint_does_not_become_final(data, base, tmp_path, scripted):
    def damage() -> float:
        with open(tmp_path / "checkpoint-2" / "adapter_model.safetensors", "ab") as file:
            file.write(b"x")
        return 0.1

    scripted([0.5, damage])
    with pytest.raises(InputError, match="checkpoint-2 is damaged: adapter_model.*was the best"):
        run(data, base, tmp_path, **{**BEST, "max_steps": 4})
    assert not (tmp_path / "final").exists()


def test_scores_that_are_nan_end_the_run(data, base, tmp_path, monkeypatch):
    nan = torch.full((30, 20), torch.nan)
    monkeypatch.setattr("ilrec.training.evaluation.rank_cases", lambda *_, **__: (nan.long(), nan))
    with pytest.raises(InputError, match="^evaluation after step 2: the scores .* are NaN"):
        run(data, base, tmp_path, **BEST)

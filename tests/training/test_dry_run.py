"""`train.py --check`: its numbers are those of the training that follows, it writes nothing, and it
reports everything that the training would refuse."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import INIT, ROOT, launch

from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sasrec import SASRecConfig
from ilrec.processes import BAD_INPUT
from ilrec.train import train

SHORT = {"num_readout_layers": 2, "lora_dropout": 0, "per_device_train_batch_size": 4}


def words(recipe: str, **fields) -> list[str]:
    config = ROOT / "ilrec" / "recipes" / f"{recipe}.yaml"
    return flags(config=config, **{**SHORT, **fields})


def check(capsys, recipe: str, **fields) -> tuple[int, str]:
    """(exit status, the report as one line)"""
    status = train(["--check", *words(recipe, **fields)])
    return status, " ".join(capsys.readouterr().out.split())


def found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match, f"{pattern} not in {text}"
    return match.groups()


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(
    "fields",
    [
        {"item_format": "semantic_id"},
        {"item_format": "title", "supervision": "every_item", "max_tokens_per_batch": 400},
        {"max_tokens_per_batch": 600, "batch_layout": "flattened", "num_train_epochs": 1.5},
        {"adapter": "none", "gradient_accumulation_steps": 3, "max_steps": 9},
        {"model": "", "init": json.dumps(INIT), "lora_rank": 3},
    ],
    ids=["samples", "padded", "flattened", "all_parameters", "from_scratch"],
)
def test_its_numbers_are_those_of_the_training(fields, data, base, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "ilrec.train")
    fields = {"model": base, "data": data, "output_dir": tmp_path / "run", **fields}
    status, report = check(capsys, "stage1", **fields)
    assert status == 0, report
    assert "Nothing of this is refused" in report
    assert not (tmp_path / "run").exists()

    assert train(words("stage1", **fields)) == 0
    users, items, samples, num_all, trained = found(
        r"(\S+) users, (\S+) items, (\S+) training samples; (\S+) parameters, (\S+) trained",
        caplog.text,
    )
    assert f"{users} users, {items} items" in report
    assert found(r"Samples and steps (\S+) training samples", report) == (samples,)
    assert found(r"(\S+) parameters, (\S+) trained", report) == (num_all, trained)
    state = json.loads(next((tmp_path / "run").glob("checkpoint-*/trainer_state.json")).read_text())
    length = (str(state["max_steps"]), f"{state['epoch']:.2f}")
    assert found(r"in all: (\d+) steps, (\S+) epochs", report) == length
    if "max_tokens_per_batch" in fields:
        (share,) = found(r"(\S+%) of the tokens processed are real", caplog.text)
        assert f"{share} of an epoch's tokens are real" in report


def test_an_adapter_that_is_trained_further(data, base, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "ilrec.train")
    first = tmp_path / "stage1"
    train(words("stage1", model=base, data=data, output_dir=first, max_steps=1))
    _, trained = found(r"(\S+) parameters, (\S+) trained", caplog.text)
    status, report = check(
        capsys, "stage2", model=first / "final", data=data, output_dir=tmp_path / "stage2"
    )
    assert status == 0
    assert f"{trained} trained" in report
    assert str(first / "final") in report


def test_it_tells_how_a_run_goes_on_and_changes_nothing(data, base, tmp_path, capsys):
    directory = tmp_path / "run"
    fields = {"model": base, "data": data, "output_dir": directory, "beta": 0.1}
    fields["lr_scheduler_type"] = "constant"
    fields["warmup_steps"] = 0
    train(words("stage1", **fields, max_steps=3))
    before = contents(tmp_path)

    status, report = check(capsys, "stage1", **fields, max_steps=5)
    assert status == 0
    assert f"goes on from {directory}/checkpoint-3, written by 1 rank(s)" in report

    status, report = check(capsys, "stage1", **fields, max_steps=2)
    assert status == BAD_INPUT
    assert "goes on from step 3, and this run ends at step 2" in report

    status, report = check(capsys, "stage1", **{**fields, "beta": 0.9}, max_steps=5)
    assert status == BAD_INPUT
    assert "was trained with other settings than these: beta: 0.1 there, 0.9 now" in report

    status, report = check(capsys, "stage1", **{**fields, "beta": 0.9}, resume="never")
    assert status == 0
    assert "a fresh start moved to earlier-N in it, because another run left them: " in report
    assert contents(tmp_path) == before


def test_all_refusals_are_reported_at_once(data, base, tmp_path, capsys, monkeypatch):
    """Six faults that do not depend on one another."""
    monkeypatch.setattr("ilrec.ops.row_slab.has_triton", lambda: False)
    other = tmp_path / "filter"
    torch.manual_seed(0)
    SASRec(7, SASRecConfig(hidden_size=8)).save(other, map(str, range(7)))
    (tmp_path / "file").write_text("")
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 3}')
    status, report = check(
        capsys,
        "stage1",
        model=base,
        data=data,
        output_dir=tmp_path / "file",
        ds_config=tmp_path / "ds.json",
        reward_weight=0.1,
        sasrec=other,
        backend="vocab_stream",
        attn_implementation="flash",
        train_item_tokens="false",
    )
    assert status == BAD_INPUT
    assert "Refused (6)" in report
    for message in (
        "file: cannot be written: it is a file",
        "gradient_clipping = 3 contradicts max_grad_norm = 1.0",
        "trained on 7 items, the data has 24",
        "vocab_stream needs triton",
        "attn_implementation: expected auto",
        "train_item_tokens: false would leave 9 new semantic-ID tokens untrained",
    ):
        assert message in report
    assert "Model not known, because of what is refused below" in report
    assert "30 users, 24 items" in report


def test_what_only_the_model_tells_is_refused(data, base, tmp_path, capsys):
    """The number of layers, and a budget that is smaller than a sample."""
    status, report = check(
        capsys,
        "stage1",
        model=base,
        data=data,
        output_dir=tmp_path / "run",
        num_readout_layers=4,
        max_tokens_per_batch=20,
    )
    assert status == BAD_INPUT
    assert "num_readout_layers: expected fewer than the 4 layers" in report
    assert "max_tokens_per_batch: the longest sample has" in report
    assert "Refused (2)" in report


@pytest.mark.launch
def test_under_a_launcher_one_rank_reports(data, base, tmp_path):
    """With ZeRO-3 on two ranks; a wrong setting gives a status that is not 0."""
    command = ["torchrun", "ilrec/train.py", "--check", "--ds_config", "ds_configs/zero3_cpu.json"]
    run = words("stage1", model=base, data=data, output_dir=tmp_path / "run")
    good = launch(*command, *run)
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("Samples and steps") == 1
    assert "together on each of 2 rank(s), ZeRO-3" in good.stdout
    # 90 samples in batches of 4 are 23, which are 12 for each rank; two of them make a step.
    assert "optimizer steps an epoch: 6" in good.stdout

    bad = launch(*command, *run, "--model", str(tmp_path / "none"))
    assert bad.returncode != 0
    assert bad.stdout.count("no such directory") == 1
    assert not (tmp_path / "run").exists()

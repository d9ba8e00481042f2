"""ilrec/train.py on one process: every recipe, a stage that follows another, the run directory,
resuming, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from command_words import flags
from conftest import INIT, NUM_USERS, ROOT
from safetensors.torch import load_file, save_file

from ilrec import train as train_module
from ilrec.collaborative.sasrec import SASRec
from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import DataConfig, ModelConfig
from ilrec.errors import InputError
from ilrec.model.adapters import add_item_tokens, load_adapter
from ilrec.model.loading import load_base, load_tokenizer
from ilrec.model.objective import attach_objective
from ilrec.model.source import find_model
from ilrec.rank import main as rank_main
from ilrec.ranking.results import read_ranking
from ilrec.samples.collators import TrainingCollator
from ilrec.samples.task import load_task
from ilrec.train import train
from ilrec.training.manifest import MANIFEST

SHORT = {
    "max_steps": 3,
    "num_readout_layers": 2,
    "logging_steps": 1,
    "lora_dropout": 0,
    "per_device_train_batch_size": 4,
}


def run(recipe: str, data: Path, output: Path, **fields) -> Path:
    """A short run of a recipe. Returns its final/."""
    config = ROOT / "ilrec" / "recipes" / f"{recipe}.yaml"
    train(flags(config=config, data=data, output_dir=output, **{**SHORT, **fields}))
    return output / "final"


def logged(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def sasrec(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("filter") / "sasrec"
    filter_ = SASRec(24, SASRecConfig(hidden_size=8, num_heads=2))
    filter_.save(directory, [str(item) for item in range(24)])
    return directory


@pytest.mark.parametrize("recipe", ["sft", "stage1", "stage2", "joint"])
def test_every_recipe_runs(recipe, data, base, tmp_path, sasrec):
    final = run(recipe, data, tmp_path / recipe, model=base, reward_weight=0.2, sasrec=sasrec)
    lines = logged(tmp_path / recipe)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["loss/reward"] > 0 for line in lines)
    assert any(line["negatives/per_token"] > 0 for line in lines)
    assert (lines[0]["loss/distillation"] > 0) == (recipe in ("stage2", "joint"))
    assert (final / "adapter_model.safetensors").exists()


def test_negatives_that_continue_an_item(data, base, tmp_path):
    run("stage1", data, tmp_path / "run", model=base, negative_tokens="continuations", alpha=1e-30)
    first = logged(tmp_path / "run")[0]
    # An item has three codes, of 3, 4 and 2 values, and the end token. The threshold is open, so
    # all other children of a node are negatives: 2, 3 and 1 of them, and none at the end.
    assert first["negatives/per_token"] == pytest.approx(6 / 4)
    assert first["negatives/rows_without"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("item_format", ["semantic_id", "title"])
def test_every_item_supervised(item_format, data, base, tmp_path, sasrec):
    """The same recipe and reward on windows with several targets. Ranking needs no flag for it."""
    final = run(
        "stage1",
        data,
        tmp_path / "run",
        model=base,
        reward_weight=0.2,
        sasrec=sasrec,
        supervision="every_item",
        item_format=item_format,
    )
    for line in logged(tmp_path / "run"):
        assert line["loss/reward"] > 0
        assert line["loss/preference"] > 0

    rank_main(flags(model=final, num_beams=5))
    every = read_ranking(final / "ranking.json").target_ranks.ranks
    assert len(every) == NUM_USERS
    assert json.loads((final / "ranking.json").read_text())["protocol"]["num_users"] == NUM_USERS

    # Four users, evenly spread, have the ranks that they have among all.
    rank_main(flags(model=final, num_beams=5, num_users=4, output=tmp_path / "some.json"))
    step = NUM_USERS // 4
    some = read_ranking(tmp_path / "some.json").target_ranks.ranks
    assert some.tolist() == every[: 4 * step : step].tolist()


def test_from_scratch_with_all_parameters(data, tmp_path):
    final = run("quickstart", data, tmp_path / "sft", init=json.dumps(INIT))
    assert (final / "model.safetensors").exists()
    assert find_model(str(final)).adapter is None


def test_titles_as_items(data, base, tmp_path):
    final = run("stage2", data, tmp_path / "titles", model=base, item_format="title")
    assert (final / "adapter_model.safetensors").exists()
    assert not (final / "item_index.json").exists()


def test_the_run_directory_explains_itself(data, base, tmp_path):
    directory = tmp_path / "run"
    run("stage1", data, directory, model=base, beta=0.25)
    assert yaml.safe_load((directory / "config.yaml").read_text())["beta"] == 0.25
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["versions"]["torch"]
    assert "--beta" in environment["command"]
    assert list((directory / "tensorboard").glob("events.*"))
    assert json.loads((directory / "checkpoint-3" / MANIFEST).read_text())["step"] == 3
    names = {path.name for path in (directory / "final").iterdir()}
    expected = {"adapter_model.safetensors", "tokenizer.json", "item_index.json", "ilrec.yaml"}
    assert names >= expected


def test_validation_loss_is_measured_on_the_way(data, base, tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "eval_metric": "loss"}
    run("stage2", data, tmp_path / "run", model=base, **fields)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [line for line in map(json.loads, lines) if "eval_loss" in line]
    assert [line["step"] for line in measured] == [2, 3]
    assert 0 < measured[0]["eval_loss"] < 20


def test_stage2_starts_exactly_where_stage1_ended(data, base, tmp_path, monkeypatch):
    """Stage 2's first logged loss is that of stage 1's saved model on the same batch, under stage
    2's objective."""
    stage1 = run("stage1", data, tmp_path / "stage1", model=base, learning_rate=1e-2)
    batches = []
    collate = TrainingCollator.__call__

    def remember(self, rows):
        batches.append(collate(self, rows))
        return batches[-1]

    monkeypatch.setattr(TrainingCollator, "__call__", remember)
    run("stage2", data, tmp_path / "stage2", model=stage1, gradient_accumulation_steps=1)

    source = find_model(str(stage1))
    model = load_base(source, ModelConfig(model=str(stage1)))
    add_item_tokens(model, load_tokenizer(source))
    model = load_adapter(model, source.adapter, is_trainable=False).eval()
    config, _ = train_module.parse_arguments(flags(config=tmp_path / "stage2" / "config.yaml"))
    attach_objective(model, config.objective, [])
    with torch.no_grad():
        expected = model(**batches[0]).loss.item()
    assert logged(tmp_path / "stage2")[0]["loss"] == pytest.approx(expected, abs=1e-6)


def test_resume_takes_the_newest_complete_checkpoint(data, base, tmp_path, caplog):
    """5 steps at once are the same as 5 steps of which the last is run again from a checkpoint. An
    incomplete checkpoint is skipped."""
    fields = {"model": base, "max_steps": 5, "save_steps": 2, "save_total_limit": 5}
    whole = tmp_path / "whole"
    run("joint", data, whole, **fields)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    (resumed / "checkpoint-5" / MANIFEST).unlink()
    shutil.rmtree(resumed / "final")
    run("joint", data, resumed, **fields)
    assert "checkpoint-5 is incomplete" in caplog.text
    before, after = logged(whole), logged(resumed)
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5]
    assert after[-1]["loss"] == before[-1]["loss"]


def test_a_run_does_not_go_on_with_other_data(data, base, tmp_path):
    mine = shutil.copytree(data, tmp_path / "data")
    run("stage1", mine, tmp_path / "run", model=base)
    content = json.loads((mine / "tiny.inter.json").read_text())
    (mine / "tiny.inter.json").write_text(json.dumps({**content, "0": content["0"][::-1]}))
    message = (
        "checkpoint-3 was trained with other settings than these: data: .*data .sha256 [0-9a-f]{12}"
    )
    with pytest.raises(InputError, match=message):
        run("stage1", mine, tmp_path / "run", model=base)


def test_a_run_does_not_go_on_with_other_settings(data, base, tmp_path, caplog):
    """It is refused and the directory is left as it is. With --resume never, the earlier run is
    moved aside and nothing of it is used."""
    directory = tmp_path / "run"
    weights = "adapter_model.safetensors"
    first = (run("stage1", data, directory, model=base, beta=0.1) / weights).read_bytes()
    config = (directory / "config.yaml").read_text()
    message = "checkpoint-3 was trained with other settings than these: beta: 0.1 there, 0.9 now"
    with pytest.raises(InputError, match=message):
        run("stage1", data, directory, model=base, beta=0.9)
    assert (directory / "config.yaml").read_text() == config

    final = run("stage1", data, directory, model=base, beta=0.9, resume="never")
    second = (final / weights).read_bytes()
    assert (directory / "earlier-1" / "final" / weights).read_bytes() == first
    assert second != first
    alone = run("stage1", data, tmp_path / "alone", model=base, beta=0.9)
    assert second == (alone / weights).read_bytes()

    # The same command once more finds this run's own results.
    run("stage1", data, directory, model=base, beta=0.9)
    assert "not finished" not in caplog.text
    assert not (directory / ".saving").exists()


def test_what_may_change_is_obeyed(data, base, tmp_path):
    """More steps under a schedule that allows them, and other intervals: those of this command
    count, not those that the checkpoint remembers."""
    fields = {"model": base, "lr_scheduler_type": "constant"}
    run("stage1", data, tmp_path / "whole", **fields, max_steps=6)
    directory = tmp_path / "run"
    run("stage1", data, directory, **fields, max_steps=2, save_steps=2)
    run("stage1", data, directory, **fields, max_steps=6, save_steps=3, logging_steps=2)
    names = {path.name for path in directory.glob("checkpoint-*")}
    assert names == {"checkpoint-3", "checkpoint-6"}
    lines = {line["step"]: line for line in logged(directory)}
    assert list(lines) == [1, 2, 3, 4, 6], "each checkpoint has a line"
    assert lines[3]["loss"] == logged(tmp_path / "whole")[2]["loss"]
    with pytest.raises(InputError, match="goes on from step 6, and this run ends at step 4"):
        run("stage1", data, directory, **fields, max_steps=4)


def test_a_base_in_the_run_directory_is_made_anew_if_it_is_another(data, tmp_path):
    """The first run has ended before its first checkpoint. Its base, of another size, is there."""
    directory = tmp_path / "run"
    run("quickstart", data, directory, init=json.dumps(INIT), max_steps=1)
    for left in directory.iterdir():
        if left.name != "base":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    other = json.dumps({**INIT, "intermediate_size": 48})
    final = run("quickstart", data, directory, init=other, max_steps=1)
    assert json.loads((final / "config.json").read_text())["intermediate_size"] == 48


def test_a_base_made_anew_must_be_the_one_that_was_trained_on(data, tmp_path):
    run("quickstart", data, tmp_path / "run", init=json.dumps(INIT), max_steps=1)
    weights = tmp_path / "run" / "base" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    message = (
        "checkpoint-1 was trained on .*base, whose weights were others than those in .*base now"
    )
    with pytest.raises(InputError, match=message):
        run("quickstart", data, tmp_path / "run", init=json.dumps(INIT), max_steps=1)


def test_refusals(data, base, tmp_path):
    message = "no such directory: runs/none/final; train the earlier stage first"
    with pytest.raises(InputError, match=message):
        run("stage1", data, tmp_path / "a", model="runs/none/final")

    message = "train_item_tokens: false would leave 9 new semantic-ID tokens untrained"
    with pytest.raises(InputError, match=message):
        run("stage1", data, tmp_path / "b", model=base, train_item_tokens="false")

    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    with pytest.raises(InputError, match="resume: .*checkpoint-3 is incomplete"):
        run("stage1", data, tmp_path / "c", model=base, resume=checkpoint)

    half = tmp_path / "half"
    half.mkdir()
    adapter = {"base_model_name_or_path": str(base)}
    (half / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(InputError, match="half: incomplete: adapter_config.json is there"):
        run("stage2", data, tmp_path / "d", model=half)

    # A model that is missing is found before the run directory is made.
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "d").exists()


def test_a_backend_that_cannot_run_here_is_refused(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr("ilrec.ops.row_slab.has_triton", lambda: False)
    message = (
        "backend: vocab_stream needs triton, which is not installed; .*use backend auto or row_slab"
    )
    with pytest.raises(InputError, match=message):
        run("stage1", data, tmp_path / "a", model=base, backend="vocab_stream")
    assert not (tmp_path / "a").exists()


def test_init_names_its_unknown_field(data, tmp_path):
    with pytest.raises(InputError, match="init: unknown field 'hiden_size'"):
        run("quickstart", data, tmp_path / "x", init="{hiden_size: 4}")


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        (range(7), "trained on 7 items, the data has 24"),
        # The same items, in the order in which other names would number them.
        (range(24)[::-1], "not the same in the same order"),
    ],
)
def test_a_filter_of_another_catalogue_is_refused(item_ids, message, data, base, tmp_path):
    other = tmp_path / "other"
    SASRec(len(item_ids), SASRecConfig(hidden_size=8)).save(other, map(str, item_ids))
    with pytest.raises(InputError, match=message):
        run("stage1", data, tmp_path / "x", model=base, reward_weight=0.1, sasrec=other)


def test_several_targets_of_each_user(data, base, tmp_path):
    """Users have 4 to 8 items, and six have 4, which is too few for two targets of each kind. The
    ranking takes the split from the model's settings."""
    final = run("sft", data, tmp_path / "run", model=base, num_targets=2)
    rank_main(flags(model=final, num_beams=5))
    every = read_ranking(final / "ranking.json").target_ranks.ranks
    protocol = json.loads((final / "ranking.json").read_text())["protocol"]
    assert (protocol["num_users"], protocol["num_cases"], protocol["num_targets"]) == (24, 48, 2)
    assert len(every) == protocol["num_target_items"] == 48

    # Both cases of each of four users, who are six users apart.
    rank_main(flags(model=final, num_beams=5, num_users=4, output=tmp_path / "some.json"))
    expected = every.reshape(24, 2)[::6].ravel()
    some = read_ranking(tmp_path / "some.json").target_ranks.ranks
    assert some.tolist() == expected.tolist()


def test_a_filter_of_another_split_is_refused(data, base, tmp_path):
    other = tmp_path / "other"
    filter_ = SASRec(24, SASRecConfig(hidden_size=8))
    filter_.save(other, map(str, range(24)), "num_targets: 1")
    message = "trained with the split `num_targets: 1`, and here it is `num_targets: 2`"
    fields = {"model": base, "reward_weight": 0.1, "reward_tokens": "continuations"}
    with pytest.raises(InputError, match=message):
        run("sft", data, tmp_path / "x", **fields, sasrec=other, num_targets=2)


def test_items_of_the_task_are_the_catalogue(data):
    task = load_task(DataConfig(data=str(data)))
    assert task.dataset.num_items == 24
    assert len(set(task.semantic_ids)) == 24


def test_a_finished_run_is_not_trained_further(data, base, tmp_path):
    """The same command again, whether or not final/ is there: the same weights, and no new step."""
    directory = tmp_path / "run"
    final = run("stage1", data, directory, model=base, max_steps=3)
    weights = (final / "adapter_model.safetensors").read_bytes()
    steps = [line["step"] for line in logged(directory)]
    shutil.rmtree(final)

    run("stage1", data, directory, model=base, max_steps=3)
    assert (final / "adapter_model.safetensors").read_bytes() == weights
    assert [line["step"] for line in logged(directory)] == steps
    assert [path.name for path in directory.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize("layout", ["padded", "flattened"])
def test_batches_by_token_budget_resume_in_the_middle_of_an_epoch(
    layout, data, base, tmp_path, sasrec
):
    """Two epochs, interrupted in the middle of the second: the same losses, rewards included, as
    the run without a break."""
    fields = {
        "model": base,
        "max_steps": -1,
        "num_train_epochs": 2,
        "max_tokens_per_batch": 400,
        "batch_layout": layout,
        "reward_weight": 0.2,
        "sasrec": sasrec,
        "supervision": "every_item",
    }
    run("stage2", data, tmp_path / "whole", **fields)
    whole = [line["loss"] for line in logged(tmp_path / "whole")]
    assert len(whole) >= 8 and len(whole) % 2 == 0

    # Only the checkpoint after the second epoch's first step is left.
    broken = tmp_path / "broken"
    last_kept = len(whole) // 2 + 1
    run("stage2", data, broken, **fields, save_steps=last_kept)
    for path in broken.glob("checkpoint-*"):
        if path.name != f"checkpoint-{last_kept}":
            shutil.rmtree(path)
    run("stage2", data, broken, **fields)
    resumed = [line["loss"] for line in logged(broken) if line["step"] > last_kept]
    assert resumed == whole[last_kept:]

"""Real launches of two ranks (deepspeed, torchrun): ZeRO-3 against one process, LoRA with new
tokens from training to ranking, bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import launch
from safetensors import safe_open
from safetensors.torch import load_file

from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.rank import main as rank_main
from ilrec.train import train

pytestmark = pytest.mark.launch
COMMON = flags(num_readout_layers=2, logging_steps=1, lora_dropout=0, lora_rank=4)
# Less than one epoch. At its end accelerate repeats samples, so that all ranks have the same
# number.
STEPS = flags(max_steps=5, save_steps=3, learning_rate=2e-3)
ZERO3 = flags(ds_config="ds_configs/zero3_cpu.json")
STAGE1 = flags(config="ilrec/recipes/stage1.yaml")


def logged(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def succeeded(result) -> None:
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]


def test_zero3_on_two_ranks_equals_one_process(data, base, tmp_path):
    """10 steps, all parameters, all terms. 2 ranks x 2 accumulated x 2 samples under ZeRO-3 are the
    same as one process with 4 x 2, and as one with 1 x 8.

    Items are titles, so that the response lengths differ. Adam's first steps are nearly sign steps,
    hence the bounds.
    """
    words = [*COMMON]
    words += flags(
        config="ilrec/recipes/joint.yaml",
        data=data,
        model=base,
        adapter="none",
        item_format="title",
        max_steps=10,
        beta=0.3,
        learning_rate=1e-3,
    )

    def run(name: str, size: int, accumulation: int) -> list[str]:
        return words + flags(
            output_dir=tmp_path / name,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )

    succeeded(launch("torchrun", "ilrec/train.py", *ZERO3, *run("ranks", 2, 2)))
    train(run("accumulated", 2, 4))
    train(run("whole", 8, 1))

    # Every logged number and every weight is compared with the run in whole batches.
    expected = logged(tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    start = load_file(base / "model.safetensors")
    for other in ("ranks", "accumulated"):
        for line, want in zip(logged(tmp_path / other), expected, strict=True):
            for name in ("loss", "loss/preference", "loss/distillation", "grad_norm"):
                place = (other, line["step"], name)
                assert line[name] == pytest.approx(want[name], rel=2e-4, abs=1e-5), place
        for name, tensor in load_file(tmp_path / other / "final" / "model.safetensors").items():
            message = f"{other} {name}"
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-4, msg=message)

    # The runs went somewhere: else all of them would agree.
    moved = [(weights[name] - tensor).abs().max().item() for name, tensor in start.items()]
    assert max(moved) > 5e-3


@pytest.fixture(scope="module")
def adapter(data, base, tmp_path_factory) -> Path:
    """The final/ of a LoRA stage1 with new semantic-ID tokens, by two ZeRO-3 ranks."""
    directory = tmp_path_factory.mktemp("lora") / "stage1"
    fields = flags(data=data, model=base, output_dir=directory, per_device_train_batch_size=4)
    words = [*ZERO3, *STAGE1, *COMMON, *STEPS, *fields]
    succeeded(launch("torchrun", "ilrec/train.py", *words))
    return directory / "final"


def test_nothing_is_saved_empty_and_new_tokens_are_trained(adapter):
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
        rows = [name for name in shapes if "trainable_tokens_delta" in name]
        assert shapes and all(0 not in shape for shape in shapes.values())
        # Rows of 3 + 4 + 2 codes, in the embedding and in the head.
        assert [shapes[name] for name in rows] == [[9, 32], [9, 32]]
        moved = [tensors.get_tensor(name).abs().max().item() for name in shapes if "lora_B" in name]
    # 7 projections in each of 4 layers. lora_B starts at 0.
    assert len(moved) == 28
    assert min(moved) > 0


def test_sharded_adapter_equals_one_process(adapter, data, base, tmp_path):
    """The same run without DeepSpeed has the same losses."""
    fields = flags(data=data, model=base, output_dir=tmp_path / "one")
    train([*STAGE1, *COMMON, *STEPS, *fields, "--per_device_train_batch_size", "8"])
    expected = [line["loss"] for line in logged(tmp_path / "one")]
    assert [line["loss"] for line in logged(adapter.parent)] == pytest.approx(expected, rel=2e-4)


def test_merged_ranks_as_the_adapter_and_ranks_do_not_matter(adapter, tmp_path):
    """The adapter on one process, on two torchrun ranks, and the merged model: every metric is the
    same, and each user is ranked once."""
    rank_main(flags(model=adapter, output=tmp_path / "one.json"))
    words = flags(model=adapter, batch_size=4, output=tmp_path / "two.json")
    succeeded(launch("torchrun", "ilrec/rank.py", *words))
    words = flags(adapter=adapter, output=tmp_path / "merged")
    succeeded(launch("python", "tools/merge_lora.py", *words, "--verify"))
    rank_main(flags(model=tmp_path / "merged"))

    one = json.loads((tmp_path / "one.json").read_text())
    two = json.loads((tmp_path / "two.json").read_text())
    merged = json.loads((tmp_path / "merged" / "ranking.json").read_text())
    assert one["metrics"] == two["metrics"] == merged["metrics"]
    assert one["protocol"]["num_users"] == two["protocol"]["num_users"] == 30
    assert one["metrics"]["hit@20"] > 0


def test_merged_model_loads_alone_with_the_same_logits(adapter, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ilrec.config.sections import ModelConfig
    from ilrec.model.loading import load_tokenizer
    from ilrec.model.source import find_model
    from ilrec.serving.trained import load_trained

    with open_source(str(adapter)) as opened:
        merge(opened, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    source = find_model(str(adapter))
    tokenizer = load_tokenizer(source)
    model = load_trained(ModelConfig(model=str(adapter)), source, tokenizer, torch.device("cpu"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)
    ids = torch.tensor([tokenizer("<a_1><b_2><c_0>")["input_ids"]])
    assert ids.shape == (1, 3)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_is_merged_from_its_shards(adapter, tmp_path):
    """If ZeRO-3 was told not to gather when it saves, adapter_model.safetensors is missing. The
    merged model is the same."""
    shards = tmp_path / "checkpoint-3"
    shutil.copytree(adapter.parent / "checkpoint-3", shards)
    for name in ("adapter_model.safetensors", "manifest.json"):
        (shards / name).unlink()
    weights = []
    for checkpoint, output in (
        (adapter.parent / "checkpoint-3", tmp_path / "gathered"),
        (shards, tmp_path / "consolidated"),
    ):
        with open_source(str(checkpoint)) as source:
            merge(source, output)
        weights.append(load_file(output / "model.safetensors"))
    assert (tmp_path / "gathered" / "item_index.json").exists()
    assert (tmp_path / "gathered" / "ilrec.yaml").exists()
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_rank_without_supervised_tokens_does_not_hang(tmp_path):
    """Rank 1's micro-batch has no label at all. The step ends, and is the same as the step of one
    process on rank 0's samples."""
    script = Path(__file__).with_name("empty_rank.py")
    result = launch("torchrun", str(script), "--output", str(tmp_path / "losses.json"), timeout=180)
    succeeded(result)
    two = json.loads((tmp_path / "losses.json").read_text())
    result = launch("python", str(script), "--output", str(tmp_path / "single.json"))
    succeeded(result)
    one = json.loads((tmp_path / "single.json").read_text())
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_bad_input_is_reported_once_and_fails_every_rank(data, tmp_path):
    fields = flags(data=data, model="m", output_dir=tmp_path / "x", lerning_rate=1)
    result = launch("deepspeed", "ilrec/train.py", *ZERO3, *STAGE1, *fields)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    message = "error: command line: unknown field 'lerning_rate'; did you mean 'learning_rate'?"
    assert output.count(message) == 1
    assert "Traceback" not in output
    assert not (tmp_path / "x").exists()

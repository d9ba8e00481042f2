"""Loading less than the configuration promises, or something else, is refused: base, adapter,
merge; on two ranks under ZeRO-3."""

import json
import re
import shutil

import pytest
import torch
from conftest import launch
from merging.written_adapters import write_adapter, write_base
from safetensors.torch import load_file, save_file

from ilrec.config.sections import ModelConfig
from ilrec.errors import InputError
from ilrec.files.reading import read_json
from ilrec.merging.merge import merge
from ilrec.merging.sources import MergeSource, open_source
from ilrec.model.adapters import load_adapter
from ilrec.model.loading import load_base
from ilrec.model.source import ModelSource, find_model

CONFIG = ModelConfig(model="x")
LAYER, PROJECTION = "model.layers.1.", "model.layers.1.mlp.up_proj.weight"
# What was done to a base's tensors, and what the message names.
FAULTS = {
    "no head": (lambda tensors: without(tensors, "lm_head"), "lm_head.weight"),
    "no layer": (lambda tensors: without(tensors, LAYER), "layers.1|layer 1"),
    "no projection": (lambda tensors: without(tensors, PROJECTION), PROJECTION),
    "torch.compile": (
        lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        "_orig_mod",
    ),
    "another prefix": (
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        "module.",
    ),
    "another shape": (lambda tensors: {**tensors, PROJECTION: torch.zeros(7, 16)}, "up_proj"),
}


def without(tensors, start):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


def rewrite(path, change):
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_is_loaded_whole_or_not(fault, tmp_path):
    base = write_base(tmp_path / "base")
    change, named = FAULTS[fault]
    write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj", "up_proj"])
    rewrite(base / "model.safetensors", change)
    with pytest.raises(InputError, match=named):
        load_base(ModelSource(base=str(base)), CONFIG)
    with pytest.raises(InputError):
        merge(MergeSource(base, tmp_path / "adapter", tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {
            name: tensor for name, tensor in tensors.items() if ".layers.1." not in name
        },
        lambda tensors: {
            name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()
        },
        lambda tensors: {
            name.replace(".model.layers", "._orig_mod.model.layers"): tensor
            for name, tensor in tensors.items()
        },
        lambda tensors: {
            **tensors,
            "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 16),
            "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": torch.zeros(16, 4),
        },
    ],
    ids=[
        "a layer is missing",
        "a layer of another base",
        "torch.compile",
        "more than the base has",
    ],
)
def test_an_adapter_is_loaded_whole_or_not(change, tmp_path):
    base, adapter = write_base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(base, adapter)
    loaded = load_adapter(
        load_base(ModelSource(base=str(base)), CONFIG), adapter, is_trainable=True
    )
    assert all(
        parameter.requires_grad == ("lora_" in name)
        for name, parameter in loaded.named_parameters()
    )
    rewrite(adapter / "adapter_model.safetensors", change)
    with pytest.raises(InputError, match="layers"):
        load_adapter(load_base(ModelSource(base=str(base)), CONFIG), adapter, is_trainable=True)
    with pytest.raises(InputError), open_source(str(adapter)) as source:
        merge(source, tmp_path / "merged")


def test_adapters_with_more_than_low_rank_updates_load(tmp_path):
    """Whole embeddings and token rows are no tensors too many."""
    base = write_base(tmp_path / "base")
    for number, settings in enumerate(
        ({"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 30]}, {"use_dora": True})
    ):
        write_adapter(base, tmp_path / str(number), **settings)
        load_adapter(
            load_base(ModelSource(base=str(base)), CONFIG),
            tmp_path / str(number),
            is_trainable=False,
        )


@pytest.mark.parametrize("same", [True, False])
def test_tensors_decide_what_is_tied(same, tmp_path):
    """config.json says tied; the head in the file is the embedding, or another one, which then is
    used by training and merge alike."""
    base = write_base(tmp_path / "base", tied=True)
    rewrite(
        base / "model.safetensors",
        lambda tensors: {
            **tensors,
            "lm_head.weight": tensors["model.embed_tokens.weight"] * (1 if same else 2),
        },
    )
    head = load_file(base / "model.safetensors")["lm_head.weight"]
    model = load_base(ModelSource(base=str(base)), CONFIG)
    assert model.config.tie_word_embeddings == same
    # This call ties them again if the configuration says so.
    model.resize_token_embeddings(50, mean_resizing=False)
    torch.testing.assert_close(model.lm_head.weight[:40], head)
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        load_base(ModelSource(base=str(tmp_path / "saved")), CONFIG).lm_head.weight[:40], head
    )
    write_adapter(base, tmp_path / "adapter")
    merge(MergeSource(base, tmp_path / "adapter", tmp_path / "adapter"), tmp_path / "merged")
    assert read_json(tmp_path / "merged" / "config.json")["tie_word_embeddings"] == same
    torch.testing.assert_close(
        load_base(ModelSource(base=str(tmp_path / "merged")), CONFIG).lm_head.weight, head
    )


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(name, tmp_path):
    base, adapter = write_base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(base, adapter)
    (base / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    for refused in (
        lambda: find_model(str(base)),
        lambda: find_model(str(adapter)),
        lambda: open_source(str(adapter)).__enter__(),
    ):
        with pytest.raises(InputError, match=f"{name}: a git-lfs pointer"):
            refused()


def test_what_transformers_cannot_read_is_one_message(tmp_path):
    base = write_base(tmp_path / "base")
    config = read_json(base / "config.json")
    (base / "config.json").write_text(json.dumps({**config, "model_type": "nobody_knows"}))
    with pytest.raises(InputError, match="nobody_knows"):
        load_base(ModelSource(base=str(base)), CONFIG)
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").write_bytes(b"no header at all, and longer than eight bytes")
    with pytest.raises(InputError, match="could not be loaded"):
        load_base(ModelSource(base=str(base)), CONFIG)


@pytest.mark.launch
@pytest.mark.parametrize(
    "fault", ["no layer", pytest.param("another shape", marks=pytest.mark.slow)]
)
def test_two_ranks_under_zero3_refuse_alike(fault, data, base, tmp_path):
    """Only rank 0 sees the shapes; the other one says the same and does not wait for it."""
    shutil.copytree(base, tmp_path / "base")
    rewrite(tmp_path / "base" / "model.safetensors", FAULTS[fault][0])
    result = launch(
        "torchrun",
        "ilrec/train.py",
        "--ds_config",
        "ds_configs/zero3_cpu.json",
        "--config",
        "ilrec/recipes/sft.yaml",
        "--data",
        str(data),
        "--model",
        str(tmp_path / "base"),
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "1",
    )
    output = result.stdout + result.stderr
    assert result.returncode != 0, output[-4000:]
    assert 'Traceback (most recent call last):\n  File "ilrec' not in output, output[-4000:]
    assert re.search(rf"error: model: .*({FAULTS[fault][1]})", output), output[-4000:]

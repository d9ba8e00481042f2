"""Where a model comes from: scratch, GGUF, adapters and their base; what is refused."""

import json
import shutil

import pytest
import torch
from conftest import INIT
from safetensors.torch import load_file, save_file
from tiny_tokenizers import FAMILIES, with_added_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilrec.config.sections import ModelConfig
from ilrec.errors import InputError
from ilrec.model.loading import (
    choose_attention,
    choose_dtype,
    load_base,
    load_tokenizer,
    materialise,
    skeleton_base,
    train_tokenizer,
    write_skeleton,
)
from ilrec.model.source import ModelSource, find_model


def test_scratch_model_is_a_plain_directory(base):
    assert AutoModelForCausalLM.from_pretrained(base).config.num_hidden_layers == 4
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer("Any text: äöü 漢字!")["input_ids"]) == "Any text: äöü 漢字!"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_scratch_is_the_same_for_the_same_seed(tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        materialise(ModelConfig(init=INIT), tmp_path / name, ["red blue"], seed)
    weights = {}
    for name in ("one", "two", "other"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        weights[name] = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weights["one"], weights["two"])
    assert not torch.equal(weights["one"], weights["other"])


def test_gguf_becomes_a_plain_directory(base, tmp_path):
    """A Llama written as GGUF with gguf's own writer and read back: the same weights, token for
    token the same text."""
    path = write_gguf(base, tmp_path / "model.gguf")
    materialise(ModelConfig(model=str(path)), tmp_path / "plain", [], seed=0)
    source = find_model(str(tmp_path / "plain"))
    model = load_base(source, ModelConfig(model="x"))
    original = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([load_tokenizer(source)("red guitar")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gguf", "scratch"])
def test_a_skeleton_has_the_model_without_its_weights(kind, base, tmp_path):
    """The same configuration, tokenizer and parameters as the directory that is written whole."""
    config = ModelConfig(init=INIT)
    if kind == "gguf":
        config = ModelConfig(model=str(write_gguf(base, tmp_path / "model.gguf")))
    texts = ["red blue guitar"]
    materialise(config, tmp_path / "whole", texts, seed=0)
    write_skeleton(config, tmp_path / "skeleton", texts, seed=0)
    whole, skeleton = (find_model(str(tmp_path / name)) for name in ("whole", "skeleton"))
    assert not list((tmp_path / "skeleton").glob("*.safetensors"))

    shapes = {name: p.shape for name, p in load_base(whole, config).named_parameters()}
    empty = dict(skeleton_base(skeleton, config).named_parameters())
    assert {name: p.shape for name, p in empty.items()} == shapes
    assert {p.device.type for p in empty.values()} == {"meta"}
    assert load_tokenizer(skeleton).get_vocab() == load_tokenizer(whole).get_vocab()


def test_headers_alone_tell_what_is_missing(base, tmp_path):
    """On "meta" no value is read, and a missing tensor is still found."""
    config = ModelConfig(model=str(base))
    model = load_base(ModelSource(base=str(base)), config, device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}

    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="model.norm.weight"):
        load_base(ModelSource(base=str(broken)), config, device="meta")


def write_gguf(base, path):
    """The tiny Llama in llama.cpp's layout: names, and the rotary permutation of query and key
    rows."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([1] * len(tokenizer))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            # llama.cpp pairs neighbouring rows of a head, Hugging Face its first and second half.
            heads = config.num_attention_heads
            halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_other_refusals(tmp_path):
    with pytest.raises(InputError, match="no such GGUF file"):
        materialise(ModelConfig(model=str(tmp_path / "x.gguf")), tmp_path / "out", [], 0)
    with pytest.raises(InputError, match="could not be loaded"):
        load_base(find_model("nobody/nothing"), ModelConfig(model="nobody/nothing"))


def test_a_tokenizer_is_read_with_the_numbers_of_its_file(tmp_path):
    """The library numbers added tokens anew, whatever the file says: the model's rows are its."""
    with_added_tokens().save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))
    assert load_tokenizer(source).get_vocab() == with_added_tokens().get_vocab()
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"][-1]["id"] += 5
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="'<pad token>' has number 327 there and is read as 322"):
        load_tokenizer(source)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tokenizer_can_pad(family, tmp_path):
    """With its end token where it has none for that."""
    FAMILIES[family]().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(ModelSource(str(tmp_path)))
    own = FAMILIES[family]().pad_token_id
    assert tokenizer.pad_token_id == (tokenizer.eos_token_id if own is None else own)


def test_tokenizer_size_is_kept():
    assert len(train_tokenizer(["a b c " * 50], 260)) <= 260


def test_auto_takes_what_the_machine_has(monkeypatch):
    """float32 and sdpa on the CPU; bfloat16 on CUDA, and flash attention there where it is
    installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (choose_dtype("auto"), choose_attention("auto")) == (torch.float32, "sdpa")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for installed, attention in ((None, "sdpa"), (object(), "flash_attention_2")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=installed: found)
        assert (choose_dtype("auto"), choose_attention("auto")) == (torch.bfloat16, attention)
    assert (choose_dtype("float16"), choose_attention("eager")) == (torch.float16, "eager")

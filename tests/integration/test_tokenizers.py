"""Training and ranking with tokenizers as users bring them. The targets' ranks are compared with
those that transformers and peft give alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import NUM_ITEMS, NUM_USERS, ROOT
from peft import PeftModel
from tiny_tokenizers import FAMILIES, llama3, mistral
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

from ilrec.errors import InputError
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.rank import main as rank_main
from ilrec.ranking.results import read_ranking
from ilrec.samples.task import load_task
from ilrec.serving.trained import data_config
from ilrec.train import train

# {tokenizer: rows that the model has beyond its tokens}. Qwen's models have some, as padding.
ROWS = {"mistral": 0, "llama2": 0, "gemma": 0, "qwen": 40, "with_holes": 0, "with_added_tokens": 0}
NUM_RANKED = 10


def num_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def write_base(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    more_rows: int = 0,
    eos: int | list[int] | None = None,
) -> Path:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=num_rows(tokenizer) + more_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=256,
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=eos,
    )
    MistralForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def train_a_little(data: Path, base: Path, output: Path, **fields) -> Path:
    words = flags(
        config=ROOT / "ilrec/recipes/stage1.yaml",
        data=data,
        model=base,
        output_dir=output,
        max_steps=2,
        learning_rate=0.05,
        num_readout_layers=1,
    )
    train([*words, *flags(**fields)])
    return output / "final"


def merged(final: Path) -> Path:
    output = final.parent / "merged"
    with open_source(str(final)) as source:
        merge(source, output)
    return output


def ranked(model: Path) -> list[int]:
    """The targets' ranks by ilrec/rank.py, with as many beams as items."""
    rank_main(flags(model=model, num_beams=NUM_ITEMS, batch_size=7, num_users=NUM_RANKED))
    return read_ranking(model / "ranking.json").target_ranks.ranks.tolist()


@torch.no_grad()
def exhaustive_ranks(final: Path, base: Path) -> list[int]:
    """The rank of each user's last item among the items that the user did not have before, by
    scoring the codes and the end token of every item."""
    tokenizer = AutoTokenizer.from_pretrained(final)
    plain = MistralForCausalLM.from_pretrained(base)
    rows = max(plain.config.vocab_size, num_rows(tokenizer))
    plain.resize_token_embeddings(rows, mean_resizing=False)
    model = PeftModel.from_pretrained(plain, final).eval()
    task = load_task(data_config(str(final), None))
    builder = task.sample_builder(tokenizer)
    end = tokenizer.eos_token_id
    code_ids = [tokenizer.convert_tokens_to_ids(list(codes)) for codes in task.semantic_ids]
    responses = torch.tensor([[*ids, end] for ids in code_ids])
    target_ranks = []
    for sequence in task.dataset.sequences[: NUM_USERS : NUM_USERS // NUM_RANKED]:
        *history, target = sequence.tolist()
        prompt = torch.tensor(builder.prompt_ids(history)).expand(NUM_ITEMS, -1)
        logits = model(input_ids=torch.cat([prompt, responses], 1)).logits
        logps = logits[:, prompt.shape[1] - 1 : -1].log_softmax(-1)
        scores = logps.gather(2, responses[..., None]).sum((1, 2))
        better = (scores >= scores[target]).nonzero().flatten().tolist()
        target_ranks.append(len(set(better) - set(history)))
    return target_ranks


@pytest.mark.parametrize("family", ROWS)
def test_trained_and_ranked(family, data, tmp_path):
    """An adapter with the rows of new tokens, and the same merged: the ranks are right."""
    base = write_base(tmp_path / "base", FAMILIES[family](), ROWS[family])
    final = train_a_little(data, base, tmp_path / "run")
    target_ranks = ranked(final)
    assert len(target_ranks) == NUM_RANKED
    assert len(set(target_ranks)) > 4, "too many equal ranks would prove little"
    assert target_ranks == exhaustive_ranks(final, base)
    assert ranked(merged(final)) == target_ranks


def test_a_list_of_end_tokens(data, tmp_path):
    """Instruction-tuned models have several. The tokenizer's own end token ends an item."""
    tokenizer = llama3()
    base = write_base(tmp_path / "base", tokenizer, eos=[5, tokenizer.eos_token_id])
    settings = {"eos_token_id": [tokenizer.eos_token_id, 5], "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    final = train_a_little(data, base, tmp_path / "run")
    assert ranked(final) == exhaustive_ranks(final, base)


def test_tokens_beyond_the_models_rows_are_trained_and_saved_too(data, tmp_path):
    """A padding token that was added and never given a row. Nothing else is new."""
    tokenizer = mistral()
    base = write_base(tmp_path / "base", tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(base)
    final = train_a_little(
        data, base, tmp_path / "run", item_format="title", train_item_tokens="false"
    )
    trained = json.loads((final / "adapter_config.json").read_text())["trainable_token_indices"]
    assert trained == dict.fromkeys(("embed_tokens", "lm_head"), [len(tokenizer) - 1])
    assert MistralForCausalLM.from_pretrained(merged(final)).config.vocab_size == len(tokenizer)
    assert ranked(final.parent / "merged") == ranked(final)


def test_codes_that_are_numbers(tmp_path):
    """Codes that are already words of the vocabulary, and that read the same when they are
    joined: 1 23 4 and 12 3 4."""
    codes = [["1", "23", "4"], ["12", "3", "4"], ["1", "2", "34"], ["5", "6", "7"], ["7", "8", "9"]]
    directory = tmp_path / "data"
    directory.mkdir()
    users = {str(u): [(u + k) % 5 for k in range(4)] for u in range(6)}
    (directory / "x.inter.json").write_text(json.dumps(users))
    (directory / "x.index.json").write_text(json.dumps({str(i): c for i, c in enumerate(codes)}))
    final = train_a_little(directory, write_base(tmp_path / "base", llama3()), tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(final)
    builder = load_task(data_config(str(final), None)).sample_builder(tokenizer)
    assert [tokenizer.convert_ids_to_tokens(row.tolist()) for row in builder.item_ids] == codes


def test_ranking_refuses_a_tokenizer_that_has_lost_its_codes(data, tmp_path):
    base = write_base(tmp_path / "base", mistral())
    final = train_a_little(data, base, tmp_path / "run")
    mistral().save_pretrained(final)
    with pytest.raises(InputError, match="9 of 9 semantic-ID tokens are unknown to it, first"):
        ranked(final)


def test_an_adapter_gets_no_new_codes(data, tmp_path):
    """Another index for the next stage. The rows of its tokens would not be trained."""
    final = train_a_little(data, write_base(tmp_path / "base", mistral()), tmp_path / "run")
    index = {str(i): [f"<a_{i}>", "<b_1>"] for i in range(NUM_ITEMS)}
    (tmp_path / "other.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="the model has learned other tokens for these items"):
        train_a_little(data, final, tmp_path / "next", semantic_ids=tmp_path / "other.json")
    # An adapter from elsewhere has no index that tells what it has learned.
    (final / "item_index.json").unlink()
    with pytest.raises(InputError, match="final: 21 of 25 semantic-ID tokens are unknown to it, a"):
        train_a_little(data, final, tmp_path / "next", semantic_ids=tmp_path / "other.json")

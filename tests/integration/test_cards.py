"""Model cards of real runs, in one process: their code runs as it is written, a ranking refreshes
them, and they are in nobody's way."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import ROOT
from huggingface_hub import ModelCard

from ilrec.config.sections import ModelConfig
from ilrec.merging.inspection import describe
from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source
from ilrec.model.adapters import add_item_tokens, load_adapter
from ilrec.model.loading import load_base, load_tokenizer
from ilrec.model.source import find_model
from ilrec.rank import main as rank_main
from ilrec.train import train
from ilrec.training.manifest import find_fault
from ilrec.training.model_card import CARD

SHORT = {"max_steps": 2, "save_steps": 1, "num_readout_layers": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def run(data, base, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "stage1"
    recipe = ROOT / "ilrec" / "recipes" / "stage1.yaml"
    train(flags(config=recipe, data=data, model=base, output_dir=directory, **SHORT))
    return directory


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("merged") / "merged"
    with open_source(str(run / "final")) as source:
        merge(source, output)
    return output


def card(directory: Path) -> str:
    return (directory / CARD).read_text()


def run_its_code(directory: Path, monkeypatch) -> torch.nn.Module:
    """The model that the card's Python code loads, run in the card's directory."""
    monkeypatch.chdir(directory)
    (code,) = re.findall(r"```python\n(.*?)```", card(directory), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert "<a_0>" in names["tokenizer"].get_vocab()
    return names["model"].eval()


def logits_of(model: torch.nn.Module, vocab: int) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(vocab)[None, -60:]).logits[..., :vocab]


def trained_model(final: Path) -> torch.nn.Module:
    """As ilrec/rank.py loads it."""
    source = find_model(str(final))
    base = load_base(source, ModelConfig(model=str(final)))
    add_item_tokens(base, load_tokenizer(source))
    return load_adapter(base, source.adapter, is_trainable=False).eval()


def test_the_code_of_an_adapters_card_loads_what_was_trained(run, monkeypatch):
    expected = trained_model(run / "final")
    vocab = expected.get_input_embeddings().weight.shape[0]
    loaded = run_its_code(run / "final", monkeypatch)
    torch.testing.assert_close(logits_of(loaded, vocab), logits_of(expected, vocab))


def test_the_code_of_a_merged_models_card_loads_the_same(run, merged, monkeypatch):
    expected = trained_model(run / "final")
    vocab = expected.get_input_embeddings().weight.shape[0]
    loaded = run_its_code(merged, monkeypatch)
    torch.testing.assert_close(
        logits_of(loaded, vocab), logits_of(expected, vocab), rtol=1e-4, atol=1e-4
    )


def test_checkpoints_and_final_have_it_in_place_of_pefts(run, base):
    for name in ("checkpoint-1", "checkpoint-2", "final"):
        assert "preference (beta" in card(run / name)
        assert "PEFT" not in card(run / name)
        assert str(base.parent) not in card(run / name)


def test_a_ranking_refreshes_the_card_and_harms_nothing(run, data, tmp_path):
    final = run / "final"
    before = card(final)
    rank_main(flags(model=final, num_beams=5, num_users=6, output=tmp_path / "else.json"))
    assert card(final) == before  # That ranking lies elsewhere.
    rank_main(flags(model=final, num_beams=5, num_users=6))
    assert ModelCard(card(final)).data.eval_results[0].dataset_name == "tiny"
    assert "| `num_users` | `6` |" in card(final)
    assert str(data) not in card(final)
    assert find_fault(final) == ""
    assert "LORA adapter" in describe(final)


def test_an_edited_card_does_not_stop_a_resume(run, data, base, tmp_path, caplog):
    """Killed after step 1, as far as can be seen from its directory."""
    copy = shutil.copytree(run, tmp_path / "stage1")
    for name in ("checkpoint-2", "final"):
        shutil.rmtree(copy / name)
    (copy / "checkpoint-1" / CARD).write_text("mine")
    assert find_fault(copy / "checkpoint-1") == ""
    recipe = ROOT / "ilrec" / "recipes" / "stage1.yaml"
    train(flags(config=recipe, data=data, model=base, output_dir=copy, **SHORT))
    assert "skipped" not in caplog.text
    assert card(copy / "checkpoint-1") == "mine"
    assert (copy / "final" / CARD).exists()


def test_the_history_of_a_merged_model(run, merged, data, tmp_path):
    entries = re.findall(r"^\d\. (.*)$", card(merged), re.MULTILINE)
    assert entries[0].startswith("`stage1`: a LoRA adapter of rank 16")
    assert entries[1] == "The adapter `final` of `stage1` merged into its base."
    # A run that starts from the merged model goes on with it; a checkpoint has it, too.
    with open_source(str(run / "checkpoint-1")) as source:
        merge(source, tmp_path / "half")
    assert "merged into its base" in card(tmp_path / "half")
    recipe = ROOT / "ilrec" / "recipes" / "sft.yaml"
    output = tmp_path / "sft"
    train(flags(config=recipe, data=data, model=merged, output_dir=output, max_steps=1))
    assert len(re.findall(r"^\d\. ", card(output / "final"), re.MULTILINE)) == 3

"""What training adds to a base model: token rows that are trained, saved and reloaded; rows for the
tokens of a tokenizer."""

import pytest
import torch
from tiny_models import NEW_TOKENS, batch, tiny_llama
from tiny_tokenizers import with_holes

from ilrec.config.sections import ModelConfig, ObjectiveConfig
from ilrec.model.adapters import add_adapter, add_item_tokens, load_adapter
from ilrec.model.objective import attach_objective


@pytest.mark.parametrize("tied", [True, False])
def test_new_token_rows_are_trained_saved_and_reloaded(tmp_path, tied):
    """Under LoRA the new tokens' rows learn on both sides; nothing V x H is saved; the reloaded
    model gives the same logits."""
    model = add_adapter(tiny_llama(tied), ModelConfig(lora_dropout=0.0, lora_rank=4), NEW_TOKENS)
    attach_objective(model, ObjectiveConfig(beta=0.1, num_readout_layers=2), [])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = {name: p for name, p in trained.items() if "trainable_tokens" in name}
    before = {name: p.detach().clone() for name, p in rows.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch(16)).loss.backward()
        optimizer.step()
    assert len(rows) == (1 if tied else 2)
    for name, parameter in rows.items():
        assert (parameter - before[name]).abs().amax(dim=1).min() > 0, name
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 300_000
    reloaded = load_adapter(tiny_llama(tied), tmp_path, is_trainable=False).eval()
    ids = batch()["input_ids"]
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_token_rows_get_the_gradient_of_the_whole_head():
    """The rows' gradient equals that of an untied head trained in full, at those rows."""
    objective = ObjectiveConfig(beta=0.1, distillation_weight=0.5, num_readout_layers=2)
    full = tiny_llama()
    attach_objective(full, objective, [])
    full(**batch(16)).loss.backward()
    adapted = add_adapter(tiny_llama(), ModelConfig(lora_dropout=0.0), NEW_TOKENS)
    attach_objective(adapted, objective, [])
    adapted(**batch(16)).loss.backward()
    rows = {n: p.grad for n, p in adapted.named_parameters() if "trainable_tokens_delta" in n}
    head = next(g for n, g in rows.items() if "lm_head" in n)
    embedding = next(g for n, g in rows.items() if "embed_tokens" in n)
    torch.testing.assert_close(head, full.lm_head.weight.grad[NEW_TOKENS])
    torch.testing.assert_close(embedding, full.model.embed_tokens.weight.grad[NEW_TOKENS])


@pytest.mark.parametrize("rows", [64, 500])
def test_as_many_rows_as_the_largest_token_number_needs(rows):
    """More than there are tokens, where numbers are not in use; padded ones keep their rows."""
    tokenizer = with_holes()
    largest = max(tokenizer.get_vocab().values())
    assert len(tokenizer) <= largest < 500
    model = tiny_llama()
    model.resize_token_embeddings(rows, mean_resizing=False)
    new = add_item_tokens(model, tokenizer)
    assert list(new) == list(range(rows, largest + 1))
    for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
        assert len(weight) == max(rows, largest + 1)

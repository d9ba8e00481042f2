"""A merged model with new tokens in the serving engine CTranslate2
(https://opennmt.net/CTranslate2): it computes the same logits as transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapter_kinds import NEW
from transformers import AutoModelForCausalLM, AutoTokenizer
from written_adapters import VOCAB, run_merge, write_adapter, write_base

ctranslate2 = pytest.importorskip("ctranslate2")


def test_ctranslate2_computes_the_same(tmp_path):
    write_adapter(
        write_base(tmp_path / "base"),
        tmp_path / "adapter",
        resize=VOCAB + len(NEW),
        trainable_token_indices={"embed_tokens": NEW, "lm_head": NEW},
    )
    merged = tmp_path / "merged"
    run_merge(tmp_path / "adapter", merged)
    # The converter refuses a tokenizer without a token for the beginning.
    tokenizer = AutoTokenizer.from_pretrained(merged)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(merged)
    converter = ctranslate2.converters.TransformersConverter(str(merged))
    converter.convert(str(tmp_path / "served"))

    ids = [5, NEW[0], 7, NEW[-1], 3]
    engine = ctranslate2.Generator(str(tmp_path / "served"), compute_type="float32")
    served = np.array(engine.forward_batch([tokenizer.convert_ids_to_tokens(ids)]))
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits
    torch.testing.assert_close(torch.from_numpy(served), expected, rtol=1e-4, atol=1e-4)

"""A merged model with new tokens, in the serving engine CTranslate2
(https://opennmt.net/CTranslate2): the same logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_merge import NEW, run_merge
from transformers import AutoModelForCausalLM, AutoTokenizer
from written_adapters import VOCAB, write_adapter, write_base

ctranslate2 = pytest.importorskip("ctranslate2")


def test_ctranslate2_says_the_same(tmp_path):
    write_adapter(
        write_base(tmp_path / "base"),
        tmp_path / "adapter",
        resize=VOCAB + len(NEW),
        trainable_token_indices={"embed_tokens": NEW, "lm_head": NEW},
    )
    run_merge(tmp_path / "adapter", tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    tokenizer.bos_token = tokenizer.eos_token  # the converter does not read tokenizers without one
    tokenizer.save_pretrained(tmp_path / "merged")
    ctranslate2.converters.TransformersConverter(str(tmp_path / "merged")).convert(
        str(tmp_path / "served")
    )
    engine = ctranslate2.Generator(str(tmp_path / "served"), compute_type="float32")
    ids = [5, NEW[0], 7, NEW[-1], 3]
    served = np.array(engine.forward_batch([tokenizer.convert_ids_to_tokens(ids)]))
    with torch.no_grad():
        expected = (
            AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
            .eval()(torch.tensor([ids]))
            .logits
        )
    torch.testing.assert_close(torch.from_numpy(served), expected, rtol=1e-4, atol=1e-4)

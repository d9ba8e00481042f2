"""A tokenizer that does not fit the merged model."""

from __future__ import annotations

from written_adapters import VOCAB, refusal, write_adapter, write_base, write_tokenizer


def test_a_tokenizer_with_more_tokens_than_rows(tmp_path):
    adapter = tmp_path / "adapter"
    write_adapter(write_base(tmp_path / "base"), adapter)
    write_tokenizer(adapter, VOCAB + 1)
    expected = f"has tokens up to number {VOCAB}, the merged model has rows for {VOCAB} tokens"
    assert expected in refusal(adapter, tmp_path / "merged")
    (adapter / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: not a tokenizer" in refusal(adapter, tmp_path / "merged")

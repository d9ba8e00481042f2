"""The kinds of tokenizers that users bring, made small. Each splits a text as the real one does."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    ByT5Tokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

TEXTS = [
    "### Instruction: The user has chosen these items, oldest first:",
    "\n### Response:",
    ' "Toy Story", "Four Rooms", "Red Guitar 12", "Blue Amp 34"',
] * 4
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def trained(tokenizer: Tokenizer, vocab_size: int, special: list[str], alphabet: list[str]) -> None:
    """Learn merges from TEXTS."""
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, 320, special, pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def sentencepiece(special: list[str], prepend: bool) -> Tokenizer:
    """As transformers writes such models: a space is ▁, and what has no token is spelled in bytes.

    prepend: there is a space before every text.
    """
    settings: dict = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    normalizer = normalizers.Replace(" ", "▁")
    if prepend:
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizer])
    learnt = Tokenizer(models.BPE(**settings))
    learnt.normalizer = normalizer
    printable = [chr(number) for number in range(33, 127)]
    trained(learnt, 420, special + BYTES, printable)

    # A new tokenizer with the same words, because training has made special tokens of the bytes.
    tokenizer = Tokenizer(models.BPE(**words_and_merges(learnt), **settings))
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepend:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(special)
    return tokenizer


def words_and_merges(tokenizer: Tokenizer) -> dict:
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """The tokenizer, which now puts `bos` before every text."""
    special = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tokenizer


def llama3() -> PreTrainedTokenizerBase:
    """Byte-level. It begins texts with a token and has none for padding."""
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = with_bos(byte_level([bos, eos]), bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def qwen() -> PreTrainedTokenizerBase:
    """Byte-level. It composes characters (NFC); one token ends, pads and means the unknown."""
    return Qwen2Tokenizer(**words_and_merges(byte_level(["<|endoftext|>"])))


def mistral() -> PreTrainedTokenizerBase:
    """Mistral v0.1, and Llama 2 as it was first converted: a normalizer prepends and replaces.

    No padding token.
    """
    tokenizer = with_bos(sentencepiece(["<unk>", "<s>", "</s>"], prepend=True), "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama2() -> PreTrainedTokenizerBase:
    """As transformers rebuilds Llama 2's: a pre-tokenizer prepends to the first part of a text."""
    return LlamaTokenizer(**words_and_merges(sentencepiece(["<unk>", "<s>", "</s>"], prepend=True)))


def gemma() -> PreTrainedTokenizerBase:
    """It writes a space as ▁ and prepends nothing."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    return GemmaTokenizer(**words_and_merges(sentencepiece(special, prepend=False)))


def uncased() -> PreTrainedTokenizerBase:
    """Unigram pieces. Letters become lower-case and get their compatibility form (NFKC); all other
    characters are unknown."""
    letters = [(letter, -1.0) for letter in '▁abcdefghijklmnopqrstuvwxyz0123456789,.:#"']
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *letters], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def with_holes() -> PreTrainedTokenizerBase:
    """Many numbers are not in use: the largest number is greater than the count of tokens."""
    state = json.loads(byte_level(["<pad>", "</s>"]).to_str())
    for token in ("a", "b", "c"):
        state["model"]["vocab"][token] += 400
    # The merges are left out, because single characters are enough here.
    state["model"]["merges"] = []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def with_added_tokens() -> PreTrainedTokenizerBase:
    """With tokens that its makers added: some have spaces in them or take the spaces beside them,
    and one pads."""
    tokenizer = llama3()
    tokenizer.add_tokens(
        [AddedToken("<turn of user>", rstrip=True), AddedToken("two words", normalized=True)]
    )
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad token>", lstrip=True)})
    return tokenizer


def in_python() -> PreTrainedTokenizerBase:
    """Written in Python, without the tokenizers library."""
    return ByT5Tokenizer(extra_ids=3)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "llama3": llama3,
    "qwen": qwen,
    "mistral": mistral,
    "llama2": llama2,
    "gemma": gemma,
    "uncased": uncased,
    "with_holes": with_holes,
    "with_added_tokens": with_added_tokens,
    "in_python": in_python,
}

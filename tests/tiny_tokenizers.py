"""The kinds of tokenizers that users bring, made small: how a text becomes pieces is theirs."""

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


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        BpeTrainer(
            vocab_size=320,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def sentencepiece(special: list[str], prepend: bool) -> Tokenizer:
    """As transformers writes such models: a space is ▁, what has no token is spelled in bytes.

    prepend: there is a space before every text.
    """
    settings = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    replace = normalizers.Replace(" ", "▁")
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    trained = Tokenizer(models.BPE(**settings))
    trained.normalizer = normalizer
    trained.train_from_iterator(
        TEXTS,
        BpeTrainer(
            vocab_size=420,
            special_tokens=special + BYTES,
            show_progress=False,
            initial_alphabet=[chr(number) for number in range(33, 127)],
        ),
    )
    # Anew: training has made special tokens of the bytes.
    tokenizer = Tokenizer(models.BPE(**words_and_merges(trained), **settings))
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * prepend])
    tokenizer.add_special_tokens(special)
    return tokenizer


def words_and_merges(tokenizer: Tokenizer) -> dict:
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """Puts `bos` before every text."""
    special = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tokenizer


def llama3() -> PreTrainedTokenizerBase:
    """Byte-level, begins texts with a token, has none for padding."""
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = with_bos(byte_level([bos, eos]), bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def qwen() -> PreTrainedTokenizerBase:
    """Byte-level, composes characters (NFC); one token ends, pads and stands for the unknown."""
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
    """Replaces, and prepends nothing."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    return GemmaTokenizer(**words_and_merges(sentencepiece(special, prepend=False)))


def uncased() -> PreTrainedTokenizerBase:
    """Unigram pieces: lower-case letters in compatibility form (NFKC); all else is unknown."""
    letters = [(letter, -1.0) for letter in '▁abcdefghijklmnopqrstuvwxyz0123456789,.:#"']
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *letters], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def with_holes() -> PreTrainedTokenizerBase:
    """Many numbers are not in use: the largest is beyond the count of tokens."""
    state = json.loads(byte_level(["<pad>", "</s>"]).to_str())
    for token in ("a", "b", "c"):
        state["model"]["vocab"][token] += 400
    state["model"]["merges"] = []  # fewer words are enough
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def with_added_tokens() -> PreTrainedTokenizerBase:
    """Tokens added by its makers: with spaces in them, or taking those beside them; one pads."""
    tokenizer = llama3()
    tokenizer.add_tokens(
        [AddedToken("<turn of user>", rstrip=True), AddedToken("two words", normalized=True)]
    )
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad token>", lstrip=True)})
    return tokenizer


def in_python() -> PreTrainedTokenizerBase:
    """Without the tokenizers library: code of its own."""
    return ByT5Tokenizer(extra_ids=3)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    make.__name__: make
    for make in (
        llama3,
        qwen,
        mistral,
        llama2,
        gemma,
        uncased,
        with_holes,
        with_added_tokens,
        in_python,
    )
}

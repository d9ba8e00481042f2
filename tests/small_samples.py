"""Four items, three users and a tokenizer of characters, for tests that compare samples token for
token."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prompts import TitlePrompt, Wording

TITLES = ["a", "bb", "c", "d"]
WORDING = Wording("<", ",", ">")


def make_tokenizer(with_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per character."""
    texts = ["<pad>", "</s>", "<s>", "<unk>", *'<>, "abcdefghij']
    vocabulary = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )


def read(ids: list[int]) -> str:
    """The text of token ids."""
    return "".join(make_tokenizer().convert_ids_to_tokens(ids))


def make_builder(
    max_length: int = 64,
    max_history_items: int = 20,
    with_bos: bool = False,
    every_item: bool = False,
) -> SampleBuilder:
    prompt = TitlePrompt(TITLES, WORDING)
    tokenizer = make_tokenizer(with_bos)
    return SampleBuilder(tokenizer, prompt, max_length, max_history_items, every_item)


def dataset_of(sequences: Ragged | list, titles: list[str] | None = None) -> InteractionDataset:
    """Users 0, 1, 2, ... with these sequences; the items are those of `titles`."""
    titles = TITLES if titles is None else titles
    rows = sequences if isinstance(sequences, Ragged) else Ragged.from_rows(sequences)
    return InteractionDataset(
        name="tiny",
        user_ids=[str(user) for user in range(len(rows))],
        item_ids=[str(item) for item in range(len(titles))],
        sequences=rows,
        titles=titles,
        num_dropped_users=0,
        fingerprint="",
    )


def make_dataset() -> InteractionDataset:
    """The training parts are [0 1 2], [3] and [1 0]. So three targets have a history: the items 1
    and 2 of user 0, and the item 0 of user 2."""
    return dataset_of([[0, 1, 2, 3, 0], [3, 1, 0], [1, 0, 2, 3]])

"""Every reader of a user's file: damaged in any way, the file is read, or refused by one message
that names it.

Other cases than the suite's, and more of them:

    pytest --hypothesis-profile fuzz --hypothesis-seed N tests/interactions/test_damaged_files.py
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ilrec.collaborative.sasrec import SASRec
from ilrec.config.loading import load_config
from ilrec.config.sasrec import SASRecConfig
from ilrec.errors import InputError
from ilrec.interactions.prepared import write_prepared
from ilrec.interactions.reading import read_interactions
from ilrec.items.semantic_ids import read_semantic_ids
from ilrec.serving.trained import data_config
from ilrec.training.ds_config import read_ds_config

ITEMS = [str(item) for item in range(4)]
INTER = {"u": [0, 1, 2, 3], "v": ["3", "2", "1"]}
TITLES = {item: {"title": f"title ä {item}"} for item in ITEMS}
INDEX = {item: ["<a_1>", f"<b_{item}>"] for item in ITEMS}
ATOMIC_LINES = [f"{user}\t{item}\t{item}.5\n" for user in "ab" for item in ITEMS]
ATOMIC = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(ATOMIC_LINES)
ATOMIC_TITLE_LINES = [f"{item}\tä {item}\n" for item in ITEMS]
ATOMIC_TITLES = "item_id:token\tmovie_title:token_seq\n" + "".join(ATOMIC_TITLE_LINES)
RECIPE = """\
data: d
output_dir: o
model: m
beta: 0.1
lora_target_modules: [q_proj]
prompt_prefix: "a # b"
"""
DS_CONFIG = {
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "overlap_comm": True},
    "train_batch_size": "auto",
}
BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
# What real files came with, and what breaks parsers.
NASTY = [
    b"\\ud83d",
    b"\\ude00",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xc3",
    b"9" * 5000,
    b"[" * 3000,
    b"{",
    b"}",
    b"]",
    b",",
    b":",
    b'"',
    b"null",
    b"true",
    b"NaN",
    b"-1",
    b"1e999",
    b"0",
    b"\t",
    b"\n",
    b"\r",
    b"\x85",
    b"\xe2\x80\xa8",
    b"- ",
    b"# ",
    b"'",
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"<<: ",
    b"version https://git-lfs.github.com/spec/v1\n",
]

# A writer puts files into a directory and returns the one to damage; a reader reads the directory.
Writer = Callable[[Path], Path]
Reader = Callable[[Path], object]


def read_and_use(directory: Path) -> None:
    """What is read can be used: its texts can be written, its item numbers are those of items."""
    dataset = read_interactions(directory, 0)
    for row in dataset.sequences:
        assert all(0 <= item < dataset.num_items for item in row)
    with tempfile.TemporaryDirectory() as other:
        write_prepared(dataset, Path(other) / "prepared", {})


def text_file(name: str, text: str) -> Writer:
    def write(directory: Path) -> Path:
        (directory / name).write_text(text, encoding="utf-8")
        return directory / name

    return write


def lcrec(damaged: str) -> Writer:
    def write(directory: Path) -> Path:
        for name, content in (("inter", INTER), ("item", TITLES)):
            text_file(f"Set.{name}.json", json.dumps(content, ensure_ascii=False))(directory)
        return directory / f"Set.{damaged}.json"

    return write


def recbole(damaged: str) -> Writer:
    def write(directory: Path) -> Path:
        text_file("Set.inter", ATOMIC)(directory)
        text_file("Set.item", ATOMIC_TITLES)(directory)
        return directory / damaged

    return write


def prepared(damaged: str) -> Writer:
    def write(directory: Path) -> Path:
        with tempfile.TemporaryDirectory() as other:
            lcrec("inter")(Path(other))
            write_prepared(read_interactions(other, 0), directory, {})
        return directory / damaged

    return write


def sasrec(directory: Path) -> Path:
    SASRec(4, SASRecConfig(hidden_size=4, num_heads=1, num_layers=1)).save(directory, ITEMS)
    return directory / "config.json"


READERS: dict[str, tuple[Writer, Reader]] = {
    "lcrec interactions": (lcrec("inter"), read_and_use),
    "lcrec titles": (lcrec("item"), read_and_use),
    "recbole interactions": (recbole("Set.inter"), read_and_use),
    "recbole titles": (recbole("Set.item"), read_and_use),
    "prepared": (prepared("dataset.json"), read_and_use),
    "semantic ids": (
        text_file("Set.index.json", json.dumps(INDEX)),
        lambda directory: read_semantic_ids(directory / "Set.index.json", ITEMS),
    ),
    "recipe": (
        text_file("recipe.yaml", RECIPE),
        lambda directory: load_config(directory / "recipe.yaml", {}),
    ),
    "settings of a model": (
        text_file("ilrec.yaml", RECIPE),
        lambda directory: data_config(str(directory), None),
    ),
    "ds_config": (
        text_file("ds.json", json.dumps(DS_CONFIG)),
        lambda directory: read_ds_config(directory / "ds.json", BATCH, torch.float32, 1),
    ),
    "sasrec": (sasrec, lambda directory: SASRec.load(directory, ITEMS)),
}
KINDS = ["cut", "remove", "repeat", "flip", "insert", "replace"]


def damaged_once(content: bytes, kind: str, begin: float, length: float, nasty: bytes) -> bytes:
    """begin, length: from 0 to 1, as parts of the content."""
    at = int(begin * len(content))
    # The fourth power gives short pieces more often than long ones.
    end = min(len(content), at + 1 + int(length**4 * len(content)))
    before, part, after = content[:at], content[at:end], content[end:]
    if kind == "cut":
        return before
    if kind == "remove":
        return before + after
    if kind == "repeat":
        return before + part * 2 + after
    if kind == "flip":
        flipped = bytes(byte ^ 1 << int(length * 7) for byte in part[:1])
        return before + flipped + part[1:] + after
    if kind == "insert":
        return before + nasty + part + after
    return before + nasty + after


@st.composite
def damage(draw) -> Callable[[bytes], bytes]:
    """One to three of: cut, remove, repeat, flip a bit, insert or put in place what is nasty."""
    fraction = st.floats(0, 1)
    one = st.tuples(st.sampled_from(KINDS), fraction, fraction, st.sampled_from(NASTY))
    steps = draw(st.lists(one, min_size=1, max_size=3))

    def apply(content: bytes) -> bytes:
        for kind, begin, length, nasty in steps:
            content = damaged_once(content, kind, begin, length, nasty)
        return content

    return apply


@pytest.mark.parametrize("name", READERS)
@given(broken=damage())
def test_a_damaged_file_is_read_or_refused_by_name(name, broken):
    write, read = READERS[name]
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory))
        path.write_bytes(broken(path.read_bytes()))
        try:
            read(Path(directory))
        except InputError as error:
            assert directory in str(error), f"names no file: {error}"


@pytest.mark.parametrize("name", READERS)
def test_an_undamaged_file_is_read(name, tmp_path):
    write, read = READERS[name]
    write(tmp_path)
    read(tmp_path)


# Files of titles are not among them, because they need not be there.
@pytest.mark.parametrize("name", [name for name in READERS if "titles" not in name])
def test_a_directory_or_nothing_in_its_place(name, tmp_path):
    write, read = READERS[name]
    path = write(tmp_path)
    path.unlink()
    with pytest.raises(InputError):
        read(tmp_path)
    path.mkdir()
    with pytest.raises(InputError):
        read(tmp_path)

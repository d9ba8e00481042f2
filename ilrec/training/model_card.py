"""The model card: README.md beside a trained model, as the Hugging Face hub reads it.

Training writes one into each checkpoint and into final/, in place of peft's; a merge carries it
over; a ranking fills in its results. A card says what went in, how it was trained and how to use
it, and has no path of the machine in it. Its front matter is YAML, its text consists of sections.

A card without the line MARK is somebody's own, and is never changed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from ilrec import __version__
from ilrec.config.described import changed_settings, objective_lines, objective_of
from ilrec.config.sections import ModelConfig, TrainConfig
from ilrec.files.markdown import markdown_table
from ilrec.files.outputs import write_text
from ilrec.interactions.dataset import InteractionDataset
from ilrec.model.source import looks_local

CARD = "README.md"
logger = logging.getLogger(__name__)
MARK = "<!-- ilrec writes this card; without this line it leaves the card alone. -->"
TAGS = ["ilrec", "recommendation", "sequential-recommendation"]
LICENSE_FIELDS = ("license", "license_name", "license_link")
# A directory of one of these names is told apart by the run that it lies in.
IN_A_RUN = re.compile(r"final|merged|base|checkpoint-\d+")
NOT_MEASURED = "Not measured yet: `ilrec rank` on this directory fills this section in."
ADAPTER_CODE = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

place = "."  # this directory, or the model's name on the hub
model = AutoPeftModelForCausalLM.from_pretrained(place)
tokenizer = AutoTokenizer.from_pretrained(place)"""
MODEL_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

place = "."  # this directory, or the model's name on the hub
model = AutoModelForCausalLM.from_pretrained(place)
tokenizer = AutoTokenizer.from_pretrained(place)"""


def training_card(config: TrainConfig, dataset: InteractionDataset) -> str:
    """The card of a model that `config` trains on `dataset`."""
    name = PurePath(config.training.output_dir).name
    start = read_card(Path(config.model.model)) if config.model.model else None
    is_adapter = config.model.adapter == "lora"
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        base_model=_hub_base(config.model, start),
        **_license(config.model.model),
    )
    settings = config.flat()
    sections = {
        "Model": _bullets(
            [
                f"Starts from: {_start(config.model)}.",
                f"Trained: {_trained(config.model)}.",
                *objective_lines(objective_of(settings)),
                f"Written by ilrec {__version__}.",
            ]
        ),
        "Data": _data(dataset),
        "Settings": _settings(settings),
        "Results": NOT_MEASURED,
        "Use": _use(is_adapter),
        "History": _numbered([*_history(start), _history_line(config, dataset)]),
    }
    about = (
        f"A language model that recommends a user's next item of {dataset.name}. It reads the "
        f"items that the user had and generates the next one's {_item_words(config)}."
    )
    return _content(data, name, about, sections)


def derived_card(source: Path, name: str, event: str, base: str = "") -> str:
    """The card of a full model made from what lies at `source`, whose card it continues.

    name: of the new model. event: what was done, the newest entry of its history.
    base: hub name or directory of an adapter's base; used if `source` has no card of ours.
    """
    card = read_card(source) or _bare_card(source, base)
    card.data["library_name"] = "transformers"
    card.data["eval_results"] = None
    card.data["model_name"] = None
    _replace_title(card, name)
    _replace(card, "Results", NOT_MEASURED)
    _replace(card, "Use", _use(is_adapter=False))
    _replace(card, "History", _numbered([*_history(card), event]))
    return str(card)


def record_results(
    directory: Path, dataset: str, metrics: Mapping[str, Any], protocol: Mapping[str, Any]
) -> None:
    """Put a ranking's metrics, and the protocol that they were measured under, into the card in
    `directory`. dataset: the name of the data. Does nothing if there is no card of ours."""
    card = read_card(directory)
    if card is None:
        return
    measured = {name: value for name, value in metrics.items() if isinstance(value, float)}
    shown = {name: value for name, value in protocol.items() if _is_for_readers(name, value)}
    rows = [(f"`{name}`", f"{value:.4f}") for name, value in measured.items()]
    under = [(f"`{name}`", _cell(value)) for name, value in shown.items()]
    parts = [
        markdown_table(("metric", "value"), rows),
        "Measured under this protocol; numbers of another one must not be compared with them:",
        markdown_table(("protocol", "value"), under),
    ]
    _replace(card, "Results", "\n\n".join(parts))

    card.data["model_name"] = _title(card)
    card.data["eval_results"] = [
        EvalResult(
            task_type="text-generation",
            task_name="sequential recommendation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=str(protocol.get("split", "")),
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in measured.items()
    ]
    write_text(directory / CARD, str(card))


def read_card(directory: Path) -> ModelCard | None:
    """The card in a directory, None if there is none, if it is not ours, or if its front matter
    cannot be read any more."""
    path = directory / CARD
    card = _parsed(path) if path.is_file() else None
    return card if card is not None and MARK in card.text else None


def _parsed(path: Path) -> ModelCard | None:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError):
        logger.warning("%s: its front matter is not valid YAML; the card is left alone", path)
        return None


def place_name(name: str) -> str:
    """A model's hub name, or the last part of its path: the card may be read anywhere."""
    if not looks_local(name):
        return f"`{name}`"
    path = PurePath(name)
    if IN_A_RUN.fullmatch(path.name) and path.parent.name:
        return f"`{path.name}` of `{path.parent.name}`"
    return f"`{path.name}`"


# What the sections say


def _start(model: ModelConfig) -> str:
    if model.init is not None:
        return "nothing; a small Llama from scratch"
    return place_name(model.model)


def _trained(model: ModelConfig) -> str:
    if model.adapter == "none":
        return "all parameters"
    rows = ", and the rows of new item tokens" if model.train_item_tokens else ""
    return f"a LoRA adapter of rank {model.lora_rank}{rows}"


def _item_words(config: TrainConfig) -> str:
    return "title" if config.data.item_format == "title" else "semantic ID"


def _data(dataset: InteractionDataset) -> str:
    rows = [
        ("users", f"{dataset.num_users:,}"),
        ("items", f"{dataset.num_items:,}"),
        ("interactions", f"{int(dataset.sequences.lengths.sum()):,}"),
        ("interactions to train on", f"{int(dataset.training_sequences().lengths.sum()):,}"),
        ("users left out, with too few items", f"{dataset.num_dropped_users:,}"),
    ]
    return "\n\n".join(
        [
            markdown_table((dataset.name, "count"), rows),
            f"Split: {dataset.rule.in_words()}",
        ]
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [(f"`{name}`", _cell(value)) for name, value in changed_settings(settings).items()]
    if not rows:
        return "All settings have their defaults."
    return "\n\n".join(
        ["Those that differ from the defaults:", markdown_table(("field", "value"), rows)]
    )


def _use(is_adapter: bool) -> str:
    base = " `--base DIR` names the adapter's base model if it has moved." if is_adapter else ""
    return "\n\n".join(
        [
            f"```python\n{ADAPTER_CODE if is_adapter else MODEL_CODE}\n```",
            "Plain text generation can invent items. Ranking searches over the items of the "
            f"catalogue only, and measures all metrics; `DATA` is the data directory.{base}",
            "```bash\nilrec rank --model . --data DATA --split test\n```",
            "In a checkout of ilrec, `python ilrec/rank.py` is the same command.",
        ]
    )


def _history_line(config: TrainConfig, dataset: InteractionDataset) -> str:
    training = config.training
    name = PurePath(training.output_dir).name
    amount = f"{training.num_train_epochs:g} epochs"
    if training.max_steps > 0:
        amount = f"{training.max_steps:,} steps"
    return f"`{name}`: {_trained(config.model)}, {amount} on {dataset.name}."


def _is_for_readers(name: str, value: Any) -> bool:
    """Whether a field of a protocol means something on another machine: no path and no digest."""
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    is_plain = isinstance(value, str | int | float)
    return is_plain and not is_path and name != "data" and not name.endswith("sha256")


def _cell(value: Any) -> str:
    """A value in a cell of a table. Of a path only the last part is shown."""
    if isinstance(value, str) and PurePath(value).is_absolute():
        value = PurePath(value).name
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    escaped = text.replace("|", "\\|").replace("`", "'").replace("\n", "\\n")
    return f"`{escaped}`" if escaped else "(empty)"


# What comes from the model that training started from


def _hub_base(model: ModelConfig, start: ModelCard | None) -> str | None:
    """The hub name of the model that it all began with, None if it is not known."""
    if start is not None:
        return start.data.get("base_model")
    return model.model if model.model and not looks_local(model.model) else None


def _license(model: str) -> dict[str, Any]:
    """The license fields of the start's card, which also hold for what is made from it."""
    if not model:
        return {}
    path: Any = Path(model) / CARD
    if not looks_local(model):
        path = try_to_load_from_cache(model, CARD)  # does not ask the hub
    card = _parsed(Path(path)) if isinstance(path, str | Path) and Path(path).is_file() else None
    fields = card.data.to_dict() if card is not None else {}
    return {name: fields[name] for name in LICENSE_FIELDS if name in fields}


def _history(card: ModelCard | None) -> list[str]:
    """The entries of a card's history, oldest first."""
    return re.findall(r"^\d+\. (.*)$", _section(card, "History"), re.MULTILINE) if card else []


# A card as text


def _bare_card(source: Path, base: str) -> ModelCard:
    """For a model or an adapter of which no more is known than where it lies."""
    data = ModelCardData(
        pipeline_tag="text-generation",
        tags=TAGS,
        base_model=base if base and not looks_local(base) else None,
        **_license(base),
    )
    made_from = [f"Made from: {place_name(str(source))}."]
    if base:
        made_from.append(f"Base model: {place_name(base)}.")
    sections = {
        "Model": _bullets(made_from),
        "Results": NOT_MEASURED,
        "Use": _use(is_adapter=False),
        "History": "Not recorded.",
    }
    about = "A language model that recommends a user's next item."
    return ModelCard(_content(data, source.name, about, sections))


def _content(data: ModelCardData, title: str, about: str, sections: Mapping[str, str]) -> str:
    parts = [f"# {title}", MARK, about]
    parts += [f"## {name}\n\n{text}" for name, text in sections.items()]
    text = "\n\n".join(parts)
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _pattern(name: str) -> re.Pattern[str]:
    """A section: its heading, and all up to the next heading of its level or the end."""
    return re.compile(rf"(^## {re.escape(name)}\n+)(.*?)(?=\n+## |\s*\Z)", re.DOTALL | re.MULTILINE)


def _section(card: ModelCard, name: str) -> str:
    match = _pattern(name).search(card.text)
    return match.group(2) if match else ""


def _replace(card: ModelCard, name: str, text: str) -> None:
    """Replace a section's text. One that the user removed stays away."""
    card.text = _pattern(name).sub(lambda match: match.group(1) + text, card.text, count=1)


def _title(card: ModelCard) -> str:
    match = re.search(r"^# (.*)$", card.text, re.MULTILINE)
    return match.group(1) if match else "model"


def _replace_title(card: ModelCard, title: str) -> None:
    card.text = re.sub(r"^# .*$", lambda _: f"# {title}", card.text, count=1, flags=re.MULTILINE)

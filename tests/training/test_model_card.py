"""The model card: what it says of a run, what it takes over, and what it leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from ilrec.config.evaluation import EvaluationConfig
from ilrec.config.sections import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    TrainConfig,
    TrainingConfig,
)
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.training.model_card import (
    CARD,
    MARK,
    derived_card,
    place_name,
    record_results,
    training_card,
)

PROTOCOL = {
    "split": "test",
    "num_users": 3,
    "data": "/home/somebody/toys",
    "checkpoint": "/home/somebody/runs/stage1/final",
    "users_sha256": "abc",
    "num_beams": 20,
}


def dataset() -> InteractionDataset:
    rows = Ragged.from_rows([[0, 1, 2], [1, 2, 3, 0], [3, 2, 1, 0, 1]])
    return InteractionDataset("toys", ["a", "b", "c"], list("wxyz"), rows, None, 7, "f00")


def card_of(model: str, **objective) -> str:
    config = TrainConfig(
        ModelConfig(model=model, lora_rank=8),
        DataConfig(data="/home/somebody/toys", prompt_prefix="a|b`c\n"),
        ObjectiveConfig(**objective),
        TrainingConfig(output_dir="/home/somebody/runs/stage1", max_steps=40),
        EvaluationConfig(),
    )
    return training_card(config, dataset())


def written(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True)
    (directory / CARD).write_text(text)
    return directory


def no_path_of_the_machine(text: str, place: Path) -> bool:
    return "/home/somebody" not in text and str(place) not in text


def test_the_front_matter_is_what_the_hub_reads():
    card = ModelCard(card_of("owner/model"))
    assert card.data.base_model == "owner/model"
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert "license" not in card.data.to_dict()


def test_data_settings_and_objective():
    text = card_of("owner/model", beta=0.2, alpha=0.25)
    for name, count in (("users", 3), ("items", 4), ("interactions", 12)):
        assert f"| {name} | {count} |" in text
    # Each of the three users has two items held out.
    assert "| interactions to train on | 6 |" in text
    assert "| users left out, with too few items | 7 |" in text
    assert "preference (beta 0.2)" in text
    assert "at least 0.25 times the label's probability" in text
    assert "distillation:" not in text
    settings = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert settings == [
        ("lora_rank", "`8`"),
        ("prompt_prefix", r"`a\|b'c\n`"),
        ("beta", "`0.2`"),
        ("alpha", "`0.25`"),
        ("max_steps", "`40`"),
    ]


def test_plain_fine_tuning_is_called_cross_entropy():
    text = card_of("owner/model")
    assert "plain cross-entropy" in text
    assert "ard negatives" not in text


def test_no_path_of_the_machine(tmp_path):
    start = written(tmp_path / "runs" / "sft" / "final", "no front matter")
    text = card_of(str(start))
    assert "Starts from: `final` of `sft`." in text
    assert "base_model" not in text
    (tmp_path / CARD).write_text(text)
    record_results(tmp_path, "toys", {"hit@10": 0.5}, PROTOCOL)
    assert no_path_of_the_machine((tmp_path / CARD).read_text(), tmp_path)
    assert no_path_of_the_machine(derived_card(start, "merged", "An event."), tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("owner/model", "`owner/model`"),
        ("/models/llama", "`llama`"),
        ("runs/stage1/final", "`final` of `stage1`"),
        ("/runs/stage1/checkpoint-20", "`checkpoint-20` of `stage1`"),
        ("./model.gguf", "`model.gguf`"),
    ],
)
def test_names_of_models(name, shown):
    assert place_name(name) == shown


def test_base_licence_and_history_come_from_the_start(tmp_path):
    front = "---\nlicense: other\nlicense_name: x\nbase_model: owner/origin\n---\n"
    ours = f"# sft\n\n{MARK}\n\n## History\n\n1. `sft`: something.\n\n## Notes\n\n1. mine\n"
    start = written(tmp_path / "sft" / "final", front + ours)
    text = card_of(str(start))
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.base_model) == ("other", "x", "owner/origin")
    history = text.partition("## History")[2]
    assert history.strip().splitlines()[0] == "1. `sft`: something."
    assert history.strip().splitlines()[1].startswith("2. `stage1`: a LoRA adapter of rank 8")
    assert "mine" not in text

    # Somebody's own card: its licence holds, what it says of its base may mean anything.
    start = written(tmp_path / "other" / "final", front + "# other\n")
    data = ModelCard(card_of(str(start))).data
    assert (data.license, data.base_model) == ("other", None)


def test_a_damaged_card_of_the_start_is_no_hindrance(tmp_path):
    damaged = f"---\n{{: [\n---\n{MARK}\n"
    start = written(tmp_path / "sft" / "final", damaged)
    assert "license" not in card_of(str(start))
    record_results(start, "toys", {"hit@10": 0.5}, PROTOCOL)
    assert (start / CARD).read_text() == damaged


def test_a_ranking_fills_in_the_results_and_replaces_older_ones(tmp_path):
    (tmp_path / CARD).write_text(card_of("owner/model") + "\n## Notes\n\nmine\n")
    record_results(tmp_path, "toys", {"hit@5": 0.125, "hit@10": 0.9}, PROTOCOL)
    record_results(tmp_path, "toys", {"hit@10": 0.5, "groups": {}}, PROTOCOL)
    text = (tmp_path / CARD).read_text()
    results = text.partition("## Results")[2].partition("## Use")[0]
    assert "| `hit@10` | 0.5000 |" in results
    assert "0.125" not in text
    assert "| `num_beams` | `20` |" in results
    assert "Not measured" not in text
    assert text.endswith("## Notes\n\nmine\n")
    (result,) = ModelCard(text).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("toys", "hit@10", 0.5)


def test_cards_of_others_are_left_alone(tmp_path):
    record_results(tmp_path, "toys", {"hit@10": 0.5}, PROTOCOL)
    assert not (tmp_path / CARD).exists()
    own = card_of("owner/model").replace(MARK, "")
    (tmp_path / CARD).write_text(own)
    record_results(tmp_path, "toys", {"hit@10": 0.5}, PROTOCOL)
    assert (tmp_path / CARD).read_text() == own


def test_a_derived_card_has_new_weights_to_load_and_no_results(tmp_path):
    place = written(tmp_path / "stage1" / "final", card_of("owner/model", beta=0.5))
    record_results(place, "toys", {"hit@10": 0.5}, PROTOCOL)
    text = derived_card(place, "merged", "Merged.")
    card = ModelCard(text)
    assert (card.data.library_name, card.data.eval_results) == ("transformers", None)
    assert "# merged\n" in text
    assert "AutoModelForCausalLM" in text
    assert "peft" not in text
    assert "0.5000" not in text
    assert "beta 0.5" in text
    assert text.rstrip().endswith("2. Merged.")


def test_a_derived_card_of_an_adapter_from_elsewhere(tmp_path):
    text = derived_card(written(tmp_path / "adapter", "# theirs"), "merged", "Merged.", "owner/m")
    assert ModelCard(text).data.base_model == "owner/m"
    assert "Made from: `adapter`." in text
    assert "AutoModelForCausalLM" in text
    assert text.rstrip().endswith("1. Merged.")


def test_counts_are_python_numbers():
    """numpy's own would be written as np.int64(12)."""
    assert isinstance(dataset().sequences.lengths.sum(), np.integer)
    assert "np." not in card_of("owner/model")

"""The exchanged parts: what they propose, and that a run with them says so in its log."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
import train_ablation
from conftest import ROOT

from ilrec.config.sections import ObjectiveConfig
from ilrec.model.objective import CrossLayerMixin, vocabulary_objective


def task(labels_N):
    return SimpleNamespace(
        objective=vocabulary_objective(ObjectiveConfig(beta=0.1)),
        candidate_ids_C=None,
        labels_N=labels_N,
    )


def test_random_negatives_are_as_many_distinct_and_never_the_label():
    torch.manual_seed(0)
    z_NC, ze_NC = torch.randn(50, 40), torch.randn(50, 40)
    labels_N = torch.randint(40, (50,))
    label_z_N, label_ze_N = (x.gather(1, labels_N[:, None])[:, 0] for x in (z_NC, ze_NC))
    hard = train_ablation.propose(z_NC, ze_NC, label_z_N, label_ze_N, labels_N, task(labels_N), 0)
    drawn = train_ablation.random_negatives(
        z_NC, ze_NC, label_z_N, label_ze_N, labels_N, task(labels_N), 0
    )
    assert torch.equal(drawn.counts_N, hard.counts_N) and torch.equal(drawn.rows_S, hard.rows_S)
    pairs = list(zip(drawn.rows_S.tolist(), drawn.tokens_S.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) > 100
    assert not any(labels_N[row] == token for row, token in pairs)
    assert set(pairs) != set(zip(hard.rows_S.tolist(), hard.tokens_S.tolist(), strict=True))
    torch.testing.assert_close(drawn.logits_S, z_NC[drawn.rows_S, drawn.tokens_S])
    sums_N = torch.zeros(50).index_add_(0, drawn.rows_S, drawn.weights_S)
    torch.testing.assert_close(sums_N, (hard.counts_N > 0).float())


@pytest.mark.parametrize("negatives", ["last_layer", "random"])
def test_a_run_trains_with_them(negatives, data, base, tmp_path, monkeypatch):
    """Neither raises, negatives are counted, and the losses are not those of the method itself."""
    for owner, name, _ in train_ablation.EXCHANGES.values():
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    words = [
        "--config",
        str(ROOT / "ilrec/recipes/stage1.yaml"),
        "--data",
        str(data),
        "--model",
        str(base),
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
        "--num_readout_layers",
        "1",
        "--lora_dropout",
        "0",
    ]
    train_ablation.entry.train([*words, "--output_dir", str(tmp_path / "own")])
    train_ablation.main(
        ["--negatives", negatives, *words, "--output_dir", str(tmp_path / negatives)]
    )
    own, exchanged = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()][
            0
        ]
        for name in ("own", negatives)
    )
    assert (
        exchanged["negatives/per_token"] > 0
        and exchanged["loss/preference"] != own["loss/preference"]
    )
    if negatives == "random":
        assert exchanged["negatives/per_token"] == own["negatives/per_token"]
    assert CrossLayerMixin._readout is train_ablation.readout_of_last_layer or negatives == "random"


@pytest.mark.parametrize("owner, name, replacement", train_ablation.EXCHANGES.values())
def test_what_is_exchanged_is_called_alike(owner, name, replacement):
    """A part that was renamed, or that takes other arguments now, would end the run or leave it
    without effect."""
    assert len(inspect.signature(vars(owner)[name]).parameters) == len(
        inspect.signature(replacement).parameters
    )

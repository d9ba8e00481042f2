"""Negatives drawn at random: which tokens they are, and that every backend takes the same ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ops_cases import FULL, assert_same, make_case, objective, run

from ilrec.ops import cross_layer_loss
from ilrec.ops.random_negatives import Draw

GOAL = dataclasses.replace(FULL, negatives_from="random")


def drawn_pairs(counts: list[int], labels: list[int], vocab_size: int) -> list[tuple[int, int]]:
    draw = Draw.make(len(counts), vocab_size, torch.device("cpu"))
    rows_S, tokens_S = draw.take(torch.tensor(counts), torch.tensor(labels))
    return list(zip(rows_S.tolist(), tokens_S.tolist(), strict=True))


def test_as_many_as_asked_for_distinct_and_never_the_label() -> None:
    torch.manual_seed(0)
    counts, labels = [0, 1, 7, 39, 39, 0], [0, 39, 5, 0, 39, 7]
    pairs = drawn_pairs(counts, labels, 40)
    rows = [row for row, _ in pairs]
    assert rows == sorted(rows) and [rows.count(row) for row in range(6)] == counts
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= token < 40 and token != labels[row] for row, token in pairs)


def test_every_token_but_the_label_is_as_likely() -> None:
    """3 of 10 tokens, label 4, 3,000 times: each other token 1,000 times on average, with a
    standard deviation of sqrt(3000 * 1/3 * 2/3) = 26."""
    torch.manual_seed(0)
    taken = torch.zeros(10, dtype=torch.int64)
    for _ in range(3000):
        for _, token in drawn_pairs([3], [4], 10):
            taken[token] += 1
    others = torch.cat([taken[:4], taken[5:]])
    assert taken[4] == 0 and (others - 1000).abs().max() < 5 * 26


def test_one_token_in_all() -> None:
    assert drawn_pairs([0, 0], [0, 0], 1) == []


def test_the_counts_are_those_of_the_readout() -> None:
    """With a cap, too; the loss is another one, and another one for another seed."""
    for changes in ({}, {"alpha": 1e-3, "max_negatives": 3}):
        goal = dataclasses.replace(GOAL, **changes)
        torch.manual_seed(0)
        drawn = run(make_case(), goal)
        torch.manual_seed(1)
        again = run(make_case(), goal)
        readout = run(make_case(), dataclasses.replace(goal, negatives_from="readout"))
        assert torch.equal(drawn["stats"][3:], readout["stats"][3:]) and drawn["stats"][3] > 0
        preferences = {result["stats"][0].item() for result in (drawn, again, readout)}
        assert len(preferences) == 3


def test_the_weights_are_the_readouts() -> None:
    """V = 3, y = 0, H = V and the identity as head. alpha is so low that both other tokens are
    negatives: then random is the readout's own choice, and so are loss and weights."""
    states, readout = torch.tensor([[2.0, 1.0, 0.5]]), torch.tensor([[[0.3, 1.0, -1.0]]])
    losses = []
    for negatives_from in ("readout", "random"):
        goal = objective(alpha=1e-9, negatives_from=negatives_from, weight_temperature=0.5)
        loss, stats = cross_layer_loss(
            states, readout, torch.eye(3), torch.tensor([0]), objective=goal
        )
        assert stats[3] == 2
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("slab_bytes", [1, 5000, None])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_reference_takes_the_same_draw(slab_bytes: int | None, temperature: float) -> None:
    """float64, one seed: values and all gradients, whatever the slab."""
    goal = dataclasses.replace(GOAL, weight_temperature=temperature)
    torch.manual_seed(3)
    actual = run(make_case(), goal, slab_bytes=slab_bytes)
    torch.manual_seed(3)
    assert_same(actual, run(make_case(), goal, "reference"))


def test_where_the_kernel_would_run_pytorch_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on CUDA: rows that the Triton kernel would take are left to row_math."""
    from ilrec.ops import row_slab

    plain = torch.get_rng_state()
    expected = run(make_case(), GOAL, dtype=torch.float32)
    monkeypatch.setattr(row_slab, "uses_kernel", lambda states: True)
    monkeypatch.setattr(row_slab, "_by_kernel", lambda *_: pytest.fail("the kernel was called"))
    torch.set_rng_state(plain)
    actual = run(make_case(), GOAL, dtype=torch.float32)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)

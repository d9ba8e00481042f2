"""The specification against numbers worked by hand (in the docstrings here and in
ilrec/ops/reference.py)."""

from __future__ import annotations

import math

import pytest
import torch
from ops_cases import objective
from torch import Tensor

from ilrec.ops import cross_layer_loss, reference
from ilrec.ops.random_negatives import Draw

LOG2 = math.log(2)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


LABEL_0 = torch.tensor([0])


def negatives(
    ze: Tensor, z: Tensor, candidates: list[bool] | None = None, **changes: object
) -> list[int]:
    mask = None if candidates is None else torch.tensor(candidates)
    return (
        reference.hard_negatives(ze, z, LABEL_0, objective(**changes), mask)[0]
        .nonzero()[:, 0]
        .tolist()
    )


@pytest.mark.parametrize(
    "alpha, cap, expected",
    [
        (0.6, 0, []),
        (0.4, 0, [1]),
        (0.2, 0, [1, 2, 3]),
        (0.2, 2, [1, 2]),
        (0.2, 1, [1]),
        (0.2, 99, [1, 2, 3]),
    ],
)
def test_probability_threshold_and_cap(alpha: float, cap: int, expected: list[int]) -> None:
    """Pe = (1/2, 1/4, 1/8, 1/8), y = 0: ratios to Pe(y) are 1/2, 1/4, 1/4; tokens 2 and 3 tie."""
    ze = tensor([0.5, 0.25, 0.125, 0.125]).log()
    for shift in (0.0, -50.0, 50.0):
        assert negatives(ze + shift, ze, alpha=alpha, max_negatives=cap) == expected


@pytest.mark.parametrize("alpha, expected", [(0.5, [2]), (0.25, [1, 2]), (0.6, [])])
def test_logit_threshold(alpha: float, expected: list[int]) -> None:
    """kappa = alpha * 4 is compared with ze = (1, 2, 0) of tokens 1, 2, 3; ze = kappa counts."""
    assert (
        negatives(tensor([3, 1, 2, 0]), tensor([4, 9, 9, 9]), threshold="logit", alpha=alpha)
        == expected
    )


def test_candidates_limit_the_negatives_and_the_cap_counts_only_candidates() -> None:
    ze = tensor([0, 3, 2, 1])
    assert negatives(ze, ze, candidates=[False, False, True, True]) == [2, 3]
    assert negatives(ze, ze, candidates=[False, False, True, True], max_negatives=1) == [2]


def test_cap_breaks_ties_by_the_smaller_id() -> None:
    """Seven equal logits, cap 3, y = 0: tokens 1, 2, 3."""
    ze = torch.zeros(1, 8, dtype=torch.float64)
    assert negatives(ze, ze, max_negatives=3) == [1, 2, 3]


def test_weights() -> None:
    """(1/4, 1/8, 1/8) renormalised is (1/2, 1/4, 1/4); an empty S has no weight at all (no NaN)."""
    ze = tensor([0.5, 0.25, 0.125, 0.125], [0, 0, 0, 0])
    ze[0].log_()
    mask = torch.tensor([[False, True, True, True], [False] * 4])
    weights = reference.negative_weights(ze, mask, 1.0)
    torch.testing.assert_close(weights, tensor([0, 0.5, 0.25, 0.25], [0, 0, 0, 0]))


def test_weight_temperature_of_the_released_code() -> None:
    """Two layers, ze their mean: temperature 1/2 gives the softmax of their sum. Ratios 2 : 1 : 1
    squared are 4 : 1 : 1."""
    layers = torch.stack([tensor([8, 4, 2, 1]), tensor([8, 4, 2, 4])]).log()
    mask = torch.tensor([[False, True, True, True]])
    weights = reference.negative_weights(layers.mean(0), mask, 1 / 2)
    torch.testing.assert_close(weights, tensor([0, 16 / 24, 4 / 24, 4 / 24]))
    summed = layers.sum(0).masked_fill(~mask, -math.inf).softmax(1)
    torch.testing.assert_close(weights, summed)


def test_random_negatives_take_the_draw() -> None:
    """V = 5, label 2, two proposals. The order (2, 0, 3, 1), read from place 3 on and going round,
    gives the numbers 1 and 2; the second is not below the label and means token 3."""
    proposed = torch.tensor([[True, True, False, False, False]])
    draw = Draw(order_U=torch.tensor([2, 0, 3, 1]), first_N=torch.tensor([3]))
    drawn = reference.random_negatives(proposed, torch.tensor([2]), draw)
    assert drawn[0].nonzero()[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize(
    "negative_logit, plain, penalised",
    [
        (1.0, math.log(1 + math.e), math.log(1 + math.e**2)),
        (-1.0, math.log(1 + math.exp(-1)), LOG2),
    ],
)
def test_preference_penalises_logits_of_either_sign(
    negative_logit: float, plain: float, penalised: float
) -> None:
    """beta = 1, w = 1: z = 1 -> 2, z = -1 -> 0. A penalty of z (1 + w) would have moved -1 to -2: a
    reward."""
    z = tensor([0, negative_logit])
    weights = tensor([0, 1])
    assert reference.preference_loss(z, 0 * weights, LABEL_0, 1.0).item() == pytest.approx(
        plain, abs=1e-12
    )
    assert reference.preference_loss(z, weights, LABEL_0, 1.0).item() == pytest.approx(
        penalised, abs=1e-12
    )
    assert penalised > plain


def test_distillation() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = log(4/3) / 2, and the same over the candidates when a third
    token takes half."""
    expected = pytest.approx(math.log(4 / 3) / 2, abs=1e-12)
    assert (
        reference.distillation_loss(tensor([1, 1]).log(), tensor([1, 3]).log(), None).item()
        == expected
    )
    z, ze = tensor([2, 2, 4]).log(), tensor([1, 3, 4]).log()
    candidates = torch.tensor([True, True, False])
    assert reference.distillation_loss(z, ze, candidates).item() == expected


@pytest.mark.parametrize(
    "temperature, q, loss", [(1.0, [0.75, 0.25, 0], 1.25 * LOG2), (0.5, [0.9, 0.1, 0], 1.1 * LOG2)]
)
def test_reward(temperature: float, q: list[float], loss: float) -> None:
    """r = (3/4, 1/4), P = (1/2, 1/4, 1/4): -sum q log P = (q_0 + 2 q_1) log 2."""
    support = reference.reward_support(torch.tensor([[False, True, False]]), LABEL_0, "negatives")
    target = reference.reward_target(tensor([0.75, 0.25, 9.0]), support, temperature)
    torch.testing.assert_close(target, tensor(q))
    assert reference.reward_loss(tensor([2, 1, 1]).log(), target).item() == pytest.approx(
        loss, abs=1e-12
    )


def test_a_row_without_known_reward_contributes_nothing() -> None:
    support = reference.reward_support(torch.tensor([[False, True, False]]), LABEL_0, "negatives")
    assert reference.reward_target(tensor([0, 0, 5]), support, 1.0).tolist() == [[0, 0, 0]]


def test_continuations_share_the_target_whatever_the_negatives() -> None:
    """r = (2, 1, 1, 0), S = {1}: q = (1/2, 1/4, 1/4, 0) over all tokens that have a reward."""
    support = reference.reward_support(
        torch.tensor([[False, True, False, False]]), LABEL_0, "continuations"
    )
    assert reference.reward_target(tensor([2, 1, 1, 0]), support, 1.0).tolist() == [
        [0.5, 0.25, 0.25, 0]
    ]


def test_effective_head() -> None:
    head, rows = tensor([1], [2], [3]), tensor([10], [20])
    assert reference.effective_head(head, (torch.tensor([2, 0]), rows)).tolist() == [
        [20],
        [2],
        [10],
    ]


@pytest.mark.parametrize("backend", ["reference", "row_slab"])
def test_whole_objective_by_hand(backend: str) -> None:
    """H = V = 3 and the identity as head, so that logits are the states; y = 0.

    z = log(4, 2, 2) + log 2 = log(8, 4, 4), so P = (1/2, 1/4, 1/4). Two readout layers log(1, 16,
    1) and log(4, 1, 4): their mean is e = log(2, 4, 2), so Pe = (1/4, 1/2, 1/4); alpha = 1.5 gives
    S = {1} (2 >= 1.5 > 1), w = 1. beta = 1/2: z'_1 = 1.5 log 4 = log 8. preference = log((8 + 8 +
    4) / 8) = log 2.5. distillation = log(2)/2 + log(1/2)/4 + 0 = log(2)/4.
    reward r = (3/4, 1/4, -): 1.25 log 2 as above. With lambda = 2, mu = 4, 2 tokens:
    (log 2.5 + log(2)/2 + 5 log 2) / 2.
    """
    states = tensor([8, 4, 4]).log()
    readout = torch.stack([tensor([1, 16, 1]), tensor([4, 1, 4])]).log()
    rewards = (torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.75, 0.25]))
    goal = objective(beta=0.5, distillation_weight=2.0, reward_weight=4.0, alpha=1.5)
    loss, stats = cross_layer_loss(
        states,
        readout,
        torch.eye(3, dtype=torch.float64),
        LABEL_0,
        objective=goal,
        token_rewards=rewards,
        num_tokens=2.0,
        backend=backend,
    )
    assert loss.item() == pytest.approx((math.log(2.5) + 5.5 * LOG2) / 2, abs=1e-12)
    assert stats.tolist() == pytest.approx([math.log(2.5), LOG2 / 4, 1.25 * LOG2, 1, 0], abs=1e-6)


@pytest.mark.parametrize("backend", ["reference", "row_slab"])
def test_gradients_by_hand(backend: str) -> None:
    """The example above, lambda = 2, mu = 0, identity head, beta = 1/2.

    P' = (8, 8, 4)/20, slope of z'_1 is 1 + 1/2: d/dh = (0.4 - 1, 0.4 * 1.5, 0.2) = (-0.6, 0.6,
    0.2).
    d/de = 2 (Pe - P) = (-1/2, 1/2, 0), half of it to each of the two layers. The head: d/dh outer
    h.
    """
    states = tensor([8, 4, 4]).log().requires_grad_()
    readout = torch.stack([tensor([1, 16, 1]), tensor([4, 1, 4])]).log().requires_grad_()
    head = torch.eye(3, dtype=torch.float64, requires_grad=True)
    goal = objective(beta=0.5, distillation_weight=2.0, alpha=1.5)
    cross_layer_loss(states, readout, head, LABEL_0, objective=goal, backend=backend)[0].backward()
    assert states.grad is not None and readout.grad is not None
    torch.testing.assert_close(states.grad, tensor([-0.6, 0.6, 0.2]))
    torch.testing.assert_close(readout.grad, tensor([-0.25, 0.25, 0]).expand(2, 1, 3))
    torch.testing.assert_close(head.grad, torch.outer(states.grad[0], states.detach()[0]))


def test_per_layer_distillation_by_hand() -> None:
    """P = (1/2, 1/2); layers (1/4, 3/4) and (1/2, 1/2): the mean of log(4/3)/2 and 0. The ensemble
    would be another."""
    states, readout = tensor([1, 1]).log(), torch.stack([tensor([1, 3]), tensor([1, 1])]).log()
    goal = objective(beta=0.0, distillation_weight=1.0, distillation_target="per_layer")
    for backend in ("reference", "row_slab"):
        _, stats = cross_layer_loss(
            states,
            readout,
            torch.eye(2, dtype=torch.float64),
            LABEL_0,
            objective=goal,
            backend=backend,
        )
        assert stats[1].item() == pytest.approx(math.log(4 / 3) / 4, abs=1e-7)

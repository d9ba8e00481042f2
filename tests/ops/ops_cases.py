"""Input and comparisons that the tests of ilrec.ops share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ilrec.ops import Objective, cross_layer_loss


def objective(**changes: object) -> Objective:
    settings = dict(
        beta=1.0,
        distillation_weight=0.0,
        reward_weight=0.0,
        threshold="probability",
        alpha=0.5,
        negative_tokens="all",
        negatives_from="readout",
        max_negatives=0,
        weight_temperature=1.0,
        distillation_target="ensemble",
        reward_tokens="negatives",
        reward_temperature=1.0,
    )
    return Objective(**(settings | changes))  # type: ignore[arg-type]


FULL = objective(beta=0.7, distillation_weight=0.6, reward_weight=0.4, alpha=0.3)
SFT = objective(beta=0.0)
# Each setting once away from its default: every backend is compared with the reference on these.
GOALS = {
    "sft": SFT,
    "preference": objective(beta=0.7),
    "distillation": objective(beta=0.0, distillation_weight=0.6),
    "reward": objective(beta=0.0, reward_weight=0.4),
    "all": FULL,
    "logit": dataclasses.replace(FULL, threshold="logit"),
    "logit, high threshold": dataclasses.replace(FULL, threshold="logit", alpha=0.9),
    "capped": dataclasses.replace(FULL, alpha=1e-3, max_negatives=3),
    "sharp weights": dataclasses.replace(FULL, weight_temperature=0.25),
    "flat weights": dataclasses.replace(FULL, weight_temperature=3.0),
    "sharp weights, capped": dataclasses.replace(
        FULL, weight_temperature=0.25, alpha=1e-3, max_negatives=3
    ),
    "per_layer": dataclasses.replace(FULL, distillation_target="per_layer"),
    "temperature": dataclasses.replace(FULL, reward_temperature=0.3),
    "continuations": dataclasses.replace(
        FULL, reward_tokens="continuations", reward_temperature=0.7
    ),
    "limited": dataclasses.replace(FULL, negative_tokens="continuations", alpha=1e-2),
    "limited and capped": objective(
        beta=0.7, negative_tokens="continuations", alpha=1e-3, max_negatives=2
    ),
    "continuations alone": objective(beta=0.0, reward_weight=0.4, reward_tokens="continuations"),
}
TRAINED = ("hidden_NH", "readout_KNH", "lm_head_VH", "new_token_rows_RH")
Case = dict[str, Any]


def make_case(
    num_rows: int = 7, vocab_size: int = 61, hidden_size: int = 13, num_layers: int = 3
) -> Case:
    """Random float64 input. The labels are tokens that the readout finds likely, so that there are
    negatives. A third of each row's tokens has a reward, but not many more than 64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, head = normal(num_rows, hidden_size), normal(vocab_size, hidden_size)
    readout = hidden + 0.7 * normal(num_layers, num_rows, hidden_size)
    # The label is the readout's third choice, the two before it are its hard negatives.
    rank = min(2, vocab_size - 1)
    labels = (readout.mean(0) @ head.T).argsort(1, descending=True)[:, rank]
    reward = torch.rand(num_rows, vocab_size, generator=generator, dtype=torch.float64)
    known = torch.rand(num_rows, vocab_size, generator=generator) < min(0.33, 64 / vocab_size)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), known.sum(1).cumsum(0)])
    return {
        "hidden_NH": hidden,
        "readout_KNH": readout,
        "lm_head_VH": head,
        "labels_N": labels,
        "token_rewards": (offsets, known.nonzero()[:, 1], reward[known]),
    }


def with_new_tokens(case: Case, *ids: int) -> Case:
    """The case with trained rows for some tokens, of any values that differ from the head's."""
    num_values = len(ids) * case["lm_head_VH"].shape[1]
    values = torch.linspace(-1, 1, num_values, dtype=torch.float64).sin()
    rows = values.view(len(ids), -1)
    return case | {"new_token_ids_R": torch.tensor(ids), "new_token_rows_RH": rows}


def goal_for(case: Case, goal: Objective) -> Objective:
    """The goal, with the items as negatives if the case says which tokens these are."""
    if case.get("candidates_V") is None:
        return goal
    return dataclasses.replace(goal, negative_tokens="items")


def run(
    case: Case,
    goal: Objective,
    backend: str = "row_slab",
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    frozen: tuple[str, ...] = (),
    **options: Any,
) -> dict[str, Tensor]:
    """Loss, statistics and every gradient, moved back to float64."""
    goal = goal_for(case, goal)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    inputs = {name: moved(value) for name, value in case.items()}
    for name in TRAINED:
        if inputs.get(name) is not None:
            inputs[name] = inputs[name].detach().to(dtype).requires_grad_(name not in frozen)
    loss, stats = cross_layer_loss(**inputs, objective=goal, backend=backend, **options)
    loss.backward()
    results = {"loss": loss.detach(), "stats": stats}
    for name in TRAINED:
        if inputs.get(name) is not None and inputs[name].grad is not None:
            results[name] = inputs[name].grad
    return {name: value.double().cpu() for name, value in results.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        bound = 1e-5 if name == "stats" else 1e-10  # statistics are float32
        torch.testing.assert_close(
            actual[name], value, rtol=bound, atol=bound, msg=lambda text, n=name: f"{n}: {text}"
        )


def assert_matches_reference(case: Case, goal: Objective, **options: Any) -> dict[str, Tensor]:
    actual = run(case, goal, **options)
    assert_same(actual, run(case, goal, backend="reference"))
    return actual


# By how much another order of a float32 sum over the vocabulary may change it, relative to the
# largest entry: 32 eps. A result of all zeros is off by 1 in this measure.
TOLERANCE = 4e-6


def assert_as_exact_as(
    naive: dict[str, Tensor],
    actual: dict[str, Tensor],
    exact: dict[str, Tensor],
    scale: float = 0.0,
) -> None:
    """err(actual) <= err(naive in the same dtype) + TOLERANCE, in every value and gradient; and the
    negatives are the same.

    scale: how large the terms of a sum are. Where they cancel (a readout that agrees with its
        teacher) the value itself may be much smaller, and says nothing about rounding.
    """
    assert actual.keys() == exact.keys()
    assert actual["stats"][3:].tolist() == exact["stats"][3:].tolist(), "negatives"
    for name, value in exact.items():
        assert actual[name].shape == value.shape, name
        if value.numel():
            error = (actual[name] - value).abs().max()
            naive_error = (naive[name] - value).abs().max()
            allowed = naive_error + TOLERANCE * max(value.abs().max().item(), scale)
            assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_exact(
    case: Case,
    goal: Objective,
    backend: str,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.0,
    **options: Any,
) -> dict[str, Tensor]:
    """A backend in `dtype` against float64 on the same (rounded) input, bounded by the error of the
    naive way in `dtype`."""
    rounded = {}
    for name in TRAINED:
        if case.get(name) is not None:
            rounded[name] = case[name].to(dtype).double()
    case = case | rounded
    exact = run(case, goal, "reference")
    naive = run(case, goal, "reference", dtype)
    actual = run(case, goal, backend, dtype, **options)
    assert_as_exact_as(naive, actual, exact, scale)
    return actual

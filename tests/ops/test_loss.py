"""The public function: what it refuses, what it drops, what it divides by."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from ops_cases import FULL, SFT, goal_for, make_case, objective, run, with_new_tokens

from ilrec.ops import IGNORE_INDEX, STATS, cross_layer_loss

# Those that take float64. vocab_stream is tested in test_triton_backends.py.
CONCRETE_BACKENDS = ("reference", "row_slab")


def changed_rewards(position: int, value: Any) -> tuple[Any, ...]:
    parts = list(make_case()["token_rewards"])
    parts[position] = value(parts[position])
    return tuple(parts)


BAD_INPUT = {
    "backend": (
        {"backend": "triton"},
        "one of auto, reference, row_slab, vocab_stream, got 'triton'",
    ),
    "slab": ({"slab_bytes": 0}, "slab_bytes"),
    "hidden": ({"hidden_NH": torch.zeros(7)}, r"hidden_NH: expected \[N, H\]"),
    "integer": (
        {"hidden_NH": torch.zeros(7, 13, dtype=torch.int64)},
        "hidden_NH: expected a floating dtype",
    ),
    "head": ({"lm_head_VH": torch.zeros(0)}, "ZeRO-3"),
    "head_dtype": (
        {"lm_head_VH": torch.zeros(61, 13)},
        "lm_head_VH: expected hidden_NH's dtype torch.float64",
    ),
    "readout": ({"readout_KNH": torch.zeros(3, 6, 13)}, "readout_KNH: expected"),
    "no_readout": ({"readout_KNH": None}, "only plain SFT"),
    "labels_dtype": ({"labels_N": torch.zeros(7, dtype=torch.int32)}, "labels_N: expected int64"),
    "labels_size": (
        {"labels_N": torch.zeros(6, dtype=torch.int64)},
        r"labels_N: expected int64 \[7\]",
    ),
    "labels_value": (
        {"labels_N": torch.tensor([0, 61, -1, 3, 4, 5, -100])},
        r"\[0, 61\) or -100; 2 do not fit",
    ),
    "candidates": ({"candidates_V": torch.zeros(61)}, "candidates_V: expected bool"),
    "no_candidate": ({"candidates_V": torch.zeros(61, dtype=torch.bool)}, "at least one True"),
    "tokens": ({"num_tokens": -1.0}, "num_tokens"),
    "tokens_shape": ({"num_tokens": torch.ones(2)}, "num_tokens: expected a 0-dim"),
    "ids_alone": ({"new_token_ids_R": torch.tensor([1])}, "both or neither"),
    "ids_twice": (
        {"new_token_ids_R": torch.tensor([1, 2, 1]), "new_token_rows_RH": torch.zeros(3, 13)},
        "id once",
    ),
    "ids_range": (
        {"new_token_ids_R": torch.tensor([61]), "new_token_rows_RH": torch.zeros(1, 13)},
        r"\[0, 61\)",
    ),
    "rows": (
        {"new_token_ids_R": torch.tensor([1]), "new_token_rows_RH": torch.zeros(2, 13)},
        r"\(1, 13\)",
    ),
    "no_rewards": ({"token_rewards": None}, "because reward_weight > 0"),
    "reward_rows": (
        {"token_rewards": changed_rewards(0, lambda o: o[:-1])},
        "ignored ones included",
    ),
    "reward_end": (
        {"token_rewards": changed_rewards(0, lambda o: o + (o == o[-1]))},
        "offsets that rise",
    ),
    "reward_ids": (
        {"token_rewards": changed_rewards(1, lambda i: i + 60)},
        r"token ids in \[0, 61\)",
    ),
    "reward_sign": ({"token_rewards": changed_rewards(2, torch.neg)}, "finite values >= 0"),
    "reward_size": ({"token_rewards": changed_rewards(2, lambda v: v[1:])}, r"values \[E\]"),
}


@pytest.mark.parametrize("changes, text", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_with_its_name(changes: dict[str, Any], text: str) -> None:
    case = make_case() | changes
    with pytest.raises(ValueError, match=text):
        cross_layer_loss(**case, objective=goal_for(case, FULL))


@pytest.mark.parametrize(
    "candidates_V, negative_tokens",
    [
        (None, "items"),
        (torch.ones(61, dtype=torch.bool), "all"),
        (torch.ones(61, dtype=torch.bool), "continuations"),
    ],
)
def test_items_are_given_where_they_are_the_negatives(
    candidates_V: torch.Tensor | None, negative_tokens: str
) -> None:
    goal = dataclasses.replace(FULL, negative_tokens=negative_tokens)
    expected = "candidates_V: expected if and only if negative_tokens is items, which is "
    with pytest.raises(ValueError, match=expected + negative_tokens):
        cross_layer_loss(**make_case(), objective=goal, candidates_V=candidates_V)


@pytest.mark.parametrize("backend", CONCRETE_BACKENDS)
def test_ignored_rows_are_dropped_with_their_rewards(backend: str) -> None:
    """Rows 0, 2 and 6 of 7 ignored, NaN in their states: as if only 1, 3, 4, 5 had been given,
    rewards included."""
    case, kept = make_case(), torch.tensor([1, 3, 4, 5])
    ignored = case | {name: case[name].clone() for name in ("hidden_NH", "readout_KNH", "labels_N")}
    dropped = torch.tensor([0, 2, 6])
    ignored["labels_N"][dropped] = IGNORE_INDEX
    ignored["hidden_NH"][dropped] = math.nan
    ignored["readout_KNH"][:, dropped] = math.nan
    offsets, token_ids, values = case["token_rewards"]
    parts = [slice(offsets[row], offsets[row + 1]) for row in kept]
    counts = torch.tensor([0] + [part.stop - part.start for part in parts])
    short = case | {
        "hidden_NH": case["hidden_NH"][kept],
        "readout_KNH": case["readout_KNH"][:, kept],
        "labels_N": case["labels_N"][kept],
        "token_rewards": (
            counts.cumsum(0),
            torch.cat([token_ids[part] for part in parts]),
            torch.cat([values[part] for part in parts]),
        ),
    }
    actual, expected = run(ignored, FULL, backend), run(short, FULL, backend)
    for name in ("loss", "stats", "lm_head_VH"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        actual["hidden_NH"][kept], expected["hidden_NH"], rtol=1e-12, atol=1e-12
    )
    assert not actual["hidden_NH"][dropped].any() and not actual["readout_KNH"][:, dropped].any()
    assert expected["stats"][2] > 0


@pytest.mark.parametrize("goal", [SFT, objective(), FULL])
@pytest.mark.parametrize("num_rows", [0, 7])
@pytest.mark.parametrize("num_tokens", [None, 5.0, torch.tensor(0)])
def test_no_label_is_zero_and_still_connected(goal: Any, num_rows: int, num_tokens: Any) -> None:
    case = with_new_tokens(make_case(), 3)
    case["labels_N"] = torch.full((num_rows,), IGNORE_INDEX)
    case["hidden_NH"] = case["hidden_NH"][:num_rows] * math.nan
    case["readout_KNH"] = case["readout_KNH"][:, :num_rows]
    offsets, token_ids, values = case["token_rewards"]
    end = offsets[num_rows]
    case["token_rewards"] = (offsets[: num_rows + 1], token_ids[:end], values[:end])
    results = run(case, goal, num_tokens=num_tokens)
    assert len(results) == 6
    assert not any(value.any() for value in results.values())


@pytest.mark.parametrize("backend", CONCRETE_BACKENDS)
def test_normaliser(backend: str) -> None:
    """Two halves, each divided by the tokens of the whole, sum to the whole: loss, statistics and
    head gradient."""
    case = make_case(num_rows=6) | {"token_rewards": None}
    goal = objective(beta=0.7, distillation_weight=0.6)
    whole = run(case, goal, backend)
    halves = []
    for part, num_tokens in ((slice(0, 2), 6.0), (slice(2, 6), torch.tensor(6, dtype=torch.int64))):
        half = case | {
            "hidden_NH": case["hidden_NH"][part],
            "readout_KNH": case["readout_KNH"][:, part],
            "labels_N": case["labels_N"][part],
        }
        halves.append(run(half, goal, backend, num_tokens=num_tokens))
    for name in ("loss", "stats", "lm_head_VH"):
        torch.testing.assert_close(
            halves[0][name] + halves[1][name], whole[name], rtol=1e-6, atol=1e-6
        )
    torch.testing.assert_close(
        halves[0]["loss"] + halves[1]["loss"], whole["loss"], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("backend", CONCRETE_BACKENDS)
def test_dtypes_and_detachment(backend: str) -> None:
    case = make_case() | {"token_rewards": None}
    single = torch.float32
    for dtype, expected in (
        (torch.float64, torch.float64),
        (single, single),
        (torch.bfloat16, single),
    ):
        inputs = {
            name: case[name].to(dtype).requires_grad_()
            for name in ("hidden_NH", "readout_KNH", "lm_head_VH")
        }
        for num_tokens in (None, torch.tensor(3.0, dtype=torch.float64)):
            loss, stats = cross_layer_loss(
                **(case | inputs), objective=objective(), backend=backend, num_tokens=num_tokens
            )
            assert loss.dtype == expected and loss.shape == () and loss.requires_grad
            assert (
                stats.dtype == torch.float32
                and stats.shape == (len(STATS),)
                and not stats.requires_grad
            )


@pytest.mark.parametrize("backend", CONCRETE_BACKENDS)
def test_sft_needs_no_readout(backend: str) -> None:
    case = make_case() | {"readout_KNH": None, "token_rewards": None}
    actual = run(case, SFT, backend)
    expected = torch.nn.functional.cross_entropy(
        case["hidden_NH"] @ case["lm_head_VH"].T, case["labels_N"]
    )
    torch.testing.assert_close(actual["loss"], expected, rtol=1e-12, atol=0)
    assert actual["stats"].tolist()[1:] == [0, 0, 0, 7]


def test_the_last_layer_as_its_own_readout(backend: str) -> None:
    """negatives_from last_layer: the states themselves, detached, are the only readout layer. What
    is given as readout is not read, and nothing need be given."""
    case = make_case()
    goal = objective(beta=0.7, reward_weight=0.4, alpha=0.3, negatives_from="last_layer")
    by_hand = dataclasses.replace(goal, negatives_from="readout")
    expected = run(
        case | {"readout_KNH": case["hidden_NH"].clone()[None]},
        by_hand,
        backend,
        torch.float32,
        frozen=("readout_KNH",),
    )
    assert expected["stats"][3] > 0 and "readout_KNH" not in expected
    given = run(case, goal, backend, torch.float32)
    missing = run(case | {"readout_KNH": None}, goal, backend, torch.float32)
    for actual in (given, missing):
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    readout = run(case, by_hand, backend, torch.float32)
    assert not torch.equal(readout["loss"], expected["loss"])


def test_auto_is_row_slab_and_autocast_changes_nothing() -> None:
    case = make_case()
    for name in ("hidden_NH", "readout_KNH", "lm_head_VH"):
        case[name] = case[name].float()
    expected = cross_layer_loss(**case, objective=FULL, backend="row_slab")[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_layer_loss(**case, objective=FULL)[0] == expected


@pytest.mark.parametrize("backend", CONCRETE_BACKENDS)
def test_repeated_reward_entries_add_up(backend: str) -> None:
    """r(y) given as 1/2 + 1/4 on a row whose only negative has 1/4: the example of test_reference,
    1.25 log 2."""
    states = torch.tensor([[2.0, 1.0, 1.0]]).log()
    readout = torch.tensor([[[1.0, 2.0, 0.1]]]).log()
    rewards = (torch.tensor([0, 3]), torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.25, 0.25]))
    goal = objective(beta=0.0, reward_weight=1.0)
    _, stats = cross_layer_loss(
        states,
        readout,
        torch.eye(3),
        torch.tensor([0]),
        objective=goal,
        token_rewards=rewards,
        backend=backend,
    )
    assert stats[2].item() == pytest.approx(1.25 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("backend", CONCRETE_BACKENDS)
def test_rows_without_reward(backend: str) -> None:
    """No entry at all, and entries of 0 only: the reward term is 0 and leaves the gradients
    alone."""
    case, plain = make_case(), run(make_case(), objective(), backend)
    offsets, token_ids, values = case["token_rewards"]
    goal = objective(reward_weight=0.4)
    for rewards in ((0 * offsets, token_ids[:0], values[:0]), (offsets, token_ids, 0 * values)):
        actual = run(case | {"token_rewards": rewards}, goal, backend)
        assert actual["stats"][2] == 0
        torch.testing.assert_close(actual["hidden_NH"], plain["hidden_NH"], rtol=1e-12, atol=1e-14)

"""row_slab against the specification: values and all gradients, exactly in float64, within rounding
below it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_cases import (
    FULL,
    GOALS,
    SFT,
    TRAINED,
    assert_matches_reference,
    assert_same,
    make_case,
    objective,
    run,
    with_new_tokens,
)

from ilrec.ops import IGNORE_INDEX, Objective, cross_layer_loss, head_gemm, row_math
from ilrec.ops.row_inputs import RowInputs


@pytest.mark.parametrize("slab_bytes", [1, 5000, None])
@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS)
def test_values_and_gradients(goal: Objective, slab_bytes: int | None) -> None:
    """One row per slab, a few with a ragged last slab, and all rows at once."""
    actual = assert_matches_reference(make_case(), goal, slab_bytes=slab_bytes)
    assert not goal.needs_negatives or actual["stats"][3] > 0


@pytest.mark.parametrize(
    "shape", [(1, 507, 33, 4), (11, 507, 33, 1), (5, 2, 3, 2), (3, 1, 2, 2), (2, 17, 1, 4)]
)
@pytest.mark.parametrize("target", ["ensemble", "per_layer"])
def test_awkward_shapes(shape: tuple[int, int, int, int], target: str) -> None:
    assert_matches_reference(
        make_case(*shape), dataclasses.replace(FULL, distillation_target=target)
    )


@pytest.mark.parametrize("target", ["ensemble", "per_layer"])
@pytest.mark.parametrize("max_negatives", [0, 2])
def test_candidates(target: str, max_negatives: int) -> None:
    goal = dataclasses.replace(
        FULL, distillation_target=target, alpha=1e-3, max_negatives=max_negatives
    )
    assert_matches_reference(
        make_case() | {"candidates_V": torch.arange(61) % 3 == 0}, goal, slab_bytes=5000
    )


def test_no_negatives_is_plain_cross_entropy_exactly() -> None:
    """Labels that the readout ranks first and alpha = 1 leave S empty: beta cannot matter, not even
    in the last bit.

    Against SFT, which projects half the rows, the matrix product itself may round differently."""
    case = make_case()
    case["labels_N"] = (case["readout_KNH"].mean(0) @ case["lm_head_VH"].T).argmax(1)
    goal = objective(beta=5.0, alpha=1.0)
    actual, plain = assert_matches_reference(case, goal), run(case, SFT)
    weaker = run(case, objective(beta=0.1, alpha=1.0))
    assert actual["stats"].tolist()[3:] == [0, 7]
    for name in ("loss", "hidden_NH", "lm_head_VH"):
        assert torch.equal(actual[name], weaker[name])
        torch.testing.assert_close(actual[name], plain[name], rtol=1e-12, atol=1e-14)
    logits = case["hidden_NH"] @ case["lm_head_VH"].T
    expected = torch.nn.functional.cross_entropy(logits, case["labels_N"])
    torch.testing.assert_close(actual["loss"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank, alpha, count", [(1, 1.0, 1), (60, 1e-30, 60), (0, 1e-30, 60)])
def test_one_negative_and_all(rank: int, alpha: float, count: int) -> None:
    case = make_case()
    case["labels_N"] = (case["readout_KNH"].mean(0) @ case["lm_head_VH"].T).argsort(
        1, descending=True
    )[:, rank]
    actual = assert_matches_reference(case, dataclasses.replace(FULL, alpha=alpha))
    assert actual["stats"].tolist()[3:] == [7 * count, 0]


@pytest.mark.parametrize("cap", [0, 1, 3, 4, 20])
def test_ties_and_the_inclusive_threshold(cap: int) -> None:
    """Small integers make float64 logits exact; every third head row is the same.

    Row 0, h = (1, 1), y = 0: the tokens 0, 3, 6, ... tie with the label at 2, the others lie at 0:
    S = {3, 6, ..., 30}, cut to the smallest ids. Row 1, h = (2, -1), y = 3: ten tokens tie at 1 and
    eleven lie at 3, S has 21."""
    head = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(11, 1)
    hidden = torch.tensor([[1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    case = {
        "hidden_NH": hidden,
        "readout_KNH": hidden.expand(2, 2, 2),
        "lm_head_VH": head,
        "labels_N": torch.tensor([0, 3]),
    }
    goal = objective(beta=0.5, alpha=1.0, max_negatives=cap)
    actual = assert_matches_reference(case, goal)
    assert actual["stats"][3] == (cap if 0 < cap < 10 else 10) + min(cap or 99, 21)
    smallest = torch.arange(3, 33, 3)[: cap or None]
    logits = hidden @ head.T
    inputs = RowInputs(case["labels_N"], goal, None, None, None, 1)
    at_label = logits.gather(1, case["labels_N"][:, None])[:, 0]
    rows = slice(0, 2)
    negatives = row_math._negatives(logits, logits, at_label, at_label, inputs, rows)
    assert negatives.tokens_S[negatives.rows_S == 0].tolist() == smallest.tolist()


def test_the_penalty_moves_the_loss_exactly_when_there_are_negatives() -> None:
    """Row by row: beta changes the preference term iff |S_n| > 0, and only upwards, negative logits
    included."""
    case = make_case(num_rows=40) | {"token_rewards": None}
    case["labels_N"] = torch.randint(61, (40,), generator=torch.Generator().manual_seed(1))
    best = (case["readout_KNH"].mean(0) @ case["lm_head_VH"].T).argmax(1)
    case["labels_N"][::2] = best[::2]
    case["lm_head_VH"] = -case["lm_head_VH"].abs()
    case["hidden_NH"] = case["hidden_NH"].abs()
    moved = {False: 0, True: 0}
    for row in range(40):
        one = dict(case)
        one["hidden_NH"] = case["hidden_NH"][row : row + 1]
        one["readout_KNH"] = case["readout_KNH"][:, row : row + 1]
        one["labels_N"] = case["labels_N"][row : row + 1]
        loss, stats = cross_layer_loss(**one, objective=objective(beta=0.5, alpha=0.9))
        plain, _ = cross_layer_loss(**one, objective=SFT)
        has_negatives = bool(stats[3] > 0)
        assert (loss > plain + 1e-9) if has_negatives else (loss - plain).abs() < 1e-12
        moved[has_negatives] += 1
    assert min(moved.values()) > 0


@pytest.mark.parametrize("target", ["ensemble", "per_layer"])
def test_new_token_rows_equal_a_materialised_head(target: str) -> None:
    """Rows beside the head give what the same rows inside it give; the replaced head rows get no
    gradient."""
    goal = dataclasses.replace(FULL, distillation_target=target)
    beside = with_new_tokens(make_case(), 60, 0, 5)
    beside["labels_N"][:2] = torch.tensor([5, 60])
    actual = assert_matches_reference(beside, goal, slab_bytes=5000)
    ids, rows = beside.pop("new_token_ids_R"), beside.pop("new_token_rows_RH")
    inside = run(beside | {"lm_head_VH": beside["lm_head_VH"].index_copy(0, ids, rows)}, goal)
    new_rows = actual.pop("new_token_rows_RH")
    torch.testing.assert_close(new_rows, inside["lm_head_VH"][ids], rtol=1e-10, atol=1e-10)
    assert not actual["lm_head_VH"][ids].any()
    inside["lm_head_VH"][ids] = 0
    assert_same(actual, inside)


@pytest.mark.parametrize(
    "frozen",
    [
        ("lm_head_VH",),
        ("hidden_NH",),
        ("readout_KNH",),
        ("hidden_NH", "readout_KNH"),
        ("lm_head_VH", "new_token_rows_RH", "hidden_NH"),
    ],
)
def test_gradients_only_where_wanted(frozen: tuple[str, ...]) -> None:
    case = with_new_tokens(make_case(), 3, 4)
    everything = run(case, FULL)
    assert_same(
        run(case, FULL, frozen=frozen), {k: v for k, v in everything.items() if k not in frozen}
    )


def test_distillation_teaches_the_readout_only() -> None:
    """The gradients of hidden states, head and new rows do not depend on lambda; the readout's is
    linear in it."""
    case = with_new_tokens(make_case(), 3, 4)
    once, twice = run(case, FULL), run(case, dataclasses.replace(FULL, distillation_weight=1.2))
    for name in ("hidden_NH", "lm_head_VH", "new_token_rows_RH"):
        torch.testing.assert_close(once[name], twice[name], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        2 * once["readout_KNH"], twice["readout_KNH"], rtol=1e-12, atol=1e-14
    )


def test_non_contiguous_inputs() -> None:
    case = make_case(num_rows=5)
    strided = {
        name: torch.stack([case[name]] * 2, -1)[..., 0] for name in (*TRAINED[:3], "labels_N")
    }
    strided["lm_head_VH"] = case["lm_head_VH"].T.contiguous().T
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    leaves = {name: strided[name].requires_grad_() for name in TRAINED[:3]}
    cross_layer_loss(**(case | strided), objective=FULL)[0].backward()
    expected = run(case, FULL, backend="reference")
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-10, atol=1e-10)


def test_second_backward_and_another_scale() -> None:
    case = make_case()
    hidden = case["hidden_NH"].requires_grad_()
    loss = cross_layer_loss(**case, objective=FULL)[0]
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(-3 * loss, hidden, retain_graph=True)
    (third,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(second, -3 * first)
    assert torch.equal(first, third)


def test_evaluation_equals_training_and_makes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    trained = run(case, FULL)
    for name in ("hidden_NH", "lm_head_VH"):
        case[name].requires_grad_()
    monkeypatch.delattr(head_gemm, "project_back")
    with torch.no_grad():
        loss, stats = cross_layer_loss(**case, objective=FULL)
    assert (
        loss == trained["loss"]
        and torch.equal(stats.double(), trained["stats"])
        and not loss.requires_grad
    )


@pytest.mark.parametrize(
    "goal, learns",
    [
        (SFT, ("hidden_NH", "lm_head_VH", "new_token_rows_RH")),
        (objective(beta=0.7, reward_weight=0.4, alpha=0.3), ("hidden_NH",)),
        (objective(beta=0.0, distillation_weight=0.6), ("readout_KNH",)),
        (
            objective(beta=0.0, distillation_weight=0.6, distillation_target="per_layer"),
            ("readout_KNH",),
        ),
    ],
)
def test_gradcheck(goal: Objective, learns: tuple[str, ...]) -> None:
    """Finite differences, for the inputs that no stopped gradient (selection, weights, teacher)
    depends on."""
    case = with_new_tokens(make_case(3, 11, 4, 2), 7, 2)
    leaves = [case[name].requires_grad_() for name in learns]
    assert torch.autograd.gradcheck(
        lambda *_: cross_layer_loss(**case, objective=goal, slab_bytes=300)[0],
        leaves,
        eps=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", ["ensemble", "per_layer"])
def test_rounding_error_is_that_of_the_naive_computation(dtype: torch.dtype, target: str) -> None:
    """err(row_slab) <= 3 err(reference in the same precision) + tol, both against float64 on the
    same rounded input."""
    case = with_new_tokens(make_case(16, 507, 33, 4), 3, 500)
    for name in TRAINED:
        case[name] = case[name].to(dtype).double()
    goal = dataclasses.replace(FULL, distillation_target=target)
    exact = run(case, goal, backend="reference")
    naive = run(case, goal, backend="reference", dtype=dtype)
    fused = run(case, goal, dtype=dtype, slab_bytes=20000)
    assert exact["stats"][3] == naive["stats"][3] == fused["stats"][3] > 0
    for name, value in exact.items():
        bound = 3 * (naive[name] - value).abs().max() + 1e-6 * value.abs().max()
        assert (fused[name] - value).abs().max() <= bound, name


def test_a_large_penalty_does_not_overflow_float32() -> None:
    """z_1 = 300, y at 0, beta = 1, w = 1: z'_1 = 600 and the loss is 600, though e^300 is infinite
    in float32."""
    states = torch.tensor([[0.0, 300.0]], requires_grad=True)
    loss, _ = cross_layer_loss(
        states, states.detach()[None], torch.eye(2), torch.tensor([0]), objective=objective()
    )
    loss.backward()
    assert loss.item() == 600.0
    assert states.grad is not None and states.grad.tolist() == [[-1.0, 2.0]]


def slightly_larger_beta(original: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a beta 0.1 % larger in its last argument, the RowInputs."""

    def changed(*args: Any) -> Any:
        *others, inputs = args
        goal = inputs.objective
        larger = dataclasses.replace(goal, beta=1.001 * goal.beta)
        return original(*others, inputs._replace(objective=larger))

    return changed


def slightly_larger_weight(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: original(*args[:-1], 1.0001 * args[-1])


@pytest.mark.parametrize(
    "name, change",
    [("_logit_gradient_", slightly_larger_beta), ("_distil_", slightly_larger_weight)],
)
def test_the_comparison_notices_a_wrong_gradient(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]
) -> None:
    """A gradient made with a weight 0.1 or 0.01 per cent off, loss untouched, must fail the tests
    above."""
    monkeypatch.setattr(row_math, name, change(getattr(row_math, name)))
    with pytest.raises(AssertionError):
        assert_matches_reference(make_case(), FULL)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "dtype, bound",
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)],
)
def test_cuda_agrees_with_cpu(dtype: torch.dtype, bound: float) -> None:
    case = with_new_tokens(make_case(16, 507, 32, 4), 3, 500)
    case["labels_N"][3] = IGNORE_INDEX
    expected = run(case, FULL, dtype=dtype)
    actual = run(case, FULL, dtype=dtype, device="cuda", slab_bytes=20000)
    for name, value in expected.items():
        if name != "stats":
            torch.testing.assert_close(
                actual[name], value, rtol=bound, atol=bound * value.abs().max().item()
            )

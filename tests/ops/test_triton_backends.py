"""Both Triton backends (row_slab's kernel, vocab_stream) against float64: in Triton's interpreter
without a GPU, on CUDA with one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from conftest import ROOT, launch
from ops_cases import (
    FULL,
    GOALS,
    TRAINED,
    assert_exact,
    make_case,
    objective,
    run,
    with_new_tokens,
)

from ilrec.ops import IGNORE_INDEX, Objective, cross_layer_loss

pytest.importorskip("triton")
from ilrec.ops import vocab_stream  # noqa: E402

# Triton's interpreter is made of numpy, which warns of log(0) and the like.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("slab_bytes", [1, None])
@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS)
def test_values_and_gradients(goal: Objective, slab_bytes: int | None, triton_backend: str) -> None:
    """One row, or 128 tokens, at a time; and all at once."""
    actual = assert_exact(make_case(6, 307), goal, triton_backend, slab_bytes=slab_bytes)
    assert not goal.needs_negatives or actual["stats"][3] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", ["ensemble", "per_layer"])
def test_low_precision_input_and_new_tokens(
    dtype: torch.dtype, target: str, triton_backend: str
) -> None:
    goal = dataclasses.replace(FULL, distillation_target=target)
    assert_exact(
        with_new_tokens(make_case(7, 507, 33, 4), 3, 500),
        goal,
        triton_backend,
        dtype,
        slab_bytes=10**5,
    )


@pytest.mark.parametrize("target", ["ensemble", "per_layer"])
@pytest.mark.parametrize("max_negatives", [0, 2])
@pytest.mark.parametrize("first", [0, 290])
def test_candidates(target: str, max_negatives: int, first: int, triton_backend: str) -> None:
    """Every third token, or only those at the end: the first tiles then have none."""
    tokens = torch.arange(307)
    case = make_case(7, 307) | {"candidates_V": (tokens % 3 == 0) & (tokens >= first)}
    goal = dataclasses.replace(
        FULL, distillation_target=target, alpha=1e-3, max_negatives=max_negatives
    )
    assert_exact(case, goal, triton_backend, slab_bytes=1)


@pytest.mark.parametrize("num_negatives", [0, 1, 7, 8, 9, 306])
@pytest.mark.parametrize("max_negatives", [0, 8])
def test_list_and_cap_full_and_overflowing(
    num_negatives: int, max_negatives: int, triton_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists and cap of 8: labels at rank |S| with alpha just below 1 make S exactly the tokens
    before them."""
    monkeypatch.setattr(vocab_stream, "LIST_LENGTH", 8)
    case = make_case(4, 307)
    case["labels_N"] = (case["readout_KNH"].mean(0) @ case["lm_head_VH"].T).argsort(
        1, descending=True
    )[:, num_negatives]
    goal = dataclasses.replace(FULL, alpha=1 - 1e-6, max_negatives=max_negatives)
    actual = assert_exact(case, goal, triton_backend, slab_bytes=5000)
    kept = min(num_negatives, max_negatives or num_negatives)
    assert actual["stats"].tolist()[3:] == [4 * kept, 0 if kept else 4]


@pytest.mark.parametrize("cap", [0, 1, 3, 4, 20])
def test_ties_and_the_inclusive_threshold(cap: int, triton_backend: str) -> None:
    """As in test_row_slab: small integers make logits exact, the label ties with ten others."""
    head = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(11, 1)
    hidden = torch.tensor([[1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    case = {
        "hidden_NH": hidden,
        "readout_KNH": hidden.expand(2, 2, 2),
        "lm_head_VH": head,
        "labels_N": torch.tensor([0, 3]),
    }
    actual = assert_exact(case, objective(beta=0.5, alpha=1.0, max_negatives=cap), triton_backend)
    assert actual["stats"][3] == (cap if 0 < cap < 10 else 10) + min(cap or 99, 21)


def test_minus_infinity_and_huge_logits(backend: str) -> None:
    """h = (1e30, 1), head rows (-1e10, x) give logits of -1e40: -inf in float32. Others are near
    1e4: e^z overflows."""
    head = torch.tensor(
        [[0.0, 1e4], [-1e10, 1.0], [0.0, 1e4 - 2], [0.0, -1e4], [-1e10, -3.0]], dtype=torch.float64
    )
    states = torch.tensor([[1e30, 1.0], [1e30, 1.0]], dtype=torch.float64)
    case = {
        "hidden_NH": states,
        "readout_KNH": torch.stack([states, states]),
        "lm_head_VH": head,
        "labels_N": torch.tensor([0, 2]),
        "token_rewards": (
            torch.tensor([0, 3, 5]),
            torch.tensor([0, 1, 2, 2, 4]),
            torch.full((5,), 0.2, dtype=torch.float64),
        ),
    }
    leaves = {name: case[name].float().requires_grad_() for name in TRAINED[:2]}
    inputs = case | leaves | {"lm_head_VH": head.float()}
    loss, stats = cross_layer_loss(
        **inputs, objective=dataclasses.replace(FULL, alpha=1e-6), backend=backend
    )
    loss.backward()
    exact = run(case, dataclasses.replace(FULL, alpha=1e-6), "reference")
    torch.testing.assert_close(stats.double(), exact["stats"], rtol=1e-6, atol=1e-4)
    assert stats[3] == 2  # tokens 0 and 2 are each other's negatives
    # The second column, whose logits are near 1e4: float32 rounds those to 1e-3. The gradient of
    # the first column, of 1e10, overflows by itself.
    for name, leaf in leaves.items():
        column = leaf.grad[..., 1].double()
        torch.testing.assert_close(column, exact[name][..., 1], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("rewards", ["no entries", "zeros"])
def test_rows_without_reward(rewards: str, triton_backend: str) -> None:
    case, plain = make_case(), run(make_case(), objective(), triton_backend, torch.float32)
    offsets, token_ids, values = case["token_rewards"]
    case["token_rewards"] = (offsets, token_ids, 0 * values)
    if rewards == "no entries":
        case["token_rewards"] = (0 * offsets, token_ids[:0], values[:0])
    actual = run(case, objective(reward_weight=0.4), triton_backend, torch.float32)
    assert actual["stats"][2] == 0
    torch.testing.assert_close(actual["hidden_NH"], plain["hidden_NH"], rtol=1e-6, atol=1e-8)


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
def test_gradients_only_where_wanted(
    frozen: tuple[str, ...], triton_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a list of 2, so that some rows of vocab_stream go to row_slab."""
    monkeypatch.setattr(vocab_stream, "LIST_LENGTH", 2)
    case = with_new_tokens(make_case(), 3, 4)
    everything = run(case, FULL, triton_backend, torch.float32)
    actual = run(case, FULL, triton_backend, torch.float32, frozen=frozen)
    assert actual.keys() == everything.keys() - set(frozen)
    for name, value in actual.items():
        torch.testing.assert_close(value, everything[name], rtol=1e-5, atol=1e-6)


def test_the_same_bits_again(triton_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab_stream, "LIST_LENGTH", 4)
    case = with_new_tokens(make_case(9, 307), 3, 4)
    first, second = (
        run(case, FULL, triton_backend, torch.float32, slab_bytes=20000) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_equals_training(triton_backend: str) -> None:
    case = make_case()
    trained = run(case, FULL, triton_backend, torch.float32)
    inputs = case | {name: case[name].float() for name in TRAINED[:3]}
    with torch.no_grad():
        loss, stats = cross_layer_loss(**inputs, objective=FULL, backend=triton_backend)
    assert loss.double() == trained["loss"] and torch.equal(stats.double(), trained["stats"])


def test_kernels_compile_for_a_gpu() -> None:
    """The interpreter accepts what the compiler refuses (types that change within a loop).
    Compiling needs no GPU."""
    result = launch(
        "python", str(Path(__file__).parent / "compile_kernels.py"), PYTHONPATH=str(ROOT)
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ["sm_80", "sm_90"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["row_slab", "vocab_stream"])
@pytest.mark.parametrize("goal", GOALS.values(), ids=GOALS)
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)]
)
def test_cuda_agrees_with_cpu(name: str, goal: Objective, dtype: torch.dtype, bound: float) -> None:
    case = with_new_tokens(make_case(16, 507, 32, 4), 3, 500)
    case["labels_N"][3] = IGNORE_INDEX
    expected = run(case, goal, "reference", dtype)
    actual = run(case, goal, name, dtype, device="cuda", slab_bytes=60000)
    for key, value in expected.items():
        if key != "stats" and value.numel():
            scale = max(value.abs().max().item(), math.ulp(1.0))
            largest_error = (actual[key] - value).abs()
            allowed = bound * (scale + value.abs())
            assert (largest_error <= allowed).all(), f"{key}: off by {largest_error.max():.3g}"

"""Every fused backend on the same ground: awkward shapes, drawn cases, memory, slabs of any size;
and which backend `auto` takes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from conftest import backend_called
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from measure import peak_extra_bytes
from ops_cases import (
    FULL,
    TRAINED,
    Case,
    assert_as_exact_as,
    assert_exact,
    make_case,
    objective,
    run,
    with_new_tokens,
)
from torch import Tensor

from ilrec.ops import IGNORE_INDEX, Objective, backends, cross_layer_loss, fused, row_slab

# Triton's interpreter is made of numpy, which warns of log(0) and the like.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("num_rows", [0, 1, 7, 33])
@pytest.mark.parametrize("vocab_size", [507, 777, 32001])
def test_awkward_shapes(num_rows: int, vocab_size: int, backend: str) -> None:
    """Odd sizes, and among the rows some without a label: the last of 33, all of 0."""
    case = make_case(max(num_rows, 1), vocab_size, 33, 2)
    if num_rows in (0, 33):
        case["labels_N"][-1] = IGNORE_INDEX
    results = assert_exact(case, FULL, backend, slab_bytes=vocab_size * 40)
    assert (results["loss"] > 0) == (num_rows > 0)


@st.composite
def drawn_cases(draw: st.DrawFn) -> tuple[Case, Objective, int]:
    num_rows, vocab_size = draw(st.integers(1, 9)), draw(st.integers(2, 300))
    case = make_case(num_rows, vocab_size, draw(st.integers(1, 17)), draw(st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    labels = torch.randint(vocab_size, (num_rows,), generator=generator)
    labels[torch.rand(num_rows, generator=generator) < 0.2] = IGNORE_INDEX
    case["labels_N"] = labels
    if draw(st.booleans()):
        candidates = torch.rand(vocab_size, generator=generator) < 0.5
        candidates[draw(st.integers(0, vocab_size - 1))] = True
        case["candidates_V"] = candidates
    if draw(st.booleans()):
        case = with_new_tokens(case, *torch.randperm(vocab_size, generator=generator)[:3].tolist())
    weights = st.sampled_from([0.0, 0.3, 2.0])
    goal = objective(
        beta=draw(weights),
        distillation_weight=draw(weights),
        reward_weight=draw(weights),
        threshold=draw(st.sampled_from(["probability", "logit"])),
        alpha=draw(st.sampled_from([1e-4, 0.5, 1.0, 3.0])),
        max_negatives=draw(st.sampled_from([0, 1, 5, 400])),
        weight_temperature=draw(st.sampled_from([0.25, 1.0, 3.0])),
        reward_temperature=draw(st.sampled_from([0.5, 2.0])),
        negative_tokens=draw(st.sampled_from(["all", "continuations"])),
        reward_tokens=draw(st.sampled_from(["negatives", "continuations"])),
        distillation_target=draw(st.sampled_from(["ensemble", "per_layer"])),
    )
    return case, goal, draw(st.sampled_from([1, 3000, 10**8]))


# scale: weights of up to 2 on head entries of up to 3, in a mean over up to 9 rows. The draws are
# the same in every run, because a drawn threshold may fall within float32 rounding of a logit, so
# that other draws may fail now and then.
@pytest.mark.parametrize(
    "name, dtype, examples",
    [
        ("row_slab", torch.float64, 150),
        ("row_slab", torch.float32, 50),
        ("row_kernel", torch.float32, 30),
        ("vocab_stream", torch.float32, 30),
    ],
)
def test_any_case(name: str, dtype: torch.dtype, examples: int) -> None:
    # Without the shrink phase, because to shrink a failure takes minutes in the interpreter.
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(drawn_cases())
    def check(drawn: tuple[Case, Objective, int]) -> None:
        case, goal, slab_bytes = drawn
        assert_exact(case, goal, chosen, dtype, scale=1.0, slab_bytes=slab_bytes)

    with pytest.MonkeyPatch.context() as patch:
        chosen = backend_called(name, patch)
        check()


@pytest.mark.parametrize("name", ["row_slab", "row_kernel"])
def test_slab_size_changes_no_bit_where_the_products_are_exact(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An identity head makes both products exact (one term and zeros): the gradient of a row cannot
    depend on its slab."""
    chosen, case = backend_called(name, monkeypatch), make_case(9, 61, 61)
    case["lm_head_VH"] = torch.eye(61, dtype=torch.float64)
    results = [
        run(case, FULL, chosen, torch.float32, frozen=("lm_head_VH",), slab_bytes=size)
        for size in (1, 1500, 10**6)
    ]
    for other in results[1:]:
        assert torch.equal(results[0]["hidden_NH"], other["hidden_NH"])
        assert torch.equal(results[0]["readout_KNH"], other["readout_KNH"])
        torch.testing.assert_close(results[0]["loss"], other["loss"], rtol=1e-6, atol=0)


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "scaled": lambda value: 1.0001 * value,
    "negated": torch.neg,
    "one entry": lambda value: _bumped(value),
    "next row": lambda value: value.roll(1, -2) if value.dim() > 1 else 1.01 * value,
    "nan": lambda value: value * float("nan"),
}


def _bumped(value: Tensor) -> Tensor:
    changed = value.clone()
    changed.view(-1)[value.abs().argmax()] *= 1.001
    return changed


@pytest.mark.parametrize("field", ["loss", "stats", *TRAINED])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_check_fails_on_a_wrong_result(
    field: str, change: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    case = with_new_tokens(make_case(), 3, 4)
    case["labels_N"][0] = 3
    exact = run(case, FULL, "reference")
    naive = run(case, FULL, "reference", dtype)
    actual = run(case, FULL, dtype=dtype)
    assert_as_exact_as(naive, actual, exact)
    with pytest.raises(AssertionError):
        assert_as_exact_as(naive, actual | {field: change(actual[field])}, exact)


@pytest.mark.parametrize("vocab_size", [4000, 8000])
@pytest.mark.parametrize("num_rows", [64, 256])
def test_peak_memory_is_the_slab_and_the_gradients(num_rows: int, vocab_size: int) -> None:
    """What one step allocates beside its input, by torch's own count, with a frozen head: the slab,
    the gradients, and at most half of the slab's size for lists of negatives and masks. It does not
    depend on N x V (full logits would take 1 to 8 MiB a layer)."""
    slab_bytes, hidden_size, num_layers = 2**20, 32, 2
    case = make_case(num_rows, vocab_size, hidden_size, num_layers)
    inputs = dict(case)
    for name in TRAINED[:3]:
        inputs[name] = case[name].float().requires_grad_(name != "lm_head_VH")

    def step() -> None:
        cross_layer_loss(**inputs, objective=FULL, slab_bytes=slab_bytes)[0].backward()
        for name in TRAINED[:2]:
            inputs[name].grad = None

    step()
    gradients = 4 * num_rows * hidden_size * (2 + 2 * num_layers)
    rewards = 40 * len(case["token_rewards"][1])
    peak = peak_extra_bytes(step, torch.device("cpu"))
    assert slab_bytes // 2 < peak < 1.5 * slab_bytes + 2 * gradients + rewards


def test_auto_takes_rows_unless_only_few_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """V = 1000, ensemble: 8,000 bytes a token. 80 tokens fit into 640,000 bytes; 79 do into less,
    too few for more than 79 tokens."""
    case = make_case(4, 11)
    states = fused.States(case["hidden_NH"].float(), case["readout_KNH"].float(), False)
    assert backends._automatic(states, 4096, 1000, 1) == "row_slab"  # the CPU
    monkeypatch.setattr(row_slab, "uses_kernel", lambda states: True)
    assert backends._automatic(states, 4096, 1000, 640_000) == "row_slab"
    assert backends._automatic(states, 4096, 1000, 639_999) == "vocab_stream"
    assert backends._automatic(states, 79, 1000, 639_999) == "row_slab"


def test_auto_says_once_what_it_chose(caplog: pytest.LogCaptureFixture) -> None:
    backends._log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            run(make_case(), FULL, "auto")
    assert [record.message for record in caplog.records] == [
        "vocabulary operation on cpu: row_slab"
    ]


def test_slow_fallback_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    backends._log_once.cache_clear()
    backends._log_once("cuda", "row_slab", True)
    assert "triton is not installed" in caplog.text and caplog.records[0].levelname == "WARNING"


@pytest.mark.parametrize(
    "patch, dtype, text",
    [
        (("has_triton", lambda: False), torch.float32, "needs triton"),
        (None, torch.float64, "computes in float32"),
    ],
)
def test_a_backend_that_cannot_run_is_an_error(
    patch: tuple | None, dtype: torch.dtype, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if patch:
        monkeypatch.setattr(row_slab, *patch)
    else:
        pytest.importorskip("triton")
    with pytest.raises(ValueError, match=text):
        run(make_case(), FULL, "vocab_stream", dtype)


def test_random_negatives_are_not_for_the_kernels() -> None:
    """The message names the backend and what to use instead; auto takes row_slab."""
    message = r"backend: vocab_stream cannot draw negatives at random \(negatives_from: random\)"
    goal = dataclasses.replace(FULL, negatives_from="random")
    with pytest.raises(ValueError, match=message):
        run(make_case(), goal, "vocab_stream", torch.float32)
    assert run(make_case(), goal, "auto")["stats"][3] > 0


def test_vocab_stream_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert "needs a CUDA device, got cpu" in (
        backends.why_unavailable("vocab_stream", torch.device("cpu"), torch.float32) or ""
    )


def test_distillation_weight_zero_gives_the_readout_no_gradient(backend: str) -> None:
    goal = dataclasses.replace(FULL, distillation_weight=0.0)
    inputs = {name: make_case()[name].float().requires_grad_() for name in TRAINED[:3]}
    cross_layer_loss(**(make_case() | inputs), objective=goal, backend=backend)[0].backward()
    assert inputs["readout_KNH"].grad is None and inputs["hidden_NH"].grad.any()

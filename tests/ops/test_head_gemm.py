"""The matrix products behind row_slab: low-precision heads, and no memory of the head's size beside
a frozen one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops_cases import FULL, TRAINED, make_case, run, with_new_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ilrec.ops import cross_layer_loss, head_gemm


def test_low_precision_head_is_read_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(num_rows=4)
    whole = run(case, FULL, dtype=torch.bfloat16)
    monkeypatch.setattr(head_gemm, "TILE_TOKENS", 7)
    tiled = run(case, FULL, dtype=torch.bfloat16)
    for name, value in whole.items():
        torch.testing.assert_close(tiled[name], value, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("target", ["lm_head_VH", "hidden_NH"])
def test_mixed_precision_products_of_cuda(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's bfloat16-in, float32-out product played on the CPU: the same results but for rounding
    states and gradients to bfloat16 (2^-9 relative each)."""
    plain_mm = torch.mm

    def mixed_mm(
        a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, out: Tensor | None = None
    ) -> Tensor:
        assert a.dtype == b.dtype and (out_dtype is None or a.dtype == torch.bfloat16)
        dtype = out_dtype or a.dtype
        return plain_mm(a.to(dtype), b.to(dtype), out=out)

    case = with_new_tokens(make_case(num_rows=4), 3, 60)
    frozen = tuple(name for name in TRAINED if name != target)
    expected = run(case, FULL, dtype=torch.bfloat16, frozen=frozen)
    monkeypatch.setattr(torch, "mm", mixed_mm)
    monkeypatch.setattr(head_gemm, "_has_mixed_gemm", lambda head: head.dtype == torch.bfloat16)
    monkeypatch.setattr(head_gemm, "TILE_TOKENS", 7)
    actual = run(case, FULL, dtype=torch.bfloat16, frozen=frozen)
    assert actual["stats"][3] == expected["stats"][3]
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=2e-2, atol=1e-2 * value.abs().max().item()
        )


class LargeTensors(TorchDispatchMode):
    """Records operations that make a new tensor of the given number of elements (views have an
    input's storage)."""

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        self.num_elements, self.found = num_elements, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        storages = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        if isinstance(result, Tensor) and result.numel() >= self.num_elements:
            if result.untyped_storage().data_ptr() not in storages:
                self.found.append(str(func))
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_frozen_head_costs_no_memory_of_its_size(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V x H = 60,000 elements; logits, states and tiles stay far below. Training the head must show
    up."""
    monkeypatch.setattr(head_gemm, "TILE_TOKENS", 16)
    case = with_new_tokens(make_case(2, 200, 300, 2), 1, 2)
    with LargeTensors(200 * 300) as frozen:
        inputs = {name: case[name].to(dtype) for name in TRAINED}
        frozen.found.clear()
        inputs["hidden_NH"].requires_grad_()
        inputs["new_token_rows_RH"].requires_grad_()
        cross_layer_loss(**(case | inputs), objective=FULL)[0].backward()
    assert frozen.found == []
    with LargeTensors(200 * 300) as trained:
        inputs["lm_head_VH"].requires_grad_()
        cross_layer_loss(**(case | inputs), objective=FULL)[0].backward()
    assert trained.found

"""Compiles the Triton kernels for two generations of GPU, without one. Run by
test_triton_backends.py, outside the interpreter."""

from __future__ import annotations

import itertools
import warnings

warnings.simplefilter("ignore")

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ilrec.ops import triton_rows, triton_tiles  # noqa: E402

TYPES = {
    "position_ptr": "*i32",
    "allowed_ptr": "*u8",
    "labels_ptr": "*i64",
    "offsets_ptr": "*i64",
    "count_ptr": "*i32",
    "last_id_ptr": "*i32",
    "beta": "fp32",
    "threshold": "fp32",
    "mu": "fp32",
    "share": "fp32",
    "inverse_weight_temperature": "fp32",
    "inverse_reward_temperature": "fp32",
}
FLAGS = (
    "NEGATIVES",
    "DISTIL",
    "REWARD",
    "CONTINUATIONS",
    "CANDIDATES",
    "LIMITED",
    "LOGIT",
    "GRADIENT",
)
VARIANTS = [
    dict.fromkeys(FLAGS, True),
    dict.fromkeys(FLAGS, True) | {"CONTINUATIONS": False},
    dict.fromkeys(FLAGS, False),
]
# tokens_ptr: rewards are int64 tokens, lists of negatives int32.
KERNELS = [
    (triton_rows._row_kernel, "*i64"),
    (triton_tiles._fold_kernel, "*i32"),
    (triton_tiles._differentiate_kernel, ""),
]


def signature(kernel: triton.JITFunction, tokens: str, constants: dict[str, int]) -> dict[str, str]:
    types = TYPES | {"tokens_ptr": tokens}
    return {
        name: "constexpr"
        if name in constants
        else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }


for capability in (80, 90):
    for (kernel, tokens), (students, pad), flags in itertools.product(
        KERNELS, ((1, 1), (3, 4)), VARIANTS
    ):
        sizes = {"J": students, "J_PAD": pad, "BLOCK": 4096 // pad, "ENTRIES": 256, "LENGTH": 128}
        constants = {
            name: value for name, value in (sizes | flags).items() if name in kernel.arg_names
        }
        source = ASTSource(
            fn=kernel, signature=signature(kernel, tokens, constants), constexprs=constants
        )
        compiled = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8}
        )
        assert compiled.asm["cubin"], kernel
    print(f"sm_{capability}")

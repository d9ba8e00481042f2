"""The measurements of tools/benchmarks/benchmark_ops.py: what a contestant costs, whether
contestants agree, and whether memory depends on V.

    from benchmark_measurements import Plan, measure_tokens      # for its siblings; not a program
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from benchmark_baselines import CONTESTANTS, DIVERGENCE, Contestant
from benchmark_case import Case, Layout, make_case
from measure import Ceilings, available_bytes, peak_extra_bytes, timings
from report_files import say

from ilrec.errors import InputError
from ilrec.ops import STATS, Objective, cross_layer_loss
from ilrec.ops.row_slab import default_slab_bytes

# How far contestants may differ: the loss, and the norm of the gradients' difference, both
# relative. Logits rounded to 16 bits move tokens into and out of the set of negatives.
AGREEMENT = {
    torch.float64: (1e-9, 1e-6),
    torch.float32: (1e-5, 1e-3),
    torch.bfloat16: (2e-2, 3e-1),
    torch.float16: (5e-3, 1e-1),
}
# Of the released code's micro-batch: supervised tokens of a sample (four codes of a semantic ID and
# the end token), timed repeats, and the samples on which it is compared with row_slab.
RELEASED_TARGETS = 5
RELEASED_REPEATS = 3
AGREEMENT_SAMPLES = 2
# row_slab's peak may change by this share of its slab when V doubles.
CHECK_TOLERANCE = 0.1
MEMORY_SHARE = 0.9  # of what is available; the rest is the estimate's error


@dataclass(frozen=True)
class Plan:
    """What is measured, and the best that this machine can do."""

    layout: Layout
    objective: Objective
    contestants: list[Contestant]
    num_tokens: list[int]
    repeats: int
    ceilings: Ceilings


def gradients(
    contestant: Contestant, case: Case
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """The loss and the gradients: one training step's share of the operation. As within a model,
    gradients are handed on, not stored."""
    loss = contestant.loss(case)
    return loss.detach(), torch.autograd.grad(loss, case.leaves, allow_unused=True)


def bytes_needed(contestant: Contestant, case: Case) -> int:
    return contestant.logits_held(case) * max(4, case.head_VH.dtype.itemsize)


def obstacle(contestant: Contestant, case: Case) -> str | None:
    """Why a contestant is not begun, or None."""
    room = available_bytes(case.head_VH.device)
    needed = bytes_needed(contestant, case)
    if needed > MEMORY_SHARE * room:
        return f"needs about {needed / 2**30:.1f} GiB, {room / 2**30:.1f} GiB available"
    return contestant.missing(case)


def check_agreement(contestants: Sequence[Contestant], case: Case) -> dict[str, str | None]:
    """Run each once, and compare those that compute the same thing. For each: the reason why it
    cannot be measured, or None.

    Raises RuntimeError if one of our own contestants differs.
    """
    reasons: dict[str, str | None] = {}
    # The first contestant that computes a thing is what the others are compared with.
    firsts: dict[str, tuple[str, Any]] = {}
    for contestant in contestants:
        name = contestant.name
        reasons[name] = obstacle(contestant, case)
        if reasons[name] is not None:
            continue
        try:
            found = gradients(contestant, case)
        except torch.OutOfMemoryError:
            reasons[name] = "out of memory"
            continue
        except Exception as error:
            if not contestant.third_party:
                raise
            reasons[name] = f"failed: {' '.join(str(error).split())[:200]}"
            continue
        first_name, first = firsts.setdefault(contestant.computes, (name, found))
        difference = compare(first, found, case.head_VH.dtype)
        if difference and not contestant.third_party:
            raise RuntimeError(f"{name} and {first_name} should compute the same: {difference}")
        reasons[name] = f"differs from {first_name}: {difference}" if difference else None
    return reasons


def compare(first: Any, second: Any, dtype: torch.dtype) -> str | None:
    """What differs between two results of `gradients`, or None."""
    loss_bound, gradient_bound = AGREEMENT[dtype]
    expected, actual = float(first[0]), float(second[0])
    # "not ... <=" in place of ">": NaN differs from everything.
    if not abs(actual - expected) <= loss_bound * max(1.0, abs(expected)):
        return f"loss {actual:.7g}, expected {expected:.7g}"
    for place, (want, got) in enumerate(zip(first[1], second[1], strict=True)):
        if want is None and got is None:
            continue
        if want is None or got is None:
            return f"only one gives gradient {place}"
        gap = float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-30))
        if not gap <= gradient_bound:
            return f"gradient {place} is off by {gap:.1e} of its norm"
    return None


def roofline_seconds(contestant: Contestant, case: Case, found: Ceilings) -> float:
    """The least time for the task: the longer of its products at the machine's best, and of reading
    the head forward and backward (and writing its gradient)."""
    vocab_size, hidden_size = case.head_VH.shape
    head_gradient = int(case.head_VH.requires_grad and contestant.computes != DIVERGENCE)
    num_products = contestant.num_products + head_gradient
    flops = 2.0 * case.num_labels * vocab_size * hidden_size * num_products
    num_bytes = case.head_VH.nbytes * (2 + head_gradient)
    return max(flops / found.flops_per_second, num_bytes / found.bytes_per_second)


def measure(
    contestant: Contestant,
    case: Case,
    plan: Plan,
    repeats: int,
    reason: str | None,
    warmup: int = 1,
) -> dict[str, Any]:
    """The contestant's row: its figures, or the reason why there are none."""
    row: dict[str, Any] = {
        "contestant": contestant.name,
        "computes": contestant.computes,
        "num_tokens": case.num_labels,
    }
    try:
        if reason is None:
            row |= measured_costs(contestant, case, repeats, warmup)
    except torch.OutOfMemoryError:
        reason = "out of memory"
    if reason is not None:
        say(f"  {contestant.name}: not measured: {reason}")
        return row | {"not_measured": reason}
    row["roofline_seconds"] = roofline_seconds(contestant, case, plan.ceilings)
    row["roofline_fraction"] = row["roofline_seconds"] / row["forward_backward"]["median"]
    say(
        f"  {contestant.name}: forward {row['forward']['median'] * 1e3:.1f} ms, "
        f"with backward {row['forward_backward']['median'] * 1e3:.1f} ms, "
        f"{row['peak_extra_bytes'] / 2**20:.1f} MiB"
    )
    return row


def measured_costs(contestant: Contestant, case: Case, repeats: int, warmup: int) -> dict[str, Any]:
    """Memory comes first: its run is a warm-up for the times."""
    device = case.head_VH.device

    def forward() -> None:
        with torch.no_grad():
            contestant.loss(case)

    step = partial(gradients, contestant, case)
    return {
        "peak_extra_bytes": peak_extra_bytes(step, device),
        "forward": timings(forward, device, repeats, warmup)._asdict(),
        "forward_backward": timings(step, device, repeats, warmup)._asdict(),
    }


def measure_tokens(plan: Plan, num_tokens: int) -> dict[str, Any]:
    """All contestants on one number of tokens."""
    case = make_case(plan.layout, plan.objective, num_tokens)
    negatives = negatives_per_token(case)
    say(f"{num_tokens} tokens, {negatives:.1f} hard negatives each")
    rows = []
    for name, reason in check_agreement(plan.contestants, case).items():
        rows.append(measure(CONTESTANTS[name], case, plan, plan.repeats, reason))
    return {"num_tokens": num_tokens, "negatives_per_token": negatives, "rows": rows}


def negatives_per_token(case: Case) -> float:
    with torch.no_grad():
        _, stats_5 = cross_layer_loss(
            case.hidden_NH,
            case.readout_KNH,
            case.head_VH,
            case.labels_N,
            objective=case.objective,
            token_rewards=case.rewards,
            slab_bytes=case.slab_bytes,
        )
    return float(stats_5[STATS.index("num_negatives")]) / case.num_labels


def measure_released(plan: Plan, num_samples: int, length: int) -> dict[str, Any]:
    """The released code's micro-batch, against row_slab on the same states.

    If its logits do not fit, it is measured on fewer samples: its work is proportional to them, and
    the scaled figures carry a remark.
    """
    ours, theirs = CONTESTANTS["row_slab"], CONTESTANTS["released"]
    num_targets = min(RELEASED_TARGETS, length)
    case = make_case(plan.layout, plan.objective, num_samples, length, num_targets)
    fitting = samples_that_fit(theirs, case)
    say(
        f"released code's way: {num_samples} samples of {length} tokens, "
        f"{case.num_labels} supervised; {fitting} samples at a time"
    )
    reasons = check_agreement([ours, theirs], case.first_samples(min(AGREEMENT_SAMPLES, fitting)))

    our_row = measure(ours, case, plan, plan.repeats, reasons[ours.name])
    part = case if fitting == num_samples else case.first_samples(fitting)
    # Minutes for each run: fewer repeats, and no warm-up.
    repeats = min(plan.repeats, RELEASED_REPEATS)
    their_row = measure(theirs, part, plan, repeats, reasons[theirs.name], warmup=0)
    if fitting < num_samples and "not_measured" not in their_row:
        remark = f"measured at B={fitting}, scaled linearly to B={num_samples}"
        their_row = scaled(their_row, num_samples / fitting) | {"remark": remark}
    return {
        "num_samples": num_samples,
        "length": length,
        "num_tokens": case.num_labels,
        "negatives_per_token": negatives_per_token(case),
        "rows": [our_row, their_row],
    }


def samples_that_fit(contestant: Contestant, case: Case) -> int:
    """Half as many, until the contestant's logits fit; at least one sample."""
    fitting = case.num_samples
    while fitting > 1:
        needed = bytes_needed(contestant, case.first_samples(fitting))
        if needed <= MEMORY_SHARE * available_bytes(case.head_VH.device):
            break
        fitting //= 2
    return fitting


def scaled(row: dict[str, Any], factor: float) -> dict[str, Any]:
    """The row of `factor` times as many samples. The share of the roofline stays the one that was
    measured."""
    changed: dict[str, Any] = {}
    for key in ("forward", "forward_backward"):
        changed[key] = {name: seconds * factor for name, seconds in row[key].items()}
    for key in ("num_tokens", "peak_extra_bytes", "roofline_seconds"):
        changed[key] = type(row[key])(row[key] * factor)
    return row | changed


def check_memory(plan: Plan, num_tokens: int) -> dict[str, Any]:
    """row_slab's peak must be its slab and what the inputs' gradients take: doubling V must not
    move it by a tenth of the slab."""
    layout = plan.layout
    budget = layout.slab_bytes or default_slab_bytes(layout.device)
    sizes = (layout.vocab_size // 2, layout.vocab_size)
    # With all logits in one slab the peak would follow V, as it should.
    if 2 * num_tokens * sizes[0] * max(4, layout.dtype.itemsize) < budget:
        raise InputError(
            f"--check_memory {num_tokens}: the slab of {budget / 2**20:.0f} MiB holds all logits "
            "of so few tokens; give more tokens or a smaller --slab_mib"
        )
    step = partial(gradients, CONTESTANTS["row_slab"])
    cases = []
    for vocab_size in sizes:
        sized = replace(layout, vocab_size=vocab_size)
        cases.append(make_case(sized, plan.objective, num_tokens))
    # Before the peaks: they would count the gradients that are still held.
    gradient_bytes = stored_bytes(step(cases[1])[1])
    smaller, larger = (peak_extra_bytes(partial(step, case), layout.device) for case in cases)
    return {
        "num_tokens": num_tokens,
        "slab_bytes": budget,
        "gradient_bytes": gradient_bytes,
        "vocab_sizes": sizes,
        "peak_extra_bytes": (smaller, larger),
        "within": abs(larger - smaller) <= CHECK_TOLERANCE * budget,
    }


def stored_bytes(tensors: Sequence[torch.Tensor | None]) -> int:
    """Of their storage, not their elements: the ensemble's gradient is one that is seen K times."""
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)

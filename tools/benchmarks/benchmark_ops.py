"""What the vocabulary operation costs in time and memory: against the naive way, the released
code's way, and cross-entropy by others.

    python tools/benchmarks/benchmark_ops.py                                  # a CPU, or the CUDA
    device where there is one python tools/benchmarks/benchmark_ops.py --num_tokens 256
    --contestants row_slab,reference --repeats 9 python tools/benchmarks/benchmark_ops.py --released
    --check_memory        # the two longer measurements as well

Every number of a run is measured in that run, the ceilings of the roofline included; contestants
that compute the same thing are compared first, and a difference ends the run. Writes
ops-<device>-<dtype>.json, .md and .png into --output.

Forward is measured without gradients (evaluation), forward + backward with those of hidden states
and readouts (and of the head with --train_head). Memory is the peak of forward + backward beyond
the inputs. The roofline is the least time in which this device could do the products and read the
head, whatever a contestant really does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from benchmark_baselines import CONTESTANTS, DIVERGENCE, Case, Contestant, Layout, make_case
from benchmark_report import say, write_report
from measure import Ceilings, available_bytes, ceilings, peak_extra_bytes, timings

from ilrec.config.command_line import ArgumentParser
from ilrec.config.sections import ObjectiveConfig
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.ops import STATS, Objective, cross_layer_loss
from ilrec.ops.row_slab import default_slab_bytes
from ilrec.processes import environment, run_entry

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "dtype": "float32",
        "num_tokens": "64,256,1024",
        "vocab_size": 32000,
        "hidden_size": 576,
    },
    "cuda": {
        "dtype": "bfloat16",
        "num_tokens": "32,512,4096",
        "vocab_size": 128256,
        "hidden_size": 4096,
    },
}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
# Loss (relative) and norm of the gradients' difference (relative). Logits rounded to 16 bits move
# tokens into and out of S.
AGREEMENT = {
    torch.float64: (1e-9, 1e-6),
    torch.float32: (1e-5, 1e-3),
    torch.bfloat16: (2e-2, 3e-1),
    torch.float16: (5e-3, 1e-1),
}
# All three terms: the shipped stage 2, with a reward that the comparison of losses can see.
OBJECTIVE = {"beta": 0.1, "distillation_weight": 0.5, "reward_weight": 0.3}
# The released code's micro-batch of semantic IDs: prompts of 200 tokens, four codes and the end
# token supervised.
RELEASED_LENGTH, RELEASED_TARGETS, RELEASED_REPEATS, AGREEMENT_SAMPLES = 200, 5, 3, 2
CHECK_TOKENS, CHECK_TOLERANCE = 4096, 0.1
MEMORY_SHARE = 0.9  # of what is available; the rest is the estimate's error


@dataclass(frozen=True)
class Plan:
    layout: Layout
    objective: Objective
    contestants: list[Contestant]
    num_tokens: list[int]
    repeats: int
    ceilings: Ceilings


def gradients(
    contestant: Contestant, case: Case
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """One training step's share of the operation. As within a model, gradients are handed on, not
    stored."""
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
    """Run each once; contestants with the same task must agree. Why each cannot be measured, or
    None."""
    reasons: dict[str, str | None] = {}
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
    """What differs, or None."""
    loss_bound, gradient_bound = AGREEMENT[dtype]
    expected, actual = float(first[0]), float(second[0])
    if not abs(actual - expected) <= loss_bound * max(1.0, abs(expected)):  # not: NaN differs
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
    """The longer of: the task's products at the machine's best; the head read there and back (and
    its gradient written)."""
    vocab_size, hidden_size = case.head_VH.shape
    head_gradient = int(case.head_VH.requires_grad and contestant.computes != DIVERGENCE)
    flops = (
        2.0 * case.num_labels * vocab_size * hidden_size * (contestant.num_products + head_gradient)
    )
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
    """The contestant's row: its figures, or the reason why there are none. Memory first: its run is
    a warm-up too."""
    device = case.head_VH.device

    def forward() -> None:
        with torch.no_grad():
            contestant.loss(case)

    row: dict[str, Any] = {
        "contestant": contestant.name,
        "computes": contestant.computes,
        "num_tokens": case.num_labels,
    }
    try:
        if reason is None:
            row["peak_extra_bytes"] = peak_extra_bytes(lambda: gradients(contestant, case), device)
            row["forward"] = timings(forward, device, repeats, warmup)._asdict()
            row["forward_backward"] = timings(
                lambda: gradients(contestant, case), device, repeats, warmup
            )._asdict()
    except torch.OutOfMemoryError:
        reason = "out of memory"
    if reason is not None:
        say(f"  {contestant.name}: not measured: {reason}")
        return row | {"not_measured": reason}
    row["roofline_seconds"] = roofline_seconds(contestant, case, plan.ceilings)
    row["roofline_fraction"] = row["roofline_seconds"] / row["forward_backward"]["median"]
    say(
        f"  {contestant.name}: forward {row['forward']['median'] * 1e3:.1f} ms, with backward "
        f"{row['forward_backward']['median'] * 1e3:.1f} ms, {row['peak_extra_bytes'] / 2**20:.1f} MiB"
    )
    return row


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
    """The released code's micro-batch, against row_slab on the same states. Where its logits do not
    fit, on fewer samples: its work is proportional to them, and the scaled figures are marked."""
    ours, theirs = CONTESTANTS["row_slab"], CONTESTANTS["released"]
    case = make_case(
        plan.layout, plan.objective, num_samples, length, min(RELEASED_TARGETS, length)
    )
    fitting = num_samples
    while fitting > 1 and bytes_needed(
        theirs, case.first_samples(fitting)
    ) > MEMORY_SHARE * available_bytes(plan.layout.device):
        fitting //= 2
    say(
        f"released code's way: {num_samples} samples of {length} tokens, {case.num_labels} supervised; {fitting} samples at a time"
    )
    reasons = check_agreement([ours, theirs], case.first_samples(min(AGREEMENT_SAMPLES, fitting)))
    our_row = measure(ours, case, plan, plan.repeats, reasons[ours.name])
    part = case if fitting == num_samples else case.first_samples(fitting)
    their_row = measure(
        theirs, part, plan, min(plan.repeats, RELEASED_REPEATS), reasons[theirs.name], warmup=0
    )
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


def scaled(row: dict[str, Any], factor: float) -> dict[str, Any]:
    """The row of `factor` times as many samples; the share of the roofline is that which was
    measured."""
    changed = {
        key: {name: seconds * factor for name, seconds in row[key].items()}
        for key in ("forward", "forward_backward")
    }
    changed |= {
        key: type(row[key])(row[key] * factor)
        for key in ("num_tokens", "peak_extra_bytes", "roofline_seconds")
    }
    return row | changed


def check_memory(plan: Plan, num_tokens: int) -> dict[str, Any]:
    """row_slab's peak must be its slab and what the inputs' gradients take: doubling V must not
    move it by a tenth of the slab."""
    layout = plan.layout
    budget = layout.slab_bytes or default_slab_bytes(layout.device)
    sizes = (layout.vocab_size // 2, layout.vocab_size)
    if 2 * num_tokens * sizes[0] * max(4, layout.dtype.itemsize) < budget:
        raise InputError(
            f"--check_memory {num_tokens}: the slab of {budget / 2**20:.0f} MiB holds all logits of so few tokens; "
            "give more tokens or a smaller --slab_mib"
        )
    cases = [
        make_case(replace(layout, vocab_size=vocab_size), plan.objective, num_tokens)
        for vocab_size in sizes
    ]
    # Storage, not elements: the ensemble's gradient is one, seen K times.
    found = [
        gradient
        for gradient in gradients(CONTESTANTS["row_slab"], cases[1])[1]
        if gradient is not None
    ]
    gradient_bytes = sum(gradient.untyped_storage().nbytes() for gradient in found)
    del found
    smaller, larger = (
        peak_extra_bytes(partial(gradients, CONTESTANTS["row_slab"], case), layout.device)
        for case in cases
    )
    return {
        "num_tokens": num_tokens,
        "slab_bytes": budget,
        "gradient_bytes": gradient_bytes,
        "vocab_sizes": sizes,
        "peak_extra_bytes": (smaller, larger),
        "within": abs(larger - smaller) <= CHECK_TOLERANCE * budget,
    }


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Checked; what was not given is the device's own default."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    for name, value_type, text in (
        ("dtype", str, ", ".join(DTYPES)),
        ("num_tokens", str, "supervised tokens, with commas between"),
        ("vocab_size", int, "V"),
        ("hidden_size", int, "H"),
    ):
        by_device = ", ".join(
            f"{defaults[name]} on {device}" for device, defaults in DEFAULTS.items()
        )
        parser.add_argument(f"--{name}", type=value_type, help=f"{text}; default: {by_device}")
    parser.add_argument(
        "--num_layers",
        type=int,
        default=ObjectiveConfig().num_readout_layers,
        help="K, readout layers",
    )
    parser.add_argument(
        "--contestants",
        default=",".join(name for name, one in CONTESTANTS.items() if one.in_default),
        help="with commas between; default: %(default)s",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slab_mib", type=int, default=0, help="row_slab's memory for logits; 0: the device's own"
    )
    parser.add_argument("--train_head", action="store_true", help="the head's gradient too")
    parser.add_argument(
        "--released", action="store_true", help="measure the released code's way as well (minutes)"
    )
    parser.add_argument("--released_samples", type=int, default=50, help="its micro-batch")
    parser.add_argument(
        "--released_length", type=int, default=RELEASED_LENGTH, help="tokens of its prompts"
    )
    parser.add_argument(
        "--check_memory",
        type=int,
        nargs="?",
        const=CHECK_TOKENS,
        default=0,
        metavar="N",
        help="does row_slab's peak at N tokens (%(const)s) depend on V? exits with 1 if so",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/benchmarks"),
        help="directory for .json, .md and .png",
    )
    arguments = parser.parse_args(argv)
    if arguments.device not in DEFAULTS:
        raise InputError(f"--device: expected {' or '.join(DEFAULTS)}, got {arguments.device!r}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no CUDA device; use --device cpu")
    for name, value in DEFAULTS[arguments.device].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    for name in (
        "vocab_size",
        "hidden_size",
        "num_layers",
        "repeats",
        "released_samples",
        "released_length",
    ):
        if getattr(arguments, name) < 1:
            raise InputError(
                f"--{name}: expected a positive number, got {getattr(arguments, name)}"
            )
    return arguments


def make_plan(arguments: argparse.Namespace) -> Plan:
    names = arguments.contestants.split(",")
    for name in names:
        if name not in CONTESTANTS:
            raise InputError(
                f"--contestants: unknown {name!r}{nearest(name, CONTESTANTS)}".replace(
                    "fields", "contestants"
                )
            )
    if arguments.dtype not in DTYPES:
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, got {arguments.dtype!r}")
    num_tokens = arguments.num_tokens.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in num_tokens):
        raise InputError(
            f"--num_tokens: expected positive numbers with commas between, got {arguments.num_tokens!r}"
        )
    settings = {
        name: getattr(ObjectiveConfig(), name) for name in Objective.__dataclass_fields__
    } | OBJECTIVE
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    layout = Layout(
        arguments.vocab_size,
        arguments.hidden_size,
        arguments.num_layers,
        device,
        dtype,
        arguments.train_head,
        arguments.slab_mib * 2**20 or None,
    )
    return Plan(
        layout,
        Objective(**settings),
        [CONTESTANTS[name] for name in dict.fromkeys(names)],
        [int(word) for word in num_tokens],
        arguments.repeats,
        ceilings(device, dtype),
    )


def main(argv: list[str]) -> None:
    arguments = read_arguments(argv)
    check_directory(arguments.output)
    plan = make_plan(arguments)
    say(
        f"ceilings: {plan.ceilings.bytes_per_second / 1e9:.1f} GB/s copied, {plan.ceilings.flops_per_second / 1e9:.1f} GFLOP/s"
    )
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report: dict[str, Any] = {
        "environment": environment([]),
        "settings": settings,
        "objective": vars(plan.objective),
        "num_threads": torch.get_num_threads(),
        "ceilings": plan.ceilings._asdict(),
    }
    report["sizes"] = [measure_tokens(plan, num_tokens) for num_tokens in plan.num_tokens]
    if arguments.released:
        report["released"] = measure_released(
            plan, arguments.released_samples, arguments.released_length
        )
    if arguments.check_memory:
        report["memory"] = check_memory(plan, arguments.check_memory)
    write_report(report, plan.layout.device, arguments.output)
    if not report.get("memory", {}).get("within", True):
        sys.exit(1)


if __name__ == "__main__":
    run_entry(main)

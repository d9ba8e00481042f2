"""What the vocabulary operation costs in time and memory: against the naive way, the released
code's way, and cross-entropy by others.

    # On the CUDA device if there is one, else on the CPU.
    python tools/benchmarks/benchmark_ops.py
    python tools/benchmarks/benchmark_ops.py --num_tokens 256 --contestants row_slab,reference \\
        --repeats 9
    # The two longer measurements as well.
    python tools/benchmarks/benchmark_ops.py --released --check_memory

Every number of a run is measured in that run, the ceilings of the roofline included; contestants
that compute the same thing are compared first, and a difference ends the run. Writes
ops-<device>-<dtype>.json, .md and .png into --output.

Forward is measured without gradients (evaluation), forward + backward with those of hidden states
and readouts (and of the head with --train_head). Memory is the peak of forward + backward beyond
the inputs. The roofline is the least time in which this device could do the products and read the
head, whatever a contestant really does.

In reading order: benchmark_case.py (the input), benchmark_baselines.py (the contestants),
measure.py (time and memory of a call), benchmark_measurements.py, benchmark_report.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from benchmark_baselines import CONTESTANTS, Contestant
from benchmark_case import Layout
from benchmark_measurements import Plan, check_memory, measure_released, measure_tokens
from benchmark_report import write_report
from measure import ceilings
from report_files import say

from ilrec.config.command_line import ArgumentParser
from ilrec.config.sections import ObjectiveConfig
from ilrec.config.settings import nearest
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.ops import Objective
from ilrec.processes import environment, run_entry

# A size that each kind of device measures in minutes.
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
# All three terms: the shipped stage 2, with a reward that the comparison of losses can see.
OBJECTIVE = {"beta": 0.1, "distillation_weight": 0.5, "reward_weight": 0.3}
# The released code's micro-batch of semantic IDs.
RELEASED_SAMPLES = 50
RELEASED_LENGTH = 200
CHECK_TOKENS = 4096


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Checked. What was not given is the device's own default."""
    parser = ArgumentParser(__doc__)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default_device, help="cpu or cuda")
    add_sizes(parser)
    add_measurements(parser)
    arguments = parser.parse_args(argv)
    if arguments.device not in DEFAULTS:
        raise InputError(f"--device: expected {' or '.join(DEFAULTS)}, got {arguments.device!r}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no CUDA device; use --device cpu")
    # Defaults depend on the device, so they are filled in once it is known.
    for name, value in DEFAULTS[arguments.device].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def add_sizes(parser: ArgumentParser) -> None:
    """Flags for the input of the operation."""
    dtypes = ", ".join(DTYPES)
    parser.add_argument("--dtype", help=f"{dtypes}; {defaults_of('dtype')}")
    parser.add_argument(
        "--num_tokens", help=f"supervised tokens, with commas between; {defaults_of('num_tokens')}"
    )
    parser.add_number("--vocab_size", int, at_least=1, help=f"V; {defaults_of('vocab_size')}")
    parser.add_number("--hidden_size", int, at_least=1, help=f"H; {defaults_of('hidden_size')}")
    parser.add_number(
        "--num_layers",
        int,
        at_least=1,
        default=ObjectiveConfig().num_readout_layers,
        help="K, readout layers",
    )


def defaults_of(name: str) -> str:
    """For the help: the default of each device."""
    by_device = [f"{defaults[name]} on {device}" for device, defaults in DEFAULTS.items()]
    return f"default: {', '.join(by_device)}"


def add_measurements(parser: ArgumentParser) -> None:
    """Flags for what is measured, and where it is written."""
    parser.add_argument(
        "--contestants",
        default=",".join(name for name, one in CONTESTANTS.items() if one.in_default),
        help="with commas between; default: %(default)s",
    )
    parser.add_number("--repeats", int, at_least=1, default=5)
    parser.add_number(
        "--slab_mib",
        int,
        at_least=0,
        default=0,
        help="row_slab's memory for logits; 0: the device's own",
    )
    parser.add_argument("--train_head", action="store_true", help="the head's gradient too")
    parser.add_argument(
        "--released", action="store_true", help="measure the released code's way as well (minutes)"
    )
    parser.add_number(
        "--released_samples", int, at_least=1, default=RELEASED_SAMPLES, help="its micro-batch"
    )
    parser.add_number(
        "--released_length",
        int,
        at_least=1,
        default=RELEASED_LENGTH,
        help="tokens of its prompts",
    )
    parser.add_number(
        "--check_memory",
        int,
        at_least=1,
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


def read_contestants(words: str) -> list[Contestant]:
    """Names with commas between, each once."""
    names = list(dict.fromkeys(words.split(",")))
    for name in names:
        if name not in CONTESTANTS:
            # The helper speaks of fields.
            hint = nearest(name, CONTESTANTS).replace("fields", "contestants")
            raise InputError(f"--contestants: unknown {name!r}{hint}")
    return [CONTESTANTS[name] for name in names]


def read_num_tokens(words: str) -> list[int]:
    numbers = words.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in numbers):
        raise InputError(
            f"--num_tokens: expected positive numbers with commas between, got {words!r}"
        )
    return [int(word) for word in numbers]


def make_plan(arguments: argparse.Namespace) -> Plan:
    """What is measured. The machine's ceilings are measured here, so this takes seconds."""
    contestants = read_contestants(arguments.contestants)
    num_tokens = read_num_tokens(arguments.num_tokens)
    if arguments.dtype not in DTYPES:
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, got {arguments.dtype!r}")
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    layout = Layout(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        num_layers=arguments.num_layers,
        device=device,
        dtype=dtype,
        train_head=arguments.train_head,
        slab_bytes=arguments.slab_mib * 2**20 or None,
    )
    # The objective's defaults, but for the weights of its terms.
    defaults = ObjectiveConfig()
    settings = {name: getattr(defaults, name) for name in Objective.__dataclass_fields__}
    objective = Objective(**{**settings, **OBJECTIVE})
    return Plan(
        layout, objective, contestants, num_tokens, arguments.repeats, ceilings(device, dtype)
    )


def main(argv: list[str]) -> None:
    # A place that cannot be written is found out before the minutes of measuring.
    arguments = read_arguments(argv)
    check_directory(arguments.output)
    plan = make_plan(arguments)
    say(
        f"ceilings: {plan.ceilings.bytes_per_second / 1e9:.1f} GB/s copied, "
        f"{plan.ceilings.flops_per_second / 1e9:.1f} GFLOP/s"
    )
    report: dict[str, Any] = {
        "environment": environment([]),
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "objective": vars(plan.objective),
        "num_threads": torch.get_num_threads(),
        "ceilings": plan.ceilings._asdict(),
    }
    # The longer measurements come last, and only if they are asked for.
    report["sizes"] = [measure_tokens(plan, num_tokens) for num_tokens in plan.num_tokens]
    if arguments.released:
        samples, length = arguments.released_samples, arguments.released_length
        report["released"] = measure_released(plan, samples, length)
    if arguments.check_memory:
        report["memory"] = check_memory(plan, arguments.check_memory)
    write_report(report, plan.layout.device, arguments.output)
    # The report is written first: it shows by how much the check failed.
    if not report.get("memory", {}).get("within", True):
        sys.exit(1)


if __name__ == "__main__":
    run_entry(main)

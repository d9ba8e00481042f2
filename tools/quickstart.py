"""The whole way on real data: MovieLens-100k, semantic IDs, SASRec, a base model, sft against
stage1 and stage2, merge, rank, report.

    make quickstart        (or: python tools/quickstart.py --output runs/quickstart)

sft and stage1 start from the same base. sft takes as many steps as stage1 and stage2 together, with
the same batches, rank and learning rate. The last five items of each user are targets, so that the
differences can be told from chance.

Every step is a command that can also be typed by hand; each is shown as it runs. A step is not run
again if its command and inputs are unchanged since it finished and what it wrote is still there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.digests import size_and_digest
from ilrec.files.outputs import check_directory
from ilrec.files.steps import ResumableStep, product_files
from ilrec.processes import run_entry

# RecBole's wheel carries MovieLens-100k with titles (GroupLens' terms of use). The digest is the
# one that the package registry lists for this release.
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
DATASET = "recbole/dataset_example/ml-100k"
RECIPES = "ilrec/recipes"
CPU_RANKS = 2
# Weights of a full model, and of an adapter.
MODEL_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Test targets of each user: 943 users alone leave a standard error of .012 in Hit@10.
SPLIT: dict[str, object] = {"num_targets": 5}

# SASRec's settings for this data set and half a minute: fewer epochs at a higher rate than the
# defaults.
SASREC: dict[str, object] = {
    "num_layers": 1,
    "learning_rate": 5e-3,
    "batch_size": 32,
    "num_epochs": 10,
}

# What differs from the shipped recipes for a model this small: its prompts, its batch, its learning
# rate.
STAGE: dict[str, object] = {
    "prompt_prefix": "",
    "prompt_separator": "",
    "supervision": "every_item",
    "max_history_items": 12,
    "max_length": 64,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "logging_steps": 10,
}
STAGE_STEPS = 60
# The two stages get the collaborative reward too, because SASRec is there.
REWARD_WEIGHT = 0.3

# With --trial, each part is cut to what shows that it runs.
TRIAL_SASREC: dict[str, object] = {"num_epochs": 1}
TRIAL_STAGE: dict[str, object] = {"max_steps": 2, "logging_steps": 1}
TRIAL_RANKING: dict[str, object] = {"num_users": 100}


class Quickstart:
    """Runs the steps, each in its own directory under `output`, and remembers what is done."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.started = time.monotonic()

    def step(
        self,
        name: str,
        command: list[str],
        inputs: list[Path],
        products: list[Path],
        directory: Path | None = None,
    ) -> None:
        """Run one command, unless it is done with the same words and the same input files.

        products: what it writes; if one of them is gone, the step is run again.
        directory: removed if command or inputs have changed since the last run. It is kept if the
            same command was interrupted: training goes on from its newest checkpoint.
        """
        digests = {str(path): _sha256(path) for path in inputs}
        step = ResumableStep(
            marker=self.output / "steps" / f"{name}.json",
            wanted={"command": command, "inputs": digests},
            products=tuple(products),
            clears=(directory,) if directory else (),
        )
        if step.state() == "done":
            self.say(f"{name}: done before, reused")
            return

        def work() -> dict[str, str]:
            if subprocess.run(command, cwd=ROOT, env=_environment()).returncode:
                raise InputError(
                    f"quickstart stopped at step {name}; the step's own message is above. "
                    "Mend the cause, then give the same command again"
                )
            return _digests_of(name, products)

        self.say(f"{name}\n  $ {shlex.join(command)}")
        begun = time.monotonic()
        step.run(work)
        self.say(f"{name}: {time.monotonic() - begun:.0f} s")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


def _sha256(path: Path) -> str:
    return size_and_digest(path)[1]


def _digests_of(name: str, products: list[Path]) -> dict[str, str]:
    """{file: SHA-256} of what a finished step wrote. Raises InputError if a product is missing."""
    digests = {}
    for product in products:
        files = product_files(product)
        if not files:
            raise InputError(f"step {name} ended without an error but did not write {product}")
        for file in files:
            digests[str(file)] = _sha256(file)
    return digests


def _environment() -> dict[str, str]:
    """Two CPU ranks share the cores; with more threads than cores, ranks wait for each other."""
    threads = max(1, (os.cpu_count() or 1) // CPU_RANKS)
    return {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def fetch_movielens(output: Path, wheel: str | None) -> Path:
    """The data directory. Downloads RecBole's wheel (2 MB) unless `wheel` names a local copy, and
    checks its digest."""
    directory = output / "data" / "ml-100k"
    if (directory / "ml-100k.inter").exists() and (directory / "ml-100k.item").exists():
        return directory
    path = Path(wheel) if wheel else download_wheel(output / "wheel")
    if not path.exists():
        raise InputError(f"RECBOLE_WHEEL: no such file: {path}; expected the wheel of {WHEEL}")
    if _sha256(path) != WHEEL_SHA256:
        raise InputError(
            f"{path}: not the wheel of {WHEEL}: sha256 is {_sha256(path)}, expected "
            f"{WHEEL_SHA256}; remove the file and run again, or give the right one with --wheel"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as archive:
        # .inter comes last: it marks the data complete.
        for name in ("ml-100k.item", "ml-100k.inter"):
            beside = directory / f".{name}.tmp"
            beside.write_bytes(archive.read(f"{DATASET}/{name}"))
            os.replace(beside, directory / name)
    return directory


def download_wheel(directory: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    subprocess.run([*pip, "-d", str(directory), WHEEL], check=True)
    return next(directory.glob("*.whl"))


def launcher() -> list[str]:
    """The deepspeed launcher: one rank per GPU, or two ranks on the CPU."""
    return ["deepspeed", "--num_gpus", str(torch.cuda.device_count() or CPU_RANKS)]


def flags(settings: dict[str, object]) -> list[str]:
    """["--name", "value", ...]"""
    words = []
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    return words


@dataclass(frozen=True)
class Inputs:
    """What training needs beside a model: the data, SASRec's directory and the semantic IDs."""

    data: Path
    sasrec: Path
    index: Path

    @property
    def filter_weights(self) -> Path:
        return self.sasrec / MODEL_WEIGHTS


def prepare_inputs(run: Quickstart, wheel: str | None, trial: bool) -> Inputs:
    """The data set, SASRec trained on it, and semantic IDs made from SASRec's embeddings."""
    data = fetch_movielens(run.output, wheel)
    sasrec = run.output / "sasrec"
    index = run.output / "semantic_ids" / "ml-100k.index.json"
    embeddings = sasrec / "item_embeddings.npy"

    # SASRec is the reward's filter, a baseline of the table, and the source of the embeddings.
    settings = {**SASREC, **TRIAL_SASREC} if trial else SASREC
    words = flags({"data": data, "output": sasrec, **SPLIT})
    train = [sys.executable, "tools/train_sasrec.py", *words]
    rankings = [sasrec / "popularity.json", sasrec / "ranking.json"]
    run.step(
        "sasrec",
        [*train, *flags(settings)],
        inputs=[data / "ml-100k.inter"],
        products=[sasrec / MODEL_WEIGHTS, embeddings, *rankings],
    )

    # Semantic IDs: items with similar embeddings share the first of their codes.
    places: dict[str, object] = {"data": data, "embeddings": embeddings, "output": index}
    run.step(
        "semantic_ids",
        [sys.executable, "tools/build_semantic_ids.py", *flags(places)],
        inputs=[embeddings],
        products=[index],
    )
    return Inputs(data, sasrec, index)


def train_stages(run: Quickstart, inputs: Inputs, trial: bool) -> dict[str, Path]:
    """{name: final/ of its run}: the base model, from scratch; sft, which goes on from it; stage1,
    which does so too; and stage2, which goes on from stage1."""
    cut = TRIAL_STAGE if trial else {}
    shared: dict[str, object] = {"data": inputs.data, "semantic_ids": inputs.index, **SPLIT}
    base = train(run, "base", "quickstart", {**shared, **cut}, [inputs.index])

    # The baseline: as many steps as both stages together.
    shared |= STAGE
    settings = {"model": base, **shared, "max_steps": 2 * STAGE_STEPS, **cut}
    sft = train(run, "sft", "sft", settings, [base / MODEL_WEIGHTS])

    # The two stages of the method, with the reward that SASRec gives.
    shared |= {"reward_weight": REWARD_WEIGHT, "sasrec": inputs.sasrec}
    shared |= {"max_steps": STAGE_STEPS, **cut}
    reads = [base / MODEL_WEIGHTS, inputs.filter_weights]
    stage1 = train(run, "stage1", "stage1", {"model": base, **shared}, reads)
    reads = [stage1 / ADAPTER_WEIGHTS, inputs.filter_weights]
    stage2 = train(run, "stage2", "stage2", {"model": stage1, **shared}, reads)
    return {"base": base, "sft": sft, "stage1": stage1, "stage2": stage2}


def train(
    run: Quickstart, name: str, recipe: str, settings: dict[str, object], inputs: list[Path]
) -> Path:
    """Train with a recipe; its final/."""
    directory = run.output / name
    ds_config = "ds_configs/zero3_cpu.json"
    if torch.cuda.is_available():
        ds_config = "ds_configs/zero3_bf16.json"
    recipe_file = f"{RECIPES}/{recipe}.yaml"
    files = {"ds_config": ds_config, "config": recipe_file, "output_dir": directory}
    run.step(
        name,
        [*launcher(), "ilrec/train.py", *flags(files), *flags(settings)],
        inputs=[ROOT / recipe_file, ROOT / ds_config, *inputs],
        products=[directory / "final"],
        directory=directory,
    )
    return directory / "final"


def merge(run: Quickstart, adapter: Path) -> Path:
    """The adapter merged into its base model."""
    merged = run.output / "merged"
    places: dict[str, object] = {"adapter": adapter, "output": merged}
    run.step(
        "merge",
        [sys.executable, "tools/merge_lora.py", *flags(places)],
        inputs=[adapter / ADAPTER_WEIGHTS],
        products=[merged],
        directory=merged,
    )
    return merged


def rank(run: Quickstart, name: str, weights: Path, data: Path, trial: bool) -> Path:
    """The ranking of a model on the test split, the model's own. It lies apart from the model's
    run, whose directory a fresh start removes."""
    output = run.output / "rankings" / f"{name}.json"
    settings: dict[str, object] = {"model": weights.parent, "data": data, "split": "test"}
    settings |= {"num_beams": 20, "output": output, **(TRIAL_RANKING if trial else {})}
    run.step(
        f"{name}-rank",
        [*launcher(), "ilrec/rank.py", *flags(settings)],
        inputs=[weights],
        products=[output],
    )
    return output


def report(run: Quickstart, rankings: dict[str, Path]) -> None:
    """The table and the picture of all rankings, and what to do next."""
    # Not a step: it takes seconds, and the table shall be printed each time.
    command = [sys.executable, "tools/report.py"]
    command += [str(run.output / name) for name in ("sft", "stage1", "stage2")]
    command += ["--rank", *(f"{name}={path}" for name, path in rankings.items())]
    command += ["--output", str(run.output / "report.png")]
    subprocess.run(command, cwd=ROOT, check=True)
    compared = [str(rankings[name]) for name in ("sft", "stage1", "stage2")]
    subprocess.run([sys.executable, "tools/compare.py", *compared], cwd=ROOT, check=True)

    merged = run.output / "merged"
    next_steps = [
        "",
        f"Stage 2's model is merged at {merged}: AutoModelForCausalLM loads it. Next, for example:",
        f"  python ilrec/rank.py --model {merged} --split valid",
        "  deepspeed ilrec/train.py --ds_config ds_configs/zero3_bf16.json "
        "--config ilrec/recipes/sft.yaml --model MODEL --data DIR",
        f"  tensorboard --logdir {run.output}",
        f"[{time.monotonic() - run.started:.0f} s in all]",
    ]
    print("\n".join(next_steps), flush=True)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--wheel",
        default=os.environ.get("RECBOLE_WHEEL") or None,
        help="a local copy of RecBole's wheel (default: the variable RECBOLE_WHEEL)",
    )
    parser.add_argument(
        "--trial", action="store_true", help="two optimizer steps per stage: does everything run?"
    )
    arguments = parser.parse_args(argv)
    output = arguments.output.resolve()
    check_directory(output)

    # What the method needs, the method, and its measurement.
    run = Quickstart(output)
    inputs = prepare_inputs(run, arguments.wheel, arguments.trial)
    stages = train_stages(run, inputs, arguments.trial)
    merged = merge(run, stages["stage2"])
    # Two of the rankings come with SASRec; the others are made by beam search.
    rankings = {
        "popularity": inputs.sasrec / "popularity.json",
        "SASRec": inputs.sasrec / "ranking.json",
    }
    weights = {
        "sft": stages["sft"] / ADAPTER_WEIGHTS,
        "stage1": stages["stage1"] / ADAPTER_WEIGHTS,
        "stage2": merged / MODEL_WEIGHTS,
    }
    for name, file in weights.items():
        rankings[name] = rank(run, name, file, inputs.data, arguments.trial)
    report(run, rankings)


if __name__ == "__main__":
    run_entry(main)

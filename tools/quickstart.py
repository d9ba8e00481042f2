"""The whole way on real data: MovieLens-100k, semantic IDs, SASRec, sft, stage1, stage2, merge,
rank, report.

    make quickstart        (or: python tools/quickstart.py --output runs/quickstart)

Every step is a command that can be typed by hand, and is shown as it runs. A step whose command and
inputs are unchanged since it last finished is not run again.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.digests import file_digest
from ilrec.files.outputs import check_directory, write_text
from ilrec.processes import run_entry

# RecBole's wheel carries MovieLens-100k with titles (GroupLens' terms of use). The sum is the
# registry's for this release.
WHEEL, WHEEL_SHA256 = (
    "recbole==1.2.1",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
DATASET = "recbole/dataset_example/ml-100k"
RECIPES = "ilrec/recipes"
CPU_RANKS = 2


class Quickstart:
    """Runs the steps, each in its own directory under `output`, and remembers what is done."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.started = time.monotonic()

    def step(
        self, name: str, command: list[str], inputs: list[str | Path], directory: Path | None = None
    ) -> None:
        """Run one command unless it finished before with the same words and the same input files.

        `directory` is what it writes: kept where the same command was interrupted (training goes on
        from its newest checkpoint), removed where command or inputs have changed since.
        """
        marker = self.output / "steps" / f"{name}.json"
        wanted = {"command": command, "inputs": {str(p): file_digest(p) for p in inputs}}
        before = json.loads(marker.read_text()) if marker.exists() else None
        if before == {**wanted, "done": True}:
            self.say(f"{name}: done before, reused")
            return
        if directory is not None and before != {**wanted, "done": False}:
            shutil.rmtree(directory, ignore_errors=True)
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_text(marker, json.dumps({**wanted, "done": False}))
        self.say(f"{name}\n  $ {shlex.join(command)}")
        begun = time.monotonic()
        if subprocess.run(command, cwd=ROOT, env=_environment()).returncode:
            raise InputError(
                f"quickstart stopped at step {name}; its own message is above; after mending, run the same again"
            )
        write_text(marker, json.dumps({**wanted, "done": True}))
        self.say(f"{name}: {time.monotonic() - begun:.0f} s")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


def _environment() -> dict[str, str]:
    """Two CPU ranks share the cores; more threads than cores each would only wait for each
    other."""
    threads = max(1, (os.cpu_count() or 1) // CPU_RANKS)
    return {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def fetch_movielens(output: Path, wheel: str | None) -> Path:
    """The data directory; downloads RecBole's wheel (2 MB) unless `wheel` names a local copy. The
    sum is checked."""
    directory = output / "data" / "ml-100k"
    if (directory / "ml-100k.inter").exists() and (directory / "ml-100k.item").exists():
        return directory
    if wheel is None:
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(output / "wheel"),
            WHEEL,
        ]
        subprocess.run(download, check=True)
        wheel = str(next((output / "wheel").glob("*.whl")))
    if not Path(wheel).exists():
        raise InputError(f"RECBOLE_WHEEL: no such file: {wheel}; expected the wheel of {WHEEL}")
    if file_digest(wheel) != WHEEL_SHA256:
        raise InputError(
            f"{wheel}: not the wheel of {WHEEL}: sha256 is {file_digest(wheel)}, expected {WHEEL_SHA256}; "
            "remove the file and run again, or point RECBOLE_WHEEL at the right one"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in ("ml-100k.item", "ml-100k.inter"):  # .inter last: it marks the data complete
            beside = directory / f".{name}.tmp"
            beside.write_bytes(archive.read(f"{DATASET}/{name}"))
            os.replace(beside, directory / name)
    return directory


def launcher() -> list[str]:
    """The deepspeed launcher: one rank per GPU, or two ranks on the CPU."""
    return ["deepspeed", "--num_gpus", str(torch.cuda.device_count() or CPU_RANKS)]


def flags(settings: dict[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def train(
    run: Quickstart, name: str, recipe: str, settings: dict[str, object], inputs: list[str | Path]
) -> Path:
    directory = run.output / name
    ds_config = (
        "ds_configs/zero3_bf16.json" if torch.cuda.is_available() else "ds_configs/zero3_cpu.json"
    )
    command = [
        *launcher(),
        "ilrec/train.py",
        "--ds_config",
        ds_config,
        "--config",
        f"{RECIPES}/{recipe}.yaml",
        "--output_dir",
        str(directory),
        *flags(settings),
    ]
    run.step(
        name, command, [ROOT / RECIPES / f"{recipe}.yaml", ROOT / ds_config, *inputs], directory
    )
    return directory / "final"


def rank(run: Quickstart, name: str, model: Path, data: Path, weights: str) -> Path:
    output = (
        run.output / "rankings" / f"{name}.json"
    )  # apart from the run, which a fresh start removes
    run.step(
        f"{name}-rank",
        [
            *launcher(),
            "ilrec/rank.py",
            "--model",
            str(model),
            "--data",
            str(data),
            "--split",
            "test",
            "--num_beams",
            "20",
            "--output",
            str(output),
        ],
        [model / weights],
    )
    return output


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--wheel",
        default=os.environ.get("RECBOLE_WHEEL") or None,
        help="a local copy of RecBole's wheel",
    )
    parser.add_argument(
        "--trial", action="store_true", help="two optimizer steps per stage: does everything run?"
    )
    arguments = parser.parse_args(argv)
    output = arguments.output.resolve()
    check_directory(output)
    run = Quickstart(output)
    data = fetch_movielens(output, arguments.wheel)
    python = [sys.executable]
    sasrec, index = output / "sasrec", output / "semantic_ids" / "ml-100k.index.json"
    run.step(
        "sasrec",
        [
            *python,
            "tools/train_sasrec.py",
            "--data",
            str(data),
            "--output",
            str(sasrec),
            *flags(SASREC | ({"num_epochs": 1} if arguments.trial else {})),
        ],
        [data / "ml-100k.inter"],
    )
    run.step(
        "semantic_ids",
        [
            *python,
            "tools/build_semantic_ids.py",
            "--data",
            str(data),
            "--embeddings",
            str(sasrec / "item_embeddings.npy"),
            "--output",
            str(index),
        ],
        [sasrec / "item_embeddings.npy"],
    )
    cut = {"max_steps": 2, "logging_steps": 1} if arguments.trial else {}
    shared = {"data": data, "semantic_ids": index}
    sft = train(run, "sft", "quickstart", {**shared, **cut}, [index])
    stage = {**shared, **STAGE, "sasrec": sasrec, **cut}
    reward = sasrec / "model.safetensors"
    stage1 = train(
        run, "stage1", "stage1", {"model": sft, **stage}, [sft / "model.safetensors", reward]
    )
    stage2 = train(
        run,
        "stage2",
        "stage2",
        {"model": stage1, **stage},
        [stage1 / "adapter_model.safetensors", reward],
    )
    merged = output / "merged"
    run.step(
        "merge",
        [*python, "tools/merge_lora.py", "--adapter", str(stage2), "--output", str(merged)],
        [stage2 / "adapter_model.safetensors"],
        merged,
    )
    rankings = {
        "popularity": sasrec / "popularity.json",
        "SASRec": sasrec / "ranking.json",
        "sft": rank(run, "sft", sft, data, "model.safetensors"),
        "stage1": rank(run, "stage1", stage1, data, "adapter_model.safetensors"),
        "stage2": rank(run, "stage2", merged, data, "model.safetensors"),
    }
    report(run, rankings)


# SASRec's settings for this data set and half a minute: fewer epochs at a higher rate than the
# defaults.
SASREC: dict[str, object] = {
    "num_layers": 1,
    "learning_rate": 5e-3,
    "batch_size": 32,
    "num_epochs": 10,
}

# What differs from the shipped stage1 and stage2 for a model this small: its prompts, its batch,
# its learning rate, and the collaborative reward, because SASRec is there.
STAGE: dict[str, object] = {
    "prompt_prefix": "",
    "prompt_separator": "",
    "supervision": "every_item",
    "max_history_items": 12,
    "max_length": 64,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_steps": 60,
    "learning_rate": 1e-3,
    "reward_weight": 0.3,
    "logging_steps": 10,
}


def report(run: Quickstart, rankings: dict[str, Path]) -> None:
    picture = run.output / "report.png"
    subprocess.run(
        [
            sys.executable,
            "tools/report.py",
            "--rank",
            *(f"{name}={path}" for name, path in rankings.items()),
            "--run",
            *(f"{name}={run.output / name}" for name in ("sft", "stage1", "stage2")),
            "--output",
            str(picture),
        ],
        cwd=ROOT,
        check=True,
    )
    print(
        f"""
Stage 2's model is merged at {run.output / "merged"}: AutoModelForCausalLM loads it. Next, for example:
  python ilrec/rank.py --model {run.output / "merged"} --split valid
  deepspeed ilrec/train.py --ds_config ds_configs/zero3_bf16.json --config ilrec/recipes/sft.yaml --model MODEL --data DIR
  tensorboard --logdir {run.output}
[{time.monotonic() - run.started:.0f} s in all]""",
        flush=True,
    )


if __name__ == "__main__":
    run_entry(main)

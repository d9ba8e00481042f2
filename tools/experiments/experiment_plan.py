"""The steps of an experiment's grid: what is trained, what is ranked, in which order, and what each
result is made of.

from experiment_plan import Plan      # inside tools/; not a program,
tools/experiments/run_experiment.py is
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiment_grid import BASELINE_SETTINGS, Grid, Row

from ilrec.config.loading import load_config
from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.files.digests import fingerprint_of
from ilrec.interactions.reading import read_interactions
from ilrec.model.source import find_model, local_directory
from ilrec.training.identity import MAY_CHANGE, model_digest

# Settings that may differ between two runs of one result: places, logging and saving. How batches
# are cut, and how long a run is, may change when a run goes on; here they are part of what was
# measured.
INCIDENTAL = MAY_CHANGE - {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "batch_layout",
    "max_steps",
    "num_train_epochs",
}
PLACES = {
    "data": "-",
    "output_dir": "-",
    "model": "-",
    "sasrec": "-",
}  # for settings that are read without their places


@dataclass(frozen=True)
class Step:
    """One command. `product` is what it writes: a file, or a directory of weights; `clears`:
    removed where another start is needed."""

    row: str
    seed: int
    name: str
    directory: Path
    command: list[str]
    product: Path
    sources: tuple[Step, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    settings: dict[str, Any] | None = None
    clears: Path | None = None

    @property
    def title(self) -> str:
        return f"{self.row} seed {self.seed}: {self.name}"

    @property
    def marker(self) -> Path:
        return self.directory / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"


class Plan:
    """The steps of a grid, each after those that it starts from."""

    def __init__(self, grid: Grid, output: Path) -> None:
        self.grid, self.output = grid, output
        self.k_core = DataConfig(
            **{name: grid.shared[name] for name in ("k_core",) if name in grid.shared}
        ).k_core
        self.data_digest = read_interactions(grid.data, self.k_core).fingerprint
        self.trained: dict[tuple[str, int], Step] = {}
        self.ranked: dict[tuple[str, int], Step] = {}
        self.contents: dict[
            tuple[str, int], dict[str, Any]
        ] = {}  # made_of, which hashes files, once for each run
        for row in grid.rows.values():
            for seed in row.seeds:
                if not row.is_deterministic:
                    self.trained[row.name, seed] = (
                        self.train_sasrec(row, seed) if row.baseline else self.train(row, seed)
                    )
                self.ranked[row.name, seed] = self.rank(row, seed)
                self.contents[row.name, seed] = self.made_of(row, seed)

    @property
    def order(self) -> list[tuple[str, int]]:
        """(row, seed) of every result: the first seed of each row before any second one, which
        tells less."""
        return sorted(self.ranked, key=lambda key: self.grid.rows[key[0]].seeds.index(key[1]))

    @property
    def steps(self) -> list[Step]:
        """Each run is ranked as soon as it is trained, and trained after what it starts from."""
        found: dict[str, Step] = {}
        for key in self.order:
            for step in with_sources(self.ranked[key]):
                found.setdefault(step.title, step)
        return list(found.values())

    def directory(self, row: Row, seed: int) -> Path:
        return self.output / row.name / f"seed-{seed}"

    def data_words(self) -> list[str]:
        return ["--data", self.grid.data, "--k_core", str(self.k_core)]

    def train_sasrec(self, row: Row, seed: int) -> Step:
        directory = self.directory(row, seed)
        command = [
            "python",
            "tools/train_sasrec.py",
            *self.data_words(),
            "--config",
            str(directory / "settings.yaml"),
            "--output",
            str(directory / "model"),
        ]
        return Step(
            row.name,
            seed,
            "train",
            directory,
            command,
            directory / "model",
            (),
            (("data", self.data_digest),),
            {**row.fields, "seed": seed},
            directory / "model",
        )

    def train(self, row: Row, seed: int) -> Step:
        directory = self.directory(row, seed)
        settings = self.grid.settings(row) | {
            "data": self.grid.data,
            "output_dir": str(directory / "model"),
            "seed": seed,
        }
        sources = {
            name: self.trained[source, self.grid.source_seed(source, seed)]
            for name, source in (("model", row.model), ("sasrec", row.sasrec))
            if source
        }
        settings |= {name: str(step.product) for name, step in sources.items()}
        files = [("data", self.data_digest), ("semantic_ids", self.semantic_ids_digest(settings))]
        ds_config = []
        if self.grid.ds_config:
            ds_config = ["--ds_config", self.grid.ds_config]
            files.append((self.grid.ds_config, fingerprint_of([ROOT / self.grid.ds_config])))
        command = [
            *self.grid.launcher,
            *shlex.split(row.script),
            *ds_config,
            "--config",
            str(directory / "settings.yaml"),
        ]
        return Step(
            row.name,
            seed,
            "train",
            directory,
            command,
            directory / "model" / "final",
            tuple(sources.values()),
            tuple(files),
            settings,
            directory / "model",
        )

    def rank(self, row: Row, seed: int) -> Step:
        directory, split = self.directory(row, seed), self.grid.split
        product = directory / f"{split}.json"
        trained = self.trained.get((row.name, seed))
        if row.recipe and trained:
            command = [
                *self.grid.launcher,
                "ilrec/rank.py",
                "--model",
                str(trained.product),
                "--data",
                self.grid.data,
                "--num_beams",
                str(self.grid.num_beams),
            ]
        else:
            fields = {"sasrec": trained.product} if trained else row.fields
            command = [
                "python",
                "tools/experiments/rank_baselines.py",
                "--method",
                row.baseline,
                *self.data_words(),
                *(word for name, value in fields.items() for word in (f"--{name}", str(value))),
            ]
        return Step(
            row.name,
            seed,
            f"rank-{split}",
            directory,
            [*command, "--split", split, "--output", str(product)],
            product,
            (trained,) if trained else (),
            (("data", self.data_digest),),
        )

    def made_of(self, row: Row, seed: int) -> dict[str, Any]:
        """All that decides a result of this row, by contents; of the rows that it starts from, what
        these are made of."""
        if row.baseline:
            kind = BASELINE_SETTINGS[row.baseline]
            settings = dataclasses.asdict(kind(**row.fields)) if kind else {}
            return {
                "method": row.baseline,
                "seed": seed,
                "k_core": self.k_core,
                "data": self.data_digest,
                "settings": settings | ({"seed": seed} if "seed" in settings else {}),
            }
        settings = self.grid.settings(row)
        places = PLACES if settings.get("init") is None or row.model else {**PLACES, "model": ""}
        resolved = load_config(None, {**settings, **places, "seed": seed}).flat()
        sources = {
            name: self.contents[source, self.grid.source_seed(source, seed)]
            for name, source in (("model", row.model), ("sasrec", row.sasrec))
            if source
        }
        base = None
        if "model" in settings:
            base = model_digest(local_directory(find_model(settings["model"]).base))
        return {
            "script": row.script,
            "launcher": self.grid.launcher,
            "seed": seed,
            "data": self.data_digest,
            "semantic_ids": self.semantic_ids_digest(settings),
            "base": base,
            "ds_config": fingerprint_of([ROOT / self.grid.ds_config])
            if self.grid.ds_config
            else None,
            "settings": {name: value for name, value in resolved.items() if name not in INCIDENTAL},
            "sources": sources,
        }

    def semantic_ids_digest(self, settings: dict[str, Any]) -> str:
        """Of the index file that is named, or of those that lie in the data directory."""
        named = settings.get("semantic_ids")
        paths = [ROOT / named] if named else sorted(Path(self.grid.data).glob("*.index.json"))
        if named and not paths[0].is_file():
            raise InputError(f"{self.grid.path}: semantic_ids: no such file: {paths[0]}")
        return fingerprint_of(paths)


def with_sources(step: Step) -> list[Step]:
    """All that the step starts from, and then itself."""
    return [*(earlier for source in step.sources for earlier in with_sources(source)), step]


def product_digest(step: Step) -> str:
    """Of the file, or of the directory's weights. InputError where the command has not written
    it."""
    paths = sorted(step.product.glob("*.safetensors")) if step.product.is_dir() else [step.product]
    if not paths or not all(path.is_file() for path in paths):
        raise InputError(
            f"{step.title} ended without an error but left no result in {step.product}\n  its output: {step.log}"
        )
    return fingerprint_of(paths, [path.name for path in paths])

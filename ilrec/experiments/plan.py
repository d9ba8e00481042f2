"""The steps of an experiment's grid: what is trained, what is ranked, in which order, and what each
result is made of.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrec.config.loading import load_config
from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.experiments.grid import ROOT, Grid, Row, place
from ilrec.experiments.grid_checks import BASELINE_SETTINGS
from ilrec.files.digests import fingerprint_of
from ilrec.files.steps import product_files
from ilrec.interactions.reading import read_interactions
from ilrec.model.source import find_model, local_directory
from ilrec.training.identity import MAY_CHANGE, model_digest

# Settings that may differ between two runs of one result: places, logging and saving. How batches
# are cut, and how long a run is, may change when ilrec/train.py resumes a run; here they are part
# of what was measured.
INCIDENTAL = MAY_CHANGE - {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "batch_layout",
    "max_steps",
    "num_train_epochs",
}
# Stand in for places when settings are read that have none.
PLACES = {"data": "-", "output_dir": "-", "model": "-", "sasrec": "-"}


@dataclass(frozen=True)
class Step:
    """One command.

    product: what it writes, a file or a directory of weights.
    sources: the steps whose products it reads.
    files: (name, digest) of what else it reads.
    settings: the content of its settings.yaml; None if it has none.
    clears: the directory that is removed when it starts afresh.
    """

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
    """The steps of a grid, each after those that it starts from.

    trained, ranked: the step of each (row, seed). contents: what its result is made of.
    """

    def __init__(self, grid: Grid, output: Path) -> None:
        self.grid = grid
        self.output = output
        self.k_core = DataConfig(**self.shared_data("k_core")).k_core
        self.split = self.shared_data("num_targets", "split_time")
        self.data_digest = read_interactions(grid.data, self.k_core).fingerprint
        self.trained: dict[tuple[str, int], Step] = {}
        self.ranked: dict[tuple[str, int], Step] = {}
        # Kept, because made_of hashes files.
        self.contents: dict[tuple[str, int], dict[str, Any]] = {}
        # Rows are in the order of running, so that sources come before what starts from them.
        for row in grid.rows.values():
            for seed in row.seeds:
                self._add(row, seed)

    def _add(self, row: Row, seed: int) -> None:
        """The steps of one run. Those of the rows that it starts from are there already."""
        if row.recipe:
            self.trained[row.name, seed] = self.train(row, seed)
        elif not row.is_deterministic:
            self.trained[row.name, seed] = self.train_sasrec(row, seed)
        self.ranked[row.name, seed] = self.rank(row, seed)
        self.contents[row.name, seed] = self.made_of(row, seed)

    @property
    def order(self) -> list[tuple[str, int]]:
        """(row, seed) of every result. The first seed of each row comes before any second one,
        which adds less to what is known."""

        def place_of_seed(key: tuple[str, int]) -> int:
            row, seed = key
            return self.grid.rows[row].seeds.index(seed)

        return sorted(self.ranked, key=place_of_seed)

    @property
    def steps(self) -> list[Step]:
        """Each run is ranked as soon as it is trained, and trained after what it starts from."""
        # A source that several rows share is listed once, where the first of them needs it.
        found: dict[str, Step] = {}
        for key in self.order:
            for step in with_sources(self.ranked[key]):
                found.setdefault(step.title, step)
        return list(found.values())

    def shared_data(self, *names: str) -> dict[str, Any]:
        """Those of the named settings that the grid sets for all rows."""
        return {name: self.grid.shared[name] for name in names if name in self.grid.shared}

    def directory(self, row: Row, seed: int) -> Path:
        return self.output / row.name / f"seed-{seed}"

    def data_words(self) -> list[str]:
        words = ["--data", self.grid.data, "--k_core", str(self.k_core)]
        for name, value in self.split.items():
            words += [f"--{name}", str(value)]
        return words

    def train_sasrec(self, row: Row, seed: int) -> Step:
        directory = self.directory(row, seed)
        settings = str(directory / "settings.yaml")
        model = directory / "model"
        command = ["python", "-m", "ilrec", "sasrec", *self.data_words()]
        return Step(
            row=row.name,
            seed=seed,
            name="train",
            directory=directory,
            command=[*command, "--config", settings, "--output", str(model)],
            product=model,
            files=(("data", self.data_digest),),
            settings={**row.fields, "seed": seed},
            clears=model,
        )

    def train(self, row: Row, seed: int) -> Step:
        """A recipe's row: trained by its script with settings of its own."""
        directory = self.directory(row, seed)
        model = directory / "model"
        # Where things lie is part of the settings file, but not of what the result is made of.
        settings = self.grid.settings(row)
        settings |= {"data": self.grid.data, "output_dir": str(model), "seed": seed}
        # What other rows trained takes the place of the fields of these names.
        sources = {}
        for name, source in self.sources_of(row, seed).items():
            sources[name] = self.trained[source]
            settings[name] = str(sources[name].product)

        files = [("data", self.data_digest), ("semantic_ids", self.semantic_ids_digest(settings))]
        script, *words = shlex.split(row.script)
        command = [*self.grid.launcher, from_root(script), *words]
        if self.grid.ds_config:
            command += ["--ds_config", self.grid.ds_config]
            files.append((self.grid.ds_config, fingerprint_of([ROOT / self.grid.ds_config])))
        return Step(
            row=row.name,
            seed=seed,
            name="train",
            directory=directory,
            command=[*command, "--config", str(directory / "settings.yaml")],
            product=model / "final",
            sources=tuple(sources.values()),
            files=tuple(files),
            settings=settings,
            clears=model,
        )

    def sources_of(self, row: Row, seed: int) -> dict[str, tuple[str, int]]:
        """{field: (row, seed)} of the runs that this one starts from."""
        found = {}
        for name, source in (("model", row.model), ("sasrec", row.sasrec)):
            if source:
                found[name] = (source, self.grid.source_seed(source, seed))
        return found

    def rank(self, row: Row, seed: int) -> Step:
        directory, split = self.directory(row, seed), self.grid.split
        product = directory / f"{split}.json"
        trained = self.trained.get((row.name, seed))
        # A language model is ranked by beam search, a baseline by its scores.
        if row.recipe and trained:
            command = [*self.grid.launcher, from_root("ilrec/rank.py")]
            command += ["--model", str(trained.product), "--data", self.grid.data]
            command += ["--num_beams", str(self.grid.num_beams)]
        else:
            command = ["python", "-m", "ilrec.experiments.rank_baselines"]
            command += ["--method", row.baseline, *self.data_words()]
            fields = {"sasrec": trained.product} if trained else row.fields
            for name, value in fields.items():
                command += [f"--{name}", str(value)]
        return Step(
            row=row.name,
            seed=seed,
            name=f"rank-{split}",
            directory=directory,
            command=[*command, "--split", split, "--output", str(product)],
            product=product,
            sources=(trained,) if trained else (),
            files=(("data", self.data_digest),),
        )

    def made_of(self, row: Row, seed: int) -> dict[str, Any]:
        """All that decides a result of this row, by contents. Of the rows that it starts from, what
        these are made of.

        Committed results are compared with this (experiment_results.is_same): a change here makes
        all of them invalid.
        """
        if row.baseline:
            return self.baseline_made_of(row, seed)
        # Settings are resolved to all fields with their defaults: two ways to write the same count
        # as the same.
        settings = self.grid.settings(row)
        places = PLACES
        if settings.get("init") is not None and not row.model:
            places = {**PLACES, "model": ""}
        resolved = load_config(None, {**settings, **places, "seed": seed}).flat()
        sources = {}
        for name, source in self.sources_of(row, seed).items():
            sources[name] = self.contents[source]
        # A model that is read from a directory counts by its files.
        base = None
        if "model" in settings:
            base = model_digest(local_directory(find_model(settings["model"]).base))
        ds_config = None
        if self.grid.ds_config:
            ds_config = fingerprint_of([ROOT / self.grid.ds_config])
        return {
            "script": row.script,
            "launcher": self.grid.launcher,
            "seed": seed,
            "data": self.data_digest,
            "semantic_ids": self.semantic_ids_digest(settings),
            "base": base,
            "ds_config": ds_config,
            "settings": {name: value for name, value in resolved.items() if name not in INCIDENTAL},
            "sources": sources,
        }

    def baseline_made_of(self, row: Row, seed: int) -> dict[str, Any]:
        kind = BASELINE_SETTINGS[row.baseline]
        settings = dataclasses.asdict(kind(**row.fields)) if kind else {}
        if "seed" in settings:
            settings["seed"] = seed
        return {
            "method": row.baseline,
            "seed": seed,
            "k_core": self.k_core,
            # Not there by default, so that results of grids with the default split stay valid.
            **self.split,
            "data": self.data_digest,
            "settings": settings,
        }

    def semantic_ids_digest(self, settings: dict[str, Any]) -> str:
        """Of the index file that is named, or of those that lie in the data directory."""
        named = settings.get("semantic_ids")
        paths = [ROOT / named] if named else sorted(Path(self.grid.data).glob("*.index.json"))
        if named and not paths[0].is_file():
            raise InputError(f"{self.grid.path}: semantic_ids: no such file: {paths[0]}")
        return fingerprint_of(paths)


def from_root(name: str) -> str:
    """What a grid names by a path, as a command that runs in ROOT names it."""
    return name if (ROOT / name).exists() else str(place(name))


def with_sources(step: Step) -> list[Step]:
    """All that the step starts from, and then itself."""
    found = []
    for source in step.sources:
        found += with_sources(source)
    return [*found, step]


def product_digest(step: Step) -> str:
    """Digest of the file, or of the weights in the directory. Raises InputError if the command has
    not written it."""
    paths = product_files(step.product)
    if not paths:
        raise InputError(
            f"{step.title} ended without an error but left no result in {step.product}\n"
            f"  its output: {step.log}"
        )
    return fingerprint_of(paths, [path.name for path in paths])

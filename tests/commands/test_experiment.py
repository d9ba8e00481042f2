"""Grids that are really run: what is done is not repeated, what changed is, what failed is named;
one whole experiment."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import INIT, launch

from ilrec.commands.experiment import main, seconds
from ilrec.errors import InputError
from ilrec.ranking.measuring import Measured
from ilrec.ranking.metrics import TargetRanks
from ilrec.ranking.results import write_ranking

SFT = {"recipe": "ilrec/recipes/sft.yaml", "fields": {"init": INIT, "max_steps": 2}}
JOINT = {
    "recipe": "ilrec/recipes/joint.yaml",
    "model": "sft",
    "sasrec": "SASRec",
    "fields": {"max_steps": 2, "num_readout_layers": 2},
}
ROWS = {
    "popularity": {"baseline": "popularity"},
    "SASRec": {"baseline": "sasrec", "fields": {"num_epochs": 2, "hidden_size": 8}},
    "sft": SFT,
    "joint": JOINT,
}


class Pretended:
    """In place of commands: writes what each would write, and keeps their words.

    broken: a row whose training fails.
    """

    def __init__(self, broken: str = "") -> None:
        self.commands: list[str] = []
        self.broken = broken

    def __call__(self, command: list[str], log: Path) -> int:
        self.commands.append(shlex.join(command))
        words = dict(zip(command, command[1:], strict=False))
        if "--split" in words:
            self.rank(words)
            return 0
        if self.broken and f"/{self.broken}/" in str(log):
            log.write_text("Traceback\nilrec: the disk is full\n")
            return 1
        self.train(words)
        return 0

    def rank(self, words: dict[str, str]) -> None:
        protocol = {"num_users": 30, "num_items": 24, "users_sha256": "u", "items_sha256": "i"}
        protocol["data"] = "/far/away"
        if "--num_beams" in words:
            protocol["num_beams"] = int(words["--num_beams"])
        measured = Measured({"hit@10": 1 / 3, "ndcg@10": 0.15}, {})
        ranks = TargetRanks.one_each(np.arange(1, 31))
        write_ranking(words["--output"], measured, protocol, ranks)

    def train(self, words: dict[str, str]) -> None:
        settings = yaml.safe_load(Path(words["--config"]).read_text())
        if "--output" in words:
            product = Path(words["--output"])
        else:
            product = Path(settings["output_dir"]) / "final"
        product.mkdir(parents=True, exist_ok=True)
        (product / "model.safetensors").write_text(json.dumps(settings))


class Runs:
    """Called with rows, further words and keys of the grid, it runs the grid and returns the
    commands that were given."""

    def __init__(self, data: Path, directory: Path) -> None:
        self.data = data
        self.directory = directory
        self.commands: list[str] = []  # also those of a run that failed

    def __call__(self, rows: dict, *words: str, broken: str = "", **head) -> list[str]:
        path = self.directory / "tiny.yaml"
        content = {"data": str(self.data), **head, "rows": rows}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        pretended = Pretended(broken)
        self.commands = pretended.commands
        main([str(path), "--output", str(self.directory / "runs"), *words], pretended)
        return self.commands


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Runs:
    return Runs(data, tmp_path)


def kinds(commands: list[str]) -> list[str]:
    """Of each command: rank, sasrec, or the script that trains."""
    found = []
    for command in commands:
        words = command.split()
        kind = "sasrec" if "-m ilrec sasrec" in command else words[1]
        found.append("rank" if "--split" in words else kind)
    return found


def test_sources_first_and_nothing_twice(run, tmp_path):
    sasrec, train = "sasrec", "ilrec/train.py"
    assert kinds(run(ROWS)) == ["rank", sasrec, "rank", train, "rank", train, "rank"]
    settings = yaml.safe_load((tmp_path / "runs/joint/seed-0/settings.yaml").read_text())
    assert settings["model"] == str(tmp_path / "runs/sft/seed-0/model/final")
    assert settings["sasrec"] == str(tmp_path / "runs/SASRec/seed-0/model")
    assert settings["seed"] == 0
    assert run(ROWS) == [], "all is done"
    table = (tmp_path / "runs/tiny.md").read_text()
    assert "| joint | 1 | - | - | 0.3333 |" in table
    assert kinds(run(ROWS, "--split", "valid")) == ["rank"] * 4, "another split does not train"


def test_a_run_that_was_done_anywhere_is_done(run, tmp_path):
    """The results alone are there, as in another checkout: nothing is run, and the table is made
    from them. What needs weights is trained again, and its result is kept as it was."""
    run(ROWS)
    shutil.rmtree(tmp_path / "runs")
    before = (tmp_path / "results/tiny/sft/seed-0.json").read_text()
    assert run(ROWS) == [] and "| joint | 1 |" in (tmp_path / "runs/tiny.md").read_text()
    more = {"more": {"like": "joint", "fields": {"beta": 0.7}}}
    assert kinds(run({**ROWS, **more})) == [
        "sasrec",
        "ilrec/train.py",
        "ilrec/train.py",
        "rank",
    ]
    assert (tmp_path / "results/tiny/sft/seed-0.json").read_text() == before
    assert "/far/away" not in before and str(tmp_path) not in before


def test_weights_that_were_removed_are_trained_again_when_needed(run, tmp_path):
    """The marker of sft's training still says that it finished."""
    run(ROWS)
    (tmp_path / "runs/sft/seed-0/model/final/model.safetensors").unlink()
    assert run(ROWS) == [], "the results are there, and need no weights"
    more = {"more": {"like": "joint", "fields": {"beta": 0.7}}}
    assert kinds(run({**ROWS, **more})) == ["ilrec/train.py", "ilrec/train.py", "rank"]


def test_more_beams_rank_again(run):
    run(ROWS)
    assert len(run(ROWS, num_beams=30)) == 2, "sft and joint; baselines have no beams"


def test_first_seeds_come_first(run):
    rows = {"sft": {**SFT, "seeds": [0, 1]}, "joint": {**JOINT, "sasrec": "", "seeds": [0, 1]}}
    trained = [command for command in run(rows) if "--split" not in command]
    expected = ["sft/seed-0", "joint/seed-0", "sft/seed-1", "joint/seed-1"]
    for command, place in zip(trained, expected, strict=True):
        assert place in command


def test_only_what_fits_into_the_time_is_started(run, tmp_path):
    """One row is known to take an hour: nothing of its kind is started in a minute, and the rest
    is."""
    run({"sft": SFT})
    path = tmp_path / "results/tiny/sft/seed-0.json"
    content = json.loads(path.read_text())
    content["training"]["seconds"] = 3600
    path.write_text(json.dumps(content))
    other = {
        "sft": SFT,
        "popularity": ROWS["popularity"],
        "other": {"like": "sft", "fields": {"max_steps": 1}},
    }
    assert len(run(other, "--budget", "1m")) == 1, "popularity is ranked"
    assert len(run(other, "--budget", "2h")) == 2


def test_a_time_is_a_number_and_a_unit():
    assert [seconds(text) for text in ("90s", "100m", "1.5h")] == [90, 6000, 5400]


@pytest.mark.parametrize("text", ["soon", "m", "0m", "-5m", "nanm", "infh", "90"])
def test_other_times_are_refused(run, text, capsys):
    with pytest.raises(SystemExit):
        run(ROWS, f"--budget={text}")
    assert f"expected a time above 0 such as 100m, 1.5h or 90s, got '{text}'" in (
        capsys.readouterr().err
    )


def test_the_table_from_the_results_alone(run, tmp_path):
    run(ROWS)
    (tmp_path / "runs/tiny.md").unlink()
    assert run(ROWS, "--table", data=str(tmp_path / "gone")) == []
    assert "| joint | 1 | - | - | 0.3333 |" in (tmp_path / "tiny.md").read_text()


def test_a_damaged_result_is_named(run, tmp_path):
    run({"sft": SFT})
    (tmp_path / "results/tiny/sft/seed-0.npz").write_bytes(b"half")
    message = r"seed-0\.npz: the ranks beside seed-0\.json cannot be read"
    with pytest.raises(InputError, match=message):
        run({"sft": SFT})
    (tmp_path / "results/tiny/sft/seed-0.json").write_text("{}[")
    with pytest.raises(InputError, match=r"seed-0\.json:1:3"):
        run({"sft": SFT})


def test_a_change_is_run_again_with_all_that_follows_from_it(run):
    run(ROWS)
    changed = {**ROWS, "sft": {**SFT, "fields": {**SFT["fields"], "learning_rate": 1e-3}}}
    assert len(run(changed)) == 4, "sft and joint, trained and ranked"
    shorter = {**JOINT, "fields": {**JOINT["fields"], "max_steps": 3}}
    assert len(run({**changed, "joint": shorter})) == 2
    again = run({**changed, "more": {"like": "joint"}}, "--only", "joint")
    assert len(again) == 2, "its settings changed back"


def test_a_failure_names_row_and_log_and_goes_on_where_asked(run, tmp_path):
    other = {"like": "sft", "fields": {"max_steps": 1}}
    message = r"sft seed 0: train failed with exit status 1: ilrec: the disk is full\n.*train\.log"
    with pytest.raises(InputError, match=message):
        run({"sft": SFT, "other": other}, broken="sft")
    assert len(run.commands) == 1
    rows = {"sft": SFT, "joint": {**JOINT, "sasrec": ""}, "other": other}
    with pytest.raises(InputError, match="the disk is full"):
        run(rows, "--keep_going", broken="sft")
    assert len(run.commands) == 3, "sft once more, other trained and ranked, joint left out"
    assert "not all seeds: sft, joint" in (tmp_path / "runs/tiny.md").read_text()


def test_list_runs_nothing(run, capsys):
    assert run(ROWS, "--list") == []
    assert "to do       popularity seed 0: rank-test" in capsys.readouterr().out


def test_a_whole_experiment(data, tmp_path):
    """Real commands: a baseline, a filter, sft and joint on the tiny world, compared."""
    grid = tmp_path / "whole.yaml"
    content = {
        "data": str(data),
        "num_beams": 5,
        "shared": {
            "max_steps": 2,
            "gradient_accumulation_steps": 1,
            "per_device_train_batch_size": 2,
        },
        "rows": ROWS,
        "compare": [["joint", "sft"]],
    }
    grid.write_text(yaml.safe_dump(content))
    script = "tools/experiments/run_experiment.py"
    words = ["python", script, str(grid), "--output", str(tmp_path / "runs")]
    first = launch(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    table = (tmp_path / "runs/whole.md").read_text()
    for row in ROWS:
        assert f"| {row} | 1 | 0." in table
    assert "| joint - sft | NDCG@10 |" in table and "not all seeds: none" in table
    assert (tmp_path / "runs/joint/seed-0/model/metrics.jsonl").exists()
    again = launch(*words)
    assert again.returncode == 0 and "] 0 steps to do" in again.stdout

"""Places that are tried and files that are whole. Every program tries its own place before it does
anything else."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
from conftest import ROOT

from ilrec.cli import COMMANDS
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory, check_file, check_new, whole_file
from ilrec.processes import BAD_INPUT, run_entry

# What each program is given beside its output. Data, models and files are missing: a message about
# them would mean that they were looked for first. OUTPUT stands for the place that cannot be
# written.
NOWHERE = "/nowhere"
RECIPE = str(ROOT / "ilrec/recipes/sft.yaml")
TRAINING = ["--config", RECIPE, "--model", NOWHERE, "--data", NOWHERE, "--output_dir", "OUTPUT"]
PROGRAMS = {  # module: (function, kind of output, words)
    "ilrec.rank": ("main", "file", ["--model", NOWHERE, "--output", "OUTPUT"]),
    "ilrec.recommend": ("main", "file", ["--model", NOWHERE, "--output", "OUTPUT"]),
    "ilrec.train": ("train", "directory", TRAINING),
    "ilrec.experiments.train_dpo": (
        "main",
        "directory",
        ["--num_rejected", "1", "--dpo_beta", "1", *TRAINING],
    ),
    "ilrec.commands.init": ("main", "directory", ["OUTPUT"]),
    "ilrec.commands.sasrec": ("main", "directory", ["--data", NOWHERE, "--output", "OUTPUT"]),
    "ilrec.experiments.rank_baselines": (
        "main",
        "file",
        ["--method", "popularity", "--data", NOWHERE, "--output", "OUTPUT"],
    ),
    "ilrec.commands.ids": (
        "main",
        "file",
        ["--data", NOWHERE, "--embeddings", NOWHERE, "--output", "OUTPUT"],
    ),
    "ilrec.commands.average": (
        "main",
        "directory",
        ["--models", NOWHERE, NOWHERE, "--output", "OUTPUT"],
    ),
    "ilrec.commands.merge": ("main", "directory", ["--adapter", NOWHERE, "--output", "OUTPUT"]),
    "ilrec.commands.prepare": (
        "main",
        "directory",
        ["--interactions", NOWHERE, "--output", "OUTPUT"],
    ),
    "ilrec.commands.report": ("main", "file", ["--rank", f"a={NOWHERE}", "--output", "OUTPUT.png"]),
    "ilrec.commands.compare": ("main", "file", [NOWHERE, "other", "--output", "OUTPUT.png"]),
    "ilrec.commands.experiment": ("main", "directory", ["GRID", "--output", "OUTPUT"]),
    "benchmark_ops": ("main", "directory", ["--output", "OUTPUT"]),
    "benchmark_training": ("main", "directory", ["--output", "OUTPUT"]),
    "quickstart": ("main", "directory", ["--output", "OUTPUT"]),
}
# The function in which the work of a program begins, if it reads nothing that could be missing.
WORK = {
    "benchmark_ops": "make_plan",
    "benchmark_training": "make_model",
    "quickstart": "fetch_movielens",
}


def unwritable(kind: str, where: str, tmp_path: Path) -> Path:
    """Not by permissions: tests may run as root, whom these do not stop."""
    if where == "in a file":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "new" / "output.png"
    if where == "nothing can be made there":
        return Path("/proc/none/output.png")
    if kind == "file":
        (tmp_path / "output.png").mkdir()
    else:
        (tmp_path / "output.png").touch()
    return tmp_path / "output.png"


PLACES = ("another kind is there", "in a file", "nothing can be made there")


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("program", [*PROGRAMS, "ilrec.commands.experiment --report"])
def test_every_program_tries_its_output_first(program, where, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(program.split()[0])
    function, kind, words = PROGRAMS[program.split()[0]]
    output = unwritable(kind, where, tmp_path)
    (tmp_path / "grid.yaml").write_text(
        f"data: {NOWHERE}\nrows:\n  pop: {{baseline: popularity}}\n"
    )
    if program.endswith("--report"):
        words = ["GRID", "--output", str(tmp_path), "--report", "OUTPUT"]
    places = {"OUTPUT": str(output), "OUTPUT.png": str(output), "GRID": str(tmp_path / "grid.yaml")}
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", [program, *(places.get(word, word) for word in words)])
    if program in WORK:
        monkeypatch.setattr(module, WORK[program], lambda *_: pytest.fail("work was begun"))
    with pytest.raises(SystemExit) as ended:
        run_entry(getattr(module, function))
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == BAD_INPUT and len(errors) == 1, printed.err
    assert str(output) in errors[0] and NOWHERE not in errors[0]
    assert "Traceback" not in printed.err and not printed.out
    assert sorted(tmp_path.rglob("*")) == before


def test_no_program_is_forgotten():
    """Programs are the commands of `ilrec`, and the files in tools/, ilrec/ or below that start
    themselves. A script that starts a module of the package counts as that module."""
    programs = {command.main.partition(":")[0].split(".")[-1] for command in COMMANDS.values()}
    for folder in ("tools", "ilrec"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text()
            if 'if __name__ == "__main__":' in source and path.stem != "__main__":
                started = re.search(r"^from ilrec\.\w+\.(\w+) import main$", source, re.M)
                programs.add(started[1] if started else path.stem)
    # It writes to the standard output alone.
    programs.remove("reference")
    assert programs == {name.split(".")[-1] for name in PROGRAMS}


def test_a_trial_leaves_nothing(tmp_path):
    check_file(tmp_path / "new" / "er" / "a.json")
    check_directory(tmp_path / "new")
    check_directory(tmp_path)
    check_new(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.json").write_text("old")
    check_file(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "old"
    with pytest.raises(InputError, match="exists already; expected a new or an empty directory"):
        check_new(tmp_path)


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A file that is renamed onto /dev/null would replace the device."""
    with pytest.raises(InputError, match="/dev/null: cannot be written: it is no regular file"):
        check_file("/dev/null")
    with pytest.raises(InputError, match="File name too long"):
        check_file(tmp_path / ("a" * 250))


def test_a_full_disk_is_found_out(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **_: open("/dev/full", "wb"))
    with pytest.raises(InputError, match="nothing can be made in .*No space left on device"):
        check_file(tmp_path / "a.json")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("a bug")]
)
def test_a_file_is_whole_or_as_it_was(tmp_path, error):
    path = tmp_path / "new" / "a.json"
    with whole_file(path) as beside:
        beside.write_text("old")
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), whole_file(path) as beside:
        beside.write_text("ne")
        raise error
    assert path.read_text() == "old" and os.listdir(path.parent) == ["a.json"]

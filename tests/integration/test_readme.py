"""The README's commands, run as they are written, in their order, on tiny data. Also the steps of
`make quickstart`, cut short."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, launch, write_data

pytestmark = pytest.mark.launch
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    """The lines of the README's bash blocks, without make targets and what needs a cluster
    (tests/cluster runs that)."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        # A backslash at the end of a line continues the command.
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line and not line.startswith("make ") and "slurm/" not in line:
                found.append(line)
    return found


def test_the_two_commands_are_make_targets():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    assert "make quickstart" in README
    assert "make test" in README


def test_files_that_the_readme_names_exist():
    in_code = re.findall(r"`((?:ilrec|ds_configs|tools|docs)/[\w./]*)`", README)
    in_links = re.findall(r"\]\(([\w./]+)\)", README)
    named = in_code + in_links
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_commands_run_in_their_order(base, tmp_path):
    """Nothing is replaced but the places (DATA, MODEL, runs/) and the amount of training."""
    data = write_data(tmp_path / "data")
    (data / "tiny.index.json").unlink()  # The second command makes it.
    short = {
        "ilrec/train.py": ["--max_steps", "2", "--num_readout_layers", "2"],
        "tools/train_sasrec.py": ["--num_epochs", "2"],
        "tools/build_semantic_ids.py": ["--codebook_size", "4"],
    }
    ran = commands()
    assert len(ran) == 7
    places = {"DATA": str(data), "MODEL": str(base), "runs/": f"{tmp_path}/runs/"}
    for command in ran:
        line = command
        for name, place in places.items():
            line = line.replace(name, place)
        words = line.split()
        script = next(word for word in words if word.endswith(".py"))
        words += short.get(script, [])
        # A recipe has an output_dir under runs/, which is moved, too.
        for word in line.split():
            if "recipes/" in word:
                words += ["--output_dir", f"{tmp_path}/runs/{Path(word).stem}"]
        result = launch(*words)
        assert result.returncode == 0, f"{command}\n{(result.stdout + result.stderr)[-5000:]}"
    ranking = json.loads((tmp_path / "runs" / "merged" / "ranking.json").read_text())
    assert ranking["protocol"]["num_users"] == 30


@pytest.mark.slow
def test_quickstart_goes_the_whole_way_and_reuses_it(tmp_path):
    """All steps on the real data, with two optimizer steps per stage and five targets of each of
    100 users. A second run repeats none of them."""
    quickstart = ("python", "tools/quickstart.py", "--output", str(tmp_path), "--trial")
    first = launch(*quickstart, timeout=500)
    assert first.returncode == 0, (first.stdout + first.stderr)[-5000:]
    for row in ("popularity", "SASRec", "sft", "stage1", "stage2"):
        assert re.search(rf"^{row} +0\.\d+", first.stdout, re.MULTILINE), row
    assert (tmp_path / "report.png").stat().st_size > 10_000
    ranking = json.loads((tmp_path / "rankings" / "stage2.json").read_text())
    assert ranking["protocol"]["num_users"] == 100
    assert ranking["protocol"]["num_cases"] == 500
    assert "Differences to sft: test split, 100 users, 500 cases." in first.stdout
    second = launch(*quickstart, timeout=100)
    assert second.returncode == 0
    assert second.stdout.count("done before, reused") == first.stdout.count("  $ ")


def test_quickstart_refuses_a_wrong_wheel(tmp_path):
    wheel = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    shutil.copy(ROOT / "README.md", wheel)
    words = ("--output", str(tmp_path / "out"), "--wheel", str(wheel))
    result = launch("python", "tools/quickstart.py", *words)
    assert result.returncode == 2
    assert "not the wheel of recbole==1.2.1: sha256 is" in result.stderr

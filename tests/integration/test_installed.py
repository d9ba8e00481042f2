"""The wheel, installed into an environment of its own: from a CSV file to a ranking with the
command `ilrec` alone, in an empty directory outside of the checkout."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.launch, pytest.mark.slow]
# What a build reads. Built in a copy, because setuptools leaves files beside its sources.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ilrec", "ds_configs", "slurm")
# In place of SLURM: one node, this one.
PRETENDED = {
    "srun": '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n',
    "scontrol": "#!/bin/bash\necho 127.0.0.1\n",
}


class Installed:
    """An environment with the wheel, and an empty directory in which its user works."""

    def __init__(self, environment: Path, directory: Path) -> None:
        self.programs = environment / "bin"
        self.directory = directory
        self.variables = {
            **os.environ,
            "PATH": f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        # Neither the checkout nor the interpreter that tests run the kernels in.
        for name in ("PYTHONPATH", "TRITON_INTERPRET"):
            self.variables.pop(name, None)

    def __call__(self, *words: object, fails: bool = False, **variables: str) -> str:
        """Run a command as a user types it; what it printed."""
        result = subprocess.run(
            list(map(str, words)),
            cwd=self.directory,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
        output = result.stdout + result.stderr
        assert bool(result.returncode) == fails, f"{words}\n{output[-5000:]}"
        return output


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    source, environment, directory = place / "source", place / "environment", place / "empty"
    directory.mkdir()
    copy_sources(source)
    offline = ["--quiet", "--no-deps", "--no-index"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(place), str(source)], check=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    [wheel] = place.glob("*.whl")
    python = str(environment / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", *offline, str(wheel)], check=True)
    borrow_packages(environment)
    return Installed(environment, directory)


def copy_sources(target: Path) -> None:
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name)
        else:
            shutil.copyfile(ROOT / name, target / name)


def borrow_packages(environment: Path) -> None:
    """torch and the others come from the environment of the tests. Its own link to the checkout is
    a .pth file, which Python does not follow from here."""
    here = sysconfig.get_path("purelib", vars={"base": str(environment)})
    Path(here, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    scripts = {
        **PRETENDED,
        "torchrun": f"#!{python}\nfrom torch.distributed.run import main\nmain()\n",
    }
    for name, text in scripts.items():
        script = environment / "bin" / name
        script.write_text(text)
        script.chmod(0o755)


def write_clicks(path: Path) -> None:
    """40 users who walk through 20 items, in the order of time."""
    rng = random.Random(0)
    lines = ["user,item,time"]
    for user in range(40):
        first = rng.randrange(20)
        lines += [f"u{user},i{(first + place) % 20},{place}" for place in range(8)]
    path.write_text("\n".join(lines) + "\n")


def test_the_command_answers_without_heavy_imports(installed):
    assert installed("ilrec", "--version").startswith("ilrec 0.")
    program = (
        "import sys; import ilrec.cli as cli\n"
        "sys.argv = ['ilrec', '--help']; cli.main()\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'pyarrow'} & set(sys.modules)))\n"
        "print(cli.__file__)\n"
    )
    usage = installed(installed.programs / "python", "-c", program).splitlines()
    assert usage[-2] == "[]"
    assert "environment/lib" in usage[-1], "of the wheel, not of the checkout"
    message = installed("ilrec", "trian", fails=True)
    assert message == "error: ilrec: unknown command 'trian'; did you mean 'train'?\n"


def readme_commands() -> list[str]:
    """The README's way with the installed command, without the installation."""
    [block] = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    commands = [line.partition("#")[0].strip() for line in lines]
    assert commands[0].startswith("pip install")
    return commands[1:]


@pytest.fixture(scope="module")
def printed(installed, base) -> list[str]:
    """What the README's commands print, given as they are written, with less training and a tiny
    MODEL."""
    write_clicks(installed.directory / "clicks.csv")
    short = {
        "sasrec": "--num_epochs 2",
        "ids": "--codebook_size 4",
        "train": "--max_steps 2",
        "rank": "--num_beams 5",
    }
    found = []
    for command in readme_commands():
        words = command.replace("MODEL", str(base)).split()
        found.append(installed(*words, *short.get(words[1], "").split()))
    return found


def test_from_a_csv_file_to_a_ranking(installed, printed):
    assert "Hit@5" in printed[-1]
    ranking = json.loads((installed.directory / "runs/merged/ranking.json").read_text())
    assert ranking["protocol"]["num_users"] == 40
    assert "recipes: exists already" in installed("ilrec", "init", ".", fails=True)


@pytest.mark.usefixtures("printed")
def test_the_job_templates_work_where_init_put_them(installed, base):
    """Two ranks, each the installed program, started by a job script with DeepSpeed, in the
    directory and on the data of the README's commands."""
    job = {
        "MODEL": str(base),
        "DATA": "data",
        "DS_CONFIG": "ds_configs/zero3_cpu.json",
        "RANKS_PER_NODE": "2",
        # The port of the ranks is made from it.
        "SLURM_JOB_ID": str(random.randrange(10_000)),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
    }
    installed("bash", "slurm/stage1.sh", "--max_steps", 2, "--num_readout_layers", 2, **job)
    run = installed.directory / "runs/stage1"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["world_size"] == 2 and environment["commit"] is None
    assert (run / "final/adapter_model.safetensors").exists()

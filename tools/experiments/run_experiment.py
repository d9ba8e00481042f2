"""Run a grid of methods: `ilrec experiment`, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ilrec.commands.experiment import main
from ilrec.processes import run_entry

if __name__ == "__main__":
    run_entry(main)

"""Train SASRec: `ilrec sasrec`, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.commands.sasrec import main
from ilrec.processes import run_entry

if __name__ == "__main__":
    run_entry(main)

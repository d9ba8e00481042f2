"""Paired comparisons of rankings: `ilrec compare` (ilrec/commands/compare.py).

python tools/compare.py runs/sft/final/ranking.json runs/stage2/final/ranking.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.commands.compare import main
from ilrec.processes import run_entry

if __name__ == "__main__":
    run_entry(main)

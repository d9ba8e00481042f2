"""tools/ holds scripts, not a package: what tests call of them in-process comes through here."""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "benchmarks")]

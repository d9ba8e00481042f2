"""tools/ is a folder of scripts, not a package: what tests call of it in-process comes through here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

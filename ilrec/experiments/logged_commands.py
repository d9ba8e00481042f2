"""Commands whose output goes to a log file, and that end together with the process that started
them.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from ilrec.experiments.grid import ROOT

# A command that was asked to end has so long before it is killed.
SECONDS_TO_END = 30


def run_command(command: list[str], log: Path) -> int:
    """Run it in ROOT; the exit status. Output and errors are added to `log`.

    If this process is interrupted, the command and all that it started end first.
    """
    words = [sys.executable, *command[1:]] if command[0] == "python" else command
    with open(log, "ab") as output:
        output.write(f"\n$ {shlex.join(command)}\n".encode())
        output.flush()
        # A session of its own: its processes can be ended together, those of a launcher too.
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment_of_commands(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            # Also for KeyboardInterrupt and SystemExit, which are no Exception.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise


def environment_of_commands() -> dict[str, str]:
    """Programs such as deepspeed are found beside this Python first."""
    beside_python = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{beside_python}{os.pathsep}{os.environ.get('PATH', '')}",
        "TOKENIZERS_PARALLELISM": "false",
    }


def last_line(log: Path) -> str:
    """The last line that a failed command wrote, which mostly is the reason."""
    if log.exists():
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in reversed(lines):
            if line.strip():
                return line.strip()[:300]
    return "it wrote nothing"

"""Commands with a log: what it holds, and that nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

from ilrec.experiments.logged_commands import last_line, run_command


def test_output_and_errors_are_added_to_the_log(tmp_path: Path):
    log = tmp_path / "a.log"
    log.write_text("before\n")
    program = "import sys; print('to stdout'); sys.exit('to stderr')"
    assert run_command(["python", "-c", program], log) == 1
    text = log.read_text()
    assert text.startswith("before\n\n$ python -c ") and "to stdout" in text
    assert last_line(log) == "to stderr"


def test_a_log_without_a_line(tmp_path: Path):
    (tmp_path / "empty.log").write_text("\n\n")
    assert (
        last_line(tmp_path / "empty.log")
        == last_line(tmp_path / "none.log")
        == ("it wrote nothing")
    )


def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path):
    """The command writes its process id, then sleeps; the process that waits for it is
    interrupted."""
    pid_file = tmp_path / "pid"
    child = (
        f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    )
    child += "; time.sleep(60)"
    parent = (
        "from pathlib import Path; from ilrec.experiments.logged_commands import run_command; "
        f"run_command(['python', '-c', {child!r}], Path({str(tmp_path / 'a.log')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stderr=subprocess.PIPE)
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not is_running(int(pid_file.read_text()))


def wait_until(condition, limit: float = 120.0) -> None:
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

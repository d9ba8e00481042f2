"""Steps of a longer piece of work that are not done twice: one marker file for each.

    step = ResumableStep(
        marker=Path("runs/steps/sft.json"),
        wanted={"command": command, "inputs": {"data": digest}},
        products=(Path("runs/sft/final"),),
        clears=(Path("runs/sft"),),
    )
    if step.state() != "done":
        step.run(work)      # work() does it, and returns a digest of what it wrote

A marker says what a step was made of (`wanted`), and whether it finished. The state of a step:

    to do        there is no marker
    changed      the marker is of another command or of other inputs; the next run starts afresh
    interrupted  the marker fits, but the step did not finish, or its product is gone; the next run
                 goes on from what lies there
    done         the marker fits, the step finished, and its product is still there
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json


@dataclass(frozen=True)
class ResumableStep:
    """wanted: what decides the product (command, settings, digests of inputs); must fit into JSON.

    products: files, or directories of weights, that a finished step has written.
    clears: files and directories that are removed before the step starts afresh.
    """

    marker: Path
    wanted: Mapping[str, Any]
    products: tuple[Path, ...]
    clears: tuple[Path, ...] = ()

    def read_marker(self) -> dict[str, Any]:
        """The marker's content; empty if there is no marker."""
        return read_json(self.marker) if self.marker.exists() else {}

    def state(self) -> str:
        """One of "to do", "changed", "interrupted" and "done", as the module's docstring says."""
        marker = self.read_marker()
        if not marker:
            return "to do"
        for name, value in self._wanted_as_read().items():
            if marker.get(name) != value:
                return "changed"
        # The marker alone is not enough: a product may have been removed since.
        if marker.get("product") and all(map(product_files, self.products)):
            return "done"
        return "interrupted"

    def run(self, work: Callable[[], Any], **facts: Any) -> None:
        """Do the step, or go on with it if it was interrupted.

        work: does it, and returns a digest of its product; what it raises is passed on.
        facts: further entries of the marker, such as the machine.
        """
        # A step that goes on keeps what lies there, and the time that it has taken so far.
        goes_on = self.state() == "interrupted"
        seconds_before = self.read_marker().get("seconds", 0.0) if goes_on else 0.0
        if not goes_on:
            for path in self.clears:
                _remove(path)
        marker = {**self.wanted, **facts, "product": None, "seconds": seconds_before}
        # Written before the work begins: a process that is killed leaves an interrupted step.
        self._write_marker(marker)
        # If the work raises, the marker holds its time but no product.
        begun = time.monotonic()
        try:
            marker["product"] = work()
        finally:
            marker["seconds"] = seconds_before + time.monotonic() - begun
            marker["finished"] = time.strftime("%Y-%m-%d")
            self._write_marker(marker)

    def _wanted_as_read(self) -> dict[str, Any]:
        """`wanted` as it comes back from a file: JSON has lists where Python has tuples."""
        return json.loads(json.dumps(self.wanted))

    def _write_marker(self, marker: Mapping[str, Any]) -> None:
        write_text(self.marker, json.dumps(marker, indent=2) + "\n")


def product_files(product: Path) -> list[Path]:
    """The file itself, or the weights in a directory, in order; empty if the product is gone."""
    if product.is_dir():
        return sorted(product.glob("*.safetensors"))
    return [product] if product.is_file() else []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

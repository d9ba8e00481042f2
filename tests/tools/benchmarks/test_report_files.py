"""What the benchmarks' reports have in common: tables for the terminal, and file names."""

from __future__ import annotations

import tools_path  # noqa: F401  (puts tools/ on the path)
from report_files import aligned, report_name


def test_names_stand_on_the_left_and_numbers_on_the_right():
    table = aligned(["name", "ms"], [["a", "1.0"], ["longer", "10.0"]], num_names=1)
    assert table.split("\n") == ["name      ms", "a        1.0", "longer  10.0"]


def test_a_remark_widens_no_column():
    rows = [["a", "not measured: it needs a GPU"], ["b", "1", "2"]]
    lines = aligned(["name", "ms", "MiB"], rows, num_names=1).split("\n")
    assert lines == ["name  ms  MiB", "a     not measured: it needs a GPU", "b      1    2"]


def test_a_report_is_named_after_the_device():
    report = {"environment": {"device": "AMD EPYC (tm) CPU"}}
    assert report_name("ops", report, "float32") == "ops-amd-epyc-tm-cpu-float32"

"""Tables in Markdown."""

from __future__ import annotations

from ilrec.files.markdown import markdown_table


def test_a_table_has_a_line_under_its_header():
    table = markdown_table(["a", "b"], [["1", "2"], ["3", "4"]])
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def test_a_short_row_is_filled():
    assert markdown_table(["a", "b"], [("reason",)]).endswith("\n| reason |  |")

"""What is wrong with lines: how much of it is skipped, logged and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_files import found, write

from ilrec.errors import InputError
from ilrec.interactions.findings import MAX_WARNINGS, Findings

GOOD = '{"u": "a", "i": "x", "t": 1}\n'


def test_more_bad_lines_than_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "x.jsonl", "no\n" * 40 + GOOD)
    with pytest.raises(InputError, match=r"x\.jsonl:31: .*\(30 before it were skipped\)"):
        found(path, findings=Findings(30))
    assert len(caplog.records) == MAX_WARNINGS


def test_bad_lines_are_not_fewer_than_none():
    with pytest.raises(InputError, match="max_bad_lines: expected 0 or more, got -1"):
        Findings(-1)


def test_a_quote_that_is_never_closed_takes_all_lines_with_it(tmp_path: Path):
    """All of these lines count as malformed: permission to skip one line does not cost a file."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\na,"x,2\nb,y,3\nc,z,4\n')
    message = (
        r"x\.csv:3: not valid CSV \(unexpected end of data\) "
        r"\(from here to line 5, because of a quote\); mend the line"
    )
    for allowed in (0, 2):
        with pytest.raises(InputError, match=message):
            found(path, findings=Findings(allowed))
    assert found(path, findings=Findings(3)) == [("a", "x", 1)]


def test_a_record_that_spans_lines_is_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Two quotes in different lines make one valid record of all between them. Here that is meant;
    it might be a mistake."""
    path = write(tmp_path / "x.csv", 'u,i,t\na,x,1\n"b\nc,y,2\nd",y,2\ne,"z\n",3\n')
    findings = Findings()
    rows = [("a", "x", 1), ("b\nc,y,2\nd", "y", 2), ("e", "z", 3)]
    assert found(path, findings=findings) == rows
    assert findings.report() == {"records that span lines": "2, first at x.csv:3"}
    assert len(caplog.records) == 1
    assert "x.csv:3: a quote makes one record of the lines from here to line 5" in caplog.text


def test_fields_within_quotes_are_counted_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A tab-separated file has no quoting, but what pandas writes by default looks like this."""
    path = write(tmp_path / "x.tsv", 'u\ti\tt\na\t"a ""quoted"" name"\t1\n"b\tc"\t2\n')
    findings = Findings()
    assert found(path, findings=findings)[0] == ("a", '"a ""quoted"" name"', 1)
    assert findings.report() == {"lines with fields within quotes": "1, first at x.tsv:2"}
    assert 'x.tsv:2: the quotes around "a ""quoted"" name" are kept' in caplog.text
    assert "--quoted_tsv" in caplog.text

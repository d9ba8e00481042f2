"""Files that are missing, in another encoding or malformed: named by file, line and column."""

import pytest

from ilrec.errors import InputError
from ilrec.files.reading import read_json, read_text, read_yaml


def test_a_missing_file_is_named_with_the_mend(tmp_path):
    with pytest.raises(InputError, match=r"none.json: no such file$"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"none.json: no such file; make it first$"):
        read_json(tmp_path / "none.json", "make it first")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_a_fault_is_named_by_its_place(tmp_path):
    path = tmp_path / "bad"
    path.write_text('{"a": }')
    with pytest.raises(InputError, match=r"bad:1:7: not valid JSON"):
        read_json(path)
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(InputError, match=r"bad:2:1: not valid YAML: 'a' is there twice"):
        read_yaml(path)
    path.write_text("- a\n")
    with pytest.raises(InputError, match="expected `field: value` lines, got .'a'"):
        read_yaml(path)


def test_utf_8_with_and_without_a_mark(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf\xc3\xa4")
    assert read_text(path) == "\u00e4"
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="text: not UTF-8 at byte 2; save the file as UTF-8"):
        read_text(path)


def test_an_empty_file_has_no_fields(tmp_path):
    (tmp_path / "empty.yaml").touch()
    assert read_yaml(tmp_path / "empty.yaml") == {}

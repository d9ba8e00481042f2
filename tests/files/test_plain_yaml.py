"""YAML as people mean it: what is read as what, no key twice, and a round trip of any content."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ilrec.files.plain_yaml import parse_yaml, to_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    ": #-'\"\\\n\r\t\x85\u2028\u2029\ufeffan1", max_size=6
)
CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("010", "010"),
        ("0", 0),
        ("-12", -12),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_what_is_what(text, value):
    read = parse_yaml(text)
    assert read == value and type(read) is type(value)


@given(CONTENT)
def test_round_trip(content):
    """A reader of YAML 1.1 gets the same text, too: what it would take for something else is
    quoted."""
    written = to_yaml({"value": content})
    assert parse_yaml(written) == {"value": content}
    if isinstance(content, str):
        assert yaml.safe_load(written) == {"value": content}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 1\n", "3:1: not valid YAML: 'a' is there twice"),
        ("rows: {a: 1, a: 2}", "1:14: not valid YAML: 'a' is there twice"),
        ("a: [", "1:5: not valid YAML"),
        ("a: \x07", "not valid YAML: unacceptable character"),
        ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("[" * 5000, "nested too deeply"),
        ("[a]: 1", "1:1: not valid YAML: found unhashable key"),
    ],
)
def test_malformed(text, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)

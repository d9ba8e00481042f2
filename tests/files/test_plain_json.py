"""JSON that loses nothing: repeated keys, half characters, and texts for which Python's own parser
raises another error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilrec.files.plain_json import parse_json

CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(CONTENT)
def test_what_python_writes_is_read_or_refused(content):
    """Text is refused if and only if UTF-8 cannot hold it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match="half a character"):
            parse_json(json.dumps(content))
    else:
        assert parse_json(json.dumps(content)) == content


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"7": {"title": "a \\ud83d"}}', r"'7': 'title': 'a \\ud83d' has half a character"),
        ('{"7": ["\\uDE00"]}', "'7': .* half a character"),
        ('{"\\ud83d": 1}', "half a character"),
        ('{"u": [1], "u": [2]}', "'u' is there twice, with two values"),
        ("9" * 5000, "Exceeds the limit"),
        ("[" * 100000, "nested too deeply"),
        ('{"a": }', "^1:7: not valid JSON"),
    ],
)
def test_malformed(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_whole_characters_and_equal_repeats_are_fine():
    assert parse_json('{"a": "\\ud83d\\ude00", "b": 1, "b": 1}') == {"a": "\U0001f600", "b": 1}

"""How one value is read: any value is taken as its field's type says, or refused with a reason."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strange_values import ANYTHING

from ilrec.config.loading import build_section
from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import SECTIONS
from ilrec.config.settings import nearest, require
from ilrec.errors import InputError


@given(section=st.sampled_from([*SECTIONS.values(), SASRecConfig]), value=ANYTHING, data=st.data())
def test_every_field_takes_a_value_or_says_why_not(section, value, data):
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(section)]))
    try:
        kept = getattr(build_section(section, {name: (value, "here")}), name)
    except InputError as error:
        assert str(error).startswith("here: ")
    else:
        assert kept == value or isinstance(value, (str, int, float))


def test_a_long_value_is_shown_in_part():
    with pytest.raises(InputError) as caught:
        require(False, "beta", "9" * 5000, "a number")
    assert str(caught.value) == f"beta: expected a number, got '{'9' * 99}..."


def test_an_unknown_name_gets_advice():
    known = ("beta", "alpha")
    assert nearest("bet", known) == "; did you mean 'beta'?"
    assert nearest("xyz", known) == "; known fields: alpha, beta"
    many = [f"field_{number}" for number in range(20)]
    assert nearest("xyz", many) == "; --help and docs/fields.md list all fields"


def test_only_what_is_near_is_suggested():
    """At difflib's usual bound, `packing` would suggest `backend`."""
    assert "did you mean" not in nearest("packing", ["backend", "alpha"])

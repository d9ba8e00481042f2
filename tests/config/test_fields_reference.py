"""docs/fields.md is made from the dataclasses."""

from conftest import ROOT

from ilrec.config.reference import reference


def test_the_page_is_current():
    text = (ROOT / "docs" / "fields.md").read_text()
    assert text == reference(), "python -m ilrec.config.reference > docs/fields.md"

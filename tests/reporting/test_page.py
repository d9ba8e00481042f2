"""The page: one file, well formed, everything escaped, differences marked."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

from made_reports import PLAIN, SFT, STAGE1

from ilrec.reporting.contents import Ranking, Run
from ilrec.reporting.page import shown, write_page

# Elements that have no end tag.
VOID = {"meta", "img", "br", "link"}
EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """What a page consists of. Fails if an element is closed that was not opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.marked: list[str] = []
        self.text = ""
        self._row: str | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        attributes = dict(attrs)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self._row = "" if attributes.get("class") == "differs" else None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "tr" and self._row is not None:
            self.marked.append(self._row)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._row is not None:
            self._row += data


def page_of(tmp_path: Path, rankings: list[Ranking], runs: list[Run]) -> Page:
    path = tmp_path / "report.html"
    write_page(path, b"a picture", rankings, runs, ["hit@10"], "sft")
    return Page(path.read_text())


RANKINGS = [
    Ranking(
        "sft",
        {"hit@10": 0.5},
        {"split": "test", "dtype": "a", "checkpoint": "c"},
        {"hit@10": (0.4, 0.625)},
    ),
    Ranking("stage1", {}, {"split": "test", "dtype": "b"}, {}),
]
RUNS = [
    Run(
        "sft",
        SFT,
        PLAIN | {"lora_rank": 8},
        ["ilrec/train.py", "--init", "{a b}"],
        {"torch": "2.13"},
    ),
    Run("stage1", STAGE1, PLAIN | {"lora_rank": 8, "beta": 0.25}),
]


def test_results_settings_and_protocol(tmp_path):
    page = page_of(tmp_path, RANKINGS, RUNS)
    for text in (
        "Hit@10",
        "0.5000",
        "0.4000 to 0.6250",
        "baseline",
        "ilrec/train.py --init '{a b}'",
    ):
        assert text in page.text
    assert "plain cross-entropy" in page.text
    assert "torch 2.13" in page.text
    # Of the protocol and of the settings, what differs and nothing else.
    assert page.marked == ["dtypeab", "beta0.00.25"]
    assert "lora_rank" in page.text
    assert "Do not compare" not in page.text


def test_nothing_comes_from_elsewhere(tmp_path):
    page = page_of(tmp_path, RANKINGS, RUNS)
    (picture,) = page.links
    kind, _, content = picture.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == b"a picture"
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_everything_is_escaped(tmp_path):
    ranking = Ranking(EVIL, {"hit@10": 0.5}, {EVIL: EVIL}, {})
    page = page_of(tmp_path, [ranking], [Run(EVIL, SFT, {EVIL: EVIL}, ["say", EVIL], {EVIL: EVIL})])
    assert "script" not in page.tags
    # Title, heads of three tables, a field in two of them, objective, summary, versions.
    assert page.text.count(EVIL) >= 9


def test_different_protocols_are_warned_of(tmp_path):
    other = Ranking("other", {"hit@10": 0.5}, {"split": "valid"}, {})
    assert "Do not compare" in page_of(tmp_path, [*RANKINGS, other], []).text


def test_runs_alone_and_rankings_alone(tmp_path):
    assert "Protocol" not in page_of(tmp_path, [], RUNS).text
    assert "Settings" not in page_of(tmp_path, RANKINGS, []).text


def test_values_that_could_be_overlooked_are_quoted():
    assert [shown(value) for value in (None, "", " a", "a", 0.5, {"b": [1]})] == [
        "–",
        '""',
        '" a"',
        "a",
        "0.5",
        '{"b": [1]}',
    ]

"""Command lines: nothing is abbreviated, the last flag counts, no value is taken for a flag."""

from dataclasses import dataclass

import pytest
from conftest import ROOT

from ilrec.config.command_line import ArgumentParser, as_pairs
from ilrec.config.settings import Section, setting
from ilrec.errors import InputError

PROGRAMS = sorted([*(ROOT / "ilrec").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
PROGRAMS.remove(ROOT / "ilrec" / "config" / "command_line.py")


def parser() -> ArgumentParser:
    made = ArgumentParser("a program")
    made.add_argument("--config")
    return made


def test_own_flags_and_fields_are_told_apart():
    """A value that looks like a flag belongs to the flag before it."""
    own, rest = parser().parse_pairs(
        ["--prefix=--config", "--config", "a b", "--suffix", "", "--number", "-1", "--text=a=b"]
    )
    assert own.config == "a b"
    assert rest == ["--prefix=--config", "--suffix=", "--number=-1", "--text=a=b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beta"], "--beta has no value; write --beta VALUE"),
        (["--beta", "--alpha", "1"], "--beta has no value.*or --beta=VALUE if it begins with --"),
        (["beta", "1"], "expected --field value, got 'beta'"),
        (["--", "1"], "expected --field value, got '--'"),
    ],
)
def test_malformed(words, message):
    with pytest.raises(InputError, match=f"command line: {message}"):
        as_pairs(words)


@dataclass
class Fields(Section):
    """Some settings."""

    share: float = setting(0.5, "how much, 100% at most", at_least=0, below=1)
    name: str = setting("", "what it is called")


def test_fields_are_listed_in_the_help_and_handed_on():
    made = parser()
    made.add_fields("fields", Fields)
    text = " ".join(made.format_help().split())
    assert "fields: Some settings." in text
    assert "how much, 100% at most (a number, 0 or more and below 1; default: 0.5)" in text
    assert 'what it is called (text; default: "")' in text
    own, rest = made.parse_pairs(["--name=--x", "--config", "c", "--other=1"])
    assert own.config == "c"
    assert rest == ["--name=--x", "--other=1"]


def test_a_flag_shows_its_default():
    made = parser()
    made.add_argument("--size", default=7, help="how large")
    made.add_argument("--output", help="a file (default: beside the input)")
    text = made.format_help()
    assert "how large (default: 7)" in text
    assert "a file (default: beside the input)\n" in text


def test_an_abbreviation_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--conf", "x"])
    assert "unrecognized arguments: --conf" in capsys.readouterr().err


def test_the_last_value_of_a_field_counts():
    """A job script gives its own flags first, and those of its user come after."""
    assert as_pairs(["--beta", "1", "--alpha=3", "--beta=2"]) == ["--beta=2", "--alpha=3"]
    assert parser().parse_args(["--config", "a", "--config", "b"]).config == "b"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_no_program_has_a_parser_of_its_own(path):
    text = path.read_text()
    assert "argparse.ArgumentParser(" not in text and ".parse_known_args(" not in text


def number_parser() -> ArgumentParser:
    made = ArgumentParser("a program")
    made.add_number("--repeats", int, at_least=1, default=5)
    made.add_number("--beta", float, above=0, default=0.1)
    made.add_number("--sizes", int, at_least=1, nargs="+", default=[1, 2])
    made.add_number("--check", int, at_least=1, nargs="?", const=7, default=0)
    return made


def test_numbers_are_read_as_their_kind():
    read = number_parser().parse_args(["--repeats", "3", "--beta=2", "--sizes", "4", "5"])
    assert (read.repeats, read.beta, read.sizes, read.check) == (3, 2.0, [4, 5], 0)
    assert number_parser().parse_args(["--check"]).check == 7
    assert number_parser().parse_args([]).sizes == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "0"], "^--repeats: expected a whole number, 1 or more, got '0'$"),
        (["--repeats", "2.5"], "^--repeats: expected a whole number, 1 or more, got '2.5'$"),
        (["--repeats=many"], "^--repeats: expected a whole number"),
        (["--beta", "nan"], "^--beta: expected a number, above 0, got 'nan'$"),
        (["--beta=-1"], "^--beta: expected a number, above 0, got '-1'$"),
        (["--sizes", "4", "0"], "^--sizes: expected a whole number, 1 or more, got '0'$"),
    ],
)
def test_numbers_outside_their_domain_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        number_parser().parse_args(words)

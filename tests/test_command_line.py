"""Command lines: nothing abbreviated, nothing twice, no value taken for a flag."""

from pathlib import Path

import pytest

from ilrec.command_line import ArgumentParser, as_pairs
from ilrec.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = [path for folder in ("ilrec", "tools") for path in sorted((ROOT / folder).rglob("*.py")) if path.stem != "command_line"]


def parser() -> ArgumentParser:
    made = ArgumentParser("a program")
    made.add_argument("--config")
    made.add_argument("--rows", nargs="+")
    return made


def test_own_flags_and_fields_are_told_apart():
    """A value that looks like a flag belongs to the flag before it."""
    own, rest = parser().parse_pairs(["--prefix=--config", "--config", "a b", "--suffix", "", "--number", "-1", "--text=a=b"])
    assert own.config == "a b"
    assert rest == ["--prefix=--config", "--suffix=", "--number=-1", "--text=a=b"]


@pytest.mark.parametrize(("words", "message"), [
    (["--beta"], "--beta has no value; write --beta VALUE"),
    (["--beta", "--alpha", "1"], "--beta has no value.*or --beta=VALUE if it begins with --"),
    (["beta", "1"], "expected --field value, got 'beta'"),
    (["--", "1"], "expected --field value, got '--'"),
    (["--beta", "1", "--beta=2"], "--beta is there twice: '1' and '2'"),
])
def test_malformed(words, message):
    with pytest.raises(InputError, match=f"command line: {message}"):
        as_pairs(words)


@pytest.mark.parametrize("words", [["--conf", "x"], ["--config", "a", "--config", "b"], ["--rows", "a", "--rows", "b"]])
def test_abbreviations_and_repeats_are_refused_by_every_program(words, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(words)
    assert "unrecognized arguments: --conf" in (said := capsys.readouterr().err) or "is there twice" in said


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_no_program_has_a_parser_of_its_own(path):
    text = path.read_text()
    assert "argparse.ArgumentParser(" not in text and ".parse_known_args(" not in text

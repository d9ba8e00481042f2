"""The command `ilrec`: its table is complete, and what it does before a command is chosen."""

import pkgutil
import subprocess
import sys

import pytest
from conftest import ROOT

from ilrec import __version__, cli


def answer(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ilrec", *words])
    cli.main()


def test_every_command_is_in_the_table():
    modules = {command.main.partition(":")[0] for command in cli.COMMANDS.values()}
    files = {path.stem for path in (ROOT / "ilrec/commands").glob("*.py")} - {"__init__"}
    assert modules == {"ilrec.train", "ilrec.rank", "ilrec.recommend"} | {
        f"ilrec.commands.{name}" for name in files
    }


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_runs_under_its_name(name, monkeypatch, capsys):
    assert callable(pkgutil.resolve_name(cli.COMMANDS[name].main))
    with pytest.raises(SystemExit) as ended:
        answer(monkeypatch, name, "--help")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ilrec {name} ")


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_help_names_every_command(words, monkeypatch, capsys):
    answer(monkeypatch, *words)
    usage = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in usage and command.help in usage


def test_version(monkeypatch, capsys):
    answer(monkeypatch, "--version")
    assert capsys.readouterr().out == f"ilrec {__version__}\n"
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("trian", "did you mean 'train'?"),
        ("--ids", "did you mean 'ids'?"),
        ("x", "commands: init,"),
    ],
)
def test_an_unknown_command_is_refused(name, advice, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        answer(monkeypatch, name)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: ilrec: unknown command {name!r}; {advice}")


def test_nothing_heavy_is_imported_before_a_command_is_chosen():
    program = (
        "import sys; sys.argv = ['ilrec']; from ilrec.cli import main; main()\n"
        "assert not {'torch', 'numpy', 'yaml', 'ilrec.processes'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)

"""The command `ilrec`, also `python -m ilrec`: chooses a program, and starts it.

Before that it imports nothing heavy, so that `ilrec --help` answers at once.
"""

from __future__ import annotations

import difflib
import pkgutil
import sys
from typing import NamedTuple, NoReturn

from ilrec import __version__


class Command(NamedTuple):
    """main: MODULE:FUNCTION, imported when the command is chosen. The function takes the words
    after the command. parser: MODULE:FUNCTION of a command line that answers --help before torch is
    imported."""

    main: str
    help: str
    parser: str = ""


# In the order in which a project needs them.
COMMANDS = {
    "init": Command("ilrec.commands.init:main", "copy recipes and job templates, to edit them"),
    "prepare": Command("ilrec.commands.prepare:main", "raw interactions -> a data directory"),
    "sasrec": Command("ilrec.commands.sasrec:main", "train the collaborative filter, SASRec"),
    "ids": Command("ilrec.commands.ids:main", "build semantic IDs from item embeddings"),
    "train": Command(
        "ilrec.train:train",
        "train one stage: sft, stage1, stage2 or joint",
        "ilrec.config.parsers:train_parser",
    ),
    "rank": Command(
        "ilrec.rank:main",
        "rank the full catalogue for every user",
        "ilrec.config.parsers:rank_parser",
    ),
    "recommend": Command(
        "ilrec.recommend:main",
        "recommend items to users, into a file",
        "ilrec.config.parsers:recommend_parser",
    ),
    "merge": Command("ilrec.commands.merge:main", "merge an adapter into its base model"),
    "average": Command("ilrec.commands.average:main", "average the weights of several models"),
    "compare": Command("ilrec.commands.compare:main", "paired comparisons of rankings"),
    "report": Command("ilrec.commands.report:main", "draw the table and the picture of runs"),
    "experiment": Command("ilrec.commands.experiment:main", "train and rank a grid of methods"),
}


def main() -> None:
    """The console script: `ilrec COMMAND WORDS...`."""
    words = sys.argv[1:]
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"ilrec {__version__}")
    elif name in COMMANDS:
        run(name, words[1:])
    else:
        refuse(name)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ilrec COMMAND ...    (or: ilrec --version)",
            "",
            "Train an LLM recommender with self-hard negatives from its own layers.",
            "",
            *lines,
            "",
            "ilrec COMMAND --help: the options of a command. One process for each GPU:",
            "deepspeed --module ilrec.train ..., torchrun --nproc_per_node 8 -m ilrec.rank ...",
        ]
    )


def run(name: str, words: list[str]) -> None:
    # Messages and records of the command name it as it was typed.
    sys.argv = [f"ilrec {name}", *words]
    command = COMMANDS[name]
    if command.parser:
        from ilrec.config.command_line import answer_help

        answer_help(pkgutil.resolve_name(command.parser)(command.help))

    # Imports torch, which takes a second or two.
    from ilrec.processes import run_entry

    run_entry(pkgutil.resolve_name(command.main))


def refuse(name: str) -> NoReturn:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(COMMANDS)}"
    print(f"error: ilrec: unknown command {name!r}; {advice}", file=sys.stderr)
    # The exit status of bad input everywhere (ilrec/processes.py, which imports torch).
    sys.exit(2)

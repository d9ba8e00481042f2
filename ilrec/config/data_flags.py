"""The settings of the data and its split as flags, for programs that have flags of their own."""

from __future__ import annotations

import argparse
import dataclasses

from ilrec.config.loading import build_section
from ilrec.config.sections import DataConfig

# Fields of DataConfig that decide which interactions are read and how they are split.
FLAGS = ("data", "k_core", "num_targets", "split_time")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of FLAGS, with the help and the default of its field."""
    for field in dataclasses.fields(DataConfig):
        if field.name in FLAGS:
            parser.add_argument(
                f"--{field.name}",
                default=field.default,
                required=field.name == "data",
                help=field.metadata["help"],
            )


def data_config(arguments: argparse.Namespace) -> DataConfig:
    """The settings that the flags of add_data_flags give. Raises InputError for a wrong value."""
    given = {name: (getattr(arguments, name), "command line") for name in FLAGS}
    return build_section(DataConfig, given)

"""The one exception for bad input: configuration, data, checkpoint or environment.

An entry point prints its text once, without a traceback, and every rank exits with a non-zero
status. Any other exception is a bug and keeps its traceback. The text names the file, the line or
field, what was expected, and how to mend it.
"""


class InputError(ValueError):
    """Something that the user can mend. The user sees its text and nothing else."""

"""The one exception for bad input (configuration, data, checkpoint, environment).

An entry point prints its text once, without a traceback, and every rank exits non-zero; any other
exception is a bug and keeps its traceback. The text names the file, the line or field, what was
expected and how to mend it.
"""


class InputError(ValueError):
    """Something the user can mend. The message must be complete: it is all that the user sees."""

"""What ranks do together, on one process. tests/integration launches two."""

import pytest

from ilrec.errors import InputError
from ilrec.training.together import agreed, barrier, shared_work


def fail():
    raise InputError("no such file")


def test_one_process_agrees_with_itself(monkeypatch):
    """Also where a launcher's variables are set and no group was started: all work is its own."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    barrier()
    assert agreed(lambda: {"a": 1}) == {"a": 1}
    assert shared_work(["b", "a"], str.upper) == {"b": "B", "a": "A"}
    with pytest.raises(InputError, match="no such file"):
        agreed(fail)

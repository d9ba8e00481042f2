"""How often two ZeRO-3 ranks gather the LM head, with no parameter exempt from sharding
(persistence threshold 0)."""

import json
from pathlib import Path

import pytest
from conftest import launch

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[tuple[dict, dict]]:
    """Per run: rank 0's counts and rank 1's, whose micro-batches have no supervised token."""
    directory = tmp_path_factory.mktemp("gathers")
    result = launch(
        "torchrun", str(Path(__file__).with_name("gather_count.py")), "--output", str(directory)
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    ranks = [json.loads((directory / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return list(zip(*ranks, strict=True))


def test_ranks_gather_alike_with_and_without_supervised_tokens(runs):
    assert len(runs) == 6
    for zero, one in runs:
        assert [step["training"] for step in zero["micro_steps"]] == [True, True, False, False] * 2
        assert all(step.pop("num_tokens") > 0 for step in zero["micro_steps"])
        assert all(step.pop("num_tokens") == 0 for step in one["micro_steps"])
        assert zero == one


@pytest.mark.parametrize("trained", ["all", "lora", "rows"])
def test_one_gather_for_the_loss(runs, trained):
    """DeepSpeed told to keep nothing: every micro-step, training or evaluation, gathers the head
    once in forward.

    Its hooks gather it once more in backward. A trained head needs that (autograd adds into a whole
    weight); a frozen one does not, but ZeRO-3 has no way to say so.
    """
    steps = next(
        zero for zero, _ in runs if zero["trained"] == trained and zero["keep"] == "nothing"
    )["micro_steps"]
    assert not any(step["held"] for step in steps)
    assert [step["forward"] for step in steps] == [1] * 8
    assert [step["backward"] for step in steps] == [int(step["training"]) for step in steps]


@pytest.mark.parametrize("trained", ["all", "lora", "rows"])
def test_one_gather_in_all_by_default(runs, trained):
    """DeepSpeed's defaults keep the head from forward to backward, once the first micro-step has
    shown the order of the modules.

    After an evaluation's micro-step it waits for a backward that does not come: the next one finds
    the weight whole, and gathers none.
    """
    steps = next(
        zero for zero, _ in runs if zero["trained"] == trained and zero["keep"] == "default"
    )["micro_steps"]
    assert [step["held"] for step in steps] == [False, False, False, True, True, False, False, True]
    assert [step["forward"] for step in steps] == [int(not step["held"]) for step in steps]
    assert [step["backward"] for step in steps] == [1] + [0] * 7

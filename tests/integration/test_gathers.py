"""How often two ZeRO-3 ranks gather the LM head, with no parameter exempt from sharding
(persistence threshold 0)."""

import json
from pathlib import Path

import pytest
from conftest import launch

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[tuple[dict, dict]]:
    """For each run the counts of rank 0 and of rank 1, whose micro-batches have no supervised
    token."""
    directory = tmp_path_factory.mktemp("gathers")
    script = Path(__file__).with_name("gather_count.py")
    result = launch("torchrun", str(script), "--output", str(directory))
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


def steps_of_rank_0(runs, trained: str, keep: str) -> list[dict]:
    for zero, _ in runs:
        if (zero["trained"], zero["keep"]) == (trained, keep):
            return zero["micro_steps"]
    raise KeyError(trained, keep)


@pytest.mark.parametrize("trained", ["all", "lora", "rows"])
def test_one_gather_for_the_loss(runs, trained):
    """If DeepSpeed keeps nothing, every micro-step of training or evaluation gathers the head once
    in forward.

    DeepSpeed's hooks gather it once more in backward. A trained head needs that, because autograd
    adds into a whole weight. A frozen one does not, but ZeRO-3 cannot be told so.
    """
    steps = steps_of_rank_0(runs, trained, "nothing")
    assert not any(step["held"] for step in steps)
    assert [step["forward"] for step in steps] == [1] * 8
    assert [step["backward"] for step in steps] == [int(step["training"]) for step in steps]


@pytest.mark.parametrize("trained", ["all", "lora", "rows"])
def test_one_gather_in_all_by_default(runs, trained):
    """By default DeepSpeed keeps the head from forward to backward, after the first micro-step has
    shown the order of the modules.

    After a micro-step of an evaluation it keeps the weight for a backward that does not come. So
    the next micro-step finds it whole and gathers nothing.
    """
    steps = steps_of_rank_0(runs, trained, "default")
    assert [step["held"] for step in steps] == [False, False, False, True, True, False, False, True]
    assert [step["forward"] for step in steps] == [int(not step["held"]) for step in steps]
    assert [step["backward"] for step in steps] == [1] + [0] * 7

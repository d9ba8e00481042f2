"""The sums of a log line, and the end of a run at NaN or inf. The training loop is tested in
tests/model/test_objective.py and tests/test_train.py."""

import pytest
import torch
from tiny_models import arguments, samples, tiny_llama

from ilrec.config.sections import ObjectiveConfig
from ilrec.errors import InputError
from ilrec.model.objective import attach_objective
from ilrec.training.trainer import ILRecTrainer, TokenSums, means_per_token


def test_means_are_per_supervised_token():
    totals = {
        "preference": 6.0,
        "distillation": 3.0,
        "reward": 1.5,
        "num_negatives": 12.0,
        "num_rows_without_negative": 1.0,
        "num_tokens": 3.0,
    }
    expected = {
        "loss/preference": 2.0,
        "loss/distillation": 1.0,
        "loss/reward": 0.5,
        "negatives/per_token": 4.0,
        "negatives/rows_without": 1 / 3,
    }
    assert means_per_token(totals) == pytest.approx(expected)


def test_no_token_at_all_divides_by_nothing():
    zeros = dict.fromkeys(TokenSums.NAMES, 0.0)
    assert set(means_per_token(zeros).values()) == {0.0}


def test_sums_of_micro_batches_are_named_and_start_again():
    """Labels of 2 and 1 tokens: the first token of a row is never predicted."""
    sums = TokenSums()
    sums.add(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([[7, 8, 9], [7, -100, -100]]))
    sums.add(torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]), torch.tensor([[-100, 8, -100]]))
    totals = sums.take(lambda local: local * 2)  # As if another rank had the same sums.
    assert totals == {
        "preference": 22.0,
        "distillation": 44.0,
        "reward": 66.0,
        "num_negatives": 88.0,
        "num_rows_without_negative": 110.0,
        "num_tokens": 6.0,
    }
    assert sums.take(lambda local: local) == {}


def trainer_with_hook(tmp_path, layer: int, bad_call: int, max_steps: int = 2) -> ILRecTrainer:
    """Layer `layer` of 4 writes inf in its `bad_call`-th call (0: never). Two micro-batches of 2
    samples per step."""
    model = tiny_llama()
    num_calls = 0

    def write(module, args, output):
        nonlocal num_calls
        num_calls += 1
        return output * float("inf") if num_calls == bad_call else output

    model.model.layers[layer].register_forward_hook(write)
    attach_objective(model, ObjectiveConfig(beta=0.1, num_readout_layers=2), [])
    fields = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": max_steps,
        "lr_scheduler_type": "constant",
    }
    return ILRecTrainer(
        model=model,
        args=arguments(tmp_path, **fields),
        train_dataset=samples(8),
        eval_dataset=samples(4),
    )


def test_nonfinite_states_end_the_training_before_the_step(tmp_path):
    """The 4th micro-batch is step 2's last: the parameters are those of a run that ended after step
    1."""
    clean = trainer_with_hook(tmp_path, 2, bad_call=0, max_steps=1)
    spoilt = trainer_with_hook(tmp_path, 2, bad_call=4)
    clean.train()
    message = (
        r"^step 2: NaN or inf in readout layer L-1's hidden states \(rank 0: \d+ tokens\); "
        r"last layer's hidden states \(rank 0: \d+ tokens\)\. Lower learning_rate"
    )
    with pytest.raises(InputError, match=message):
        spoilt.train()
    assert spoilt.state.global_step == 1
    for mine, theirs in zip(spoilt.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        # These are of step 2's first micro-batch. The bad one had no backward pass.
        assert mine.grad.isfinite().all()


def test_nonfinite_states_in_evaluation(tmp_path):
    """The last layer alone: no readout layer is named. Evaluation of finite states is silent."""
    assert trainer_with_hook(tmp_path, 3, 0).evaluate()["eval_loss"] > 0
    message = r"^evaluation after step 0: NaN or inf in last layer's hidden states \(rank 0: "
    with pytest.raises(InputError, match=message):
        trainer_with_hook(tmp_path, 3, 2).evaluate()


def test_nonfinite_head_is_named_as_the_loss(tmp_path):
    trainer = trainer_with_hook(tmp_path, 3, 0)
    with torch.no_grad():
        trainer.model.lm_head.weight[7, 0] = float("nan")
    message = r"^step 1: the loss is NaN or inf \(rank 0\) though .* Check the LM head"
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_a_readout_layer_alone_is_named(tmp_path):
    """The norm's second call in a forward is the readout's: row 1 of it is layer L-2."""
    trainer = trainer_with_hook(tmp_path, 3, 0)
    num_calls = 0

    def write(module, args, output):
        nonlocal num_calls
        num_calls += 1
        if num_calls % 2:
            return output
        return output * torch.tensor([1.0, float("nan")])[:, None, None]

    trainer.model.model.norm.register_forward_hook(write)
    message = r"^step 1: NaN or inf in readout layer L-2's hidden states \(rank 0: \d+ tokens\)\."
    with pytest.raises(InputError, match=message):
        trainer.train()

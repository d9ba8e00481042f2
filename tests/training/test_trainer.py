"""Means that are logged, and the stop at NaN; the loop itself is tested in test_model.py
and test_train.py."""

import pytest
import torch
from tiny_models import arguments, samples, tiny_llama

from ilrec.config.sections import ObjectiveConfig
from ilrec.errors import InputError
from ilrec.model.objective import attach_objective
from ilrec.training.trainer import ILRecTrainer, _means


def test_means_are_per_supervised_token():
    """Sums 6, 3, 1.5 over 3 tokens with 12 negatives and one token that has none."""
    assert _means(torch.tensor([6.0, 3.0, 1.5, 12.0, 1.0, 3.0])) == pytest.approx(
        {
            "loss/preference": 2.0,
            "loss/distillation": 1.0,
            "loss/reward": 0.5,
            "negatives/per_token": 4.0,
            "negatives/rows_without": 1 / 3,
        }
    )


def test_no_token_at_all_divides_by_nothing():
    assert set(_means(torch.zeros(6)).values()) == {0.0}


def trainer_with_hook(tmp_path, layer: int, bad_call: int, max_steps: int = 2) -> ILRecTrainer:
    """Layer `layer` of 4 writes inf in its `bad_call`-th call (0: never). Two micro-batches of 2
    samples per step."""
    model = tiny_llama()
    calls = []

    def write(module, args, output):
        calls.append(1)
        return output * float("inf") if len(calls) == bad_call else output

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
    clean, spoilt = (
        trainer_with_hook(tmp_path, 2, bad_call=0, max_steps=1),
        trainer_with_hook(tmp_path, 2, bad_call=4),
    )
    clean.train()
    with pytest.raises(
        InputError,
        match=r"^step 2: NaN or inf in readout layer L-1's hidden states \(rank 0: \d+ tokens\); "
        r"last layer's hidden states \(rank 0: \d+ tokens\)\. Lower learning_rate",
    ):
        spoilt.train()
    assert spoilt.state.global_step == 1
    for mine, theirs in zip(spoilt.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert (
            mine.grad.isfinite().all()
        )  # of step 2's first micro-batch; the bad one had no backward pass


def test_nonfinite_states_in_evaluation(tmp_path):
    """The last layer alone: no readout layer is named. Evaluation of finite states says nothing."""
    assert trainer_with_hook(tmp_path, 3, 0).evaluate()["eval_loss"] > 0
    with pytest.raises(
        InputError,
        match=r"^evaluation after step 0: NaN or inf in last layer's hidden states \(rank 0: ",
    ):
        trainer_with_hook(tmp_path, 3, 2).evaluate()


def test_nonfinite_head_is_named_as_the_loss(tmp_path):
    trainer = trainer_with_hook(tmp_path, 3, 0)
    with torch.no_grad():
        trainer.model.lm_head.weight[7, 0] = float("nan")
    with pytest.raises(
        InputError, match=r"^step 1: the loss is NaN or inf \(rank 0\) though .* Check the LM head"
    ):
        trainer.train()


def test_a_readout_layer_alone_is_named(tmp_path):
    """The norm's second call of a forward is the readout's: row 1 of it is layer L-2."""
    trainer = trainer_with_hook(tmp_path, 3, 0)
    calls = []

    def write(module, args, output):
        calls.append(1)
        return (
            output if len(calls) % 2 else output * torch.tensor([1.0, float("nan")])[:, None, None]
        )

    trainer.model.model.norm.register_forward_hook(write)
    with pytest.raises(
        InputError,
        match=r"^step 1: NaN or inf in readout layer L-2's hidden states \(rank 0: \d+ tokens\)\.",
    ):
        trainer.train()

"""The model whose forward is the objective: without weights it is stock SFT; which states it reads,
which layers learn, what is counted."""

import pytest
import torch
from tiny_models import arguments, batch, samples, tiny_llama
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer

from ilrec.config.sections import ObjectiveConfig
from ilrec.errors import InputError
from ilrec.model.objective import attach_objective
from ilrec.ops import STATS
from ilrec.samples.collators import TrainingCollator, flattening_collator
from ilrec.training.trainer import ILRecTrainer

BOTH_TERMS = ObjectiveConfig(beta=0.1, distillation_weight=0.5, num_readout_layers=2)
PREFERENCE = ObjectiveConfig(beta=0.1, num_readout_layers=2)


def learner(objective: ObjectiveConfig, **fields) -> LlamaForCausalLM:
    """The tiny Llama, always with the same weights, with this objective."""
    model = tiny_llama(**fields)
    attach_objective(model, objective, [])
    return model


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_weights_zero_is_hugging_faces_own_sft(tmp_path):
    """20 steps of AdamW with accumulation: the same losses and parameters as the stock Trainer and
    loss."""
    stock, ours = tiny_llama(), learner(ObjectiveConfig())
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = []
    for cls, model in ((Trainer, stock), (ILRecTrainer, ours)):
        args = arguments(tmp_path, **fields)
        trainer = cls(model=model, args=args, train_dataset=samples(80))
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], abs=1e-5)

    expected, start = dict(stock.named_parameters()), dict(tiny_llama().named_parameters())
    moved = 0.0
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-5, msg=name)
        moved = max(moved, (parameter - start[name]).abs().max().item())
    assert moved > 1e-3  # so that the comparison could have failed


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_does_not_change_the_run(tmp_path, micro):
    """8 samples of unequal response length per step, cut into micro-batches of `micro` or taken at
    once: one trajectory."""
    objective = ObjectiveConfig(beta=0.3, distillation_weight=0.5, num_readout_layers=2)
    runs = []
    for size in (8, micro):
        model = learner(objective)
        args = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=10,
        )
        trainer = ILRecTrainer(model=model, args=args, train_dataset=samples(80))
        trainer.train()
        runs.append((losses(trainer), list(model.parameters())))
    assert runs[1][0] == pytest.approx(runs[0][0], abs=2e-5)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-5)


def test_hidden_states_are_taken_below_the_last_layer():
    """The readout of K layers is FinalNorm of hidden_states[-2], [-3], ... at the supervised
    positions, without the last position of each row."""
    model = learner(ObjectiveConfig(beta=0.1, num_readout_layers=3))
    seen = {}

    def record(hidden, readout, compute):
        seen.update(hidden=hidden, readout=readout)
        return hidden.sum(), hidden

    model.get_output_embeddings().forward = record
    inputs = batch()
    model(**inputs)

    outputs = model.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        output_hidden_states=True,
    )
    mask = inputs["labels"][:, 1:] != -100
    torch.testing.assert_close(seen["hidden"], outputs.hidden_states[-1][:, :-1][mask])
    for k in (1, 2, 3):
        expected = model.model.norm(outputs.hidden_states[-1 - k])[:, :-1][mask]
        torch.testing.assert_close(seen["readout"][k - 1], expected)
    # Without distillation the layers below get no gradient through the readout.
    assert not seen["readout"].requires_grad


def test_distillation_reaches_the_layers_below_only():
    """Its gradient (the difference that the weight makes) is zero for head, final norm and last
    layer, and not below."""
    gradients = []
    for weight in (1e-9, 1.0):
        model = learner(ObjectiveConfig(distillation_weight=weight, num_readout_layers=2))
        model(**batch()).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    change = {}
    for name, gradient in gradients[0].items():
        change[name] = (gradients[1][name] - gradient).abs().max().item()
    for name in ("lm_head.weight", "model.norm.weight", "model.layers.3.mlp.down_proj.weight"):
        assert change[name] < 1e-6, name
    assert change["model.layers.2.mlp.down_proj.weight"] > 1e-5


def test_no_supervised_token_gives_zero_loss_and_zero_gradients():
    model = learner(BOTH_TERMS)
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    outputs = model(**inputs)
    outputs.loss.backward()
    assert outputs.loss.item() == 0.0 and outputs.stats_5.abs().sum() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for enable in (False, True):
        model = learner(BOTH_TERMS).train()
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch()).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_candidates_limit_the_negatives():
    model = tiny_llama()
    attach_objective(
        model,
        ObjectiveConfig(beta=0.1, alpha=1e-6, negative_tokens="items", num_readout_layers=2),
        [3, 4, 5],
    )
    outputs = model(**batch(16))
    num_tokens = (batch(16)["labels"][:, 1:] != -100).sum().item()
    assert 0 < outputs.stats_5[3] <= 3 * num_tokens


def stats_of(**changes) -> dict[str, float]:
    """The first batch's statistics, from one and the same model."""
    model = learner(ObjectiveConfig(beta=0.5, alpha=0.3, num_readout_layers=2, **changes))
    return dict(zip(STATS, model(**batch(16)).stats_5.tolist(), strict=True))


def test_random_negatives_are_as_many_as_the_readout_proposes():
    readout, drawn = stats_of(), stats_of(negatives_from="random")
    assert drawn["num_negatives"] == readout["num_negatives"] > 0
    assert drawn["num_rows_without_negative"] == readout["num_rows_without_negative"]
    assert drawn["preference"] != readout["preference"]


def test_negatives_of_the_last_layer_need_no_hidden_states():
    """They are counted and penalised, and are not those of the layers below, which nobody asks
    for. num_readout_layers is ignored, even where the model has too few."""
    readout, own = stats_of(), stats_of(negatives_from="last_layer")
    assert own["num_negatives"] > 0 and own["preference"] != readout["preference"]

    objective = ObjectiveConfig(beta=0.5, negatives_from="last_layer", num_readout_layers=99)
    model = learner(objective)
    asked = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["output_hidden_states"]), with_kwargs=True
    )
    outputs = model(**batch(16))
    outputs.loss.backward()
    assert asked == [False] and outputs.nonfinite_K2.tolist() == [0, 0]
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("negatives_from", ["last_layer", "random"])
def test_a_run_trains_with_other_negatives(tmp_path, negatives_from):
    """Negatives are counted in the log, and the losses are not those of the method itself."""
    preferences = []
    for chosen in ("readout", negatives_from):
        objective = ObjectiveConfig(beta=0.5, num_readout_layers=2, negatives_from=chosen)
        args = arguments(tmp_path, max_steps=2)
        trainer = ILRecTrainer(model=learner(objective), args=args, train_dataset=samples(80))
        trainer.train()
        first = trainer.state.log_history[0]
        assert first["negatives/per_token"] > 0
        preferences.append(first["loss/preference"])
    assert preferences[0] != preferences[1]


def test_too_few_layers_to_read_out():
    with pytest.raises(InputError, match="num_readout_layers: expected fewer than the 4 layers"):
        attach_objective(tiny_llama(), ObjectiveConfig(beta=0.1, num_readout_layers=4), [])


def test_nonfinite_states_are_counted_at_the_supervised_tokens():
    """Layer L - 1 spoils three tokens, of which two are supervised; L - 2 below it stays finite."""
    model = learner(PREFERENCE)
    factor = torch.ones(12, 1)
    model.model.layers[2].register_forward_hook(lambda module, args, output: output * factor)
    inputs = {name: rows[:1].clone() for name, rows in batch().items()}
    inputs["labels"][:, :10] = -100  # what is left is read at positions 9 and 10
    assert model(**inputs).nonfinite_K2.tolist() == [0, 0, 0, 0]
    for value in (float("nan"), float("inf"), -float("inf")):
        factor[8:11] = value
        assert model(**inputs).nonfinite_K2.tolist() == [2, 2, 0, 1]


def test_nonfinite_loss_is_counted_apart():
    model = learner(PREFERENCE)
    with torch.no_grad():
        model.lm_head.weight[5, 3] = float("nan")
    assert model(**batch()).nonfinite_K2.tolist() == [0, 0, 0, 1]


def test_saved_model_names_its_own_architecture(tmp_path):
    model = learner(ObjectiveConfig())
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM


@pytest.mark.parametrize("objective", [ObjectiveConfig(), BOTH_TERMS], ids=["sft", "both terms"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flattened_samples_are_the_padded_ones(objective, attention):
    """One row without padding: the same loss and gradients as rows padded to the longest, samples
    of 5 to 12 tokens."""
    rows = []
    for i, row in enumerate(samples(8)):
        rows.append({name: row[name][: 12 - i].tolist() for name in ("input_ids", "labels")})
    model = learner(objective, attn_implementation=attention)
    found = []
    for collate in (TrainingCollator(0), flattening_collator(boundaries=False)):
        model.zero_grad()
        output = model(**collate(rows))
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append((output.loss.item(), output.stats_5, gradients))
    (padded, padded_stats, padded_gradients), (flat, flat_stats, flat_gradients) = found
    assert flat == pytest.approx(padded, rel=1e-6)
    torch.testing.assert_close(flat_stats, padded_stats, rtol=1e-5, atol=1e-5)
    for name, gradient in padded_gradients.items():
        torch.testing.assert_close(flat_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)

"""The head that the loss sees is the one that the model's own logits come from, in every state of
its adapters; or it is refused."""

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import NEW_TOKENS, batch, tiny_llama
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from ilrec.config.sections import ModelConfig, ObjectiveConfig
from ilrec.errors import InputError
from ilrec.model.adapters import add_adapter
from ilrec.model.objective import attach_objective

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
}


def lora(tied: bool = False, **fields) -> PeftModel:
    """LoRA that changes the states from the start."""
    fields = {"target_modules": ["q_proj"], **fields}
    return get_peft_model(
        tiny_llama(tied), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **fields)
    )


def moved(model: nn.Module, *names: str) -> nn.Module:
    """The named parameters as training would have left them: far from where they began."""
    generator = torch.Generator().manual_seed(2)
    found = [p for name, p in model.named_parameters() if any(part in name for part in names)]
    assert found
    with torch.no_grad():
        for parameter in found:
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def token_rows(tied: bool = False) -> PeftModel:
    model = add_adapter(tiny_llama(tied), ModelConfig(lora_dropout=0.0, lora_rank=4), NEW_TOKENS)
    return moved(model, "trainable_tokens_delta", "lora_B")


def saved_head(tied: bool = False) -> PeftModel:
    return moved(lora(tied, modules_to_save=["lm_head"]), "lm_head.modules_to_save")


def two_adapters() -> PeftModel:
    """`default` and `second` train rows of other tokens each, `plain` trains none."""
    model = token_rows()
    model.add_adapter(
        "second",
        LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": [7], "lm_head": [7, 8]},
        ),
    )
    model.add_adapter("plain", LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    return moved(model, "trainable_tokens_delta.second")


def sft_loss(logits: torch.Tensor) -> torch.Tensor:
    """Plain cross entropy of the batch's logits [B, T, V]: the oracle of this file."""
    labels = batch()["labels"]
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def without_labels() -> dict[str, torch.Tensor]:
    inputs = batch()
    del inputs["labels"]
    return inputs


def losses(model: nn.Module, twin: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The operation's SFT loss, and the oracle on transformers' own logits, which the twin makes
    that has no objective."""
    return model(**batch()).loss, sft_loss(twin(**without_labels()).logits)


def both(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    twin = copy.deepcopy(model)
    attach_objective(model, ObjectiveConfig(), [])
    return model, twin


MODELS = {
    "untied": tiny_llama,
    "tied": lambda: tiny_llama(tied=True),
    "lora": lora,
    "lora-tied": lambda: lora(tied=True),
    "rows": token_rows,
    "rows-tied": lambda: token_rows(tied=True),
    "saved": saved_head,
    "saved-tied": lambda: saved_head(tied=True),
    "two": two_adapters,
    "rows-merged": lambda: token_rows().merge_and_unload(),
    "saved-merged": lambda: saved_head().merge_and_unload(),
}


@pytest.mark.parametrize("name", MODELS)
def test_effective_head(name):
    loss, expected = losses(*both(MODELS[name]()))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)


@contextlib.contextmanager
def merged(model: PeftModel):
    model.merge_adapter()
    yield


@contextlib.contextmanager
def switched(model: PeftModel, name: str):
    model.set_adapter(name)
    yield


@contextlib.contextmanager
def all_rows(model: PeftModel):
    """peft's model switches to one adapter with rows at a time; its layers add up several."""
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.token_adapter.set_adapter(["default", "second"])
    yield


@contextlib.contextmanager
def merged_then_disabled(model: PeftModel):
    model.merge_adapter()
    with model.disable_adapter():
        yield


# Which model, and what is done to its adapters.
STATES: dict[str, tuple[str, Callable]] = {
    "rows-off": ("rows", PeftModel.disable_adapter),
    "rows-tied-off": ("rows-tied", PeftModel.disable_adapter),
    "saved-off": ("saved", PeftModel.disable_adapter),
    "saved-tied-off": ("saved-tied", PeftModel.disable_adapter),
    "merged": ("lora", merged),
    "off": ("lora", PeftModel.disable_adapter),
    "second": ("two", lambda model: switched(model, "second")),
    "plain": ("two", lambda model: switched(model, "plain")),
    "all-rows": ("two", all_rows),
}


@pytest.mark.parametrize("name", STATES)
def test_effective_head_follows_the_adapters(name):
    """The loss changes as an adapter is switched after the objective was attached, as the model's
    own logits do."""
    made, state = STATES[name]
    model, twin = both(MODELS[made]())
    before = model(**batch()).loss
    with state(model), state(twin):
        loss, expected = losses(model, twin)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    if state is not merged:
        assert abs(loss - before) > 1e-3  # so that the old head would have been seen
    if state is PeftModel.disable_adapter:
        assert torch.equal(model(**batch()).loss, before)


@pytest.mark.parametrize("tied", [True, False])
def test_effective_head_after_merging_rows(tied):
    """Merged rows stand in the base weight; disabling them then takes them out, as peft does."""
    model, twin = both(token_rows(tied))
    before = model(**batch()).loss
    with merged(model), merged(twin):
        for rows in (model, twin):
            moved(rows, "trainable_tokens_delta")  # no longer what the logits come from
        loss, expected = losses(model, twin)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    # A merged LoRA makes its sums in another order.
    torch.testing.assert_close(loss, before, rtol=0, atol=5e-5)
    model, twin = both(token_rows(tied))
    with merged_then_disabled(model), merged_then_disabled(twin):
        loss, expected = losses(model, twin)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert abs(loss - before) > 1e-3


def projected(model: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The loss of `weight` on the model's states, rounded to the head's dtype, projected in
    float32."""
    states = model.get_decoder()(**without_labels()).last_hidden_state
    return sft_loss(states.to(weight.dtype).float() @ weight.float().T)


@pytest.mark.parametrize(
    ("model_dtype", "head_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_head_of_another_dtype_than_the_states(model_dtype, head_dtype):
    """A head kept in float32 beside a bfloat16 model (modules_to_save), and the reverse."""

    def make(objective: ObjectiveConfig) -> tuple[PeftModel, torch.Tensor]:
        model = saved_head().to(model_dtype)
        head = model.get_base_model().lm_head.modules_to_save["default"].to(head_dtype)
        attach_objective(model, objective, [])
        return model, head.weight

    model, weight = make(ObjectiveConfig())
    torch.testing.assert_close(model(**batch()).loss, projected(model, weight), rtol=0, atol=1e-5)
    model, weight = make(ObjectiveConfig(beta=0.1, distillation_weight=0.5, num_readout_layers=2))
    outputs = model(**batch())
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32 and outputs.stats_5[1] > 0
    assert weight.grad.dtype == head_dtype and weight.grad.abs().max() > 0
    lowest_layer = model.get_base_model().model.layers[0]
    adapter = lowest_layer.self_attn.q_proj.lora_A["default"]
    assert adapter.weight.grad.abs().max() > 0


def test_autocast():
    """Weights in float32, layers in bfloat16 by autocast: the loss is that of autocast's states
    under the float32 head."""
    model = tiny_llama()
    attach_objective(model, ObjectiveConfig(), [])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
        states = model.model(**without_labels()).last_hidden_state
    expected = sft_loss(states.float() @ model.lm_head.weight.T)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert abs(loss - tiny_llama()(**batch()).loss) > 1e-5  # autocast did something


def test_float32_rows_beside_a_bfloat16_head():
    """The rows count as the head will have them once merged, rounded to its dtype; their gradient
    stays float32."""
    model = add_adapter(tiny_llama().bfloat16(), ModelConfig(lora_dropout=0.0), NEW_TOKENS)
    moved(model, "trainable_tokens_delta")
    attach_objective(model, ObjectiveConfig(), [])
    layer = model.get_base_model().lm_head.token_adapter
    rows = layer.trainable_tokens_delta["default"]
    assert rows.dtype == torch.float32
    weight = layer.base_layer.weight.index_copy(
        0, torch.tensor(NEW_TOKENS), rows.detach().bfloat16()
    )
    loss = model(**batch(16)).loss
    loss.backward()
    assert rows.grad.dtype == torch.float32 and rows.grad.abs().amax(1).min() > 0
    torch.testing.assert_close(model(**batch()).loss, projected(model, weight), rtol=0, atol=1e-5)


def with_head(head: nn.Module):
    model = tiny_llama()
    model.lm_head = head
    return model


def with_weight(dtype: torch.dtype):
    model = tiny_llama()
    model.lm_head.weight = nn.Parameter(torch.zeros(64, 32, dtype=dtype), requires_grad=False)
    return model


class ScaledLinear(nn.Linear):
    """A model's own head."""

    def forward(self, hidden):
        return super().forward(hidden) / 2


class PackedLinear(nn.Module):
    """A quantised layer without a `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(8, 64, dtype=torch.int32))


def biased_rows():
    """peft's token rows would drop the bias without a word."""
    return add_adapter(with_head(nn.Linear(32, 64)), ModelConfig(), NEW_TOKENS)


def merged_lora_head():
    model = lora(target_modules=["q_proj", "lm_head"])
    model.merge_adapter()
    return model


REFUSED = {
    "lora": (
        lambda: lora(target_modules=["q_proj", "lm_head"]),
        "the LM head carries a Linear adapter",
    ),
    "dora": (
        lambda: lora(target_modules=["lm_head"], use_dora=True),
        "the LM head carries a Linear adapter",
    ),
    "lora merged in place": (merged_lora_head, "leave lm_head out of lora_target_modules"),
    "biased": (lambda: with_head(nn.Linear(32, 64)), "a biased LM head"),
    "biased under rows": (biased_rows, "a biased LM head"),
    "int8": (lambda: with_weight(torch.int8), "a quantised LM head"),
    "uint8": (lambda: with_weight(torch.uint8), "a quantised LM head"),
    "float8": (lambda: with_weight(torch.float8_e4m3fn), "a quantised LM head"),
    "packed": (
        lambda: with_head(PackedLinear()),
        "the LM head is a PackedLinear, expected a plain torch.nn.Linear",
    ),
    "custom": (
        lambda: with_head(ScaledLinear(32, 64, bias=False)),
        "the LM head is a ScaledLinear, expected a plain",
    ),
    "custom, saved": (
        lambda: get_peft_model(
            with_head(ScaledLinear(32, 64, bias=False)),
            LoraConfig(
                task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]
            ),
        ),
        "the LM head is a ScaledLinear",
    ),
    "parametrised": (
        lambda: with_head(nn.utils.parametrizations.weight_norm(nn.Linear(32, 64, bias=False))),
        "the LM head is a ParametrizedLinear",
    ),
    "none": (lambda: with_head(None), "the model has no LM head"),
    "Gemma 2": (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL)), "final_logit_softcapping = 30.0"),
    "Cohere": (lambda: CohereForCausalLM(CohereConfig(**SMALL)), "logit_scale = 0.0625"),
    "Granite": (
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
        "logits_scaling = 8.0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """InputError, and the model is left as it was."""
    make, message = REFUSED[case]
    model = make()
    before = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=message):
        attach_objective(model, ObjectiveConfig(), [])
    assert [type(module) for module in model.modules()] == before


def test_neutral_logit_fields_are_accepted():
    """Granite without a scale is a Llama; so is Gemma 2 without a cap on its logits."""
    for make in (
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=1.0)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=None)),
    ):
        torch.manual_seed(0)
        loss, expected = losses(*both(make().eval()))
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)


def test_an_adapter_put_on_the_head_later_is_refused():
    model = tiny_llama()
    attach_objective(model, ObjectiveConfig(), [])
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    with pytest.raises(
        InputError, match="the LM head has become a Linear since the objective was attached"
    ):
        wrapped(**batch())

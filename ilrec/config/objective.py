"""Settings of the objective (docs/method.md has the equations)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ilrec.config.settings import Section, require, setting
from ilrec.errors import InputError
from ilrec.ops.objective import (
    BACKENDS,
    DISTILLATION_TARGETS,
    NEGATIVE_TOKENS,
    NEGATIVES_FROM,
    REWARD_TOKENS,
    THRESHOLDS,
    Objective,
)


@dataclass
class ObjectiveConfig(Section):
    """The ILRec objective (arXiv 2602.17410; equations in docs/method.md). All weights 0 is plain
    SFT."""

    beta: float = setting(
        0.0,
        "cross-layer preference optimisation: size of the penalty on hard negatives",
        at_least=0,
    )
    distillation_weight: float = setting(
        0.0, "lambda: weight of cross-layer preference distillation", at_least=0
    )
    reward_weight: float = setting(
        0.0, "mu: weight of the collaborative reward; needs sasrec", at_least=0
    )
    num_readout_layers: int = setting(
        4, "K: this many layers below the last one propose hard negatives", at_least=1
    )
    threshold: str = setting(
        "probability",
        "probability: Pe(v) >= alpha Pe(y); logit: ze(v) >= alpha z(y)",
        choices=THRESHOLDS,
    )
    alpha: float = setting(
        0.5,
        "the share of the label's readout probability (or logit) that makes a token a hard "
        "negative",
        above=0,
    )
    max_negatives: int = setting(
        0, "M: keep at most this many hard negatives per token; 0 keeps all", at_least=0
    )
    negative_tokens: str = setting(
        "all",
        "tokens that can be negatives: all; items (those that occur in an item); continuations "
        "(those with which an item of the catalogue goes on at this place)",
        choices=NEGATIVE_TOKENS,
    )
    negatives_from: str = setting(
        "readout",
        "readout: the method, the layers below the last one propose the hard negatives. For "
        "ablations: last_layer (the last layer's own probable tokens; needs distillation_weight "
        "0) or random (as many tokens, drawn at random; needs negative_tokens all)",
        choices=NEGATIVES_FROM,
    )
    weight_temperature: float = setting(
        1.0,
        "the hard negatives are weighted by softmax(ze / weight_temperature); 1 / K gives the "
        "weights of the authors' code, which sums the K layers' logits",
        above=0,
    )
    distillation_target: str = setting(
        "ensemble",
        "what learns from the last layer: ensemble or per_layer",
        choices=DISTILLATION_TARGETS,
    )
    reward_tokens: str = setting(
        "negatives",
        "tokens that share the reward's soft target: negatives (S and the label), or "
        "continuations (every token with which an item of the catalogue goes on)",
        choices=REWARD_TOKENS,
    )
    reward_temperature: float = setting(
        1.0, "T: soft target is reward ** (1 / T), normalised", above=0
    )
    sasrec: str = setting(
        "", "directory of a trained SASRec (`ilrec sasrec`), read when reward_weight > 0"
    )
    backend: str = setting(
        "auto",
        "vocabulary operation: auto, reference, row_slab or vocab_stream (CUDA with Triton)",
        choices=BACKENDS,
    )
    slab_mib: int = setting(
        0,
        "memory for logits, in MiB; 0: what was measured best for the device "
        "(ilrec/ops/row_slab.py)",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.reward_weight == 0 or bool(self.sasrec),
            "sasrec",
            self.sasrec,
            "a directory written by `ilrec sasrec`, because reward_weight > 0",
        )
        self.vocabulary_objective()

    def vocabulary_objective(self) -> Objective:
        """The settings that the vocabulary operation looks at. Raises InputError if they contradict
        each other."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(Objective)}
        try:
            return Objective(**settings)
        except ValueError as error:
            raise InputError(str(error)) from None

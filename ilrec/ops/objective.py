"""What is optimised: the settings of the vocabulary operation, and the terms of its loss.

Does not import torch. ilrec/config takes the choices and the checks of its fields from here, and a
command that only reads settings should not wait for torch to load.

A new term of the loss begins here: its weight in `Objective`, its field in `TermSums`, its summand
in `weigh`. Then it is computed in reference.py, row_math.py and the Triton kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100  # the label of a position without a loss, as in torch's cross_entropy

BACKENDS = ("auto", "reference", "row_slab", "vocab_stream")
THRESHOLDS = ("probability", "logit")
NEGATIVE_TOKENS = ("all", "items", "continuations")
NEGATIVES_FROM = ("readout", "last_layer", "random")
DISTILLATION_TARGETS = ("ensemble", "per_layer")
REWARD_TOKENS = ("negatives", "continuations")

# Which fields of `Objective` are weights (>= 0), which are scales (> 0), and which are choices.
WEIGHTS = ("beta", "distillation_weight", "reward_weight")
SCALES = ("alpha", "weight_temperature", "reward_temperature")
CHOICES = {
    "threshold": THRESHOLDS,
    "negative_tokens": NEGATIVE_TOKENS,
    "negatives_from": NEGATIVES_FROM,
    "distillation_target": DISTILLATION_TARGETS,
    "reward_tokens": REWARD_TOKENS,
}


class TermSums(NamedTuple):
    """The terms of the loss and two counts, each summed over tokens: 0-dim tensors, float32 or
    float64.

    Every backend returns one. A term with weight 0 is not computed and is 0.
    """

    preference: Tensor
    distillation: Tensor
    reward: Tensor
    num_negatives: Tensor
    num_rows_without_negative: Tensor


STATS = TermSums._fields


@dataclass(frozen=True)
class Objective:
    """What is optimised. ilrec/config/sections.py (ObjectiveConfig) says what each setting means,
    and has the defaults.

    Raises ValueError for a weight that is negative or not finite, for a scale that is not positive,
    for an unknown choice, and for settings that contradict each other.
    """

    beta: float
    distillation_weight: float
    reward_weight: float
    threshold: str
    alpha: float
    negative_tokens: str
    negatives_from: str
    max_negatives: int
    weight_temperature: float
    distillation_target: str
    reward_tokens: str
    reward_temperature: float

    def __post_init__(self) -> None:
        for name in WEIGHTS:
            value = getattr(self, name)
            fits = math.isfinite(value) and value >= 0
            require(fits, f"{name}: expected a finite number >= 0, got {value!r}")
        for name in SCALES:
            value = getattr(self, name)
            fits = math.isfinite(value) and value > 0
            require(fits, f"{name}: expected a finite number > 0, got {value!r}")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            expected = ", ".join(choices)
            require(value in choices, f"{name}: expected one of {expected}, got {value!r}")
        require(
            isinstance(self.max_negatives, int) and self.max_negatives >= 0,
            f"max_negatives: expected an integer >= 0 (0: no cap), got {self.max_negatives!r}",
        )
        require(
            self.negatives_from != "last_layer" or self.distillation_weight == 0,
            "distillation_weight: expected 0 with negatives_from last_layer, because no readout "
            f"layer is left to learn from the last one, got {self.distillation_weight!r}",
        )
        require(
            self.negatives_from != "random" or self.negative_tokens == "all",
            "negative_tokens: expected all with negatives_from random, which draws from the whole "
            f"vocabulary, got {self.negative_tokens!r}",
        )

    @property
    def needs_negatives(self) -> bool:
        """Whether any term looks at the hard negatives S."""
        return self.beta > 0 or (self.reward_weight > 0 and self.reward_tokens == "negatives")

    @property
    def limits_negatives(self) -> bool:
        """Whether S is taken from each row's own continuations."""
        return self.needs_negatives and self.negative_tokens == "continuations"

    @property
    def needs_continuations(self) -> bool:
        """Whether any term looks at the tokens that continue an item, or at their rewards."""
        return self.reward_weight > 0 or self.limits_negatives

    @property
    def draws_negatives(self) -> bool:
        """Whether S is drawn at random."""
        return self.needs_negatives and self.negatives_from == "random"

    @property
    def needs_readout(self) -> bool:
        """Whether any term looks at the layers below the last. False for plain SFT."""
        proposes = self.needs_negatives and self.negatives_from != "last_layer"
        return proposes or self.distillation_weight > 0


def weigh(sums: TermSums, objective: Objective) -> Tensor:
    """preference + lambda * distillation + mu * reward: the loss, not yet divided by the number of
    tokens. 0-dim."""
    return (
        sums.preference
        + objective.distillation_weight * sums.distillation
        + objective.reward_weight * sums.reward
    )


def require(condition: bool, message: str) -> None:
    """Raises ValueError with this message if the condition does not hold."""
    if not condition:
        raise ValueError(message)

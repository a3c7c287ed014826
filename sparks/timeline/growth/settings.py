"""How growth, births and prunings are decided, and where there is too little to decide on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from sparks.ground.config import FRACTION, LEAST_LOSS, Bounds, check_settings, setting
from sparks.stats.intervals import LEVEL

_HALVES_AT = 4
"""h of point 6 of `timeline.growth.rule`: checkpoints over which most of the second half of the
error is spent."""
_FEW_FLIPS = 256


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """How growth, births and prunings are decided. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    fdr: float = setting(
        0.05, "share of falsely named heads that is accepted, over heads and checkpoints", FRACTION
    )
    smallest: float = setting(
        1.05,
        "smallest change that matters: the factor by which a share must have moved, or more",
        Bounds("a factor of at least 1 (1.05: five per cent)", lambda value: value >= 1),
    )
    least_loss: float = setting(
        LEAST_LOSS,
        "median L over probes, nats, below which nothing is called",
        Bounds("at least 0 nats", lambda value: value >= 0),
    )
    level: float = setting(LEVEL, "coverage of the intervals of factors and shares", FRACTION)
    flips: int = setting(2048, "sign flips that stand for luck", low=100)

    def __post_init__(self) -> None:
        check_settings(self)

    def spent(self, checkpoint: int) -> float:
        """Share of the error rate that may be spent by the `checkpoint`-th one after the base."""
        return 1 - _HALVES_AT / 2 / (checkpoint - 1 + _HALVES_AT)

    def with_few_flips(self) -> GrowthConfig:
        """For where the rule is applied again and again, to draws of luck."""
        return replace(self, flips=min(self.flips, _FEW_FLIPS))

    @property
    def fewest_probes(self) -> int:
        """Probes below which nothing is named: 2^(1 - probes) must be within what may be spent.

        To find changes takes more: the power table in `tests/bench/RECORD.md`.
        """
        return 1 + math.ceil(-math.log2(self.fdr * self.spent(1)))


def too_little(
    loss: Float[np.ndarray, " checkpoints"], config: GrowthConfig
) -> Bool[np.ndarray, " checkpoints"]:
    """Where L, nats, median over probes, is below the floor, or no number: nothing is called."""
    return ~(loss >= config.least_loss)

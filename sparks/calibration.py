"""The calibrated rule: which heads are in the circuit, and which were born or pruned, beyond luck.

A head's *inclusion* at a checkpoint is the mean, over probes, of the share of circuit settings that
hold it (`circuit_grid`; with one setting, the share of probes). In order, for each checkpoint:

1. Reading: `active` where the interval of the inclusion (`intervals`) lies above one half,
   `inactive` where it lies below, else `undecided`. So the number of active heads has an interval,
   and does not grow with the number of probes, as that of heads in ANY circuit does.
2. A head is settled by its first reading that is not undecided. Base = settled active at the first
   checkpoint.
3. A settled head stays what it is (hysteresis) until its reading is the opposite AND its inclusion
   differs from that at the checkpoint where it was settled, probe by probe, by more than luck
   (`sign_flips`). Then it is born, revived or returned, pruned or silenced. Where the reading is
   the opposite but the change is not beyond luck, it shows as undecided.
4. False discovery rate: alpha_t is spent at checkpoint t, and the alphas sum to `fdr` over any
   number of checkpoints: half of it evenly over the first h = `checkpoints`, the rest as
   h / (t (t - 1)). The share of false births and prunings of all checkpoints together is at most
   the sum of those of each, so no later checkpoint is needed to judge an earlier one.

Nothing at checkpoint t depends on a later one: what is shown live stands. A change that is settled
later than it happened has an `onset` before its checkpoint: from there on the inclusion was on the
other side of one half.

A change of one head needs 2^-probes <= alpha_t: `fewest_probes`. With fewer, none is decided.
The paper's rule (active = in any probe's circuit) is `timeline_states.paper_states`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt8

from sparks.config import setting
from sparks.errors import SparksError
from sparks.intervals import LEVEL, inclusion_interval
from sparks.sign_flips import changed

HALF = 0.5
"""Inclusion above which a head counts as active: in more circuits than not."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How births and prunings are decided. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    fdr: float = setting(
        0.05, "share of false births and prunings that is accepted, over heads and checkpoints"
    )
    level: float = setting(LEVEL, "coverage of the intervals that decide active and inactive")
    checkpoints: int = setting(
        50, "checkpoints after the first over which half of the accepted errors are spread"
    )

    def __post_init__(self) -> None:
        for name in ("fdr", "level"):
            value = getattr(self, name)
            if not (isinstance(value, float) and 0 < value < 1):
                raise SparksError(f"{name} must be a number between 0 and 1, got {value!r}")
        if type(self.checkpoints) is not int or self.checkpoints < 1:
            raise SparksError(
                f"checkpoints must be a whole number, at least 1, got {self.checkpoints!r}"
            )

    def alpha(self, checkpoint: int) -> float:
        """False discovery rate spent at the checkpoint of this index; the first compares nothing.

        Over all checkpoints it sums to `fdr`.
        """
        if checkpoint <= self.checkpoints:
            return self.fdr / 2 / self.checkpoints
        return self.fdr / 2 * self.checkpoints / (checkpoint * (checkpoint - 1))

    def fewest_probes(self, checkpoint: int = 1) -> int:
        """Probes below which no change of a head can be decided at this checkpoint."""
        return math.ceil(-math.log2(self.alpha(checkpoint)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """What the calibrated rule says of every head at every checkpoint.

    States are 1 (active), 0 (undecided) and -1 (inactive).
    """

    inclusion: Float[np.ndarray, "checkpoints layers heads"]
    low: Float[np.ndarray, "checkpoints layers heads"]
    high: Float[np.ndarray, "checkpoints layers heads"]
    state: Int8[np.ndarray, "checkpoints layers heads"]
    change: Int8[np.ndarray, "checkpoints layers heads"]
    """1 where an inactive head became active at this checkpoint, -1 the other way round, else 0."""
    onset: Int[np.ndarray, "checkpoints layers heads"]
    """Index of the checkpoint since which the inclusion is on the side of one half where it is."""
    first: Int8[np.ndarray, "layers heads"]
    """The state at the first checkpoint."""


def decide(
    levels: UInt8[np.ndarray, "checkpoints probes layers heads"],
    settings: int,
    config: CalibrationConfig | None = None,
) -> Decisions:
    """Apply the rule to the checkpoints in their order.

    Args:
        levels: in how many of the circuit settings the head is in the probe's circuit.
        settings: how many there are.
        config: None takes the defaults.
    """
    config = config or CalibrationConfig()
    times, probes, layers, heads = levels.shape
    flat = levels.reshape(times, probes, layers * heads)
    inclusion = flat.mean(axis=1, dtype=np.float64) / settings
    low, high = inclusion_interval(flat, settings, level=config.level)
    reading = (low > HALF).astype(np.int8) - (high < HALF)
    state, change = np.zeros_like(reading), np.zeros_like(reading)
    settled, since = reading[0].copy(), np.zeros(layers * heads, dtype=np.int64)
    state[0] = settled
    for time in range(1, times):
        fresh = (settled == 0) & (reading[time] != 0)
        settled[fresh], since[fresh] = reading[time][fresh], time
        opposed = settled * reading[time] == -1
        moved = _moved(flat, time, settled, since, opposed, config)
        settled[moved], since[moved] = reading[time][moved], time
        change[time][moved] = reading[time][moved]
        state[time] = np.where(opposed & ~moved, 0, settled)
    shape = (times, layers, heads)
    return Decisions(
        inclusion=inclusion.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        state=state.reshape(shape),
        change=change.reshape(shape),
        onset=_onset(inclusion >= HALF).reshape(shape),
        first=state[0].reshape(layers, heads),
    )


def _moved(
    levels: UInt8[np.ndarray, "checkpoints probes all"],
    time: int,
    settled: Int8[np.ndarray, " all"],
    since: Int[np.ndarray, " all"],
    opposed: Bool[np.ndarray, " all"],
    config: CalibrationConfig,
) -> Bool[np.ndarray, " all"]:
    """Heads whose reading is the opposite of what they were settled as, beyond luck."""
    moved = np.zeros_like(opposed)
    if not opposed.any():
        return moved
    known = np.flatnonzero(settled)
    before = levels[since[known], :, known].astype(np.int64)
    now = levels[time][:, known].T.astype(np.int64)
    towards = (before - now) * settled[known, None]
    moved[known] = changed(towards, opposed[known], config.alpha(time))
    return moved


def _onset(above: Bool[np.ndarray, "checkpoints all"]) -> Int[np.ndarray, "checkpoints all"]:
    """Index of the first checkpoint of the unbroken stretch on the same side."""
    times = np.arange(len(above))[:, None]
    turned = np.ones_like(above)
    turned[1:] = above[1:] != above[:-1]
    return np.maximum.accumulate(np.where(turned, times, 0), axis=0)

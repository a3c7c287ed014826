"""The calibrated rule: which heads are in the circuit, and which were born or pruned, beyond luck.

A head's *inclusion* at a checkpoint is the mean, over probes, of the share of circuit settings that
hold it (`circuit_grid`; with one setting, the share of probes). In order, for each checkpoint:

1. Reading: `active` where the interval of the inclusion (`intervals`) lies above one half,
   `inactive` where it lies below, else `undecided`. So the number of active heads has an interval,
   and does not grow with the number of probes, as that of heads in ANY circuit does.
2. A head is settled by its first reading that is not undecided. Base = active at the first
   checkpoint. A head that is undecided there, more likely inactive (inclusion below one half), and
   active later is born once its inclusion has risen from the first checkpoint by more than luck
   (as in 3); until then it is active with no date of birth.
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

Where L is too little (`too_little`: its median over the probes is below `floor`) there is nothing
to attribute, and circuits are noise: every head is undecided at that checkpoint, nothing changes
there and nothing is compared with it. The first checkpoint that has enough L takes the part of the
first in 2, but its active heads are no base: they are active with no date of birth.

A change of one head needs 2^-probes <= alpha_t: `fewest_probes`. With fewer, none is decided.
The paper's rule (active = in any probe's circuit) is `timeline_states.paper_states`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt8

from sparks.config import LEAST_LOSS, setting
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
    floor: float = setting(
        LEAST_LOSS,
        "L, nats, median over probes: where a checkpoint has less, nothing is called; 0 for none",
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
        number = isinstance(self.floor, int | float) and not isinstance(self.floor, bool)
        if not (number and 0 <= self.floor < math.inf):
            raise SparksError(f"floor must be a number of nats, at least 0, got {self.floor!r}")

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
    old: Bool[np.ndarray, "layers heads"]
    """Active before any change: base, or active without a date of birth."""


def too_little(
    loss: Float[np.ndarray, " checkpoints"], config: CalibrationConfig
) -> Bool[np.ndarray, " checkpoints"]:
    """Where L, nats, median over probes, is below the floor, or no number: nothing is called."""
    return ~(loss >= config.floor)


def decide(
    levels: UInt8[np.ndarray, "checkpoints probes layers heads"],
    settings: int,
    config: CalibrationConfig | None = None,
    *,
    loss: Float[np.ndarray, " checkpoints"] | None = None,
) -> Decisions:
    """Apply the rule to the checkpoints in their order.

    Args:
        levels: in how many of the circuit settings the head is in the probe's circuit.
        settings: how many there are.
        config: None takes the defaults.
        loss: L, nats, median over the probes; None where it is known to be enough.
    """
    config = config or CalibrationConfig()
    times, probes, layers, heads = levels.shape
    usable = np.ones(times, dtype=bool) if loss is None else ~too_little(loss, config)
    flat = levels.reshape(times, probes, layers * heads)
    inclusion = flat.mean(axis=1, dtype=np.float64) / settings
    low, high = inclusion_interval(flat, settings, level=config.level)
    reading = (low > HALF).astype(np.int8) - (high < HALF)
    reading[~usable] = 0
    state, change = np.zeros_like(reading), np.zeros_like(reading)
    first, *later = np.flatnonzero(usable).tolist() or [0]
    heads_now = _Heads(flat, first, reading[first], inclusion[first])
    state[first] = reading[first]
    for time in later:
        state[time], change[time] = heads_now.advance(time, reading[time], config.alpha(time))
    shape = (times, layers, heads)
    return Decisions(
        inclusion=inclusion.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        state=state.reshape(shape),
        change=change.reshape(shape),
        onset=_onset(inclusion >= HALF, usable).reshape(shape),
        old=heads_now.old.reshape(layers, heads),
    )


class _Heads:
    """What every head is settled as, from one checkpoint to the next."""

    def __init__(
        self,
        levels: UInt8[np.ndarray, "checkpoints probes all"],
        first: int,
        reading: Int8[np.ndarray, " all"],
        inclusion: Float[np.ndarray, " all"],
    ) -> None:
        self.levels, self.first = levels, first
        self.settled = reading.copy()
        self.since = np.full(len(reading), first, dtype=np.int64)
        """Checkpoint at which it was settled."""
        self.old = reading == 1
        self.unborn = (reading == 0) & (inclusion < HALF)
        """Undecided at first, more likely inactive: may still be born."""

    def advance(
        self, time: int, reading: Int8[np.ndarray, " all"], alpha: float
    ) -> tuple[Int8[np.ndarray, " all"], Int8[np.ndarray, " all"]]:
        """State and change of every head at the next checkpoint."""
        fresh = (self.settled == 0) & (reading != 0)
        self.settled[fresh], self.since[fresh] = reading[fresh], time
        self.old |= fresh & (reading == 1)
        self.unborn &= reading != -1
        opposed = self.settled * reading == -1
        rising = self.unborn & (self.settled == 1) & ~opposed
        moved = self._moved(time, opposed, rising, rising & (reading == 1), alpha)
        self.settled[moved], self.since[moved] = reading[moved], time
        self.old[moved & rising] = False
        self.unborn[moved] = False
        change = np.where(moved, reading, 0).astype(np.int8)
        return np.where(opposed & ~moved, 0, self.settled).astype(np.int8), change

    def _moved(
        self,
        time: int,
        opposed: Bool[np.ndarray, " all"],
        rising: Bool[np.ndarray, " all"],
        risen: Bool[np.ndarray, " all"],
        alpha: float,
    ) -> Bool[np.ndarray, " all"]:
        """Heads that differ from what they are held against by more than luck."""
        moved = np.zeros_like(opposed)
        if not (opposed | risen).any():
            return moved
        known = np.flatnonzero(self.settled)
        against = np.where(rising[known], self.first, self.since[known])
        before = self.levels[against, :, known].astype(np.int64)
        now = self.levels[time][:, known].T.astype(np.int64)
        towards = np.where(rising[known], 1, -self.settled[known].astype(np.int64))
        candidates = (opposed | risen)[known]
        moved[known] = changed((now - before) * towards[:, None], candidates, alpha)
        return moved


def _onset(
    above: Bool[np.ndarray, "checkpoints all"], usable: Bool[np.ndarray, " checkpoints"]
) -> Int[np.ndarray, "checkpoints all"]:
    """Index of the first checkpoint of the unbroken stretch on the same side.

    One that is not usable is taken to be as the usable one before it.
    """
    times = np.arange(len(above))[:, None]
    above = above[np.maximum.accumulate(np.where(usable, times[:, 0], 0))]
    turned = np.ones_like(above)
    turned[1:] = above[1:] != above[:-1]
    return np.maximum.accumulate(np.where(turned, times, 0), axis=0)

"""The calibrated rule: which heads are in the circuit, and which were born or pruned, beyond luck.

A head's *inclusion* at a checkpoint is the mean, over probes, of the share of circuit settings that
hold it (`attribution.circuit`; with one setting, the share of probes). In order, for each
checkpoint:

1. Reading: `active` where the interval of the inclusion (`stats.intervals`) lies above one half,
   `inactive` where it lies below, else `undecided`. So the number of active heads has an interval,
   and does not grow with the number of probes, as that of heads in ANY circuit does.
2. A head is settled by its first reading that is not undecided. Base = active at the first
   checkpoint. A head that is undecided there, more likely inactive (inclusion below one half), and
   active later is born once its inclusion has risen from the first checkpoint by more than luck
   (as in 3); until then it is active with no date of birth.
3. A settled head stays what it is (hysteresis) until its reading is the opposite AND its inclusion
   differs from that at the checkpoint where it was settled, probe by probe, by more than luck
   (`stats.sign_flips`). Then it is born, revived or returned, pruned or silenced. Where the reading
   is the opposite but the change is not beyond luck, it shows as undecided.
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
The paper's rule (active = in any probe's circuit) is `timeline_states.PaperStates`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int8, Int32, UInt8

from sparks.ground.config import FRACTION, LEAST_LOSS, at_least, check_settings, setting
from sparks.stats.intervals import LEVEL, inclusion_interval
from sparks.stats.sign_flips import changed

HALF = 0.5
"""Inclusion above which a head counts as active: in more circuits than not."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How births and prunings are decided. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    fdr: float = setting(
        0.05,
        "share of false births and prunings that is accepted, over heads and checkpoints",
        FRACTION,
    )
    level: float = setting(
        LEVEL, "coverage of the intervals that decide active and inactive", FRACTION
    )
    checkpoints: int = setting(
        50, "checkpoints after the first over which half of the accepted errors are spread", low=1
    )
    floor: float = setting(
        LEAST_LOSS,
        "L, nats, median over probes: where a checkpoint has less, nothing is called; 0 for none",
        at_least(0, "a number of nats, "),
    )

    def __post_init__(self) -> None:
        check_settings(self)

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
    onset: Int32[np.ndarray, "checkpoints layers heads"]
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
    little = np.zeros(times, dtype=bool) if loss is None else too_little(loss, config)
    judge, flat = Judge(settings, config), levels.reshape(times, probes, layers * heads)
    judged = [judge.judge(now, little=bool(no)) for now, no in zip(flat, little, strict=True)]
    return Decisions(
        **{
            name: np.stack([getattr(now, name) for now in judged]).reshape(times, layers, heads)
            for name in Judged._fields
        },
        old=judge.old.reshape(layers, heads),
    )


class Judged(NamedTuple):
    """What the rule says of every head at one checkpoint: rows of `Decisions`."""

    inclusion: Float[np.ndarray, " all"]
    low: Float[np.ndarray, " all"]
    high: Float[np.ndarray, " all"]
    state: Int8[np.ndarray, " all"]
    change: Int8[np.ndarray, " all"]
    onset: Int32[np.ndarray, " all"]


class Judge:
    """Judges the checkpoints of a run one after the other; keeps what the next one needs alone.

    Args:
        settings: circuit settings that a level counts.
        config: None takes the defaults.
    """

    old: Bool[np.ndarray, " all"]
    """Active before any change."""
    _begun = False
    """A checkpoint had enough L."""
    _settled: Int8[np.ndarray, " all"]
    _first: UInt8[np.ndarray, "probes all"]
    _then: UInt8[np.ndarray, "probes all"]
    """Levels at the first checkpoint with enough L, and at the one where the head was settled."""
    _unborn: Bool[np.ndarray, " all"]
    """Undecided at first, more likely inactive: may still be born."""
    _above: Bool[np.ndarray, " all"]
    _onset: Int32[np.ndarray, " all"]

    def __init__(self, settings: int, config: CalibrationConfig | None = None) -> None:
        self._settings, self._config = settings, config or CalibrationConfig()
        self._time = -1

    def judge(self, levels: UInt8[np.ndarray, "probes all"], *, little: bool = False) -> Judged:
        """What every head is at the next checkpoint; undecided where it has too `little` L."""
        self._time += 1
        inclusion = levels.mean(axis=0, dtype=np.float64) / self._settings
        low, high = inclusion_interval(levels, self._settings, level=self._config.level)
        above = inclusion >= HALF
        if self._time == 0:
            self.old = np.zeros(len(above), dtype=bool)
            self._above, self._onset = above, np.zeros(len(above), dtype=np.int32)
        if little:
            nothing = np.zeros(len(above), dtype=np.int8)
            return Judged(inclusion, low, high, nothing, nothing, self._onset)
        reading = (low > HALF).astype(np.int8) - (high < HALF)
        if self._begun:
            state, change = self._advance(levels, reading)
        else:
            self._begin(levels, reading, inclusion)
            state, change = reading, np.zeros_like(reading)
        self._onset = np.where(above == self._above, self._onset, np.int32(self._time))
        self._above = above
        return Judged(inclusion, low, high, state, change, self._onset)

    def _begin(
        self,
        levels: UInt8[np.ndarray, "probes all"],
        reading: Int8[np.ndarray, " all"],
        inclusion: Float[np.ndarray, " all"],
    ) -> None:
        self._begun = True
        self._first, self._then = levels.copy(), levels.copy()
        self._settled = reading.copy()
        self.old = reading == 1
        self._unborn = (reading == 0) & (inclusion < HALF)

    def _advance(
        self, levels: UInt8[np.ndarray, "probes all"], reading: Int8[np.ndarray, " all"]
    ) -> tuple[Int8[np.ndarray, " all"], Int8[np.ndarray, " all"]]:
        """State and change of every head."""
        settled, unborn = self._settled, self._unborn
        fresh = (settled == 0) & (reading != 0)
        settled[fresh], self._then[:, fresh] = reading[fresh], levels[:, fresh]
        self.old |= fresh & (reading == 1)
        unborn &= reading != -1
        opposed = settled * reading == -1
        rising = unborn & (settled == 1) & ~opposed
        moved = self._moved(levels, rising, opposed | (rising & (reading == 1)))
        settled[moved], self._then[:, moved] = reading[moved], levels[:, moved]
        self.old[moved & rising] = False
        unborn[moved] = False
        change = np.where(moved, reading, 0).astype(np.int8)
        return np.where(opposed & ~moved, 0, settled).astype(np.int8), change

    def _moved(
        self,
        levels: UInt8[np.ndarray, "probes all"],
        rising: Bool[np.ndarray, " all"],
        candidates: Bool[np.ndarray, " all"],
    ) -> Bool[np.ndarray, " all"]:
        """Candidates that differ from what they are held against by more than luck."""
        moved = np.zeros_like(candidates)
        if not candidates.any():
            return moved
        known = np.flatnonzero(self._settled)
        before = np.where(rising, self._first, self._then).astype(np.int64)
        towards = np.where(rising, 1, -self._settled.astype(np.int64))
        differences = ((levels - before) * towards)[:, known].T
        alpha = self._config.alpha(self._time)
        moved[known] = changed(differences, candidates[known], alpha)
        return moved

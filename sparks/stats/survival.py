"""How long what was born stays: Kaplan-Meier survival with intervals for few subjects.

1. Estimate (Kaplan and Meier 1958, JASA 53:457): S(t) = product over times t_i <= t at which d_i of
   the Y_i subjects still followed ended, of 1 - d_i / Y_i. Subjects that were still there when they
   were last seen (at the end of a run) are censored: they count as followed up to then.
2. Standard error (Greenwood 1926): S(t) sqrt(sum d_i / (Y_i (Y_i - d_i))).
3. Interval: beta products (Fay, Brittain and Proschan 2013, Biostatistics 14:723). Upper end: a
   quantile of the product over t_i <= t of B(Y_i - d_i + 1, d_i), B = beta-distributed; lower end:
   of the same times B(K, 1), K = subjects known to have passed t. Without censoring this is the
   exact interval of Clopper and Pearson, and unlike those made from Greenwood's error it says
   something where none or all have ended. By 10,000 seeded draws: its ends are good to about 0.005.
4. Median = first time at which S is at most 1/2: the half-life. Its interval holds the times at
   which 1/2 lies within the interval of S (Brookmeyer and Crowley 1982, Biometrics 38:29).

Subjects count as independent. Heads that fall silent together, at a bad checkpoint, are not: then
the intervals are too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num

from sparks.ground.errors import SparksError
from sparks.stats.intervals import LEVEL, NO_INTERVAL, Interval

_DRAWS = 10_000
_SEED = 2509_25758


def fewest_subjects(level: float, share: float) -> int:
    """Subjects whose interval can lie wholly on one side of `share`, when none or all have ended.

    Args:
        level: coverage of the interval.
        share: of survival; 1/2 needs the fewest.
    """
    tail, farther = (1 - level) / 2, max(share, 1 - share)
    return math.floor(math.log(tail) / math.log(farther)) + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Survival:
    """Subjects from birth to end.

    Raises:
        SparksError: a time is negative or no number, or the two arrays differ in length.
    """

    durations: Num[np.ndarray, " subjects"]
    """Time from birth to the end, or to when the subject was last seen."""
    ended: Bool[np.ndarray, " subjects"]
    """False where the subject was still there when last seen: censored."""
    level: float = LEVEL
    """Coverage of the intervals."""

    def __post_init__(self) -> None:
        if np.shape(self.durations) != np.shape(self.ended):
            raise SparksError(
                f"durations and ended must be as long as each other, got {len(self.durations)} and "
                f"{len(self.ended)}"
            )
        if not (np.isfinite(self.durations) & (self.durations >= 0)).all():
            raise SparksError("durations must be numbers, at least 0: a subject ends after birth")

    @cached_property
    def times(self) -> Num[np.ndarray, " times"]:
        """Times at which a subject ended or was last seen, in order."""
        return np.unique(self.durations)

    @cached_property
    def at_risk(self) -> Int[np.ndarray, " times"]:
        """Subjects still followed just before each time, Y."""
        return (self.durations[None] >= self.times[:, None]).sum(axis=1)

    @cached_property
    def ends(self) -> Int[np.ndarray, " times"]:
        """Subjects that ended at each time, d."""
        return ((self.durations[None] == self.times[:, None]) & self.ended).sum(axis=1)

    @property
    def median(self) -> Interval:
        """The half-life; infinite where survival stays above 1/2, NaN without subjects."""
        if not len(self.durations):
            return NO_INTERVAL
        frame = self.frame()
        first = {
            "value": frame["survival"] <= 0.5,
            "low": frame["low"] <= 0.5,
            "high": frame["high"] < 0.5,
        }
        times = self.times.astype(np.float64)
        return Interval(**{
            name: float(times[reached.to_numpy().argmax()]) if reached.any() else math.inf
            for name, reached in first.items()
        })  # fmt: skip

    def at(self, time: float) -> Interval:
        """Survival at `time`; the value is NaN where nobody was followed so long."""
        known = int((self.durations >= time).sum() - self._ended_at(time))
        until = int(np.searchsorted(self.times, time, side="right"))
        value = float(self._estimates[until])
        if not known:  # followed to the end by none: what was survived before bounds it from above
            high = self._quantile(self._products[until], above=True)
            unknown = len(self.durations) == 0 or value > 0
            return Interval(value=math.nan if unknown else value, low=0.0, high=high)
        return Interval(value=value, low=self._low(until, known), high=self._high(until))

    def frame(self) -> pd.DataFrame:
        """A row a time. Columns: time, at_risk, ended, survival, standard_error, low, high."""
        points = [self.at(time) for time in self.times.tolist()]
        return pd.DataFrame(
            {
                "time": self.times,
                "at_risk": self.at_risk,
                "ended": self.ends,
                "survival": self._estimates[1:],
                "standard_error": self._standard_errors(),
                "low": np.array([point.low for point in points], dtype=np.float64),
                "high": np.array([point.high for point in points], dtype=np.float64),
            }
        )

    # -- parts -------------------------------------------------------------------------------

    def _ended_at(self, time: float) -> int:
        return int((self.ended & (self.durations == time)).sum())

    @cached_property
    def _estimates(self) -> Float[np.ndarray, " times_and_start"]:
        return np.concatenate([[1.0], np.cumprod(1 - self.ends / self.at_risk)])

    def _standard_errors(self) -> Float[np.ndarray, " times"]:
        left = self.at_risk * (self.at_risk - self.ends)
        terms = np.divide(self.ends, left, out=np.zeros(len(left)), where=left > 0)
        return self._estimates[1:] * np.sqrt(np.cumsum(terms))

    @cached_property
    def _products(self) -> Float[np.ndarray, "times_and_start draws"]:
        """Draws of the product of betas up to each time; ones before the first."""
        rng = np.random.default_rng(_SEED)
        out = np.ones((len(self.times) + 1, _DRAWS))
        for index, (risk, ends) in enumerate(zip(self.at_risk, self.ends, strict=True)):
            out[index + 1] = out[index]
            if ends:
                out[index + 1] *= rng.beta(risk - ends + 1, ends, _DRAWS)
        return out

    @cached_property
    def _next_draws(self) -> Float[np.ndarray, " draws"]:
        return np.random.default_rng([_SEED, 1]).random(_DRAWS)

    def _low(self, until: int, known: int) -> float:
        """B(K, 1) = U^(1/K): the next could have ended at once."""
        if not self.ends[:until].any():
            return float(((1 - self.level) / 2) ** (1 / known))
        return self._quantile(self._products[until] * self._next_draws ** (1 / known), above=False)

    def _high(self, until: int) -> float:
        return self._quantile(self._products[until], above=True)

    def _quantile(self, draws: Float[np.ndarray, " draws"], *, above: bool) -> float:
        return float(np.quantile(draws, 0.5 + (self.level if above else -self.level) / 2))

"""Which heads grew, shrank, were born or were pruned since the base, beyond luck.

Symbols: head h, probe i of n, checkpoint t (0 = base: the first with enough L, point 10), H heads.
Numpy only; what is read is the score mass of every head (the sum of |score| over ALL edges that
leave it, kept or not), so no threshold of a circuit decides anything.

1. Share of a head = its mass / that of all heads, a probe at a time. A coarse integral is wrong by
   a factor that all heads of a probe have in common, and L may rise: a share cancels both.
2. d_ith = log share at t - log share at 0. The *factor* is exp(mean_i d), a geometric mean over
   probes; its interval is Student's t over probes, for this head and checkpoint alone.
3. Smallest change that matters: a head *grew* if its mean d is above log(`smallest`), *shrank* if
   below -log(`smallest`). Rounding moves every head a little and the same way in every probe;
   without a smallest change it would be "beyond luck". So what is tested is the mean of
   x = d - log(smallest), and of x = -d - log(smallest).
4. z = sqrt(n) (T + g T^2 / 3 + g^2 T^3 / 27) + g / (6 sqrt(n)), T = mean x / s, s and g standard
   deviation and skewness of x over probes: Student's t, made even for skewed x (Hall 1992, JRSS B
   54:221); g is drawn towards 0 by n / (n + 24), as far as it is noise of n probes.
   What luck gives z, by sign flips of r = d - mean d (Fisher 1935; jointly for all heads: Westfall
   and Young 1993): r is as likely to be -r. One flip a probe for all heads AND checkpoints, so that
   what they have in common stays in. r and not x: most heads lie deep within what does not matter,
   where x is nearly the same in all probes, and flips of it would make of all heads one. r has lost
   a degree of freedom: its z counts (1 + 1 / n) times, without which 16 probes err too often.
5. False discovery rate over heads. A head counts as false if ANY statement about it, at any
   checkpoint and in either direction, is false. For each R the boundaries b_t(R) are such that
   luck takes at most `fdr` x R heads above one, ever: counted over flips, heads and checkpoints up
   to t together. Named at t are heads with z > b_t(R), R the largest number such that R heads have
   been above b(R) by now (Benjamini and Hochberg 1995, on Benjamini and Bogomolov's 2014 families:
   one a head). R never falls, nothing at t depends on a later checkpoint: statements stand.
6. Boundaries in time: of `fdr` x R, a share F_k = 1 - h / 2 (k - 1 + h), h = 4, may be spent by
   checkpoint k after the base (Lan and DeMets 1983). A flip that took a head above an earlier
   boundary is spent already; where checkpoints are alike, hardly any new one is.
7. In or out, as the best guess: a head is in where its share, the geometric mean over probes, is
   above an even one (1 / H). The levels of a checkpoint are held against each other, so a general
   rise is no birth. *Born* at t: out where it was settled last (first: at the base), in now, and
   moved that way since by more than luck and `smallest`; *pruned* the other way round. These have
   an error rate of their own: as in 5, with R = heads born or pruned so far. A head that has
   changed sides once is tested against that checkpoint too; point 5 counts that as well.
   That the sides are right is another matter, which the test does not cover: `side_doubt`.
8. What a head is now: in or out where the interval of its share says so, else unsure; each head by
   itself, so 1 - `level` of these are wrong.
9. Long runs: from checkpoint 32 on every second is tested, from 64 on every fourth, and so on;
   which ones depends on their number alone. In between what was said last stands. Of models with
   many heads fewer flips are drawn, at least 256: luck is counted over flips and heads together.
10. Where the median L is below `least_loss` there is nothing to attribute: nothing is called, no
   error is spent, and no later checkpoint is held against this one. The base is the first
   checkpoint with enough L; before it nothing has a side.

Against a family-wise rule on the same flips this one finds about twice as much with few probes,
since heads move nearly independently: `tests/bench/growth_power.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8

from sparks.ground.errors import SparksError
from sparks.stats.intervals import student_below, student_quantile
from sparks.timeline.growing import Table
from sparks.timeline.growth.luck import Luck, log_shares, mean_error, sign_flips, unit_values, z_of
from sparks.timeline.growth.settings import GrowthConfig

VERDICTS = ("grew", "shrank", "none", "too little L")
"""What is said of a head at a checkpoint."""
_EACH_UP_TO = 32
"""Checkpoints that are all tested; then every second, from twice as many on every fourth, ..."""
_CELLS = 1_310_720
"""Flips x heads at most, while there are `_FEWEST_FLIPS`: what a checkpoint costs."""
_FEWEST_FLIPS = 256
_CACHED = 1 << 15
"""Flips x heads that are worked out together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Growth:
    """What the rule says of every head at every checkpoint. At the base nothing has moved yet."""

    base: int | None
    """Index of the checkpoint that the others are held against; None while none has enough L."""
    enough_loss: Bool[np.ndarray, " checkpoints"]
    """L is large enough there; else nothing is called."""
    factor: Float[np.ndarray, "checkpoints heads"]
    """Share of all score mass / the same at the base; geometric mean over probes. NaN before."""
    factor_low: Float[np.ndarray, "checkpoints heads"]
    factor_high: Float[np.ndarray, "checkpoints heads"]
    """Ends of its interval over probes, of each head and checkpoint alone."""
    moved: Int8[np.ndarray, "checkpoints heads"]
    """1 where it grew beyond luck, -1 where it shrank, else 0."""
    share: Float[np.ndarray, "checkpoints heads"]
    """In even shares: 1 is 1 / H of all score mass; geometric mean over probes."""
    share_low: Float[np.ndarray, "checkpoints heads"]
    share_high: Float[np.ndarray, "checkpoints heads"]
    """Ends of its interval."""
    inside: Bool[np.ndarray, "checkpoints heads"]
    """In by the best guess at the base; since then it changes only by births and prunings. Before
    the base no head is."""
    change: Int8[np.ndarray, "checkpoints heads"]
    """1 where the head is born at this checkpoint, -1 where it is pruned, else 0."""
    onset: Int[np.ndarray, "checkpoints heads"]
    """Index of the checkpoint since which the best guess is on the side where it is; those with
    too little L do not count."""
    side_doubt: Float[np.ndarray, "checkpoints heads"]
    """Where a head is born or pruned: bound of the chance that it did not change sides (the sum of
    two one-sided p, of where it was and where it is; at most 1). Else NaN."""
    tested: Bool[np.ndarray, " checkpoints"]
    """Not so at the base, where L is too little, and between the tests of a long run."""
    boundary: Float[np.ndarray, " checkpoints"]
    """z above which heads are named at this checkpoint; NaN where nothing is judged."""

    def of_checkpoints(self, rows: slice) -> Growth:
        """What is said of some checkpoints; `base` stays the index among all."""
        names = [item.name for item in fields(self) if item.name != "base"]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def verdict(self) -> np.ndarray:
        """One of `VERDICTS`; [checkpoints, heads], of strings."""
        names = np.array(VERDICTS, dtype=object)[
            np.select([self.moved > 0, self.moved < 0], [0, 1], 2)
        ]
        names[~self.enough_loss] = VERDICTS[3]
        return names

    @property
    def now(self) -> Int8[np.ndarray, "checkpoints heads"]:
        """1 where a head is surely in, -1 where surely out, 0 where its interval says neither."""
        return (self.share_low > 1).astype(np.int8) - (self.share_high < 1)


def growth(
    totals: Float[np.ndarray, "checkpoints probes heads"],
    loss: Float[np.ndarray, "checkpoints probes"],
    config: GrowthConfig | None = None,
) -> Growth:
    """Apply the rule to the checkpoints in their order.

    Args:
        totals: score mass of each head: sum of |score| over all edges that leave it, kept or not.
        loss: L of each probe at its corrupted end, nats.
        config: None takes the defaults.

    Raises:
        SparksError: a mass below 0.
    """
    rule = GrowthRule(totals[0], loss[0], config)
    for masses, nats in zip(totals[1:], loss[1:], strict=True):
        rule.add(masses, nats)
    return rule.result()


def is_tested(checkpoint: int) -> bool:
    """Whether the `checkpoint`-th one after the base is tested: point 9."""
    return checkpoint % 2 ** max(0, (checkpoint // _EACH_UP_TO).bit_length()) == 0


class GrowthRule:
    """The rule, a checkpoint at a time; the same answers as all at once.

    Holds a byte a flip and head, the log shares of three checkpoints, and a row a checkpoint.
    """

    base: int | None = None
    """Index of the checkpoint that the others are held against."""
    _now: Float[np.ndarray, "probes heads"]
    _base: Float[np.ndarray, "probes heads"]
    _before: Float[np.ndarray, "probes heads"]
    """Of each head at the checkpoint where its side was settled."""
    _settled: Int8[np.ndarray, " heads"]
    """1 where a head is in, -1 where it is out, 0 before the base."""
    _crossed: Bool[np.ndarray, " heads"]
    """Heads that have changed sides."""
    _stands: Int8[np.ndarray, " heads"]
    """What moved at the last checkpoint that was tested."""

    def __init__(
        self,
        totals: Float[np.ndarray, "probes heads"],
        loss: Float[np.ndarray, " probes"],
        config: GrowthConfig | None = None,
        *,
        room: int = 0,
    ) -> None:
        """Begin with the first checkpoint.

        Args:
            totals: as for `growth`, of one checkpoint.
            loss: likewise.
            config: None takes the defaults.
            room: checkpoints that are expected; more may come.
        """
        self.config = config or GrowthConfig()
        self._rows = Table(room)
        self._shape = np.shape(totals)
        heads = self._shape[1]
        self._settled, self._stands = (np.zeros(heads, dtype=np.int8) for _ in range(2))
        self._crossed = np.zeros(heads, dtype=bool)
        self._onset, self._above = np.zeros(heads, dtype=np.int32), np.zeros(heads, dtype=bool)
        self.add(totals, loss)

    def add(
        self, totals: Float[np.ndarray, "probes heads"], loss: Float[np.ndarray, " probes"]
    ) -> None:
        """Judge the next checkpoint; arguments as for `growth`, of one checkpoint.

        Raises:
            SparksError: shapes other than those of the first, or a mass below 0.
        """
        shares = log_shares(totals)
        if shares.shape != self._shape:
            raise SparksError(
                f"totals of a checkpoint must have the shape of the base's, "
                f"{self._shape}, got {shares.shape}"
            )
        self._now = shares
        enough = bool(np.median(loss) >= self.config.least_loss)  # False for what is no number
        said, tested = _nothing(shares.shape[1]), False
        if enough and self.base is None:
            self._begin()
        elif enough and self.base is not None:
            tested = is_tested(len(self) - self.base)
            if tested:
                said = self._judge()
                self._stands = said["moved"]
            else:
                said["moved"] = self._stands
        self._say(said, enough=enough, tested=tested)

    def __len__(self) -> int:
        """Checkpoints so far."""
        return len(self._rows)

    def result(self, count: int | None = None) -> Growth:
        """What was said at the first `count` checkpoints; None for all."""
        count = len(self) if count is None else count
        base = None if self.base is None or self.base >= count else self.base
        columns = {name: self._rows.column(name, count) for name in self._rows.names}
        return Growth(base=base, **columns)

    def row(self, checkpoint: int) -> dict[str, Any]:
        """Fields of `Growth` at one checkpoint."""
        return {name: self._rows.column(name)[checkpoint] for name in self._rows.names}

    def _begin(self) -> None:
        """The base: what the others are going to be held against."""
        probes, heads = self._now.shape
        self.base, self._base, self._before = len(self), self._now, self._now.copy()
        most = min(self.config.flips, max(_FEWEST_FLIPS, _CELLS // heads // 2 * 2))
        self._flips = sign_flips(probes, most)
        self._luck = Luck(len(self._flips), heads, self.config)
        level, _ = mean_error(self._base)
        self._settled = np.where(level > 0, 1, -1).astype(np.int8)

    def _say(self, said: dict[str, Any], *, enough: bool, tested: bool) -> None:
        """Keep what is said at the newest checkpoint, with factors, shares and their intervals."""
        row = said | {"inside": self._settled > 0}
        row |= {"enough_loss": np.bool_(enough), "tested": np.bool_(tested)}
        row |= self._with_ends("share", self._now)
        if self.base is None:
            nothing = np.full(len(self._settled), np.nan, dtype=np.float32)
            row |= dict.fromkeys(("factor", "factor_low", "factor_high"), nothing)
        else:
            row |= self._with_ends("factor", self._now - self._base)
        above = row["share"] > 1
        if enough:
            self._onset = np.where(above == self._above, self._onset, np.int32(len(self)))
            self._above = above
        self._rows.add(**row, onset=self._onset)

    def _with_ends(
        self, name: str, logs: Float[np.ndarray, "probes heads"]
    ) -> dict[str, Float32[np.ndarray, " heads"]]:
        """Geometric means of numbers whose logarithms these are, and their intervals."""
        mean, error = mean_error(logs)
        degrees = np.isfinite(logs).all(axis=1).sum() - 1
        half = student_quantile(0.5 + self.config.level / 2, max(1, int(degrees))) * error
        with np.errstate(over="ignore"):
            found = {
                name: np.exp(mean),
                f"{name}_low": np.exp(mean - half),
                f"{name}_high": np.exp(mean + half),
            }
        return {end: numbers.astype(np.float32) for end, numbers in found.items()}

    def _judge(self) -> dict[str, Any]:
        """Verdicts and events of the newest checkpoint."""
        move = self._now - self._base
        across = (self._now - self._before) * -self._settled
        shift = math.log(self.config.smallest)
        up, down, over = (self._measured(values - shift) for values in (move, -move, across))
        luck, again = self._by_luck(move), self._crossed
        luck[:, again] = np.maximum(luck[:, again], self._by_luck(across[:, again]))
        boundaries = self._luck.next(luck, np.maximum.reduce([up, down, over]))
        boundary = boundaries[self._luck.named]
        change, doubt = self._cross(over > boundaries[:, None])
        return {
            "moved": (up > boundary).astype(np.int8) - (down > boundary),
            "change": change,
            "side_doubt": doubt,
            "boundary": boundary,
        }

    def _measured(self, values: Float[np.ndarray, "probes heads"]) -> Float[np.ndarray, " heads"]:
        """z of every head: how far the mean lies above 0; 0 where too few probes say something."""
        unit, count = unit_values(values)
        z = z_of(unit.sum(axis=0), (unit**3).sum(axis=0), count)
        return np.where(count >= self.config.fewest_probes, z, 0)

    def _by_luck(
        self, values: Float[np.ndarray, "probes heads"]
    ) -> Float32[np.ndarray, "flips heads"]:
        """z of every head under every flip, in the direction in which it is larger."""
        unit, count = unit_values(values - mean_error(values)[0])
        unit = unit.astype(np.float32)
        cubes, more = unit * unit * unit, (1 + 1 / count).astype(np.float32)
        z = np.empty((len(self._flips), unit.shape[1]), dtype=np.float32)
        rows = max(1, _CACHED // max(1, unit.shape[1]))
        for start in range(0, len(z), rows):  # a part at a time stays in the cache
            part = self._flips[start : start + rows]
            z[start : start + rows] = np.abs(z_of(part @ unit, part @ cubes, count)) * more
        return z

    def _cross(
        self, able: Bool[np.ndarray, "levels heads"]
    ) -> tuple[Int8[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
        """Births (1) and prunings (-1), and the doubt about their sides.

        Args:
            able: heads that moved across beyond the boundary of each R.
        """
        level, _ = mean_error(self._now)
        able = able & (np.where(level > 0, 1, -1) != self._settled)
        counts = (able | self._crossed).sum(axis=1)
        good = np.flatnonzero((counts >= self._luck.numbers) & able.any(axis=1))
        crossed = able[good[-1]] if len(good) else np.zeros(len(level), dtype=bool)
        doubt = np.full(len(level), np.nan)
        doubt[crossed] = self._side_doubt(crossed)
        change = np.where(crossed, -self._settled, 0).astype(np.int8)
        self._settled[crossed] *= -1
        self._before[:, crossed] = self._now[:, crossed]
        self._crossed |= crossed
        return change, doubt

    def _side_doubt(self, heads: Bool[np.ndarray, " heads"]) -> Float[np.ndarray, " some"]:
        """Sum of the one-sided p of both sides, for heads that are just crossing."""
        before, now = self._before[:, heads], self._now[:, heads]
        doubt = np.zeros(before.shape[1])
        for values in (before * self._settled[heads], now * -self._settled[heads]):
            mean, error = mean_error(values)
            degrees = int(np.isfinite(values).all(axis=1).sum()) - 1
            ratio = mean / np.maximum(error, 1e-9)
            doubt += [1 - student_below(float(t), degrees) for t in ratio]
        return np.minimum(doubt, 1)


def _nothing(heads: int) -> dict[str, Any]:
    """What is said where nothing is judged."""
    none = np.zeros(heads, dtype=np.int8)
    missing = np.full(heads, np.nan)
    return {"moved": none, "change": none, "side_doubt": missing, "boundary": missing[0]}

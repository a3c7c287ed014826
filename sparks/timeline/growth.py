"""Which heads grew, shrank, were born or were pruned since the base, beyond luck.

Symbols: head h, probe i of n, checkpoint t (0 = base), H heads. Numpy only; what is read is the
score mass of every head (the sum of |score| over ALL edges that leave it, kept or not), so no
threshold of a circuit decides anything.

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
10. Where the median L, at the base or now, is below `least_loss`, there is nothing to attribute:
   nothing is called, and no error is spent.

Against a family-wise rule on the same flips this one finds about twice as much with few probes,
since heads move nearly independently: `tests/bench/growth_power.py`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8, UInt8

from sparks.ground.config import FRACTION, LEAST_LOSS, Bounds, check_settings, setting
from sparks.ground.errors import SparksError
from sparks.stats.intervals import LEVEL, student_below, student_quantile

_Row = dict[str, Any]
"""A checkpoint of `Growth`, by field; for `onset` stands `above`: the share is above 1."""
VERDICTS = ("grew", "shrank", "none", "too little L")
"""What is said of a head at a checkpoint."""
SHARE_FLOOR = 1e-3
"""Shares below this part of an even one count as this, so that all have a logarithm."""
_SEED = 2509_25758
_HALVES_AT = 4
"""h of point 6: checkpoints over which most of the second half of the error is spent."""
_EACH_UP_TO = 32
"""Checkpoints that are all tested; then every second, from twice as many on every fourth, ..."""
_CELLS = 1_310_720
"""Flips x heads at most, while there are `_FEWEST_FLIPS`: what a checkpoint costs."""
_FEWEST_FLIPS = 256
_GRID = 1.15
"""Ratio of neighbouring R for which boundaries are kept."""
_LEAST_VARIANCE = 1e-4
"""Of values whose mean square is 1: z stays finite where all are alike."""
_SKEW_PROBES = 24
"""6 / 0.25: variance of the skewness of a sample times n, and variance of that of real heads."""
_LOWEST = 1.9
"""No boundary is lower: z that luck alone gives a head, in either direction, 6 times in 100."""


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

    @property
    def fewest_probes(self) -> int:
        """Probes below which nothing is named: 2^(1 - probes) must be within what may be spent.

        To find changes takes more: the power table in `tests/bench/RECORD.md`.
        """
        return 1 + math.ceil(-math.log2(self.fdr * self.spent(1)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Growth:
    """What the rule says of every head at every checkpoint. At the base nothing has moved yet."""

    enough_loss: Bool[np.ndarray, " checkpoints"]
    """L is large enough there, and at the base; else nothing is called."""
    factor: Float[np.ndarray, "checkpoints heads"]
    """Share of all score mass / the same at the base; geometric mean over probes."""
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
    """In by the best guess at the base; since then it changes only by births and prunings."""
    change: Int8[np.ndarray, "checkpoints heads"]
    """1 where the head is born at this checkpoint, -1 where it is pruned, else 0."""
    onset: Int[np.ndarray, "checkpoints heads"]
    """Index of the checkpoint since which the best guess is on the side where it is."""
    side_doubt: Float[np.ndarray, "checkpoints heads"]
    """Where a head is born or pruned: bound of the chance that it did not change sides (the sum of
    two one-sided p, of where it was and where it is; at most 1). Else NaN."""
    tested: Bool[np.ndarray, " checkpoints"]
    """Not so at the base, where L is too little, and between the tests of a long run."""
    boundary: Float[np.ndarray, " checkpoints"]
    """z above which heads are named at this checkpoint; NaN where nothing is judged."""

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

    def __init__(
        self,
        totals: Float[np.ndarray, "probes heads"],
        loss: Float[np.ndarray, " probes"],
        config: GrowthConfig | None = None,
    ) -> None:
        """Begin with the base; arguments as for `growth`, of one checkpoint."""
        self.config = config or GrowthConfig()
        self._base = self._now = log_shares(totals)
        self._before = self._base.copy()
        """Of each head at the checkpoint where its side was settled."""
        probes, heads = self._base.shape
        self._has_base = self._is_enough(loss)
        most = min(self.config.flips, max(_FEWEST_FLIPS, _CELLS // heads // 2 * 2))
        self._flips = sign_flips(probes, most)
        self._luck = _Luck(len(self._flips), heads, self.config)
        level, _ = _mean_error(self._base)
        self._settled = np.where(level > 0, 1, -1).astype(np.int8)
        """1 where a head is in, -1 where it is out."""
        self._crossed = np.zeros(heads, dtype=bool)
        """Heads that have changed sides."""
        self._stands = np.zeros(heads, dtype=np.int8)
        """What moved at the last checkpoint that was tested."""
        self._rows = list[_Row]()
        self._say(_nothing(heads), enough=self._has_base, tested=False)

    def add(
        self, totals: Float[np.ndarray, "probes heads"], loss: Float[np.ndarray, " probes"]
    ) -> None:
        """Judge the next checkpoint; arguments as for `growth`, of one checkpoint.

        Raises:
            SparksError: shapes other than those of the base, or a mass below 0.
        """
        shares = log_shares(totals)
        if shares.shape != self._base.shape:
            raise SparksError(
                f"totals of a checkpoint must have the shape of the base's, "
                f"{self._base.shape}, got {shares.shape}"
            )
        self._now = shares
        enough = self._has_base and self._is_enough(loss)
        tested = enough and is_tested(len(self))
        said = self._judge() if tested else _nothing(shares.shape[1])
        if tested:
            self._stands = said["moved"]
        elif enough:
            said = said | {"moved": self._stands}
        self._say(said, enough=enough, tested=tested)

    def __len__(self) -> int:
        """Checkpoints so far."""
        return len(self._rows)

    def result(self, count: int | None = None) -> Growth:
        """What was said at the first `count` checkpoints; None for all."""
        rows = self._rows[:count]
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return Growth(onset=_onset(columns.pop("above")), **columns)

    def _is_enough(self, loss: Float[np.ndarray, " probes"]) -> bool:
        return bool(np.median(loss) >= self.config.least_loss)  # False for what is no number

    def _say(self, said: _Row, *, enough: bool, tested: bool) -> None:
        """Keep what is said at the newest checkpoint, with factors, shares and their intervals."""
        row = said | {"inside": self._settled > 0}
        row |= {"enough_loss": np.bool_(enough), "tested": np.bool_(tested)}
        for name, values in (("factor", self._now - self._base), ("share", self._now)):
            mean, error = _mean_error(values)
            degrees = np.isfinite(values).all(axis=1).sum() - 1
            half = student_quantile(0.5 + self.config.level / 2, max(1, int(degrees))) * error
            with np.errstate(over="ignore"):
                ends = np.exp(mean - half), np.exp(mean + half)
            found = {name: np.exp(mean), f"{name}_low": ends[0], f"{name}_high": ends[1]}
            row |= {end: numbers.astype(np.float32) for end, numbers in found.items()}
        row["above"] = row["share"] > 1
        self._rows.append(row)

    def _judge(self) -> _Row:
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
        unit, count = _unit(values)
        z = _z(unit.sum(axis=0), (unit**3).sum(axis=0), count)
        return np.where(count >= self.config.fewest_probes, z, 0)

    def _by_luck(
        self, values: Float[np.ndarray, "probes heads"]
    ) -> Float32[np.ndarray, "flips heads"]:
        """z of every head under every flip, in the direction in which it is larger."""
        unit, count = _unit(values - _mean_error(values)[0])
        unit = unit.astype(np.float32)
        z = _z(self._flips @ unit, self._flips @ (unit * unit * unit), count)
        return np.abs(z) * (1 + 1 / count).astype(np.float32)

    def _cross(
        self, able: Bool[np.ndarray, "levels heads"]
    ) -> tuple[Int8[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
        """Births (1) and prunings (-1), and the doubt about their sides.

        Args:
            able: heads that moved across beyond the boundary of each R.
        """
        level, _ = _mean_error(self._now)
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
            mean, error = _mean_error(values)
            degrees = int(np.isfinite(values).all(axis=1).sum()) - 1
            ratio = mean / np.maximum(error, 1e-9)
            doubt += [1 - student_below(float(t), degrees) for t in ratio]
        return np.minimum(doubt, 1)


class _Luck:
    """How many heads luck has taken above each boundary, and the boundaries of the next checkpoint.

    A cell is a head under a flip.
    """

    def __init__(self, flips: int, heads: int, config: GrowthConfig) -> None:
        steps = np.arange(math.ceil(math.log(heads, _GRID)) + 1)
        self.numbers = np.unique(np.minimum(np.ceil(_GRID**steps).astype(np.int64), heads))
        """R: heads named; boundaries are kept for these."""
        self.named = 0
        """Index in `numbers` of the R that is reached; it never falls."""
        self._config, self._flips, self._checkpoints = config, flips, 0
        self._highest = _LOWEST
        nowhere = len(self.numbers)
        self._lowest = np.full(flips * heads, nowhere, dtype=np.uint8)
        """Lowest index in `numbers` whose boundary the cell has been above."""
        self._found = np.full(heads, nowhere, dtype=np.uint8)
        """The same of the heads as measured."""

    def next(
        self, luck: Float32[np.ndarray, "flips heads"], found: Float[np.ndarray, " heads"]
    ) -> Float[np.ndarray, " levels"]:
        """Boundaries of one more checkpoint, an R each, falling with R; `named` follows.

        Args:
            luck: largest z of each cell.
            found: largest z of each head as measured.
        """
        self._checkpoints += 1
        self._highest = max(self._highest, float(luck.max()))
        share = self._config.fdr * self._config.spent(self._checkpoints)
        places = np.flatnonzero(luck > _LOWEST)
        sizes = luck.ravel()[places]
        order = np.argsort(-sizes)
        places, sizes = places[order], sizes[order]
        before = self._lowest[places]
        spent = np.cumsum(np.bincount(self._lowest, minlength=len(self.numbers) + 1))
        boundaries = np.full(len(self.numbers), _LOWEST)
        for index, number in enumerate(self.numbers):
            left = math.floor(share * number * self._flips) - int(spent[index])
            fresh = np.flatnonzero(before > index)
            if left < 1:  # no flip to spend: only what is above all that luck has ever given
                boundaries[index] = self._highest
            elif left < len(fresh):  # strictly above this one are at most as many as are left
                boundaries[index] = sizes[fresh[left]]
        boundaries = np.maximum.accumulate(boundaries[::-1])[::-1]
        self._lowest[places] = np.minimum(before, _reached(boundaries, sizes))
        self._found = np.minimum(self._found, _reached(boundaries, found))
        counts = np.searchsorted(np.sort(self._found), np.arange(len(self.numbers)), side="right")
        self.named = max(self.named, *np.flatnonzero(counts >= self.numbers)[-1:], 0)
        return boundaries


def _reached(
    boundaries: Float[np.ndarray, " levels"], z: Float[np.ndarray, " some"]
) -> UInt8[np.ndarray, " some"]:
    """Lowest index whose boundary is below z; their number where none is."""
    return (len(boundaries) - np.searchsorted(boundaries[::-1], z)).astype(np.uint8)


def _nothing(heads: int) -> _Row:
    """What is said where nothing is judged."""
    none = np.zeros(heads, dtype=np.int8)
    missing = np.full(heads, np.nan)
    return {"moved": none, "change": none, "side_doubt": missing, "boundary": missing[0]}


def log_shares(
    totals: Float[np.ndarray, "probes heads"],
) -> Float[np.ndarray, "probes heads"]:
    """Logarithm of each head's share of its probe's score mass, in even shares (0 is 1 / H).

    NaN for a probe without any mass, or with one that is not finite: it says nothing.

    Raises:
        SparksError: a mass below 0.
    """
    masses = np.asarray(totals, dtype=np.float64)
    if (masses < 0).any():
        raise SparksError(f"a head's score mass must be at least 0, got {masses.min()}")
    whole = masses.sum(axis=1, keepdims=True)
    known = np.isfinite(whole) & (whole > 0)
    even = masses * masses.shape[1] / np.where(known, whole, 1)
    return np.where(known, np.log(np.maximum(even, SHARE_FLOOR)), np.nan)


def sign_flips(probes: int, most: int) -> Float32[np.ndarray, "flips probes"]:
    """One of each pair of opposite flips, all 2^probes / 2, where these are at most `most`.

    Else `most`, drawn at random, the same at every call.
    """
    if 2**probes <= 2 * most:
        rest = itertools.product((1, -1), repeat=probes - 1)
        return np.array([(1, *signs) for signs in rest], dtype=np.float32)
    drawn = np.random.default_rng([_SEED, probes, most]).integers(0, 2, (most, probes))
    return (2 * drawn - 1).astype(np.float32)


def _unit(
    values: Float[np.ndarray, "probes heads"],
) -> tuple[Float[np.ndarray, "probes heads"], Int[np.ndarray, " heads"]]:
    """Values with a mean square of 1 over the probes that say something; and how many these are.

    0 where a probe says nothing, and where all values are 0.
    """
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    values = np.where(known, values, 0)
    size = np.sqrt(np.square(values).sum(axis=0) / count)
    return values / np.where(size > 0, size, 1), count


def _z(
    sums: Float[np.ndarray, "... heads"],
    cubes: Float[np.ndarray, "... heads"],
    count: Int[np.ndarray, " heads"],
) -> Float[np.ndarray, "... heads"]:
    """z of point 4, from sum u and sum u^3 of values u whose mean square is 1."""
    count = count.astype(sums.dtype)
    mean = sums / count
    square = mean * mean
    spread = np.sqrt(np.maximum(1 - square, _LEAST_VARIANCE))
    skew = (cubes / count + mean * (2 * square - 3)) / (spread * spread * spread)
    skew *= count / (count + _SKEW_PROBES)
    mean /= spread
    bent = skew * mean / 3
    root = np.sqrt(count)
    return root * mean * (1 + bent + bent * bent / 3) + skew / (6 * root)


def _mean_error(
    values: Float[np.ndarray, "probes heads"],
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Mean over the probes that say something, and its standard error; infinite with fewer than 2.

    The mean of none is 0.
    """
    known = values[np.isfinite(values).all(axis=1)]
    mean = known.sum(axis=0) / max(1, len(known))
    if len(known) < 2:
        return mean, np.full_like(mean, np.inf)
    return mean, known.std(axis=0, ddof=1) / math.sqrt(len(known))


def _onset(above: Bool[np.ndarray, "checkpoints heads"]) -> Int[np.ndarray, "checkpoints heads"]:
    """Index of the first checkpoint of the unbroken stretch on the same side."""
    times = np.arange(len(above))[:, None]
    turned = np.ones_like(above)
    turned[1:] = above[1:] != above[:-1]
    return np.maximum.accumulate(np.where(turned, times, 0), axis=0)

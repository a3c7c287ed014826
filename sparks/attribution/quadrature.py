"""Where the m points lie on the path `z' + alpha (z - z')`: alpha = 0 is corrupted, 1 is clean.

These rules weigh their points equally (1/m). `left` is the official EAP-IG edge code (k/m, k =
0..m-1), `right` is the paper's Eq. 3 and the official node code (k = 1..m), `midpoint` (k - 1/2)/m
has 50-80 times less error than `left` at m = 100 for the same cost.

`pilot` places midpoints in m strata of unequal width. L is run forward at `PILOT_POINTS` even
alphas between the ends; an interval j of the seven holds the mass

    (1 - EVEN) sqrt |dL_j| / sum_i sqrt |dL_i| + EVEN / 7,

spread evenly in it, and a stratum holds 1/m of all. Its midpoint counts m times its width, so that
a constant is integrated exactly. Root and even part were chosen on measurements
(`tests/bench/RECORD.md`); mass in |dL| itself lost to `midpoint`. Points are named by the alpha
that they have under `midpoint`; `Strata` says where they lie.

m can grow without losing a point: with three times as many midpoints, every third is an old one;
with twice as many left or right ends, every second. The sum over old points is kept and only the
new ones are run, so that the final m is all that is paid. (`pilot`: every stratum in three.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparks.ground.config import Rule
from sparks.ground.errors import SparksError

_OFFSETS: dict[str, float] = {"midpoint": 0.5, "left": 0.0, "right": 1.0, "pilot": 0.5}
_GROWTH: dict[str, int] = {"midpoint": 3, "left": 2, "right": 2, "pilot": 3}
_OLD: dict[str, int] = {"midpoint": 1, "left": 0, "right": 1, "pilot": 1}
"""Which of each `_GROWTH` neighbours of the finer set is a point of the coarser one."""

PILOT_POINTS = 6
EVEN = 0.3
"""Share of the mass that is spread evenly: L seen at few alphas does not see everything."""


def points(rule: Rule, steps: int) -> list[float]:
    """The `steps` values of alpha, increasing.

    Raises:
        SparksError: the rule is unknown or `steps` is below 1.
    """
    _check(rule, steps)
    return [(k + _OFFSETS[rule]) / steps for k in range(steps)]


def grown(rule: Rule, steps: int) -> int:
    """The next larger m whose points hold those of `steps`: 3 m midpoints, 2 m ends.

    Raises:
        SparksError: as `points` does.
    """
    _check(rule, steps)
    return _GROWTH[rule] * steps


def largest(rule: Rule, steps: int, most: int) -> int:
    """The largest m that growth from `steps` reaches while it stays at most `most`.

    Raises:
        SparksError: as `points` does.
    """
    while (more := grown(rule, steps)) <= most:
        steps = more
    return steps


def added_points(rule: Rule, steps: int) -> list[float]:
    """The points of `grown(rule, steps)` that are not among those of `steps`, increasing.

    Raises:
        SparksError: as `points` does.
    """
    finer = points(rule, grown(rule, steps))
    return [alpha for k, alpha in enumerate(finer) if k % _GROWTH[rule] != _OLD[rule]]


@dataclass(frozen=True, eq=False)
class Strata:
    """Where the points of the rule `pilot` lie, a pair a row."""

    borders: Float[Tensor, "pairs borders"]
    """0, ..., 1: m + 1 of them, float64."""

    @classmethod
    def of(cls, losses: Float[Tensor, "pairs values"], steps: int) -> Strata:
        """From L at `PILOT_POINTS` even alphas and both ends, alpha increasing."""
        values = losses.double().cpu().numpy()
        grid = np.linspace(0, 1, values.shape[1])
        moved = np.sqrt(np.abs(np.diff(values)))
        whole = moved.sum(1, keepdims=True)
        mass = (1 - EVEN) * moved / np.where(whole > 0, whole, 1) + EVEN / moved.shape[1]
        cumulated = np.pad(mass.cumsum(1), ((0, 0), (1, 0)))
        levels = np.linspace(0, 1, steps + 1)
        borders = [np.interp(levels * row[-1], row, grid) for row in cumulated]
        return cls(torch.from_numpy(np.stack(borders)).to(losses.device))

    def place(
        self, names: list[float]
    ) -> tuple[Float[Tensor, "pairs points"], Float[Tensor, "pairs points"]]:
        """alpha, and weight (mean 1), of the points of these names."""
        count = self.borders.shape[1] - 1
        scaled = torch.tensor(names, dtype=torch.float64, device=self.borders.device) * count
        stratum = scaled.long()
        widths = self.borders.diff(dim=1)[:, stratum]
        alphas = self.borders[:, stratum] + (scaled - stratum) * widths
        return alphas.float(), (widths * count).float()

    def only(self, rows: list[int]) -> Strata:
        """Those of some pairs."""
        return Strata(self.borders[rows])


def _check(rule: Rule, steps: int) -> None:
    if rule not in _OFFSETS:
        raise SparksError(f"rule must be one of {', '.join(_OFFSETS)}, got {rule!r}")
    if not isinstance(steps, int) or steps < 1:
        raise SparksError(f"steps must be a whole number, at least 1, got {steps!r}")

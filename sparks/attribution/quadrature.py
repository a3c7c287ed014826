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

from sparks.ground.config import Quadrature, at_least, check_choice, check_value

_OFFSETS: dict[str, float] = {"midpoint": 0.5, "left": 0.0, "right": 1.0, "pilot": 0.5}
_GROWTH: dict[str, int] = {"midpoint": 3, "left": 2, "right": 2, "pilot": 3}
_OLD: dict[str, int] = {"midpoint": 1, "left": 0, "right": 1, "pilot": 1}
"""Which of each `_GROWTH` neighbours of the finer set is a point of the coarser one."""

PILOT_POINTS = 6
EVEN = 0.3
"""Share of the mass that is spread evenly: L seen at few alphas does not see everything."""


def alphas_of(kind: Quadrature, m: int) -> list[float]:
    """The `m` values of alpha, increasing.

    Raises:
        SparksError: the quadrature is unknown or `m` is below 1.
    """
    _check(kind, m)
    return [(k + _OFFSETS[kind]) / m for k in range(m)]


def grown(kind: Quadrature, m: int) -> int:
    """The next larger m whose points hold those of `m`: 3 m midpoints, 2 m ends.

    Raises:
        SparksError: as `alphas_of` does.
    """
    _check(kind, m)
    return _GROWTH[kind] * m


def largest(kind: Quadrature, m: int, most: int) -> int:
    """The largest m that growth from `m` reaches while it stays at most `most`.

    Raises:
        SparksError: as `alphas_of` does.
    """
    while (more := grown(kind, m)) <= most:
        m = more
    return m


def added_alphas(kind: Quadrature, m: int) -> list[float]:
    """The points of `grown(kind, m)` that are not among those of `m`, increasing.

    Raises:
        SparksError: as `alphas_of` does.
    """
    finer = alphas_of(kind, grown(kind, m))
    return [alpha for k, alpha in enumerate(finer) if k % _GROWTH[kind] != _OLD[kind]]


@dataclass(frozen=True, eq=False)
class Strata:
    """Where the points of the kind `pilot` lie, a pair a row."""

    borders: Float[Tensor, "pairs borders"]
    """0, ..., 1: m + 1 of them, float64."""

    @classmethod
    def of(cls, losses: Float[Tensor, "pairs values"], m: int) -> Strata:
        """From L at `PILOT_POINTS` even alphas and both ends, alpha increasing."""
        values = losses.double().cpu().numpy()
        grid = np.linspace(0, 1, values.shape[1])
        moved = np.sqrt(np.abs(np.diff(values)))
        whole = moved.sum(1, keepdims=True)
        mass = (1 - EVEN) * moved / np.where(whole > 0, whole, 1) + EVEN / moved.shape[1]
        cumulated = np.pad(mass.cumsum(1), ((0, 0), (1, 0)))
        levels = np.linspace(0, 1, m + 1)
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


def _check(kind: Quadrature, m: int) -> None:
    check_choice("quadrature", kind, _OFFSETS)
    check_value("points", m, int, at_least(1))

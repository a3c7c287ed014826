"""Settings of a measurement of faithfulness. Every default of it stands here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sparks.ground.config import check_settings, setting
from sparks.ground.errors import SparksError

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the edges that exist: MIB's circuit sizes."""

Ranking = Literal["mean-absolute", "absolute-mean", "signed"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
Control = Literal["layers", "uniform"]
CONTROLS: tuple[Control, ...] = get_args(Control)
Metric = Literal["kl", "logit-diff"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""m, the default first; `curve` defines them."""


@dataclass(frozen=True, kw_only=True)
class CurveConfig:
    """Which circuits are held against each other.

    Raises:
        SparksError: a value is outside its range.
    """

    ranking: Ranking = setting(
        "mean-absolute",
        "edges by their mean |score| over the probes (the paper's), by |mean score| (MIB's, for "
        "CMD), or by mean score (signed; MIB's, for CPR)",
    )
    held_out: bool = setting(
        False, "rank the shared circuit of each probe by the other probes alone (2 probes or more)"
    )
    control: Control = setting(
        "layers",
        "random circuits with as many edges between any two layers as the shared one (layers), or "
        "with edges from anywhere (uniform, MIB's)",
    )
    draws: int = setting(3, "random circuits of each size, the control", low=1)
    seed: int = setting(0, "of the random circuits", low=0)
    shares: tuple[float, ...] = setting(
        SHARES, "sizes of circuits, in shares of the edges, from small to large"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "shares", _shares(self.shares))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"shares": list(self.shares)}


def _shares(given: Sequence[float]) -> tuple[float, ...]:
    try:
        shares = tuple(float(share) for share in given)
    except (TypeError, ValueError) as error:
        raise SparksError(f"shares must be numbers, got {given!r}") from error
    rising = all(low < high for low, high in itertools.pairwise(shares))
    if len(shares) < 2 or not rising or not (shares[0] > 0 and shares[-1] <= 1):
        raise SparksError(
            f"shares must be two or more rising numbers above 0 and at most 1, got "
            f"{', '.join(map(str, given)) or 'none'}: as in 0.01 0.1 1"
        )
    return shares

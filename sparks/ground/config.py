"""Settings of a snapshot. Every default stands here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from sparks.ground.errors import SparksError

Quadrature = Literal["midpoint", "left", "right", "pilot"]
Positions = Literal["last", "all"]
ThresholdMode = Literal["absolute", "relative"]
ControlKind = Literal["both", "copying", "recall"]

FIXED_POINTS = 100
"""m where neither points nor a tolerance is given."""
FIRST_POINTS = 12
"""m that a tolerance starts from where no points are given: at 8, a gap was sometimes small by
chance (`tests/bench/RECORD.md`)."""

LEAST_LOSS = 0.1
"""L, nats, below which there is nothing to attribute: all of it is less than the |score| that the
paper asks of one edge (tau). Measured: 1 to 13 on trained models, 0.00001 to 0.02 on models as they
are initialised (`tests/bench/RECORD.md`)."""


TRUST_HELP = "run Python code that comes with a model from its folder or the hub"
"""Of `trust_remote_code`, wherever it can be given."""

_EARLIER = {"steps": "points", "max_steps": "max_points", "rule": "quadrature"}
"""Names that stored runs may have -> today's."""


def todays_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings under the names that they have today."""
    return {_EARLIER.get(name, name): value for name, value in dict(values).items()}


def setting(default: Any, help: str) -> Any:
    """A field of a settings class: its default, and the help that the command line shows."""
    return field(default=default, metadata={"help": help})


def refuse_unknown(kind: Any, values: Mapping[str, Any]) -> None:
    """Check that every name is a field of a settings class.

    Raises:
        SparksError: one is not.
    """
    known = {item.name for item in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise SparksError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")


def check_share(name: str, value: Any) -> None:
    """Check that a setting is a share, and no percentage.

    Raises:
        SparksError: it is no number, or not above 0 and at most 1.
    """
    if not (_is_finite(value) and 0 < value <= 1):
        percent = _is_finite(value) and 1 < value <= 100
        way = f": it is a share, so {value / 100:g} for {value:g} %" if percent else ""
        raise SparksError(f"{name} must be above 0 and at most 1, got {value!r}{way}")


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig:
    """What is measured at a checkpoint, and how. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    points: int | None = setting(
        None,
        "points m on the path from corrupted to clean (100 where not given, as in paper A.5); with "
        "a tolerance, the m to start from (12 where not given)",
    )
    tolerance: float | None = setting(
        None,
        "completeness gap aimed at, a share of L such as 0.05: m grows, probe by probe, until the "
        "gap is not above it; without it, every probe has the same m",
    )
    max_points: int = setting(324, "with a tolerance, m grows while it stays at most this")
    quadrature: Quadrature = setting(
        "midpoint",
        "where the points lie: midpoint; left (official code); right (paper's Eq. 3); pilot "
        "(closer where six forward passes see L move; pays below about 40 points)",
    )
    positions: Positions = setting(
        "last", "KL divergence at the last position, or its mean over all continuation positions"
    )
    top_n: int = setting(5000, "edges kept a probe, the strongest first (paper: 5000)")
    top_share: float | None = setting(
        None, "keep this share (0..1] of the model's edges instead of top_n"
    )
    threshold: float = setting(0.1, "tau: kept edges have at least this |score| (paper: 0.1)")
    threshold_mode: ThresholdMode = setting(
        "absolute", "threshold as it is, or relative to the probe's largest |score|"
    )
    max_suffix_tokens: int = setting(16, "continuations are cut to this many tokens")
    swap_base_roles: bool = setting(
        False, "at step 0 swap clean and corrupted, as the paper does for its base model"
    )
    faithfulness: bool = setting(
        True, "also measure how much of L each circuit carries alone (a little more time)"
    )
    memory_gib: float = setting(
        4.0, "memory for activations, GiB; pairs and points are split to stay under it"
    )

    def __post_init__(self) -> None:
        self._settle_points()
        _whole("points", self.points, 1)
        _whole("max_points", self.max_points, 1)
        if self.tolerance is not None:
            check_share("tolerance", self.tolerance)
        if self.most_points < self.first_points:
            raise SparksError(
                f"max_points must be at least points ({self.points}), got {self.max_points}: raise "
                f"it, or leave tolerance out to have {self.points} points whatever the gap"
            )
        _whole("top_n", self.top_n, 1)
        _whole("max_suffix_tokens", self.max_suffix_tokens, 1)
        _choice("quadrature", self.quadrature, get_args(Quadrature))
        _choice("positions", self.positions, get_args(Positions))
        _choice("threshold_mode", self.threshold_mode, get_args(ThresholdMode))
        if self.top_share is not None:
            check_share("top_share", self.top_share)
        if not (_is_finite(self.threshold) and self.threshold >= 0):
            raise SparksError(
                f"threshold must be a finite number, at least 0, got {self.threshold!r}"
            )
        if self.threshold_mode == "relative" and self.threshold:
            check_share("a relative threshold", self.threshold)
        for name in ("swap_base_roles", "faithfulness"):
            if not isinstance(value := getattr(self, name), bool):
                raise SparksError(f"{name} must be True or False, got {value!r}")
        if not (_is_finite(self.memory_gib) and self.memory_gib > 0):
            raise SparksError(
                f"memory_gib must be a finite number above 0, got {self.memory_gib!r}"
            )

    def _settle_points(self) -> None:
        if self.points is None:
            first = FIXED_POINTS if self.tolerance is None else FIRST_POINTS
            object.__setattr__(self, "points", first)

    @property
    def first_points(self) -> int:
        """m that every probe is given."""
        assert self.points is not None  # __post_init__ has settled it
        return self.points

    @property
    def most_points(self) -> int:
        """m that a probe is given at most."""
        return self.first_points if self.tolerance is None else self.max_points

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SnapshotConfig:
        """The settings that `as_dict` gave; the names of earlier versions are translated.

        Raises:
            SparksError: a name is unknown or a value is outside its range.
        """
        values = todays_names(values)
        refuse_unknown(cls, values)
        return cls(**values)

    def attribution(self) -> dict[str, Any]:
        """The settings that `edge_attribution` takes."""
        names = ("points", "tolerance", "max_points", "quadrature", "positions", "memory_gib")
        return {name: getattr(self, name) for name in names}

    def measurement(self) -> dict[str, Any]:
        """The settings that change the scores: snapshots on one timeline must share them."""
        values = self.as_dict()
        del values["memory_gib"], values["faithfulness"]
        if self.tolerance is None:
            values["max_points"] = None  # says nothing
        return values


def _whole(name: str, value: Any, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise SparksError(f"{name} must be a whole number, at least {lowest}, got {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SparksError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

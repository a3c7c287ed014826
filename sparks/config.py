"""Settings of a snapshot. Every default stands here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from sparks.errors import SparksError

Rule = Literal["midpoint", "left", "right"]
Positions = Literal["last", "all"]
ThresholdMode = Literal["absolute", "relative"]


def setting(default: Any, help: str) -> Any:
    """A field of a settings class: its default, and the help that the command line shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig:
    """What is measured at a checkpoint, and how. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    steps: int = setting(100, "points m on the path from corrupted to clean (paper A.5: 100)")
    rule: Rule = setting(
        "midpoint", "where the points lie: midpoint; left (official code); right (paper's Eq. 3)"
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
        4.0, "memory for activations, GiB; pairs and steps are split to stay under it"
    )

    def __post_init__(self) -> None:
        _whole("steps", self.steps, 1)
        _whole("top_n", self.top_n, 1)
        _whole("max_suffix_tokens", self.max_suffix_tokens, 1)
        _choice("rule", self.rule, get_args(Rule))
        _choice("positions", self.positions, get_args(Positions))
        _choice("threshold_mode", self.threshold_mode, get_args(ThresholdMode))
        share = self.top_share
        if share is not None and not (_is_finite(share) and 0 < share <= 1):
            raise SparksError(f"top_share must be above 0 and at most 1, got {share!r}")
        if not (_is_finite(self.threshold) and self.threshold >= 0):
            raise SparksError(
                f"threshold must be a finite number, at least 0, got {self.threshold!r}"
            )
        if self.threshold_mode == "relative" and self.threshold > 1:
            raise SparksError(f"a relative threshold must be at most 1, got {self.threshold!r}")
        for name in ("swap_base_roles", "faithfulness"):
            if not isinstance(value := getattr(self, name), bool):
                raise SparksError(f"{name} must be True or False, got {value!r}")
        if not (_is_finite(self.memory_gib) and self.memory_gib > 0):
            raise SparksError(
                f"memory_gib must be a finite number above 0, got {self.memory_gib!r}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SnapshotConfig:
        """The settings that `as_dict` gave.

        Raises:
            SparksError: a name is unknown or a value is outside its range.
        """
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SparksError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)

    def measurement(self) -> dict[str, Any]:
        """The settings that change the scores: snapshots on one timeline must share them."""
        values = self.as_dict()
        del values["memory_gib"], values["faithfulness"]
        return values


def _whole(name: str, value: Any, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise SparksError(f"{name} must be a whole number, at least {lowest}, got {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SparksError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")

"""Settings of a study of effects. Every default stands here. No numpy."""

from __future__ import annotations

from dataclasses import dataclass

from sparks.ground.config import FRACTION, at_least, check_settings, setting

FEWEST_DRAWS = 2
"""One draw does not say how much draws differ."""
ALPHA = 0.05
"""Chance of any false `beyond` among the rows of a study."""
FORMATS = ("text", "csv", "json", "markdown", "latex")
"""Of a printed study."""


@dataclass(frozen=True, kw_only=True)
class EffectConfig:
    """How effects are judged. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    metric: str = setting("pass@1", "what is judged: pass@K or success@K")
    random_draws: int = setting(
        5,
        "random sets that match each set, at least 2; more tell more",
        at_least(FEWEST_DRAWS, way_out="one draw does not say how much draws differ"),
    )
    margin: float = setting(
        0.1, "a difference that would matter, as a share of the metric without ablation", FRACTION
    )

    def __post_init__(self) -> None:
        from sparks.effects.judging import Metric  # numpy is not needed to show the help

        Metric.named(self.metric)
        check_settings(self)

"""Growth as counts and tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from sparks.timeline.growth.rule import Growth

NOW = ("unsure", "in", "out")
"""By 0, 1 and -1 of `Growth.now`."""


@dataclass(frozen=True, kw_only=True)
class GrowthCounts:
    """A run's growth in four numbers."""

    at: int
    """The last checkpoint that was tested; 0 where there is none."""
    grew: int
    """Heads that had grown, or shrunk, at `at`."""
    shrank: int
    born: int
    """Heads that were born, in the whole run."""
    fell: int
    """Times that a head fell silent: prunings, and silencings of base heads."""

    @classmethod
    def of(cls, growth: Growth, *, born: int, fell: int) -> GrowthCounts:
        """Count those that grew or shrank; births and falls are the states'."""
        at = int(np.flatnonzero(growth.tested)[-1:].sum())
        return cls(
            at=at,
            grew=int((growth.moved[at] > 0).sum()),
            shrank=int((growth.moved[at] < 0).sum()),
            born=born,
            fell=fell,
        )


def growth_frame(
    growth: Growth,
    changes: Shaped[np.ndarray, "checkpoints layers per_layer"],
    steps: Int[np.ndarray, " checkpoints"],
    heads: list[str],
) -> pd.DataFrame:
    """`Timeline.growth` of some checkpoints; `changes` are kinds of events, or empty."""
    shape = growth.factor.shape
    return pd.DataFrame(
        {
            "step": np.repeat(steps, shape[1]),
            "head": heads * shape[0],
            "factor": growth.factor.ravel(),
            "factor_low": growth.factor_low.ravel(),
            "factor_high": growth.factor_high.ravel(),
            "verdict": growth.verdict.ravel(),
            "change": changes.ravel(),
            "now": np.array(NOW, dtype=object)[growth.now.ravel()],
        }
    )


def most_moved(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of `Timeline.growth` that grew or shrank, the largest factor either way first."""
    named = frame[frame["verdict"].isin(("grew", "shrank"))]
    order = np.argsort(-np.abs(np.log(named["factor"].to_numpy())), kind="stable")
    return named.iloc[order]

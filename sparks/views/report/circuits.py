"""Numbers of checkpoints that no rule changes: measurement, turnover of edges, circuit settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sparks.timeline.regimes.regime import circuit_turnover
from sparks.timeline.regimes.turnover import turnover_frame
from sparks.timeline.timeline import Timeline
from sparks.views.report.cells import packed_shares
from sparks.views.report.packing import Packed, packed_planes

TURNOVER = (
    "edges_from_previous", "edges_from_first", "edges_stability",
    "heads_from_previous", "heads_from_first", "heads_stability",
)  # fmt: skip
"""In the order in which they are sent."""
_LEFT_OUT = (
    "step", "peak_memory_gib", "active", "emergent", "retained", "base", "undecided",
    "born", "pruned", "revived", "silenced", "returned",
)  # fmt: skip


def shared_counts(timeline: Timeline) -> pd.DataFrame:
    """`Timeline.counts()` without what the page does not show, or sums up itself."""
    return timeline.counts().drop(columns=list(_LEFT_OUT))


def turnover_data(timeline: Timeline) -> Packed:
    """Of each of `TURNOVER` its values, then the lower, then the upper ends of their intervals."""
    frame = turnover_frame(circuit_turnover(timeline))
    names = [name + end for name in TURNOVER for end in ("", "_low", "_high")]
    return packed_shares(frame[names].to_numpy(np.float64).T)


def grid_data(timeline: Timeline) -> dict[str, Any] | None:
    """Active heads under each circuit setting; None where the snapshots have no common grid.

    Returns:
        `settings`: share of edges and tau / L of each; `half`: heads in at least half of the
        probes' circuits, and `any`: in any of them, each a row a setting, uint16 one checkpoint
        after another.
    """
    grid = timeline.snapshots.outlines[0].grid
    if timeline.snapshots.settings == 1 or not grid:
        return None
    half, any_ = (timeline.per_checkpoint(name) for name in ("grid_half", "grid_any"))
    return {
        "settings": [list(setting) for setting in grid],
        "half": packed_planes(half.T.astype("<u2")),
        "any": packed_planes(any_.T.astype("<u2")),
    }

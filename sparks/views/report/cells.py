"""Numbers of every head at every checkpoint, packed small: cells in the order layer, head, time.

1. Activation frequency and importance: only cells that hold something are sent. A bit a cell says
   which (`mask`, a bit that differs from that of the checkpoint before is 1), then come `levels`
   (one byte, frequency in units of 1 / `level_unit`) and `importance` (differences of uint16:
   4095 * sqrt(I / `importance_max`), which keeps small values apart).
2. Ends of the interval of importance, of the same cells: `end_unit` sqrt(low / I) of all, then
   `end_unit` sqrt(I / high) of all, a byte each = `importance_ends`.
3. Share of all score mass, in even shares: its logarithm to the base 2 in 1 / `octave`, int8,
   differences in time = `shares`; of heads that are never active or undecided a fourth as fine. Of
   the others half the width of its interval, likewise = `share_halves` (the interval is even on
   that scale).

Of runs with more than `MOST_CELLS` cells shares are sent of heads that are ever active or undecided
by either rule, and intervals of the last checkpoint alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sparks.attribution.snapshot import Snapshot
from sparks.timeline.history import Follower, History
from sparks.timeline.numbers import importance_interval
from sparks.timeline.timeline import Timeline
from sparks.views.report.packing import Packed, differences, packed, packed_planes

MOST_LEVELS = 254
"""Steps of activation frequency that are told apart, where there are more probes."""
OCTAVE = 16
"""Steps of a factor of 2 of a share that are told apart."""
MOST_CELLS = 500_000
"""Heads x checkpoints, above which less is sent."""
END_UNIT = 30
"""Steps of the end of an interval of importance."""


def cells(timeline: Timeline) -> dict[str, Any]:
    """Of a timeline by the rule of growth; the keys are those of the module's text."""
    is_large = timeline.active.size > MOST_CELLS
    levels, unit = _levels(timeline)
    importance = timeline.importance.astype(np.float64)
    largest = float(importance.max())
    root = np.sqrt(importance / largest) if largest > 0 else np.zeros_like(importance)
    levels, root = (by_head(values) for values in (levels, root))
    held = (levels > 0) | (root > 0)
    return {
        "mask": packed_turns(held),
        "levels": packed(levels[held]),
        "level_unit": unit,
        "importance": packed_planes(differences(np.rint(root[held] * 4095).astype("<u2"))),
        "importance_max": largest,
        "importance_ends": packed(_importance_ends(timeline, held, is_large)),
        "end_unit": END_UNIT,
        **_shares(timeline, is_large),
        "is_large": is_large,
    }


def by_head(values: np.ndarray) -> np.ndarray:
    """A row a head, a column a checkpoint."""
    return values.reshape(len(values), -1).T


def packed_turns(holds: Bool[np.ndarray, "rows checkpoints"]) -> Packed:
    """A bit a cell: 1 where it differs from that of the checkpoint before; before all is 0."""
    before = np.concatenate([np.zeros_like(holds[:, :1]), holds[:, :-1]], axis=1)
    return packed(np.packbits(holds ^ before))


def ever_near(timeline: Timeline) -> Bool[np.ndarray, " rows"]:
    """Heads that are active or undecided at any checkpoint."""
    return (timeline.active | timeline.undecided).any(axis=0).ravel()


def _levels(timeline: Timeline) -> tuple[UInt8[np.ndarray, "checkpoints layers heads"], int]:
    """Frequency in whole units, and how many of them make 1; what is in a circuit is never 0."""
    unit = min(timeline.num_probes, MOST_LEVELS)
    levels = np.rint(timeline.frequency.astype(np.float64) * unit).astype(np.uint8)
    return np.maximum(levels, (timeline.frequency > 0).astype(np.uint8)), unit


def _importance_ends(
    timeline: Timeline, held: Bool[np.ndarray, "rows checkpoints"], is_large: bool
) -> UInt8[np.ndarray, "two cells"]:
    """Of the held cells."""
    times = [len(timeline) - 1] if is_large else list(range(len(timeline)))
    known = [None] if is_large else timeline.snapshots.follow(ImportanceEnds(timeline.group))
    ends = [
        found or timeline.importance_interval(time)
        for time, found in zip(times, known, strict=True)
    ]
    middle = by_head(timeline.importance[times].astype(np.float64))
    low, high = (by_head(np.stack(values).astype(np.float64)) for values in zip(*ends, strict=True))
    down = np.sqrt(np.divide(low, middle, out=np.zeros_like(low), where=middle > 0))
    up = np.sqrt(np.divide(middle, high, out=np.ones_like(low), where=high > 0))
    ends_of = [np.rint(end.clip(0, 1) * END_UNIT)[held[:, times]] for end in (down, up)]
    return np.stack(ends_of).astype(np.uint8)


class ImportanceEnds(Follower):
    """Reads the ends of the interval of importance off the snapshots of a run that is not large."""

    def read(self, history: History, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray] | None:
        """None where the last checkpoint's are going to be enough."""
        if history.expected * snapshot.graph.num_layers * snapshot.graph.num_heads > MOST_CELLS:
            return None
        return importance_interval(snapshot, history.chosen(self.group))


def _shares(timeline: Timeline, is_large: bool) -> dict[str, Any]:
    near = ever_near(timeline)
    sent = near | (timeline.frequency > 0).any(axis=0).ravel() if is_large else near | True
    share, high = (by_head(values) for values in (timeline.share, timeline.share_high))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        octaves = np.nan_to_num(np.log2(share) * OCTAVE).clip(-127, 127)
        halves = np.nan_to_num(np.log2(high / share) * OCTAVE, nan=255, posinf=255).clip(0, 255)
    octaves[~near] = 4 * np.rint(octaves[~near] / 4).clip(-31, 31)
    whole, wide = np.rint(octaves).astype(np.int8), np.rint(halves[near]).astype(np.uint8)
    wide = wide[:, -1:] if is_large else wide
    return {
        "shares": packed(np.diff(whole, axis=1, prepend=np.int8(0))[sent]),
        "share_halves": packed(np.diff(wide, axis=1, prepend=np.uint8(0))),
        "octave": OCTAVE,
    }


def differences_by_column(values: np.ndarray) -> np.ndarray:
    """A column after another, each number less the one before in its column, wrapped around."""
    return np.diff(values, axis=0, prepend=values.dtype.type(0)).T


def packed_shares(values: Float[np.ndarray, "columns rows"]) -> Packed:
    """Numbers from 0 to 1, one column after another, in 1 / 254; 255 where there is none."""
    known = np.isfinite(values)
    whole: Int[np.ndarray, "columns rows"] = np.rint(
        np.where(known, values, 0).clip(0, 1) * 254
    ).astype(np.uint8)
    whole[~known] = 255
    return packed(np.diff(whole, axis=1, prepend=np.uint8(0)))

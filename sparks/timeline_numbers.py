"""Numbers of a timeline that need no states: of a checkpoint, shares, effects, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8

from sparks.intervals import inclusion_interval, mean_interval
from sparks.snapshot import Snapshot

EPSILON = 1e-6
"""Of the paper's A.6."""


def measurements(
    ordered: Sequence[Snapshot], chosen: np.ndarray
) -> dict[str, Float[np.ndarray, " checkpoints"]]:
    """Numbers of each checkpoint that are not about heads."""
    gaps = [_numbers(snapshot.completeness_gap[chosen]) for snapshot in ordered]
    points = np.stack([np.asarray(snapshot.points)[chosen] for snapshot in ordered])
    return {
        "edges": np.array([np.diff(s.edge_offsets)[chosen].mean() for s in ordered]),
        "loss_corrupted": np.array(
            [s.loss_corrupted[chosen].mean(dtype=np.float64) for s in ordered]
        ),
        "faithfulness": np.array(
            [np.median(_numbers(snapshot.faithfulness[chosen])) for snapshot in ordered]
        ),
        "completeness_gap_median": np.array([np.median(gap) for gap in gaps]),
        "completeness_gap_max": np.array([np.max(gap) for gap in gaps]),
        "points_min": points.min(axis=1),
        "points_median": np.median(points, axis=1),
        "points_max": points.max(axis=1),
    }


def median_loss(
    ordered: Sequence[Snapshot], chosen: np.ndarray
) -> Float[np.ndarray, " checkpoints"]:
    """L, nats: median over the probes. NaN where that of a probe is no number."""
    return np.array([np.median(s.loss_corrupted[chosen].astype(np.float64)) for s in ordered])


def _numbers(values: np.ndarray) -> Float[np.ndarray, " rest"]:
    """Without NaN; a single NaN where nothing is left."""
    kept = values[~np.isnan(values)].astype(np.float64)
    return kept if kept.size else np.array([np.nan])


def shares(values: Float[np.ndarray, "checkpoints ..."]) -> Float[np.ndarray, "checkpoints ..."]:
    """Divided by their sum, a checkpoint at a time; zeros where the sum is 0 or not finite."""
    total = values.sum(axis=tuple(range(1, values.ndim)), keepdims=True)
    usable = np.isfinite(total) & (total > 0)
    return np.divide(values, total, out=np.zeros_like(values), where=usable)


def effect_of(share: Float[np.ndarray, "checkpoints ..."]) -> Float[np.ndarray, "checkpoints ..."]:
    """A.6, against the first checkpoint."""
    return (share - share[:1]) / (share + share[:1] + EPSILON)


def interval_of_levels(
    levels: UInt8[np.ndarray, "checkpoints probes layers heads"], settings: int
) -> list[Float[np.ndarray, "checkpoints layers heads"]]:
    """Lower and upper end of each head's inclusion."""
    ends = inclusion_interval(levels.reshape(*levels.shape[:2], -1), settings)
    return [end.reshape(len(levels), *levels.shape[2:]) for end in ends]


def component_totals(
    steps: Int[np.ndarray, " checkpoints"],
    totals: Float[np.ndarray, "checkpoints sources"],
    layers: int,
) -> pd.DataFrame:
    """`Timeline.component_totals` from the sums of |score| that leave each source."""
    per_layer = totals[:, 1:].reshape(len(steps), layers, -1)
    parts = np.concatenate(
        [totals[:, :1], per_layer[:, :, :-1].sum(axis=2), per_layer[:, :, -1]],
        axis=1,
    )
    share = shares(parts)
    names = ["embed", *["attention"] * layers, *["mlp"] * layers]
    layer = pd.array([None, *range(layers), *range(layers)], dtype="Int64")
    return pd.DataFrame(
        {
            "step": np.repeat(steps, len(names)),
            "component": names * len(steps),
            "layer": layer[np.tile(np.arange(len(names)), len(steps))],
            "share": share.ravel(),
            "effect": effect_of(share).ravel(),
        }
    )


def circuit_heads(
    levels: UInt8[np.ndarray, "checkpoints probes layers heads"],
    settings: int,
    little: Bool[np.ndarray, " checkpoints"],
) -> dict[str, Float[np.ndarray, " checkpoints"]]:
    """Heads of a circuit, the mean over probes and settings, and what they gained since the first.

    No head is judged, so small rises of many heads show that no single test could settle. Ends are
    95 % bootstrap intervals; the gain is that of each probe. It is NaN where this checkpoint or the
    first has too `little` L.
    """
    sizes = levels.sum(axis=(2, 3), dtype=np.int64) / settings
    columns: dict[str, Float[np.ndarray, " checkpoints"]] = {}
    for name, values in (("circuit_heads", sizes), ("circuit_growth", sizes - sizes[0])):
        low, high = mean_interval(values.T)
        columns |= {name: values.mean(axis=1), f"{name}_low": low, f"{name}_high": high}
    for end in ("", "_low", "_high"):
        columns[f"circuit_growth{end}"][little | little[0]] = np.nan
    return columns


def frozen(values: Any) -> Any:
    """The same array, read-only."""
    values.setflags(write=False)
    return values

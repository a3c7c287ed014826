"""Numbers of a timeline that need no states: of a checkpoint, shares, effects, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int

from sparks.attribution.snapshot import Snapshot
from sparks.stats.intervals import mean_interval, share_interval

EPSILON = 1e-6
"""Of the paper's A.6."""


PER_CHECKPOINT = (
    "edges", "loss_corrupted", "faithfulness", "completeness_gap_median", "completeness_gap_max",
    "points_min", "points_median", "points_max",
)  # fmt: skip
"""Numbers of `checkpoint` that are columns of `Timeline.counts()`."""

CIRCUIT_COLUMNS = (
    "circuit_heads", "circuit_heads_low", "circuit_heads_high",
    "circuit_growth", "circuit_growth_low", "circuit_growth_high",
)  # fmt: skip
"""What `circuit_heads` gives."""


def checkpoint(snapshot: Snapshot, chosen: np.ndarray, *, graded: bool) -> dict[str, Any]:
    """What the chosen probes say at one checkpoint, which no rule and no other one changes.

    Args:
        snapshot: of the checkpoint.
        chosen: indices of the probes.
        graded: count the circuit settings of the grid; else whether the circuit holds the head.

    Returns:
        frequency and importance (float32, layers x heads), node_totals (sources), head_totals
        (float32, probes x all heads: sum of |score| over all edges that leave a head), losses
        (float32, L of a probe), sizes (of a probe: heads that circuits hold, summed over settings),
        grid_half and grid_any (a setting: heads in at least half of the probes' circuits, in any),
        is_finite (all scores), loss and gap (medians, NaN where a probe has none), and those of
        `PER_CHECKPOINT`.
    """
    levels = snapshot.levels[0] if graded else snapshot.active
    scores = snapshot.importance[chosen]
    gap, loss = snapshot.completeness_gap[chosen], snapshot.loss_corrupted[chosen]
    loss = loss.astype(np.float64)
    gaps, points = _numbers(gap), np.asarray(snapshot.points)[chosen]
    return {
        "frequency": snapshot.active[chosen].mean(axis=0).astype(np.float32),
        "importance": shares(scores.sum(axis=0, dtype=np.float64)[None])[0].astype(np.float32),
        "node_totals": snapshot.node_totals[chosen].sum(axis=0, dtype=np.float64),
        "head_totals": snapshot.head_totals[chosen],
        "losses": snapshot.loss_corrupted[chosen],
        "sizes": levels[chosen].sum(axis=(1, 2), dtype=np.int64),
        **_of_settings(snapshot, chosen, graded),
        "is_finite": np.isfinite(scores).all(),
        "loss": np.median(loss),
        "gap": np.median(gap),
        "edges": np.diff(snapshot.edge_offsets)[chosen].mean(),
        "loss_corrupted": loss.mean(),
        "faithfulness": np.median(_numbers(snapshot.faithfulness[chosen])),
        "completeness_gap_median": np.median(gaps),
        "completeness_gap_max": np.max(gaps),
        "points_min": points.min(),
        "points_median": np.median(points),
        "points_max": points.max(),
    }


def _of_settings(snapshot: Snapshot, chosen: np.ndarray, graded: bool) -> dict[str, Any]:
    """Heads in at least half of the probes' circuits, and in any, under each circuit setting."""
    grid = np.asarray(snapshot.grid_active)[:, chosen] if graded else np.zeros((0, 1, 1, 1), bool)
    held = grid.view(np.uint8).sum(axis=1, dtype=np.uint32)
    return {
        "grid_half": (2 * held >= len(chosen)).sum(axis=(1, 2)),
        "grid_any": (held > 0).sum(axis=(1, 2)),
    }


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


def importance_interval(
    snapshot: Snapshot, chosen: np.ndarray
) -> tuple[Float32[np.ndarray, "layers heads"], Float32[np.ndarray, "layers heads"]]:
    """Ends of the 95 % bootstrap interval of the importance over the chosen probes."""
    scores = snapshot.importance[chosen]
    low, high = share_interval(scores.reshape(len(scores), -1))
    shape = scores.shape[1:]
    return low.astype(np.float32).reshape(shape), high.astype(np.float32).reshape(shape)


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
    sizes: Int[np.ndarray, " probes"],
    first: Int[np.ndarray, " probes"],
    settings: int,
    *,
    little: bool,
) -> dict[str, float]:
    """Heads of a circuit, the mean over probes and settings, and what they gained since the first.

    No head is judged, so small rises of many heads show that no single test could settle. Ends are
    95 % bootstrap intervals; the gain is that of each probe.

    Args:
        sizes: sums of the levels of each probe.
        first: the same at the first checkpoint.
        settings: circuit settings that a level counts.
        little: this checkpoint or the first has too little L: the gain is NaN.
    """
    now, then = sizes / settings, np.nan if little else first / settings
    values = np.stack([now, now - then], axis=1)
    low, high = mean_interval(values)
    found = np.stack([values.mean(axis=0), low, high], axis=1).ravel()
    return dict(zip(CIRCUIT_COLUMNS, found.tolist(), strict=True))


def frozen(values: Any) -> Any:
    """The same array, read-only."""
    values.setflags(write=False)
    return values

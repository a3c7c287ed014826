"""What the page is given: a timeline as plain JSON values, with its arrays packed small.

Cells are packed in the order layer, head, checkpoint. Only cells that hold something are sent: a
bit a cell says which (`mask`, a bit that differs from that of the checkpoint before is 1), then
come their activation frequency (`levels`, one byte, in units of 1 / `level_unit`) and importance
(`importance`, differences of uint16: 65535 * sqrt(I / `importance_max`), which keeps small values
apart). `sparks.report.packing` says how numbers become text. Definitions are those of
`sparks.timeline`; the page computes sums and the effect E from these arrays, nothing else.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8, UInt16

from sparks.cohort_groups import cohort_groups
from sparks.report.edges import edge_data
from sparks.report.packing import differences, packed, packed_numbers, packed_planes
from sparks.report.words import (
    clean_text,
    describe_settings,
    headline_numbers,
    notes,
    summary,
    trust,
)
from sparks.timeline import EVENT_KINDS, Timeline

MOST_METRIC_POINTS = 300
"""Points a curve; a longer log is thinned to the lowest and highest value of each stretch."""
MOST_POINTS_TOGETHER = 5000
"""Points of all curves of a run."""
MOST_LEVELS = 254
"""Steps of activation frequency that are told apart, where there are more probes."""
_SNAPSHOT_FILE = re.compile(r"step-(\d+)\.safetensors")


def run_data(timeline: Timeline) -> dict[str, Any]:
    """The record of one run, ready for `json.dumps(..., allow_nan=False)`."""
    return {
        "name": clean_text(timeline.name, 120) or "unnamed run",
        "model": clean_text(timeline.metas[-1].model_name, 120),
        "layers": timeline.graph.num_layers,
        "heads": timeline.graph.num_heads,
        "kv_heads": timeline.graph.num_kv_heads,
        "probes": timeline.num_probes,
        "group": clean_text(timeline.group, 80) if timeline.group is not None else None,
        "steps": timeline.steps.tolist(),
        "missing_steps": _missing_steps(timeline),
        "unscored": _unscored(timeline),
        **_cells(timeline),
        "base": packed(np.packbits(timeline.base)),
        "cohort": packed_planes(timeline.cohort.astype("<i2")),
        "cohort_groups": cohort_groups(timeline),
        "event_kinds": list(EVENT_KINDS),
        "events": packed_planes(_events(timeline).T),
        "counts": _columns(timeline.counts().drop(columns="step")),
        **_metrics(timeline.metrics()),
        "shift": _shift(timeline),
        "edges": edge_data(timeline, timeline.snapshots),
        "numbers": headline_numbers(timeline),
        "summary": summary(timeline) + trust(timeline),
        "notes": notes(timeline),
        "settings": describe_settings(timeline),
        "problems": [clean_text(problem, 600) for problem in timeline.problems],
    }


def _levels(timeline: Timeline) -> tuple[UInt8[np.ndarray, "checkpoints layers heads"], int]:
    """Frequency in whole units, and how many of them make 1; an active head never rounds to 0."""
    unit = min(timeline.num_probes, MOST_LEVELS)
    levels = np.rint(timeline.frequency.astype(np.float64) * unit).astype(np.uint8)
    return np.maximum(levels, timeline.active.astype(np.uint8)), unit


def _cells(timeline: Timeline) -> dict[str, Any]:
    levels, unit = _levels(timeline)
    importance = timeline.importance.astype(np.float64)
    largest = float(importance.max())
    root = np.sqrt(importance / largest) if largest > 0 else np.zeros_like(importance)
    levels, root = (_by_head(values) for values in (levels, root))
    held: Bool[np.ndarray, "rows checkpoints"] = (levels > 0) | (root > 0)
    before = np.concatenate([np.zeros_like(held[:, :1]), held[:, :-1]], axis=1)
    return {
        "mask": packed(np.packbits(held ^ before)),
        "levels": packed(levels[held]),
        "level_unit": unit,
        "importance": packed_planes(differences(np.rint(root[held] * 65535).astype("<u2"))),
        "importance_max": largest,
    }


def _by_head(values: np.ndarray) -> np.ndarray:
    """A row a head, a column a checkpoint."""
    return values.reshape(len(values), -1).T


def _unscored(timeline: Timeline) -> list[int]:
    """Checkpoints whose circuits have members but no score."""
    silent = timeline.importance.sum(axis=(1, 2), dtype=np.float64) == 0
    return np.flatnonzero(timeline.active.any(axis=(1, 2)) & silent).tolist()


def _shift(timeline: Timeline) -> str:
    """E of each component against the first checkpoint, in 1 / 127, the checkpoints one by one.

    Components: the embedding, attention of each layer, MLP of each layer.
    """
    effect = timeline.component_totals()["effect"].to_numpy(np.float64)
    parts = 1 + 2 * timeline.graph.num_layers
    whole = np.rint(np.nan_to_num(effect) * 127).astype(np.int8).reshape(-1, parts)
    return packed(differences_by_column(whole))


def differences_by_column(values: np.ndarray) -> np.ndarray:
    """A column after another, each number less the one before in its column, wrapped around."""
    return np.diff(values, axis=0, prepend=values.dtype.type(0)).T


def _missing_steps(timeline: Timeline) -> list[int]:
    """Steps whose snapshot file is named among the problems: drawn as gaps, never bridged."""
    named = (_SNAPSHOT_FILE.search(problem) for problem in timeline.problems)
    steps = {int(match[1]) for match in named if match}
    return sorted(steps - set(timeline.steps.tolist()))


def _events(timeline: Timeline) -> UInt16[np.ndarray, "events three"]:
    """A row an event, in time: row of the head (layer * heads + head), checkpoint, kind."""
    rows = []
    for kind, name in enumerate(EVENT_KINDS):
        time, layer, head = np.nonzero(timeline.changes(name))
        row = layer * timeline.graph.num_heads + head
        rows.append(np.stack([row, time, np.full_like(time, kind)], axis=1))
    events = np.concatenate(rows)
    return events[np.lexsort((events[:, 0], events[:, 2], events[:, 1]))].astype("<u2")


def _metrics(frame: pd.DataFrame) -> dict[str, Any]:
    """Curves with at least one finite number, in the order of the log.

    Returns:
        `metrics`: name, count of points and `thinned_from` of each curve; `metric_steps` (their
        differences, uint32) and `metric_values`: those of all curves, one after another.
    """
    logged = {
        str(name): frame[name][np.isfinite(frame[name])] for name in frame.columns if name != "step"
    }
    logged = {name: series for name, series in logged.items() if len(series)}
    most = min(MOST_METRIC_POINTS, max(40, MOST_POINTS_TOGETHER // max(1, len(logged))))
    curves, steps, values = [], [np.zeros(0, "<u4")], [np.zeros(0)]
    for name, series in logged.items():
        at, number = thin(series.index.to_numpy(np.int64), series.to_numpy(np.float64), most)
        steps.append(differences(at).astype("<u4"))
        values.append(number)
        thinned = len(series) if len(at) < len(series) else None
        curves.append({"name": clean_text(name, 80), "count": len(at), "thinned_from": thinned})
    return {
        "metrics": curves,
        "metric_steps": packed_planes(np.concatenate(steps)),
        "metric_values": packed_numbers(np.concatenate(values)),
    }


def thin(
    steps: Int[np.ndarray, " points"], values: Float[np.ndarray, " points"], most: int
) -> tuple[Int[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """At most `most` points: the first, the last, the lowest and highest of equal stretches."""
    if len(steps) <= most:
        return steps, values
    keep = {0, len(steps) - 1}
    edges = np.linspace(0, len(steps), (most - 2) // 2 + 1).astype(np.int64)
    for start, stop in itertools.pairwise(edges.tolist()):
        keep.add(int(start + values[start:stop].argmin()))
        keep.add(int(start + values[start:stop].argmax()))
    index = np.array(sorted(keep))
    return steps[index], values[index]


def _columns(frame: pd.DataFrame) -> dict[str, list[float | int | None]]:
    return {str(name): [_short(value) for value in frame[name].tolist()] for name in frame.columns}


def _short(value: float) -> float | int | None:
    """Five significant digits; None where it is no finite number."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None

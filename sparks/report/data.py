"""What the page is given: a timeline as plain JSON values, with its arrays packed small.

Cells are packed in the order checkpoint, layer, head. Only cells that hold something are sent: a
bit a cell says which (`mask`), then come their activation frequency (`levels`, one byte, in units
of 1 / `level_unit`) and importance (`importance`, two bytes: 65535 * sqrt(I / `importance_max`),
which keeps small values apart). Numbers are little-endian, base64. Definitions are those of
`sparks.timeline`; the page computes sums and the effect E from these arrays, nothing else.
"""

from __future__ import annotations

import base64
import itertools
import math
import re
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8, UInt16

from sparks.report.words import clean_text, describe_settings, headline_numbers, notes, summary
from sparks.timeline import EVENT_KINDS, Timeline

MOST_COHORT_GROUPS = 6
"""Areas in the picture: the Okabe-Ito colours that are left beside that of base heads and black."""
MOST_METRIC_POINTS = 300
"""Points a curve; a longer log is thinned to the lowest and highest value of each stretch."""
MOST_POINTS_TOGETHER = 5000
"""Points of all curves of a run."""
MOST_LEVELS = 254
"""Steps of activation frequency that are told apart, where there are more probes."""
_SNAPSHOT_FILE = re.compile(r"step-(\d+)\.safetensors")


def run_data(timeline: Timeline) -> dict[str, Any]:
    """The record of one run, ready for `json.dumps(..., allow_nan=False)`."""
    levels, unit = _levels(timeline)
    importance = timeline.importance.astype(np.float64)
    held = (levels > 0) | (importance > 0)
    largest = float(importance.max())
    root = np.sqrt(importance / largest) if largest > 0 else np.zeros_like(importance)
    return {
        "name": clean_text(timeline.name, 120) or "unnamed run",
        "model": clean_text(timeline.metas[-1].model_name, 120),
        "layers": timeline.graph.num_layers,
        "heads": timeline.graph.num_heads,
        "probes": timeline.num_probes,
        "group": clean_text(timeline.group, 80) if timeline.group is not None else None,
        "steps": timeline.steps.tolist(),
        "missing_steps": _missing_steps(timeline),
        "unscored": np.flatnonzero(
            timeline.active.any(axis=(1, 2)) & (importance.sum(axis=(1, 2)) == 0)
        ).tolist(),
        "mask": _packed(np.packbits(held)),
        "levels": _packed(levels[held]),
        "level_unit": unit,
        "importance": _packed(np.rint(root[held] * 65535).astype("<u2")),
        "importance_max": largest,
        "base": _packed(np.packbits(timeline.base)),
        "cohort": _packed(timeline.cohort.astype("<i2")),
        "cohort_groups": cohort_groups(timeline),
        "event_kinds": list(EVENT_KINDS),
        "events": _packed(_events(timeline)),
        "counts": _columns(timeline.counts().drop(columns="step")),
        "metrics": _metrics(timeline.metrics()),
        "numbers": headline_numbers(timeline),
        "summary": summary(timeline),
        "notes": notes(timeline),
        "settings": describe_settings(timeline),
        "problems": [clean_text(problem, 600) for problem in timeline.problems],
    }


def cohort_groups(timeline: Timeline, most: int = MOST_COHORT_GROUPS) -> list[list[int]]:
    """Cohorts merged with their neighbours into at most `most` groups of about equal size.

    Returns:
        First and last cohort of each group, as indices of checkpoints.
    """
    cohorts, sizes = np.unique(timeline.cohort[timeline.cohort >= 0], return_counts=True)
    return [[int(cohorts[first]), int(cohorts[last])] for first, last in even_parts(sizes, most)]


def even_parts(sizes: Int[np.ndarray, " items"], most: int) -> list[tuple[int, int]]:
    """Cut a row of sizes into at most `most` runs of neighbours with the least sum of squared sums.

    Returns:
        First and last item of each run.
    """
    count = len(sizes)
    parts = min(most, count)
    before = np.concatenate([[0], np.cumsum(sizes, dtype=np.float64)])
    # cost[k, j]: least cost of the first j items in k runs; cut[k, j]: where its last run starts.
    cost = np.full((parts + 1, count + 1), np.inf)
    cut = np.zeros((parts + 1, count + 1), dtype=np.int64)
    cost[0, 0] = 0
    for run in range(1, parts + 1):
        for stop in range(run, count + 1):
            options = cost[run - 1, :stop] + (before[stop] - before[:stop]) ** 2
            cut[run, stop] = int(options.argmin())
            cost[run, stop] = options[cut[run, stop]]
    runs, stop = [], count
    for run in range(parts, 0, -1):
        start = int(cut[run, stop])
        runs.append((start, stop - 1))
        stop = start
    return runs[::-1]


def _levels(timeline: Timeline) -> tuple[UInt8[np.ndarray, "checkpoints layers heads"], int]:
    """Frequency in whole units, and how many of them make 1; an active head never rounds to 0."""
    unit = min(timeline.num_probes, MOST_LEVELS)
    levels = np.rint(timeline.frequency.astype(np.float64) * unit).astype(np.uint8)
    return np.maximum(levels, timeline.active.astype(np.uint8)), unit


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


def _metrics(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Curves with at least one number, in the order of the log."""
    names = [name for name in frame.columns if name != "step" and np.isfinite(frame[name]).any()]
    most = min(MOST_METRIC_POINTS, max(40, MOST_POINTS_TOGETHER // max(1, len(names))))
    return [_curve(str(name), frame[name].dropna(), most) for name in names]


def _curve(name: str, logged: pd.Series, most: int) -> dict[str, Any]:
    steps, values = thin(logged.index.to_numpy(np.int64), logged.to_numpy(np.float64), most)
    return {
        "name": clean_text(name, 80),
        "steps": np.diff(steps, prepend=0).tolist(),  # differences are short numbers
        "values": [_short(value) for value in values.tolist()],
        "thinned_from": len(logged) if len(steps) < len(logged) else None,
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


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")

"""What the page is given: a timeline as plain JSON values, with its arrays packed small.

`views.report.packing` says how numbers become text, `views.report.cells` what is sent of heads at
checkpoints, `views.report.looks` what is sent of each rule. Definitions are those of
`timeline.timeline`; the page computes sums, the states of the paper's rule and the effect E from
these arrays, nothing else.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from sparks.timeline.timeline import EVENT_KINDS, RULES, Timeline
from sparks.views.report.cells import cells, differences_by_column
from sparks.views.report.circuits import grid_data, shared_counts, turnover_data
from sparks.views.report.edges import edge_data
from sparks.views.report.evaluation import evaluation_data
from sparks.views.report.growth import growth_data
from sparks.views.report.looks import look
from sparks.views.report.packing import (
    Packed,
    differences,
    packed,
    packed_numbers,
    packed_planes,
)
from sparks.views.report.probes import probe_data
from sparks.views.report.words import circuit_words, clean_text, describe_settings

MOST_METRIC_POINTS = 300
"""Points a curve; a longer log is thinned to the lowest and highest value of each stretch."""
MOST_POINTS_TOGETHER = 5000
"""Points of all curves of a run."""
_SNAPSHOT_FILE = re.compile(r"step-(\d+)\.safetensors")


def run_data(timeline: Timeline) -> dict[str, Any]:
    """The record of one run, ready for `json.dumps(..., allow_nan=False)`."""
    by_rule = {rule: timeline.by(rule) for rule in RULES}
    return {
        "name": clean_text(timeline.name, 120) or "unnamed run",
        "model": clean_text(timeline.metas[-1].model_name, 120),
        "layers": timeline.graph.num_layers,
        "heads": timeline.graph.num_heads,
        "kv_heads": timeline.graph.num_kv_heads,
        "probes": timeline.num_probes,
        "circuit_words": circuit_words(timeline),
        "group": clean_text(timeline.group, 80) if timeline.group is not None else None,
        "steps": timeline.steps.tolist(),
        "missing_steps": _missing_steps(timeline),
        "unscored": _unscored(timeline),
        **probe_data(timeline),
        **growth_data(timeline),
        **cells(by_rule["growth"]),
        "event_kinds": list(EVENT_KINDS),
        "rule": timeline.rule,
        "looks": {rule: look(seen) for rule, seen in by_rule.items()},
        **_columns(shared_counts(timeline)),
        "turnover": turnover_data(timeline),
        "grid": grid_data(timeline),
        **_metrics(timeline.metrics()),
        "shift": _shift(timeline),
        "edges": edge_data(list(by_rule.values())),
        "settings": describe_settings(timeline),
        **evaluation_data(timeline),
    }


def _unscored(timeline: Timeline) -> list[int]:
    """Checkpoints whose circuits have members but no score."""
    silent = timeline.importance.sum(axis=(1, 2), dtype=np.float64) == 0
    return np.flatnonzero((timeline.frequency > 0).any(axis=(1, 2)) & silent).tolist()


def _shift(timeline: Timeline) -> Packed:
    """E of each component against the first checkpoint, in 1 / 127, the checkpoints one by one.

    Components: the embedding, attention of each layer, MLP of each layer.
    """
    effect = timeline.component_totals()["effect"].to_numpy(np.float64)
    parts = 1 + 2 * timeline.graph.num_layers
    whole = np.rint(np.nan_to_num(effect) * 127).astype(np.int8).reshape(-1, parts)
    return packed(differences_by_column(whole))


def _missing_steps(timeline: Timeline) -> list[int]:
    """Steps whose snapshot file is named among the problems: drawn as gaps, never bridged."""
    named = (_SNAPSHOT_FILE.search(problem) for problem in timeline.problems)
    steps = {int(match[1]) for match in named if match}
    return sorted(steps - set(timeline.steps.tolist()))


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


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """`count_names`, and `counts`: a column after another, NaN where it is no finite number."""
    values = frame.to_numpy(np.float64).T
    return {
        "count_names": [str(name) for name in frame.columns],
        "counts": packed_numbers(np.where(np.isfinite(values), values, np.nan).ravel()),
    }

"""Several runs at the top of the page: a table of runs, and how far their emergent heads overlap.

All numbers are worked out here, from `timeline.comparison`; the page only lays them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparks.ground.errors import SparksError
from sparks.timeline.comparison import Comparison
from sparks.timeline.timeline import RULES, Timeline
from sparks.views.report.words import clean_text

COLUMNS = ("run", "steps", "born", "kept", "share kept", "pruned", "base retained")
"""Of the table of runs."""


def compared_by_rule(
    timelines: Sequence[Timeline], names: Sequence[str]
) -> dict[str, dict[str, Any]] | None:
    """What the page is given about several runs, by each rule; None for a single run."""
    if len(timelines) < 2:
        return None
    return {rule: compared([run.by(rule) for run in timelines], names) for rule in RULES}


def compared(timelines: Sequence[Timeline], names: Sequence[str]) -> dict[str, Any]:
    """What the page is given about several runs.

    Args:
        timelines: a run each.
        names: of the runs, no two alike, as the page shows them.

    Returns:
        Either `refused`, the line that says why the runs cannot be compared; or `warnings`,
        `columns` and `rows` of the table, and `overlap`: a row a run, a cell a run, both in the
        order of `names`, cells are text; `layers` and `heads`; and `maps`, for "end" and "ever"
        the emergent heads of each run as layer * heads + head.
    """
    try:
        comparison = Comparison.of(timelines, names)
    except SparksError as error:
        return {"refused": clean_text(str(error), 600)}
    return {
        "warnings": [clean_text(warning, 600) for warning in comparison.warnings],
        "columns": list(COLUMNS),
        "rows": [_cells(row) for row in comparison.runs().to_dict("records")],
        "overlap": _matrix(comparison),
        "layers": timelines[0].graph.num_layers,
        "heads": timelines[0].graph.num_heads,
        "maps": {when: _map(comparison, when) for when in ("end", "ever")},
    }


def _map(comparison: Comparison, when: str) -> list[list[int]]:
    frame = comparison.heads()
    emergent = frame["born"].to_numpy(bool)
    if when == "end":
        emergent = emergent & frame["active_at_end"].to_numpy(bool)
    return [np.flatnonzero(row).tolist() for row in emergent.reshape(len(comparison), -1)]


def _cells(row: dict[Any, Any]) -> list[str]:
    return [
        row["run"],
        f"{row['first_step']}\N{EN DASH}{row['last_step']}",
        str(row["born"]),
        str(row["kept"]),
        _share(row["kept_share"]),
        str(row["pruned"]),
        f"{row['retained']} of {row['base']}",
    ]


def _matrix(comparison: Comparison) -> list[list[str]]:
    """Emergent heads at the end: how many a run has on the diagonal, shared ones beside it."""
    place = {name: index for index, name in enumerate(comparison.names)}
    cells = [[""] * len(place) for _ in place]
    for index, count in enumerate(comparison.runs()["kept"]):
        cells[index][index] = str(count)
    frame = comparison.overlap()
    for row in frame[frame["heads"] == "end"].to_dict("records"):
        left, right = place[row["run"]], place[row["other"]]
        jaccard = "" if math.isnan(row["jaccard"]) else f" ({row['jaccard']:.2f})"
        cells[left][right] = cells[right][left] = f"{row['shared']}{jaccard}"
    return cells


def _share(share: float) -> str:
    return "\N{EN DASH}" if math.isnan(share) else f"{100 * share:.0f} %"

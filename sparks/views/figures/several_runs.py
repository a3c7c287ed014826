"""Figures of several runs. Each function draws the frame of its name in `views.figures.frames`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparks.ground.errors import SparksError
from sparks.timeline.comparison import Comparison
from sparks.views.figures import frames
from sparks.views.figures.grid import DASHED, HeadGrid
from sparks.views.figures.kinds import WIDTHS, Width
from sparks.views.figures.style import (
    COHORTS,
    INK,
    axes_at,
    fitted,
    module,
    note_rule,
    styled,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASE, _SILENT, _SOME = "#dcdcdc", "#f6f6f6", "#7a7a7a"
_LABEL = 0.95  # inches for the names of the runs


@styled
def shared_heads(comparison: Comparison, *, width: Width = "column") -> Figure:
    """Fig. 14: heads that are emergent at the end of each run: of one run alone, or shared.

    Above: where they stand, layer x head; dashed: emergent in one run and undecided in another, so
    neither. Below: how many, a bar a run.

    Raises:
        SparksError: more runs than colours, an unknown width, or no matplotlib.
    """
    if len(comparison) > len(COHORTS):
        raise SparksError(
            f"Fig. 14 has colours for {len(COHORTS)} runs, got {len(comparison)}: compare fewer"
        )
    frame = frames.shared_heads(comparison)
    runs = len(comparison)
    bars = 0.17 * runs
    grid = HeadGrid(comparison.timelines[0].graph, width, below=bars + 0.42)
    held = frame["emergent_at_end"].to_numpy().reshape(runs, *grid.shape)
    own = frame["exclusive_at_end"].to_numpy().reshape(runs, *grid.shape)
    base = frame["base"].to_numpy().reshape(runs, *grid.shape)
    count = held.sum(axis=0)
    rgba = module("matplotlib.colors").to_rgba_array
    colours = np.broadcast_to(rgba(_SILENT)[0], (*grid.shape, 4)).copy()
    colours[base.any(axis=0)] = rgba(_BASE)[0]
    for run in range(runs):
        colours[own[run]] = rgba(COHORTS[run])[0]
    colours[count > 1] = rgba(_SOME)[0]
    colours[count == runs] = rgba(INK)[0]
    grid.fill(colours)
    apart = (count == 1) & ~own.any(axis=0)
    grid.outline(apart, dashed=True)
    entries = [(_SOME, "in several runs")] if runs > 2 else []
    entries += [(DASHED, "undecided elsewhere")] if apart.any() else []
    grid.legend([*entries, (INK, "in all runs" if runs > 2 else "in both"), (_BASE, "base")])
    axes = axes_at(grid.figure, _LABEL, 0.34, WIDTHS[width] - _LABEL - 0.2, bars)
    numbers = np.array(
        [
            [own[run].sum(), (held[run] & (count > 1) & (count < runs)).sum(),
             (count == runs).sum(), (held[run] & apart).sum()]
            for run in range(runs)
        ]
    )  # fmt: skip
    note_rule(grid.figure, comparison.rule)
    _bars(axes, numbers, [fitted(name, _LABEL - 0.12, 6.5) for name in comparison.names])
    return grid.figure


def _bars(axes: Axes, numbers: np.ndarray, names: list[str]) -> None:
    """A bar a run: heads of it alone, shared with some, shared by all, undecided elsewhere."""
    most = max(1, int(numbers.sum(axis=1).max()))
    for run, parts in enumerate(numbers.tolist()):
        left = 0
        for number, colour in zip(parts, (COHORTS[run], _SOME, INK, _SILENT), strict=True):
            axes.barh(run, number, left=left, height=0.72, color=colour)
            if number >= 0.06 * most:
                tone = "white" if colour in (_SOME, INK) else INK
                axes.text(left + number / 2, run, str(number), color=tone, ha="center",
                          va="center_baseline", fontsize=6)  # fmt: skip
            left += number
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), labels=names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, most * 1.02)
    axes.set_xlabel("emergent heads at the end of the run")
    whole_numbers(axes.xaxis)

"""After Fig. 5: which heads are in the circuits with thinking on, with thinking off, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparks.thinking.comparison import ThinkComparison
from sparks.thinking.states import ONLY_OFF, ONLY_ON, SHARED, UNDECIDED
from sparks.timeline.timeline import Rule
from sparks.views.figures.grid import DASHED, HeadGrid
from sparks.views.figures.kinds import Width
from sparks.views.figures.style import COHORTS, EMERGENT, INK, module, note_rule, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "fig5-think-heads"
"""Name of its files, without ending."""
_ON, _OFF, _NEITHER = COHORTS[0], EMERGENT, "#f6f6f6"


@styled
def think_heads(
    comparison: ThinkComparison, *, rule: Rule = "growth", width: Width = "column"
) -> Figure:
    """Layer x head: shared heads black, those of one mode alone in its colour, others white.

    Dashed: undecided (never by the paper's rule). `comparison.heads()` holds the numbers.

    Raises:
        SparksError: an unknown width, or no matplotlib.
    """
    states = comparison.states if rule == "growth" else comparison.paper_states
    grid = HeadGrid(comparison.on.graph, width, below=0.06)
    rgba = module("matplotlib.colors").to_rgba_array
    colours = np.broadcast_to(rgba(_NEITHER)[0], (*grid.shape, 4)).copy()
    for state, colour in ((SHARED, INK), (ONLY_ON, _ON), (ONLY_OFF, _OFF)):
        colours[states == state] = rgba(colour)[0]
    grid.fill(colours)
    apart = states == UNDECIDED
    grid.outline(apart, dashed=True)
    entries: list[tuple[str | None, str]] = [
        (INK, "both"),
        (_ON, "only thinking on"),
        (_OFF, "only off"),
    ]
    grid.legend([*entries, (DASHED, "undecided")] if apart.any() else entries)
    note_rule(grid.figure, rule)
    return grid.figure

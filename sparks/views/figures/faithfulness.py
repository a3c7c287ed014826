"""Faithfulness and necessity over circuit sizes, each beside the random control. No torch.

    figure = figures.faithfulness.curves(FaithfulnessCurves.load("DIR/faithfulness.json"))

Two panels on one axis of sizes (log): what is kept with all outside a circuit patched, and what is
lost with all inside patched. Bands are 95 % intervals over probes; the numbers are those of
`FaithfulnessCurves.points`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparks.attribution.faithfulness.results import FaithfulnessCurves
from sparks.attribution.faithfulness.settings import Metric
from sparks.stats.intervals import Interval
from sparks.views.figures.kinds import WIDTHS, Width
from sparks.views.figures.style import (
    COHORTS,
    EMERGENT,
    FAINT,
    NULL,
    axes_at,
    module,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = {
    "shared": ("shared", EMERGENT, "-"),
    "own": ("own", COHORTS[0], "--"),
    "random": ("random", NULL, ":"),
}
_PANELS = (("faithfulness", "faithfulness"), ("necessity", "necessity"))
_HEIGHT = 1.75  # inches of a panel


@styled
def curves(found: FaithfulnessCurves, *, metric: Metric = "kl", width: Width = "column") -> Figure:
    """Both directions of all kinds of circuits under one metric.

    Args:
        found: what was measured.
        metric: `kl` or `logit-diff`.
        width: `column` or `page`.

    Raises:
        SparksError: an unknown width or metric, a metric that no probe has, or no matplotlib.
    """
    figure = new_figure(width, 2 * _HEIGHT + 0.85)
    across, ticker = WIDTHS[width] - 0.7, module("matplotlib.ticker")
    probes = int(found.usable(metric).sum())
    for row, (name, label) in enumerate(_PANELS):
        bottom = 0.4 + (1 - row) * (_HEIGHT + 0.2)
        axes = axes_at(figure, 0.5, bottom, across, _HEIGHT)
        for level in (0, 1):
            axes.axhline(level, color=FAINT, linewidth=0.5, zorder=0)
        for kind, look in _LOOKS.items():
            _line(axes, found.shares, getattr(found.curve(kind, metric), name), look)
        axes.set_xscale("log")
        # Without mathematics, which the style takes as plain text.
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlim(found.shares[0], found.shares[-1])
        axes.set_ylim(-0.25, 1.25)
        axes.set_ylabel(label)
        axes.tick_params(labelbottom=row == 1)
        if row == 0:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
    axes.set_xlabel(f"share of edges (metric {metric}, {probes} probes)")
    return figure


def _line(
    axes: Axes, shares: tuple[float, ...], points: tuple[Interval, ...], look: tuple[str, str, str]
) -> None:
    label, color, dashes = look
    ends = np.array([[point.low, point.high] for point in points]).T
    axes.fill_between(shares, *ends, color=color, alpha=0.2, linewidth=0)
    axes.plot(shares, [point.value for point in points], dashes, color=color, label=label)

"""The layer x head picture that several figures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from sparks.models.graph import Graph
from sparks.views.figures.kinds import WIDTHS, Width
from sparks.views.figures.style import (
    FAINT,
    INK,
    axes_at,
    module,
    new_figure,
    whole_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHED = "dashed"
"""In a legend, in the place of a fill."""
DASHES = (0, (1.5, 1))
_LEFT, _RIGHT, _TOP, _AXIS = 0.47, 0.15, 0.24, 0.34  # inches
_LARGEST_CELL = 0.3  # inches
_TALLEST = 1.3  # height of the grid / room for its width


class HeadGrid:
    """A figure with a square cell for each head: layers from left to right, head 0 on top."""

    def __init__(self, graph: Graph, width: Width, *, below: float) -> None:
        """Make the figure, with `below` inches for bars and labels under the x axis.

        Raises:
            SparksError: an unknown width, or no matplotlib.
        """
        layers, heads = self.shape = graph.num_layers, graph.num_heads
        room = WIDTHS.get(width, 1.0) - _LEFT - _RIGHT
        cell = min(room / layers, _LARGEST_CELL, _TALLEST * room / heads)
        self.height = below + _AXIS + cell * heads + _TOP
        """Inches."""
        self.figure: Figure = new_figure(width, self.height)
        left = _LEFT + (room - cell * layers) / 2
        self.axes: Axes = axes_at(self.figure, left, below + _AXIS, cell * layers, cell * heads)
        self._points = 72 * cell
        self.axes.set_xlim(-0.5, layers - 0.5)
        self.axes.set_ylim(heads - 0.5, -0.5)
        self.axes.set_xlabel("layer")
        self.axes.set_ylabel("head")
        whole_numbers(self.axes.xaxis, 10)
        whole_numbers(self.axes.yaxis, max(2, min(6, int(cell * heads / 0.18))))
        self.axes.tick_params(length=2)

    def fill(self, colours: Float[np.ndarray, "layers heads 4"]) -> None:
        """Paint the cells."""
        layers, heads = self.shape
        self.axes.pcolormesh(
            np.arange(layers + 1) - 0.5,
            np.arange(heads + 1) - 0.5,
            colours.swapaxes(0, 1),
            edgecolors="white",
            linewidth=min(0.5, 0.07 * self._points),
        )

    def outline(self, chosen: Bool[np.ndarray, "layers heads"], *, dashed: bool = False) -> None:
        """A black frame inside each chosen cell; dashed: what the rule leaves undecided."""
        if not chosen.any():
            return
        line = self._line()
        half = 0.5 - 0.5 * min(0.5, 0.07 * self._points) / self._points - 0.5 * line / self._points
        corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        self.axes.add_collection(
            module("matplotlib.collections").PolyCollection(
                np.argwhere(chosen)[:, None, :] + corners,
                facecolors="none",
                edgecolors=INK,
                linewidths=line,
                linestyles=DASHES if dashed else "solid",
                joinstyle="miter",
            )
        )

    def legend(self, entries: Sequence[tuple[str | None, str]]) -> None:
        """Above the grid, in one line: fill and name of a cell.

        No fill for the black frame, `DASHED` for the dashed one.
        """
        patch = module("matplotlib.patches").Patch
        frame = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
        frames: dict[str | None, dict[str, Any]] = {
            None: frame,
            DASHED: frame | {"linestyle": DASHES},
        }
        handles = [
            patch(**frames.get(fill, {"facecolor": fill, "edgecolor": FAINT, "linewidth": 0.3}))
            for fill, _ in entries
        ]
        self.figure.legend(
            handles,
            [name for _, name in entries],
            loc="upper center",
            bbox_to_anchor=(0.5, 1 - 0.02 / self.height),
            ncols=len(entries),
            borderaxespad=0,
            handlelength=1,
            handleheight=1,
            handletextpad=0.5,
            columnspacing=1.5 if len(entries) < 4 else 0.9,
        )

    def _line(self) -> float:
        return min(0.8, max(0.25, 0.11 * self._points))

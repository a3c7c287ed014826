"""Two small pictures of a timeline, for trackers: heads over training, and layer x head now.

Colour is the activation frequency: the share of circuits that hold the head. What the rule leaves
undecided is paler in the first, and marked in the second. matplotlib is imported when a picture is
first drawn, never with the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparks.timeline.timeline import RULE_NAMES, Timeline
from sparks.views.trackers.data import optional_module
from sparks.views.words import head_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL.Image import Image

PICTURES = ("sparks/heads_over_training", "sparks/heads_now")
"""Keys of `draw`."""

_BASE, _UNDATED = -2, -1
"""In the place of a cohort: active at the first checkpoint; active later, and never born."""
_SIZE, _DPI = (6.4, 3.8), 100
_PIXELS = (250, 350)  # rows and columns of the picture of heads over training, at most
_PALETTE = 48  # colours of a file: those below, and the greys of smooth letters
_LEVELS = 8  # colours of a share: enough to read, and they keep the files small
_SILENT, _EMERGENT, _LOST, _OPEN = "#dcdcdc", "#d55e00", "#000000", "#cc79a7"


def draw(timeline: Timeline) -> dict[str, Image]:
    """Heads x checkpoints so far, and layer x head at the last checkpoint; 640 x 380 pixels each.

    Raises:
        SparksError: matplotlib is not installed.
    """
    style = optional_module("matplotlib.style")
    with style.context("default"):  # the user's style neither changes our pictures nor is changed
        figures = (_heads_over_training(timeline), _heads_now(timeline))
        return dict(zip(PICTURES, map(_pixels, figures), strict=True))


def caption(timeline: Timeline) -> str:
    """What stands below both."""
    return f"step {timeline.steps[-1]}, {RULE_NAMES[timeline.rule]}"


def _heads_over_training(timeline: Timeline) -> Figure:
    """Rows: heads active so far, base heads first, then cohort by cohort. x: training step."""
    ever = timeline.active.any(axis=0)
    cohort = np.where(timeline.base, _BASE, timeline.cohort)[ever]
    order = np.argsort(cohort, kind="stable")
    figure, axes = _figure([0.19, 0.13, 0.66, 0.77])
    num_base, num_emergent = int(timeline.base.sum()), int((cohort >= 0).sum())
    axes.set_title(
        f"{num_base} base heads and {num_emergent} emergent ones, of {timeline.base.size}"
    )
    paler = "; paler: undecided" if timeline.undecided[:, ever].any() else ""
    axes.set_xlabel(f"training step ({RULE_NAMES[timeline.rule]}{paler})")
    if not len(order):
        return _nothing(figure, axes)
    ends = _column_ends(timeline.steps)
    shares = timeline.frequency[:, ever][:, order].T
    image = axes.imshow(
        _resampled(shares, timeline.steps, ends),
        extent=(float(ends[0]), float(ends[-1]), len(order), 0),
        **_colours(),
    )
    if paler:
        open_ones = timeline.undecided[:, ever][:, order].T.astype(float)
        _veil(axes, _resampled(open_ones, timeline.steps, ends) >= 0.5, image)
    _step_axis(axes)
    _mark_cohorts(axes, cohort[order], timeline.steps)
    _colour_bar(figure, image)
    return figure


def _veil(axes: Axes, chosen: Bool[np.ndarray, "rows columns"], image: AxesImage) -> None:
    """White over a part of the picture, so that it is paler."""
    white = np.ones((*chosen.shape, 4))
    white[..., 3] = 0.6 * chosen
    axes.imshow(white, extent=image.get_extent(), aspect="auto", interpolation="nearest")


def _column_ends(steps: Int[np.ndarray, " checkpoints"]) -> Float[np.ndarray, " ends"]:
    """A checkpoint fills the time until the next; the last as much as usual."""
    usual = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    return np.append(steps.astype(float), steps[-1] + usual)


def _resampled(
    shares: Float[np.ndarray, "heads checkpoints"],
    steps: Int[np.ndarray, " checkpoints"],
    ends: Float[np.ndarray, " ends"],
) -> Float[np.ndarray, "rows columns"]:
    """At most `_PIXELS`: a column shows the checkpoint at its middle, a row its heads' mean."""
    height, width = _PIXELS
    middles = ends[0] + (np.arange(width) + 0.5) / width * (ends[-1] - ends[0])
    columns = shares[:, np.searchsorted(steps, middles, side="right") - 1]
    if len(shares) <= height:
        return columns
    starts = np.arange(height) * len(shares) // height
    sizes = np.diff(np.append(starts, len(shares)))
    return np.add.reduceat(columns, starts, axis=0) / sizes[:, None]


def _mark_cohorts(
    axes: Axes, cohort: Int[np.ndarray, " heads"], steps: Int[np.ndarray, " checkpoints"]
) -> None:
    """A line above each cohort, and its name where there is room."""
    members, starts, sizes = np.unique(cohort, return_index=True, return_counts=True)
    row = axes.get_position().height * _SIZE[1] * 72 / len(cohort)  # points
    labels: list[tuple[float, str]] = []
    for member, start, size in zip(members.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        if start:
            colour = "black" if cohort[start - 1] < 0 else "white"
            axes.axhline(start, color=colour, linewidth=min(1, 0.2 * row))
        middle = start + size / 2
        if not labels or middle - labels[-1][0] > 0.055 * len(cohort):
            name = {_BASE: "base", _UNDATED: "undated"}.get(member) or f"step {steps[member]}"
            labels.append((middle, f"{name} ({size})"))
    axes.set_yticks([middle for middle, _ in labels], [label for _, label in labels])
    axes.tick_params(axis="y", length=0, labelsize="small")


def _heads_now(timeline: Timeline) -> Figure:
    """Layer x head at the last checkpoint; emergent, silent base and undecided heads are marked."""
    figure, axes = _figure([0.08, 0.24, 0.77, 0.66])
    layers, heads = timeline.base.shape
    active, undecided = timeline.active[-1], timeline.undecided[-1]
    found = head_range(int(active.sum()), int(undecided.sum()))
    name = RULE_NAMES[timeline.rule]
    axes.set_title(f"{found} active heads at step {timeline.steps[-1]} ({name})")
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    image = axes.imshow(
        timeline.frequency[-1].T, extent=(-0.5, layers - 0.5, heads - 0.5, -0.5), **_colours()
    )
    place = axes.get_position()
    cell = 72 * min(place.width * _SIZE[0] / layers, place.height * _SIZE[1] / heads)  # points
    size = min(7.0, 0.7 * cell)
    marks = [
        ("o", "emergent", _EMERGENT, timeline.emergent[-1]),
        ("x", "base, now silent", _LOST, timeline.base & ~active & ~undecided),
    ]
    if undecided.any():
        marks.append(("D", "undecided", _OPEN, undecided))
    for marker, label, colour, chosen in marks:
        x, y = np.nonzero(chosen)
        face = "none" if marker == "D" else colour
        axes.plot(x, y, marker, label=label, color=colour, markersize=size, markerfacecolor=face)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=3,
        frameon=False,
        markerscale=7 / size,
    )
    _whole_numbers(axes)
    _colour_bar(figure, image)
    return figure


def _figure(place: list[float]) -> tuple[Figure, Axes]:
    """A figure outside pyplot, whose list of open figures is the user's."""
    figure = optional_module("matplotlib.figure").Figure(figsize=_SIZE, dpi=_DPI)
    axes = figure.add_axes(place)
    axes.set_facecolor(_SILENT)
    return figure, axes


def _colours() -> dict[str, Any]:
    """From 0 (grey: in no circuit) to 1."""
    cividis = optional_module("matplotlib").colormaps["cividis"].resampled(_LEVELS)
    smallest = float(np.finfo(np.float32).tiny)
    return {
        "cmap": cividis.with_extremes(under=_SILENT),
        "vmin": smallest,
        "vmax": 1,
        "aspect": "auto",
        "interpolation": "nearest",
    }


def _colour_bar(figure: Figure, image: AxesImage) -> None:
    place = figure.axes[0].get_position()
    bar = figure.colorbar(image, cax=figure.add_axes((0.87, place.y0, 0.02, place.height)))
    bar.set_ticks([0, 0.5, 1], labels=["0", "½", "1"])
    bar.set_label("share of circuits that hold the head\n(grey: none)", fontsize="small")


def _step_axis(axes: Axes) -> None:
    ticker = optional_module("matplotlib.ticker")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))


def _whole_numbers(axes: Axes) -> None:
    ticker = optional_module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))


def _nothing(figure: Figure, axes: Axes) -> Figure:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no head is in any circuit yet", ha="center", transform=axes.transAxes)
    return figure


def _pixels(figure: Figure) -> Any:
    """The drawn figure as a Pillow image with a palette, which halves the file."""
    canvas = optional_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    opaque = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return optional_module("PIL.Image").fromarray(opaque).quantize(_PALETTE, dither=0)

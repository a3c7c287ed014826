"""Figures of one run. Each function draws the frame of its name in `views.figures.frames`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sparks.ground.errors import SparksError
from sparks.timeline.nulls import NullBand, null_of
from sparks.timeline.timeline import Timeline
from sparks.views.cohort_groups import cohort_groups
from sparks.views.figures import frames
from sparks.views.figures.grid import DASHED, HeadGrid
from sparks.views.figures.kinds import WIDTHS, Width
from sparks.views.figures.style import (
    COHORTS,
    EMERGENT,
    EMPTY,
    FAINT,
    INK,
    NULL,
    UNDATED,
    axes_at,
    module,
    new_figure,
    note_rule,
    printable,
    styled,
    whole_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_LEFT, _RIGHT, _BOTTOM, _TOP = 0.47, 0.15, 0.36, 0.08
"""Inches around the plots over training steps: the same, so that they can stand in one column."""
_WHOLE: dict[str, Any] = {"markersize": 2.4, "markeredgewidth": 0, "clip_on": False, "zorder": 3}
"""Of curves: markers at the first and last step are not cut by the frame."""


@styled
def cohorts(timeline: Timeline, *, width: Width = "column") -> Figure:
    """Fig. 2A, 3A: active heads over training, stacked by the checkpoint at which they emerged.

    Solid: heads that emerge at this checkpoint. Dashed: base heads that are still active. Dotted:
    heads that the rule leaves undecided, where there are any. Hatched: as many emergent heads as an
    unchanged model gives (`timeline.nulls`). More than six cohorts are merged with their
    neighbours; the frame holds each.

    Raises:
        SparksError: fewer than two checkpoints, an unknown width, or no matplotlib.
    """
    _need_checkpoints(timeline)
    counts, stacked, band = timeline.counts(), timeline.cohorts(), null_of(timeline)
    undecided = counts["undecided"]
    groups = [
        (int(timeline.steps[first]), int(timeline.steps[last]))
        for first, last in cohort_groups(timeline, len(COHORTS))
    ]
    rows = 1 if len(groups) <= 4 else 2
    curves_height = 0.285 if undecided.any() or band is not None else 0.15
    legend_height = curves_height + (0.17 + 0.135 * rows if groups else 0.02)
    plot_height = 1.65 if width == "column" else 2.3
    figure = new_figure(width, legend_height + _BOTTOM + plot_height + _TOP)
    axes = _over_training(figure, timeline, legend_height, plot_height)
    if groups:
        members = [
            stacked.loc[:, first:last].sum(axis=1).to_numpy()  # by label: steps of emergence
            for first, last in groups
        ]
        names = [str(first) if first == last else f"{first}–{last}" for first, last in groups]
        areas = axes.stackplot(
            timeline.steps, members, colors=COHORTS, edgecolor="white", linewidth=0.4
        )
        _legend_below(figure, areas, names, 0.0, "active heads that emerged at step")
    curves: list[Any] = [
        axes.plot(timeline.steps, counts["born"], color=INK, marker="o", **_WHOLE)[0],
        axes.plot(timeline.steps, counts["retained"], color=INK, linestyle=(0, (4, 2)))[0],
    ]
    names = ["newly active", f"base heads retained (of {int(timeline.base.sum())})"]
    if undecided.any():
        curves.append(axes.plot(timeline.steps, undecided, color=INK, linestyle=(0, (1, 1.5)))[0])
        names.append("undecided")
    if band is not None:
        curves.append(_null_band(axes, band))
        ends = dict.fromkeys(f"{end:.0f}" for end in (band.births_low, band.births_high))
        names.append(f"unchanged model ({'–'.join(ends)})")
    _legend_below(figure, curves, names, legend_height - curves_height - 0.01, None, columns=2)
    axes.set_ylabel("attention heads")
    axes.set_ylim(0, None)
    whole_numbers(axes.yaxis)
    note_rule(figure, timeline.rule)
    return figure


@styled
def reward(timeline: Timeline, *, metric: str | None = None, width: Width = "column") -> Figure:
    """Fig. 3B: the accuracy reward, on the x axis of `cohorts` in a figure of the same width.

    Args:
        timeline: of the run.
        metric: in the trainer's log; None for `frames.reward_metric`.
        width: of the figure.

    Raises:
        SparksError: it was not logged, fewer than two checkpoints, an unknown width, or no
            matplotlib.
    """
    _need_checkpoints(timeline)
    frame = frames.reward(timeline, metric=metric)
    height = 0.95 if width == "column" else 1.3
    figure = new_figure(width, _BOTTOM + height + _TOP + 0.1)
    axes = _over_training(figure, timeline, 0, height)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3), useOffset=False)
    few = len(frame) <= 40
    axes.plot(frame["step"], frame["value"], color=EMERGENT, marker="o" if few else "", **_WHOLE)
    name = str(frame["metric"].iloc[0])
    axes.set_ylabel("accuracy reward" if "accuracy" in name else printable(name, 24))
    if frame["value"].between(0, 1).all():
        axes.set_ylim(0, 1)
    return figure


@styled
def head_map(timeline: Timeline, *, width: Width = "column") -> Figure:
    """Fig. 2B, 3C: layer x head; grey: base, blue: emergent, outlined: active at the end.

    Dashed: undecided at the end. Violet: active at some checkpoint, but undecided at the first, so
    that nobody can say whether it was born.

    The darker, the larger the share of the run's circuits that hold the head: a base head that
    falls silent fades.

    Raises:
        SparksError: fewer than two checkpoints, an unknown width, or no matplotlib.
    """
    _need_checkpoints(timeline)
    frame = frames.head_map(timeline)
    grid = HeadGrid(timeline.graph, width, below=0.72)
    shares = frame["frequency"].to_numpy(dtype=float).reshape(grid.shape)
    state = frame["state"].to_numpy().reshape(grid.shape)
    colours = np.broadcast_to(_rgba(EMPTY), (*grid.shape, 4)).copy()
    maps = {"base": _ramp("Greys"), "emergent": _ramp("Blues")}
    for name, ramp in maps.items():
        colours[state == name] = ramp(shares[state == name])
    colours[state == "undated"] = _rgba(UNDATED)
    figure = grid.figure
    grid.fill(colours)
    grid.outline(timeline.active[-1])
    undecided = timeline.undecided[-1]
    grid.outline(undecided, dashed=True)
    middle = WIDTHS[width] / 2
    for centre, (name, ramp) in zip((middle - 0.75, middle + 0.75), maps.items(), strict=True):
        bar = axes_at(figure, centre - 0.6, 0.34, 1.2, 0.07)
        _colour_bar(figure, bar, ramp, (0, 1), [0, 0.5, 1], ["0", "½", "1"])
        bar.set_title(f"{name} heads", pad=2)
    figure.text(
        0.5, 0.06 / grid.height, "share of the run's circuits that hold the head", ha="center"
    )
    last = int(timeline.steps[-1])
    entries: list[tuple[str | None, str]] = [(None, f"active at step {last}")]
    entries += [(DASHED, "undecided")] if undecided.any() else []
    entries += [(UNDATED, "undated")] if (state == "undated").any() else []
    grid.legend([*entries, (EMPTY, "never active" if len(entries) < 3 else "never")])
    note_rule(figure, timeline.rule)
    return figure


@styled
def component_shift(timeline: Timeline, *, width: Width = "column") -> Figure:
    """Fig. 12: effect E per layer for attention, MLP, and both together.

    Both together is what the layer adds to the residual stream, in place of the paper's residual
    (see `views.figures.frames`).

    Raises:
        SparksError: fewer than two checkpoints, an unknown width, or no matplotlib.
    """
    _need_checkpoints(timeline)
    frame = frames.component_shift(timeline)
    height = 1.45 if width == "column" else 2.0
    figure = new_figure(width, 0.2 + _BOTTOM + height + _TOP)
    axes = axes_at(figure, _LEFT, 0.2 + _BOTTOM, WIDTHS[width] - _LEFT - _RIGHT, height)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    looks: dict[str, dict[str, Any]] = {
        "attention": {"color": EMERGENT, "marker": "o"},
        "mlp": {"color": COHORTS[0], "marker": "s"},
        "both": {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 0.8},
    }
    lines: list[Any] = []
    for name, look in looks.items():
        part = frame[frame["component"] == name]
        lines += axes.plot(part["layer"], part["effect_mean"], markersize=2.4, **look)
    largest = float(frame["effect_mean"].abs().max())
    reach = next(limit for limit in (0.1, 0.25, 0.5, 1.05) if largest <= limit or limit > 1)
    axes.set_ylim(-reach, reach)
    axes.set_xlim(-0.5, timeline.graph.num_layers - 0.5)
    axes.set_xlabel("layer")
    axes.set_ylabel("effect E (mean)")
    whole_numbers(axes.xaxis, 10)
    names = ["attention", "MLP", "attention + MLP"]
    _legend_below(figure, lines, names, 0.0, None)
    return figure


@styled
def effect_map(timeline: Timeline, *, width: Width = "column") -> Figure:
    """Fig. 13: layer x head, mean effect E over the checkpoints; grey: active at no checkpoint.

    Raises:
        SparksError: fewer than two checkpoints, an unknown width, or no matplotlib.
    """
    _need_checkpoints(timeline)
    frame = frames.effect_map(timeline)
    grid = HeadGrid(timeline.graph, width, below=0.46)
    ramp = module("matplotlib").colormaps["PuOr_r"]
    effect = frame["effect_mean"].to_numpy(dtype=float).reshape(grid.shape)
    colours = ramp((effect + 1) / 2)
    colours[~frame["ever_active"].to_numpy().reshape(grid.shape)] = _rgba(FAINT)
    grid.fill(colours)
    bar = axes_at(grid.figure, WIDTHS[width] / 2 - 1, 0.34, 2, 0.07)
    _colour_bar(grid.figure, bar, ramp, (-1, 1), [-1, 0, 1], ["−1", "0", "1"])
    grid.figure.text(
        0.5,
        0.06 / grid.height,
        "effect E, mean over checkpoints (−1: lost, 1: gained)",
        ha="center",
    )
    grid.legend([(FAINT, "never active")])
    note_rule(grid.figure, timeline.rule)
    return grid.figure


def _null_band(axes: Axes, band: NullBand) -> Any:
    """From the lower to the upper end, over the areas and under the curves."""
    return axes.axhspan(
        band.births_low, band.births_high, facecolor="none", edgecolor=NULL, hatch="////////",
        linewidth=0.6, zorder=2,
    )  # fmt: skip


# -- parts -----------------------------------------------------------------------------------------


def _need_checkpoints(timeline: Timeline) -> None:
    if len(timeline) < 2:
        raise SparksError(
            f"figures need at least two checkpoints, got {len(timeline)} (step "
            f"{timeline.steps[0]}) in {timeline.name!r}: go on training, or measure more "
            "checkpoints with `sparks replay`"
        )


def _over_training(figure: Figure, timeline: Timeline, bottom: float, height: float) -> Axes:
    """Axes whose x is the training step, from the first checkpoint to the last."""
    across = float(figure.get_size_inches()[0])
    axes = axes_at(figure, _LEFT, bottom + _BOTTOM, across - _LEFT - _RIGHT, height)
    axes.set_xlim(int(timeline.steps[0]), int(timeline.steps[-1]))
    axes.set_xlabel("training step")
    whole_numbers(axes.xaxis)
    return axes


def _legend_below(
    figure: Figure,
    handles: Sequence[Any],
    names: list[str],
    bottom: float,
    title: str | None,
    *,
    columns: int = 4,
) -> None:
    """A legend whose lower edge is `bottom` inches above that of the figure."""
    across, up = figure.get_size_inches()
    middle = across / 2 if columns < 4 else _LEFT / 2 + across / 2  # of the figure, or the axes
    figure.legend(
        handles,
        names,
        title=title,
        loc="lower center",
        bbox_to_anchor=(middle / across, bottom / up),
        ncols=min(columns, len(names)) if len(names) <= 4 else 3,
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.2,
        handlelength=1.8,
        handletextpad=0.5,
        labelspacing=0.25,
    )


def _ramp(name: str) -> Colormap:
    """A colour map whose lowest colour still tells grey from blue."""
    whole = module("matplotlib").colormaps[name]
    steps = whole(np.linspace(0.35, 1, 256))
    return module("matplotlib.colors").ListedColormap(steps, name=f"{name}-from-pale")


def _rgba(colour: str) -> Float[np.ndarray, " 4"]:
    return np.array(module("matplotlib.colors").to_rgba(colour))


def _colour_bar(
    figure: Figure,
    place: Axes,
    ramp: Colormap,
    ends: tuple[float, float],
    ticks: list[float],
    names: list[str],
) -> None:
    norm = module("matplotlib.colors").Normalize(*ends)
    mappable = module("matplotlib.cm").ScalarMappable(norm=norm, cmap=ramp)
    bar = figure.colorbar(mappable, cax=place, orientation="horizontal")
    bar.set_ticks(ticks, labels=names)
    bar.ax.tick_params(length=1.5, pad=1.5)
    bar.outline.set_linewidth(0.4)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # a PDF would show seams between the colours

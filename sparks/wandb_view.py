"""What Weights & Biases gets: some numbers and two pictures a checkpoint, the rest at the end.

A history only grows: what is logged at a checkpoint is known at that checkpoint and stays true.
Every call puts `train/global_step`, the trainer's own x axis, into the row it logs, and leaves
W&B's internal step alone: `step=` would move or drop the trainer's rows.

This module raises what W&B raises; whoever calls it decides whether training goes on. wandb and
matplotlib (the extra `wandb`) are imported when a function first needs them, never with the module.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from sparks.errors import SparksError
from sparks.timeline import Timeline

if TYPE_CHECKING:
    import wandb
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

STEP_KEY = "train/global_step"

NUM_COHORTS = 4
"""Cohorts with a curve of their own; later ones share `sparks/cohort/later`."""

_COLUMNS = {
    # How many heads the circuits run through: a collapse of training shows here first.
    "sparks/heads_active": "active",
    # Births at this checkpoint: the paper's curve of newly active heads.
    "sparks/heads_new": "born",
    # What training has added and still uses: the height of the paper's stacked areas.
    "sparks/heads_emergent": "emergent",
    # Emergent heads that fell silent at this checkpoint: GRPO prunes, SFT hardly does.
    "sparks/heads_pruned": "pruned",
    # Base heads still in use: the paper's dashed curve.
    "sparks/base_retained": "retained",
    # What the scores explain, in nats: near 0 the two answers no longer differ to the model.
    "sparks/loss_corrupted": "loss_corrupted",
    # How much of it the kept circuits carry alone, median over probes: 1 all, 0 nothing.
    "sparks/faithfulness": "faithfulness",
    # Error of the scores, median over probes: above some percent, raise `steps`.
    "sparks/completeness_gap": "completeness_gap_median",
    # What the snapshot cost the run.
    "sparks/seconds": "seconds",
    # Share of the run's time that snapshots have taken so far.
    "sparks/overhead": "overhead",
}
"""Key in W&B -> column of `Timeline.counts()`."""

_SIZE, _DPI = (6.4, 3.8), 100
_PIXELS = (250, 350)  # rows and columns of the picture of heads over training, at most
_PALETTE = 48  # colours of a file: those below, and the greys of smooth letters
_LEVELS = 8  # colours of a share: enough to read, and they keep the files small
_SILENT, _EMERGENT, _LOST = "#dcdcdc", "#d55e00", "#000000"

# -- at a checkpoint -----------------------------------------------------------------------------


def scalars(timeline: Timeline) -> dict[str, float]:
    """Numbers of the LAST checkpoint; a number that is not finite is left out.

    16 keys: those of `_COLUMNS`; `sparks/base_retained_share` (of the base heads, so that runs of
    different models compare; absent if there is none); `sparks/cohort/01` .. `04` and
    `sparks/cohort/later`: active heads by cohort, in order of emergence, which sum to
    `sparks/heads_emergent`. All are there from the start, so that stacked areas have no gaps.
    """
    last = timeline.counts().iloc[-1]
    values = {key: float(last[column]) for key, column in _COLUMNS.items()}
    if last["base"]:
        values["sparks/base_retained_share"] = float(last["retained"] / last["base"])
    sizes = timeline.cohorts().iloc[-1].tolist()
    first = sizes[:NUM_COHORTS] + [0] * (NUM_COHORTS - len(sizes))
    values |= {f"sparks/cohort/{i:02d}": float(size) for i, size in enumerate(first, start=1)}
    values["sparks/cohort/later"] = float(sum(sizes[NUM_COHORTS:]))
    return {key: value for key, value in values.items() if math.isfinite(value)}


def images(timeline: Timeline) -> dict[str, wandb.Image]:
    """Two pictures: heads x checkpoints so far, and layer x head at the last checkpoint.

    Colour is the activation frequency: the share of circuits that hold the head.

    Raises:
        SparksError: wandb or matplotlib is not installed.
    """
    wandb = _module("wandb")
    style = _module("matplotlib.style")
    with style.context("default"):  # the user's style neither changes our pictures nor is changed
        figures = {
            "sparks/heads_over_training": _heads_over_training(timeline),
            "sparks/heads_now": _heads_now(timeline),
        }
        pictures = {key: _pixels(figure) for key, figure in figures.items()}
    caption = f"step {timeline.steps[-1]}"
    return {key: wandb.Image(picture, caption=caption) for key, picture in pictures.items()}


def log(run: wandb.Run, timeline: Timeline) -> None:
    """Put the last checkpoint into the run's history: one row, `scalars` and `images`.

    Like any `run.log`, it completes a row that the user left open with `commit=False`.

    Raises:
        SparksError: wandb or matplotlib is not installed.
        wandb.errors.UsageError: the run is finished.
    """
    step = int(timeline.steps[-1])
    run.log({**scalars(timeline), **images(timeline), STEP_KEY: step})


# -- at the end ----------------------------------------------------------------------------------


def finish(
    run: wandb.Run, timeline: Timeline, report: Path | None, snapshots: Sequence[Path]
) -> None:
    """Log what is known only at the end; call it while the run is open. The run stays open.

    One row with `sparks/heads` (the table of `Timeline.heads()`, a row a head) and `sparks/report`
    (the HTML page), and one artifact `sparks-RUN_ID` with the snapshot files.

    Args:
        run: an open run.
        timeline: of the whole run.
        report: the HTML report; None to leave it out.
        snapshots: files to keep; none to log no artifact.

    Raises:
        SparksError: wandb is not installed, or a file is missing; nothing is logged then.
        wandb.errors.UsageError: the run is finished.
    """
    wandb = _module("wandb")
    files = [*snapshots, *([report] if report else [])]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise SparksError(
            f"report and snapshots must be files, {missing[0]} is none: write it first"
        )
    row: dict[str, Any] = {"sparks/heads": _head_table(timeline)}
    if report:
        with report.open(encoding="utf-8") as page:
            row["sparks/report"] = wandb.Html(page, inject=False)
    run.log({**row, STEP_KEY: int(timeline.steps[-1])})
    if snapshots:
        name = re.sub(r"[^\w.-]", "-", f"sparks-{run.id}")
        artifact = wandb.Artifact(name, type="sparks-snapshots", metadata=_origin(timeline))
        for path in snapshots:
            artifact.add_file(str(path), name=path.name, skip_cache=True)
        run.log_artifact(artifact)


def _head_table(timeline: Timeline) -> wandb.Table:
    wandb = _module("wandb")
    heads = timeline.heads()
    if len(heads) > (limit := wandb.Table.MAX_ROWS):  # W&B would cut the last layers
        heads = heads.nlargest(limit, "checkpoints_active").sort_index()
    rows = [
        [None if pd.isna(value) else value for value in row]
        for row in zip(*(heads[name].tolist() for name in heads.columns), strict=True)
    ]
    return wandb.Table(columns=[str(name) for name in heads.columns], data=rows)


def _origin(timeline: Timeline) -> Mapping[str, Any]:
    """What tells this artifact from another."""
    meta = timeline.metas[-1]
    return {
        "model_name": meta.model_name,
        "probes_hash": meta.probes_hash,
        "steps": timeline.steps.tolist(),
    }


# -- pictures ------------------------------------------------------------------------------------


def _heads_over_training(timeline: Timeline) -> Figure:
    """Rows: heads active so far, base heads first, then cohort by cohort. x: training step."""
    ever = timeline.active.any(axis=0)
    cohort = timeline.cohort[ever]
    order = np.argsort(cohort, kind="stable")
    figure, axes = _figure([0.19, 0.13, 0.66, 0.77])
    num_base, num_emergent = int((cohort < 0).sum()), int((cohort >= 0).sum())
    axes.set_title(
        f"{num_base} base heads and {num_emergent} emergent ones, of {timeline.base.size}"
    )
    axes.set_xlabel("training step")
    if not len(order):
        return _nothing(figure, axes)
    ends = _column_ends(timeline.steps)
    shares = timeline.frequency[:, ever][:, order].T
    image = axes.imshow(
        _resampled(shares, timeline.steps, ends),
        extent=(float(ends[0]), float(ends[-1]), len(order), 0),
        **_colours(),
    )
    _step_axis(axes)
    _mark_cohorts(axes, cohort[order], timeline.steps)
    _colour_bar(figure, image)
    return figure


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
            name = "base" if member < 0 else f"step {steps[member]}"
            labels.append((middle, f"{name} ({size})"))
    axes.set_yticks([middle for middle, _ in labels], [label for _, label in labels])
    axes.tick_params(axis="y", length=0, labelsize="small")


def _heads_now(timeline: Timeline) -> Figure:
    """Layer x head at the last checkpoint; emergent heads and silent base heads are marked."""
    figure, axes = _figure([0.08, 0.24, 0.77, 0.66])
    layers, heads = timeline.base.shape
    active = timeline.active[-1]
    axes.set_title(f"{int(active.sum())} active heads at step {timeline.steps[-1]}")
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    image = axes.imshow(
        timeline.frequency[-1].T, extent=(-0.5, layers - 0.5, heads - 0.5, -0.5), **_colours()
    )
    place = axes.get_position()
    cell = 72 * min(place.width * _SIZE[0] / layers, place.height * _SIZE[1] / heads)  # points
    size = min(7.0, 0.7 * cell)
    for marker, label, colour, chosen in (
        ("o", "emergent", _EMERGENT, timeline.emergent[-1]),
        ("x", "base, now silent", _LOST, timeline.base & ~active),
    ):
        x, y = np.nonzero(chosen)
        axes.plot(x, y, marker, label=label, color=colour, markersize=size)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=2,
        frameon=False,
        markerscale=7 / size,
    )
    _whole_numbers(axes)
    _colour_bar(figure, image)
    return figure


def _figure(place: list[float]) -> tuple[Figure, Axes]:
    """A figure outside pyplot, whose list of open figures is the user's."""
    figure = _module("matplotlib.figure").Figure(figsize=_SIZE, dpi=_DPI)
    axes = figure.add_axes(place)
    axes.set_facecolor(_SILENT)
    return figure, axes


def _colours() -> dict[str, Any]:
    """From 0 (grey: in no circuit) to 1."""
    cividis = _module("matplotlib").colormaps["cividis"].resampled(_LEVELS)
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
    ticker = _module("matplotlib.ticker")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))


def _whole_numbers(axes: Axes) -> None:
    ticker = _module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))


def _nothing(figure: Figure, axes: Axes) -> Figure:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no head is in any circuit yet", ha="center", transform=axes.transAxes)
    return figure


def _pixels(figure: Figure) -> Any:
    """The drawn figure as a Pillow image with a palette, which halves the file."""
    canvas = _module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    opaque = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return _module("PIL.Image").fromarray(opaque).quantize(_PALETTE, dither=0)


def _module(name: str) -> Any:
    """An optional module, imported now.

    Raises:
        SparksError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SparksError(
            f"views in W&B need {name.partition('.')[0]}, which cannot be imported ({error}): "
            "`pip install 'thinking-sparks[wandb]'`"
        ) from error

"""Scaling curves: the metric against the factor, or the number of heads, beside random heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from sparks.effects.records import EffectTable, Row
from sparks.ground.errors import SparksError
from sparks.views.figures.kinds import WIDTHS, Width
from sparks.views.figures.style import (
    EMERGENT,
    FAINT,
    NULL,
    axes_at,
    fitted,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Over = Literal["scale", "heads"]
_OVER: dict[Over, tuple[str, Callable[[Row], float]]] = {
    "scale": ("factor on the heads' outputs", lambda row: row.planned.scale),
    "heads": ("heads, most important first", lambda row: float(len(row.planned.heads))),
}
_LEFT, _BOTTOM, _TOP, _RIGHT, _BELOW = 0.42, 0.36, 0.22, 0.1, 0.22


def curves_of(table: EffectTable) -> tuple[Over, ...]:
    """What the rows of a table can be drawn over: what one set has several of."""
    return tuple(over for over in _OVER if _curves(table, over))


@styled
def effect_curves(table: EffectTable, *, over: Over = "scale", width: Width = "column") -> Figure:
    """The metric of each set, with its interval, beside its matched random heads.

    Blue: the set, bars: 95 % interval of its difference to no ablation. Grey: random heads, mean,
    lowest and highest draw. Dotted: no ablation. A panel a set.

    Args:
        table: of a study with several factors, or several numbers of heads.
        over: `scale` or `heads`.
        width: `column` or `page`.

    Raises:
        SparksError: the table has no such curve, an unknown width, or no matplotlib.
    """
    curves = _curves(table, over)
    if not curves:
        wanted = "--scale 0 0.5 1.3" if over == "scale" else "--most 1 2 5 10"
        raise SparksError(f"no set has several points over {over}: measure with {wanted}")
    across = WIDTHS.get(width, 1.0)
    in_row = min(len(curves), max(1, int(across // 1.6)))
    rows = -(-len(curves) // in_row)
    panel = (across - _LEFT - _RIGHT * in_row) / in_row
    each = 1.1 + _TOP
    figure = new_figure(width, _BELOW + _BOTTOM + rows * each + (rows - 1) * 0.2)
    shared = None
    for number, (name, points) in enumerate(curves):
        row, column = divmod(number, in_row)
        bottom = _BELOW + _BOTTOM + (rows - 1 - row) * (each + 0.2)
        axes = axes_at(figure, _LEFT + column * (panel + _RIGHT), bottom, panel, 1.1)
        axes.set_title(fitted(name, panel, 7), loc="left")
        _draw(axes, table, points, over)
        shared = _share(axes, shared, column)
        if row == rows - 1:
            axes.set_xlabel(_OVER[over][0] if panel > 1.4 else over)
    figure.text(
        0.06 / across, 0.5, f"{table.metric}, %", rotation=90, va="center", ha="center", fontsize=7
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=len(labels), borderaxespad=0.2,
        columnspacing=1.2, handlelength=1.5,
    )  # fmt: skip
    return figure


def _curves(table: EffectTable, over: Over) -> list[tuple[str, list[Row]]]:
    """Rows that differ in nothing but the axis, at least two; in order."""
    axis = _OVER[over][1]
    found: dict[tuple[str, object], list[Row]] = {}
    for row in table.rows:
        fixed = len(row.planned.heads) if over == "scale" else row.planned.done
        found.setdefault((row.planned.name, fixed), []).append(row)
    many = len({fixed for _, fixed in found}) > 1
    return [
        (_title(name, fixed, over) if many else name, sorted(rows, key=axis))
        for (name, fixed), rows in found.items()
        if len({axis(row) for row in rows}) > 1
    ]


def _title(name: str, fixed: object, over: Over) -> str:
    return f"{name}, {fixed} heads" if over == "scale" else f"{name}, {fixed}"


def _draw(axes: Axes, table: EffectTable, rows: Sequence[Row], over: Over) -> None:
    intact = 100 * table.intact.value
    points = [_point(_OVER[over][1](row), row, intact) for row in rows]
    if over == "scale":  # nothing is done there: the model itself
        points = sorted([*points, (1.0, intact, 0.0, 0.0, intact, intact, intact)])
    at, own, below, above, random, lowest, highest = zip(*points, strict=True)
    axes.axhline(intact, color=FAINT, linestyle=":", linewidth=0.9, label="no ablation")
    axes.fill_between(at, lowest, highest, color=NULL, alpha=0.25, linewidth=0)
    axes.plot(at, random, color=NULL, marker="o", label="random heads, same layers")
    axes.errorbar(
        at, own, yerr=[below, above], color=EMERGENT, marker="o", elinewidth=0.7, capsize=1.5,
        label="the set",
    )  # fmt: skip


def _point(at: float, row: Row, intact: float) -> tuple[float, ...]:
    """Place; metric of the set, and its bar; of random heads: mean, lowest and highest draw."""
    value, control = 100 * row.value, [100 * value for value in row.control.values]
    low, high = intact - 100 * row.effect.high, intact - 100 * row.effect.low
    return (
        at, value, max(0.0, value - low), max(0.0, high - value),
        100 * row.control.value, min(control), max(control),
    )  # fmt: skip


def _share(axes: Axes, first: Axes | None, column: int) -> Axes:
    if first is not None:
        axes.sharey(first)
    if column:
        axes.tick_params(labelleft=False)
    return first or axes

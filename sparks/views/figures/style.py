"""One style for all figures: sizes, colours, and files that are the same bytes for the same run.

matplotlib (the extra `figures`) is imported when a figure is drawn, never with the module. Figures
are made outside pyplot, whose list of open figures is the user's, and without the user's style.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from sparks.ground.config import check_choice
from sparks.ground.optional import import_optional
from sparks.timeline.timeline import RULE_NAMES, Rule
from sparks.views.figures.kinds import FORMATS, WIDTHS, Format, Width

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COHORTS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#cc79a7")
"""Okabe-Ito without vermilion; black is for curves."""
EMERGENT = "#0072b2"
UNDATED, NULL = "#b8a9d9", "#7a7a7a"
INK, FAINT, EMPTY, _QUIET = "#000000", "#b0b0b0", "#ececec", "#5a5a5a"

_FONT = "DejaVu Sans"  # comes with matplotlib: the same file on every machine
_STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "font.family": [_FONT],
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "text.parse_math": False,  # a run named `$x$` is a name
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "sparks",
}
_NO_DATES: dict[Format, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}

_P = ParamSpec("_P")


def render(figure: Figure, form: Format = "pdf", *, title: str | None = None) -> bytes:
    """The file of a figure: fonts embedded (PDF) or drawn as outlines (SVG), no date.

    Args:
        figure: from a function of `views.figures`.
        form: `pdf`, `svg` or `png` (300 dpi).
        title: for the file's metadata; SVG and PDF viewers show it.

    Raises:
        SparksError: there is no such format.
    """
    check_choice("format", form, FORMATS)
    file = io.BytesIO()
    metadata: dict[str, Any] = dict(_NO_DATES[form])
    if title:
        metadata["Title"] = printable(title)
    with style():
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def style() -> AbstractContextManager[None]:
    """Our settings in place of the user's, for a `with`."""
    return module("matplotlib.style").context(["default", _STYLE])


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """A function that draws, run in our style."""

    @wraps(draw)
    def in_style(*arguments: _P.args, **keywords: _P.kwargs) -> Figure:
        with style():
            return draw(*arguments, **keywords)

    return in_style


def note_rule(figure: Figure, rule: Rule) -> None:
    """By which rule heads are active, along the right edge: for figures that rest on it."""
    across = float(figure.get_size_inches()[0])
    figure.text(
        1 - 0.035 / across, 0.5, RULE_NAMES[rule], rotation=90, fontsize=6, color=_QUIET,
        ha="right", va="center",
    )  # fmt: skip


def new_figure(width: Width, height: float) -> Figure:
    """An empty figure, `height` in inches.

    Raises:
        SparksError: there is no such width.
    """
    check_choice("width", width, WIDTHS)
    return module("matplotlib.figure").Figure(figsize=(WIDTHS[width], height))


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, so that figures of one width stand exactly above each other."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    # Ticks are made when the figure is drawn, maybe in the user's style.
    axes.tick_params(labelsize=6.5, labelfontfamily=_FONT, width=0.6, length=2.5)
    return axes


def printable(text: str, limit: int = 40) -> str:
    """One line that the font can show; what it cannot is a replacement character."""
    line = " ".join(str(text).split())
    shown = "".join(
        c if c.isprintable() and ord(c) in _glyphs() else "\N{REPLACEMENT CHARACTER}" for c in line
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def fitted(text: str, inches: float, points: float) -> str:
    """`printable`, cut so that it is no wider than `inches` at `points`."""
    shown, path = printable(text), module("matplotlib.textpath").TextPath
    font = module("matplotlib.font_manager").FontProperties(family=[_FONT])
    for length in range(len(shown), 1, -1):
        part = shown if length == len(shown) else printable(shown, length)
        if path((0, 0), part, size=points, prop=font).get_extents().width <= 72 * inches:
            return part
    return shown[:1]


@cache
def _glyphs() -> frozenset[int]:
    manager = module("matplotlib.font_manager")
    return frozenset(manager.get_font(manager.findfont(_FONT)).get_charmap())


def whole_numbers(axis: Any, most: int = 6) -> None:
    """Ticks at whole numbers, written out; in thousands (`250k`) on an axis beyond 100,000."""
    ticker = module("matplotlib.ticker")

    def written(value: float, _: object) -> str:
        thousands = max(axis.get_view_interval()) >= 100_000 and value % 1000 == 0 and value
        return f"{value / 1000:.0f}k" if thousands else f"{value:.0f}"

    axis.set_major_locator(ticker.MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ticker.FuncFormatter(written))


def module(name: str) -> Any:
    """A module of matplotlib, imported now.

    Raises:
        SparksError: it is not installed.
    """
    return import_optional(name, users="figures", extra="figures")

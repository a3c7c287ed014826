"""Which figures `views.figures` draws: name, the paper's number, formats and sizes of files.

A table without imports, so that the command line can list it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sparks.ground.errors import SparksError

Format = Literal["pdf", "svg", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
DataFormat = Literal["csv", "parquet"]
DATA_FORMATS: tuple[DataFormat, ...] = get_args(DataFormat)
Width = Literal["column", "page"]
"""Of a text column, or of a page of two columns."""
WIDTHS: dict[Width, float] = {"column": 3.25, "page": 6.75}
"""Inches."""


@dataclass(frozen=True, kw_only=True)
class FigureKind:
    """One figure of the paper, drawn from run folders."""

    name: str
    """Such as `head-map`: drawn by `figures.head_map`, its numbers by `figures.frames.head_map`."""
    file: str
    """Name of its files, without ending: `fig2a-cohorts`."""
    numbers: tuple[str, ...]
    """Of the paper's figures that it follows: `2A`, `3A`."""
    shows: str
    optional: bool = False
    """Runs may lack what it shows: it is left out then, unless it was asked for by name."""
    of_several: bool = False
    """Of all runs together, not of one."""


FIGURES: tuple[FigureKind, ...] = (
    FigureKind(
        name="cohorts",
        file="fig2a-cohorts",
        numbers=("2A", "3A"),
        shows="active heads by cohort, newly active heads, retained base heads, over training",
    ),
    FigureKind(
        name="head-map",
        file="fig2b-head-map",
        numbers=("2B", "3C"),
        shows="layer x head: base heads grey, emergent heads blue, active at the end outlined",
    ),
    FigureKind(
        name="reward",
        file="fig3b-reward",
        numbers=("3B",),
        shows="accuracy reward, on the x axis of cohorts (runs that log a reward)",
        optional=True,
    ),
    FigureKind(
        name="component-shift",
        file="fig12-component-shift",
        numbers=("12",),
        shows="effect E per layer: attention, MLP, and both (in place of the paper's residual)",
    ),
    FigureKind(
        name="effect-map",
        file="fig13-effect-map",
        numbers=("13",),
        shows="layer x head: mean effect E over the checkpoints",
    ),
    FigureKind(
        name="shared-heads",
        file="fig14-shared-heads",
        numbers=("14",),
        shows="emergent heads that runs share, and those of one run alone (two runs or more)",
        optional=True,
        of_several=True,
    ),
)
"""In the order of the paper."""

NOT_DRAWN = """\
Not drawn: Fig. 9 to 11, of which we have no definition to follow; evaluations and ablations, which
need a model's answers; circuits."""
"""The paper's other figures, and why."""


def chosen(names: Sequence[str]) -> tuple[FigureKind, ...]:
    """The figures of these names or of the paper's numbers, in order; all for none.

    Raises:
        SparksError: there is no such figure.
    """
    wanted = [_known(name) for name in names]
    return tuple(kind for kind in FIGURES if kind in wanted or not names)


def _known(name: str) -> FigureKind:
    asked = name.lower().removeprefix("fig").lstrip(". ")
    for kind in FIGURES:
        if asked in (kind.name, kind.file.removeprefix("fig")) or asked.upper() in kind.numbers:
            return kind
    known = ", ".join(f"{kind.name} ({', '.join(kind.numbers)})" for kind in FIGURES)
    raise SparksError(f"there is no figure {name!r}, only {known}")

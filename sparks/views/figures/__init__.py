"""Figures for papers: those of "Thinking Sparks!" that a run folder can give, and their numbers.

    from sparks import Timeline
    from sparks.views import figures
    figure = figures.cohorts(Timeline.from_run("OUTPUT_DIR"))  # a matplotlib Figure
    Path("fig.pdf").write_bytes(figures.render(figure, "pdf"))
    figures.frames.cohorts(timeline)                           # the pandas frame behind it

`write_figures` and `sparks figures` write all of them: cohorts (2A, 3A), layer x head map (2B,
3C), accuracy reward (3B), component shift (12; the paper's residual is what a layer adds to it,
attention and MLP together), effect map (13) and, with several runs, shared heads (14). Not drawn:
Fig. 9 to 11, of which we have no definition to follow, and circuits. One style: text columns of
3.25 inches or pages of 6.75, colours that colour-blind readers can tell apart, fonts embedded, no
date in a file, so that the same run gives the same bytes.
Needs the extra `figures` (matplotlib), no torch.
"""

from __future__ import annotations

import importlib
import io
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from sparks.ground.config import check_choice
from sparks.ground.csv_text import csv_text
from sparks.ground.errors import SparksError
from sparks.ground.files import write_atomically
from sparks.timeline.comparison import Comparison
from sparks.timeline.timeline import Timeline
from sparks.views.figures import frames
from sparks.views.figures.kinds import (
    DATA_FORMATS,
    FIGURES,
    FORMATS,
    WIDTHS,
    DataFormat,
    FigureKind,
    Format,
    Width,
    chosen,
)
from sparks.views.figures.one_run import cohorts, component_shift, effect_map, head_map, reward
from sparks.views.figures.several_runs import shared_heads
from sparks.views.figures.style import module, render

__all__ = [
    "DATA_FORMATS",
    "FIGURES",
    "FORMATS",
    "WIDTHS",
    "DataFormat",
    "FigureFiles",
    "FigureKind",
    "Format",
    "Width",
    "cohorts",
    "component_shift",
    "effect_map",
    "frames",
    "head_map",
    "render",
    "reward",
    "shared_heads",
    "write_figures",
]

_DRAW: dict[str, Callable[..., Any]] = {
    "cohorts": cohorts,
    "head-map": head_map,
    "reward": reward,
    "component-shift": component_shift,
    "effect-map": effect_map,
    "shared-heads": shared_heads,
}


@dataclass(frozen=True, kw_only=True)
class FigureFiles:
    """What `write_figures` wrote."""

    paths: tuple[Path, ...]
    left_out: tuple[str, ...]
    """One line each: figures that the runs cannot give, and warnings about the comparison."""


def write_figures(
    timelines: Sequence[Timeline],
    output: str | os.PathLike[str],
    *,
    names: Sequence[str | None] = (),
    formats: Sequence[Format] = ("pdf",),
    data: Sequence[DataFormat] = ("csv",),
    only: Sequence[str] = (),
    width: Width = "column",
) -> FigureFiles:
    """Write each figure in each format, and the numbers behind it beside it.

    Everything is drawn before the first file is written; each file is written whole or not at all.
    With several runs, names of files end in the run's name, and Fig. 14 compares them.

    Args:
        timelines: a run each.
        output: folder; made if missing. Files of the same name are replaced.
        names: of the runs, as in `Comparison.of`.
        formats: of the figures.
        data: of the numbers; none for no such files.
        only: names or the paper's numbers of the figures to draw (`cohorts`, `2A`); none for all.
        width: `column` or `page`.

    Raises:
        SparksError: no timeline, one with fewer than two checkpoints, an unknown figure, format or
            width, a figure asked for by name that the runs cannot give, no matplotlib, Parquet
            without pyarrow, or a file that cannot be written.
    """
    if not timelines:
        raise SparksError("figures need at least one timeline, got none: give a run folder")
    _refuse_unknown("format", formats, FORMATS)
    _refuse_unknown("data format", data, DATA_FORMATS)
    kinds = chosen(only)
    module("matplotlib")
    if "parquet" in data:
        _need_pyarrow()
    called = _names(timelines, names)
    drawn = _Drawn(formats=formats, data=data, width=width, must=bool(only))
    for timeline, name, ending in zip(timelines, called, _endings(called), strict=True):
        for kind in kinds:
            if not kind.of_several:
                drawn.add(kind, partial(_itself, timeline), ending, name)
    for kind in kinds:
        if kind.of_several and (only or len(timelines) > 1):
            drawn.add(kind, partial(Comparison.of, timelines, called), "", ", ".join(called))
    folder = Path(output)
    for file, content in drawn.files.items():
        write_atomically(folder / file, content, way_out="give a folder you own with --output")
    return FigureFiles(
        paths=tuple(folder / file for file in drawn.files), left_out=tuple(drawn.left_out)
    )


@dataclass(kw_only=True)
class _Drawn:
    """Files in the making."""

    formats: Sequence[Format]
    data: Sequence[DataFormat]
    width: Width
    must: bool
    """Figures were asked for by name: one that cannot be drawn is an error."""
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(
        self, kind: FigureKind, read: Callable[[], Timeline | Comparison], ending: str, name: str
    ) -> None:
        try:
            source = read()
            figure = _DRAW[kind.name](source, width=self.width)
            frame = getattr(frames, kind.name.replace("-", "_"))(source)
        except SparksError as error:
            if self.must or not kind.optional:
                raise
            self.left_out.append(f"no {kind.file}: {error}")
            return
        if isinstance(source, Comparison):
            self.left_out.extend(source.warnings)
        for form in self.formats:
            picture = render(figure, form, title=f"{kind.name}: {name}")
            self.files[f"{kind.file}{ending}.{form}"] = picture
        for table in self.data:
            self.files[f"{kind.file}{ending}.{table}"] = _table(frame, table)


def _itself(timeline: Timeline) -> Timeline:
    return timeline


def _names(timelines: Sequence[Timeline], names: Sequence[str | None]) -> list[str]:
    """Given, or the timeline's own with a number where two are alike, as in `Comparison.of`."""
    given = [*names, *[None] * (len(timelines) - len(names))]
    found = [name for name in given if name is not None]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise SparksError(f"names of runs must differ, got {twice[0]!r} twice: rename one")
    called: list[str] = []
    for name, timeline in zip(given, timelines, strict=True):
        own = timeline.name or "unnamed run"
        numbered = itertools.chain([own], (f"{own} ({number})" for number in itertools.count(2)))
        free = next(text for text in numbered if text not in found and text not in called)
        called.append(free if name is None else name)
    return called


def _endings(names: Sequence[str]) -> list[str]:
    """What tells the files of the runs apart: nothing for one run, `-sft` for several.

    Only letters, digits, `.`, `_` and `-`, whatever a run is called.
    """
    if len(names) == 1:
        return [""]
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
        numbered = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        taken = {ending.lower() for ending in found}  # some file systems know no capitals
        found.append(next(f"-{text}" for text in numbered if f"-{text}".lower() not in taken))
    return found


def _table(frame: pd.DataFrame, form: DataFormat) -> bytes:
    if form == "csv":
        return csv_text(frame).encode()
    file = io.BytesIO()
    frame.to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()


def _need_pyarrow() -> None:
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise SparksError(
            f"Parquet needs pyarrow, which cannot be imported ({error}): `pip install pyarrow`, "
            "or write csv"
        ) from error


def _refuse_unknown(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        check_choice(what, name, known)

"""`sparks figures`: the paper's figures of runs, as files. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparks.cli.options.common import (
    add_reading,
    command_parser,
    named_timelines,
    report_damage,
    say,
)
from sparks.ground.errors import SparksError
from sparks.views.figures.kinds import DATA_FORMATS, FIGURES, FORMATS, NOT_DRAWN, WIDTHS


def add_figures(commands: Any) -> None:
    """`sparks figures`."""
    listed = "\n".join(
        f"  {kind.name:<16} Fig. {', '.join(kind.numbers):<7} {kind.shows}" for kind in FIGURES
    )
    command = command_parser(
        commands,
        "figures",
        _run_figures,
        help="draw the paper's figures of a run, or several, and write the numbers behind them",
        epilog=f"""examples:
  sparks figures outputs/                        PDF and CSV files in the run folder's figures/
  sparks figures outputs/ --only 2A 2B --format pdf svg --width page
  sparks figures sft=outputs/a grpo=outputs/b --output figures/
figures, and those of the paper that they follow:
{listed}
{NOT_DRAWN}
A figure that a run cannot give is named on standard error. The same run gives the same bytes.""",
    )
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or a trainer's output folder; NAME=RUN names it",
    )
    command.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["pdf"],
        help="pdf (fonts embedded), svg (letters as outlines), png (300 dpi); one or more "
        "(default: pdf)",
    )
    command.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names or numbers of figures (default: all)",
    )
    command.add_argument(
        "-o", "--output", metavar="DIR", help="folder to write (default: RUN/figures, of one run)"
    )
    command.add_argument(
        "--width",
        choices=tuple(WIDTHS),
        default="column",
        help="of a text column (3.25 inches) or of the page (6.75) (default: column)",
    )
    command.add_argument(
        "--data",
        nargs="+",
        choices=DATA_FORMATS,
        default=["csv"],
        help="files of the numbers; parquet needs pyarrow (default: csv)",
    )
    add_reading(command)


def _run_figures(arguments: argparse.Namespace) -> int:
    from sparks.runs.run_folder import RunStore
    from sparks.views.figures import write_figures

    names, folders, timelines = named_timelines(arguments)
    if arguments.output is None and len(folders) > 1:
        raise SparksError(f"figures of {len(folders)} runs: say where with --output DIR")
    output = arguments.output or RunStore.find(folders[0]).path / "figures"
    written = write_figures(
        timelines,
        Path(output),
        names=names,
        formats=arguments.format,
        data=arguments.data,
        only=arguments.only,
        width=arguments.width,
    )
    for line in written.left_out:
        say(f"sparks: {line}", aside=True)
    for path in written.paths:
        say(path)
    return report_damage(timelines)

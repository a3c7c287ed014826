"""`sparks regimes`: whether runs accumulate heads or search among them."""

from __future__ import annotations

import argparse
from typing import Any

from sparks.cli.options.common import (
    add_reading,
    add_tables,
    command_parser,
    named_timelines,
    print_frame,
    report_damage,
    table_of,
    wants_color,
)

_REGIMES = ("runs", "evidence", "survival", "turnover")


def add_regimes(commands: Any) -> None:
    """`sparks regimes`."""
    command = command_parser(
        commands,
        "regimes",
        _run_regimes,
        help="say by numbers whether runs accumulate heads or search among them",
        epilog="""examples:
  sparks regimes outputs/                          the verdict, and the numbers that it rests on
  sparks regimes sft/ rl=grpo/ --format csv > regimes.csv
tables: runs (a row a run, every number), evidence (sentences), survival (Kaplan-Meier curve of
births), turnover (edges and heads of circuits, a row a checkpoint).
A verdict needs 12 births; that a count follows the reward needs 20 checkpoints with one. A damaged
snapshot is named on standard error (exit code 2).""",
    )
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or a trainer's output folder; NAME=RUN names it",
    )
    add_reading(command)
    command.add_argument(
        "--reward",
        metavar="NAME",
        default="reward",
        help="logged curve that the number of heads may follow (default: reward)",
    )
    add_tables(command, _REGIMES)


def _run_regimes(arguments: argparse.Namespace) -> int:
    from sparks.timeline.comparison import distinct_names
    from sparks.timeline.regimes.regime import RegimeSettings
    from sparks.timeline.regimes.tables import RegimeTables
    from sparks.views.text.regimes import render

    table = table_of(arguments)
    names, _, timelines = named_timelines(arguments)
    settings = RegimeSettings(reward=arguments.reward)
    tables = RegimeTables(timelines, distinct_names(timelines, names), settings)
    if table is None:
        print(render(tables, color=wants_color()), end="")
    else:
        print_frame(getattr(tables, table)(), arguments.format)
    return report_damage(timelines)

"""`sparks timeline`: what happened in a run."""

from __future__ import annotations

import argparse
from typing import Any

from sparks.cli.options.common import (
    add_reading,
    add_tables,
    command_parser,
    print_frame,
    report_damage,
    table_of,
    wants_color,
)

_TABLES = ("counts", "growth", "events", "cohorts", "heads", "metrics")


_EVALUATED = {"evaluation": "progress", "problems": "problems"}
"""Table -> method of `EvaluationHistory`; the other tables are methods of `Timeline`."""


def add_timeline(commands: Any) -> None:
    """`sparks timeline`."""
    command = command_parser(
        commands,
        "timeline",
        _run_timeline,
        help="print which heads grew, shrank, were born or pruned in a run",
        epilog="""examples:
  sparks timeline outputs/                       what happened, as a table
  sparks timeline outputs/ --format csv --table events > events.csv
  sparks timeline outputs/ --format json --table problems    newly solved and newly missed ones
A damaged snapshot is named on standard error and left out; the exit code is then 2.""",
    )
    command.add_argument(
        "run_folder", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    add_reading(command)
    add_tables(command, (*_TABLES, *_EVALUATED))
    command.add_argument(
        "--max-events", type=int, default=40, help="events listed in text (default: 40)"
    )
    command.add_argument(
        "--max-heads", type=int, default=20, help="heads in each table of text (default: 20)"
    )


def _run_timeline(arguments: argparse.Namespace) -> int:
    from sparks.timeline.regimes.regime import CircuitTurnover
    from sparks.timeline.timeline import Timeline
    from sparks.views.text.timeline import render

    table = table_of(arguments)
    timeline = Timeline.from_run(
        arguments.run_folder,
        group=arguments.group,
        rule=arguments.rule,
        followers=[CircuitTurnover(arguments.group)] if table is None else (),
    )
    if table is None:
        most = {"max_events": arguments.max_events, "max_heads": arguments.max_heads}
        print(render(timeline, color=wants_color(), **most), end="")
    elif table in _EVALUATED:
        from sparks.timeline.answers import EvaluationHistory

        history = EvaluationHistory.of(timeline)
        print_frame(getattr(history, _EVALUATED[table])(), arguments.format)
    else:
        print_frame(getattr(timeline, table)(), arguments.format)
    return report_damage([timeline])

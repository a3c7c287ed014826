"""`sparks compare`: several runs side by side."""

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
    say,
    table_of,
    wants_color,
)

_COMPARED = ("runs", "overlap", "heads")


def add_compare(commands: Any) -> None:
    """`sparks compare`."""
    command = command_parser(
        commands,
        "compare",
        _run_compare,
        help="compare runs: births kept, base heads retained, overlap, heads of one run alone",
        epilog="""examples:
  sparks compare sft/ distill/ grpo/             what each did, and which heads they share
  sparks compare sft=outputs/a grpo=outputs/b --format csv --table overlap > overlap.csv
tables: runs (a row a run), overlap (a row a pair, at the end and ever), heads (a row a run and
head).
Runs must share probes, model shape and settings; their steps may differ: each counts to its own
end. A warning, and a damaged snapshot (exit code 2), is named on standard error.""",
    )
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or a trainer's output folder; NAME=RUN names it (two or more)",
    )
    add_reading(command)
    add_tables(command, _COMPARED)


def _run_compare(arguments: argparse.Namespace) -> int:
    from sparks.timeline.comparison import Comparison
    from sparks.views.text.comparison import render

    table = table_of(arguments)
    names, _, timelines = named_timelines(arguments)
    comparison = Comparison.of(timelines, names)
    if table is None:
        print(render(comparison, color=wants_color()), end="")
    else:
        for warning in comparison.warnings:
            say(f"sparks: warning: {warning}", aside=True)
        print_frame(getattr(comparison, table)(), arguments.format)
    return report_damage(timelines)

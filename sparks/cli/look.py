"""Commands that show runs: `timeline`, `watch`, `compare`, `regimes`, `report`. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparks.cli.options import (
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
from sparks.ground.errors import SparksError

_TABLES = ("counts", "events", "cohorts", "heads", "metrics")
_EVALUATED = {"evaluation": "progress", "problems": "problems"}
"""Table -> method of `EvaluationHistory`; the other tables are methods of `Timeline`."""
_COMPARED = ("runs", "overlap", "heads")
_REGIMES = ("runs", "evidence", "survival", "turnover")


def add_timeline(commands: Any) -> None:
    """`sparks timeline`."""
    command = command_parser(
        commands,
        "timeline",
        _run_timeline,
        help="print births, prunings, cohorts and retained heads of a run",
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
        "--max-heads", type=int, default=20, help="heads in the table of text (default: 20)"
    )


def _run_timeline(arguments: argparse.Namespace) -> int:
    from sparks.timeline.regimes import CircuitTurnover
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


# -- watch -----------------------------------------------------------------------------------------


def add_watch(commands: Any) -> None:
    """`sparks watch`."""
    command = command_parser(
        commands,
        "watch",
        _run_watch,
        help="follow a running training in the terminal",
        epilog="""examples:
  sparks watch outputs/                    births, prunings, active heads, when the next one is due
  sparks watch outputs/ >> watch.log &     no terminal: a line a snapshot
  sparks watch outputs/ --once             the page as it stands, and leave
A run that does not exist yet is waited for. Ctrl-C leaves, with exit code 0; with --once it is 2
where a snapshot is damaged.""",
    )
    command.add_argument(
        "run_folder", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    command.add_argument(
        "--interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="time between two looks at the folder (default: 2.0)",
    )
    command.add_argument("--once", action="store_true", help="print the page once and leave")
    add_reading(command)


def _run_watch(arguments: argparse.Namespace) -> int:
    from sparks.views.live.terminal import watch

    return watch(
        arguments.run_folder,
        interval=arguments.interval,
        once=arguments.once,
        group=arguments.group,
        rule=arguments.rule,
        color=wants_color(),
    )


# -- compare ---------------------------------------------------------------------------------------


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


# -- regimes ---------------------------------------------------------------------------------------


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
    from sparks.timeline.regime_tables import RegimeTables
    from sparks.timeline.regimes import RegimeSettings
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


# -- report ----------------------------------------------------------------------------------------


def add_report(commands: Any) -> None:
    """`sparks report`."""
    command = command_parser(
        commands,
        "report",
        _run_report,
        help="write one HTML file that shows a run, or several",
        epilog="""examples:
  sparks report outputs/                         writes report.html into the run folder
  sparks report sft/ grpo/ --output both.html    one page, a run to choose
  sparks report outputs/ --serve                 in a browser, loaded again when a snapshot lands
The file needs no network and no server: open it, mail it, put it into W&B.
--serve writes no file. It listens on this machine alone, where any user may read it; Ctrl-C ends.
From afar: ssh -L 8765:localhost:8765 MACHINE, then open http://localhost:8765/.""",
    )
    command.add_argument(
        "run_folders", nargs="+", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    command.add_argument("-o", "--output", metavar="FILE", help="the HTML file to write")
    command.add_argument("--title", help="title of the page")
    add_reading(command)
    command.add_argument(
        "--serve", action="store_true", help="show the report in a browser while the run goes on"
    )
    command.add_argument(
        "--port", type=int, metavar="N", help="of --serve; 0 for any that is free (default: 8765)"
    )
    command.add_argument(
        "--host",
        help="of --serve; whoever reaches another address reads the report without a password "
        "(default: 127.0.0.1)",
    )


def _run_report(arguments: argparse.Namespace) -> int:
    from sparks.runs.run_folder import RunStore
    from sparks.timeline.timeline import Timeline
    from sparks.views.report import followers, write_report

    runs = arguments.run_folders
    if _is_served(arguments):
        return _serve_report(arguments)
    reading: dict[str, Any] = {"group": arguments.group, "rule": arguments.rule}
    timelines = [
        Timeline.from_run(run, followers=followers(arguments.group), **reading) for run in runs
    ]
    if arguments.output is None and len(runs) > 1:
        raise SparksError(f"{len(runs)} runs in one report: say where with --output FILE")
    out = (
        Path(arguments.output) if arguments.output else RunStore.find(runs[0]).path / "report.html"
    )
    say(write_report(timelines, out, title=arguments.title))
    return report_damage(timelines)


def _is_served(arguments: argparse.Namespace) -> bool:
    """Checks that the options of --serve and those of a file do not meet."""
    if arguments.serve and arguments.output is not None:
        raise SparksError(f"--serve writes no file: leave out --output {arguments.output}")
    given = [name for name in ("port", "host") if getattr(arguments, name) is not None]
    if given and not arguments.serve:
        raise SparksError(f"--{given[0]} belongs to --serve: add it, or leave --{given[0]} out")
    return bool(arguments.serve)


def _serve_report(arguments: argparse.Namespace) -> int:
    from sparks.views.live.server import serve

    where = {name: getattr(arguments, name) for name in ("host", "port")}
    where = {name: value for name, value in where.items() if value is not None}
    reading = {"group": arguments.group, "rule": arguments.rule}
    serve(arguments.run_folders, title=arguments.title, **reading, **where)
    return 0

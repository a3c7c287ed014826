"""`sparks report`: one HTML file, or the page served while a run goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparks.cli.options.common import (
    add_reading,
    command_parser,
    report_damage,
    say,
)
from sparks.ground.errors import SparksError


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

"""`sparks watch`: a running training in the terminal."""

from __future__ import annotations

import argparse
from typing import Any

from sparks.cli.options.common import (
    add_reading,
    command_parser,
    wants_color,
)


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

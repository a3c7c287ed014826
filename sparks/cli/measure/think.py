"""`sparks think`: one model's heads with thinking on and off. Torch only where it measures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import (
    add_loading,
    add_settings,
    add_tables,
    command_parser,
    loading,
    print_frame,
    quiet_libraries,
    say,
    settings,
    table_of,
    wants_color,
)
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError
from sparks.views.figures.kinds import FORMATS

if TYPE_CHECKING:
    from sparks.thinking.comparison import ThinkComparison

TABLES = ("heads", "counts", "overlap")


def add_think(commands: Any) -> None:
    """`sparks think`."""
    from sparks.thinking.settings import ThinkConfig

    command = command_parser(
        commands,
        "think",
        _run_think,
        help="compare a model's circuits with thinking on and off: heads shared, and of one mode "
        "alone",
        epilog="""examples:
  sparks think Qwen/Qwen3-8B --data problems.jsonl --output think/
      16 problems begun under both modes of the chat template; both measured; heads compared
  sparks think --output think/ --format csv --table heads
      read it again: no model is loaded
  sparks think --output think/ --figure pdf
      layer x head, after Fig. 5 of the paper
DIR/on and DIR/off are run folders that every other command reads. What DIR holds for the same
model, probes and settings is kept, so an interrupted call goes on. --max-suffix-tokens counts the
model's own words; the mode's marker (<think>) comes on top.""",
    )
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="folder or hub id of a chat model whose template has a thinking mode; left out, DIR "
        "is only read",
    )
    command.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write, or to read without MODEL"
    )
    add_loading(command)
    command.add_argument(
        "--overwrite", action="store_true", help="build and measure again what DIR holds"
    )
    command.add_argument(
        "--figure",
        nargs="+",
        choices=FORMATS,
        default=[],
        metavar="FORMAT",
        help="also draw layer x head into DIR by either rule, as pdf, svg or png (needs the extra "
        "`figures`)",
    )
    add_tables(command, TABLES)
    add_settings(command, ThinkConfig)
    add_settings(command, SnapshotConfig)


def _run_think(arguments: argparse.Namespace) -> int:
    from sparks.thinking.comparison import ThinkComparison

    table = table_of(arguments)
    if arguments.model is not None:
        _measure(arguments)
    elif arguments.data is not None or arguments.overwrite:
        raise SparksError(
            "which model to measure? give MODEL, or only --output DIR to read it again"
        )
    comparison = ThinkComparison.from_folder(arguments.output)
    if arguments.figure:
        _draw(comparison, arguments)
    if table is not None:
        print_frame(getattr(comparison, table)(), arguments.format)
    else:
        from sparks.views.text.thinking import render

        print(render(comparison, arguments.output, color=wants_color()), end="")
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    from sparks.thinking.measuring import measure_think
    from sparks.thinking.settings import ThinkConfig

    quiet_libraries()
    record = measure_think(
        arguments.model,
        arguments.output,
        settings(arguments, ThinkConfig),
        config=settings(arguments, SnapshotConfig),
        **loading(arguments),
        overwrite=arguments.overwrite,
    )
    for reason in record.skipped:
        say(f"sparks: passed over {reason}", aside=True)


def _draw(comparison: ThinkComparison, arguments: argparse.Namespace) -> None:
    from sparks.ground.files import write_atomically
    from sparks.timeline.timeline import RULES
    from sparks.views.figures import render
    from sparks.views.figures.think_heads import FILE, think_heads

    for rule in RULES:
        figure = think_heads(comparison, rule=rule)
        for form in arguments.figure:
            path = Path(arguments.output) / f"{FILE}-{rule}.{form}"
            write_atomically(path, render(figure, form, title=f"think-heads, {rule}"))
            say(path, aside=True)

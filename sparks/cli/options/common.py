"""What the commands share: how options are made, frames printed and damage told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

from sparks.ground.config import TRUST_HELP
from sparks.ground.errors import SparksError, printable

if TYPE_CHECKING:
    from sparks.timeline.timeline import Timeline


def command_parser(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, help: str, epilog: str
) -> argparse.ArgumentParser:
    """A command whose examples stand as they are written; `run` gives the exit code."""
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(perform=run)
    return command


def add_reading(command: argparse.ArgumentParser) -> None:
    """`--group` and `--rule`: which probes count, and how heads are judged."""
    command.add_argument("--group", help="use only the probes of this group")
    command.add_argument(
        "--rule",
        choices=("growth", "paper"),
        default="growth",
        help="growth: active with more than an even share of all |score|, births tested; paper: "
        "active in any probe's circuit (default: growth)",
    )


def add_loading(command: argparse.ArgumentParser) -> None:
    """`--device` and `--trust-remote-code`: how models are loaded."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    command.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)


def loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_loading`, as functions that load models take them."""
    return {name: getattr(arguments, name) for name in ("device", "trust_remote_code")}


def tokenizer_of(arguments: argparse.Namespace) -> Any:
    """The tokenizer of MODEL.

    Raises:
        SparksError: it cannot be loaded.
    """
    from sparks.models.loading import load_tokenizer, split_revision

    trust = arguments.trust_remote_code
    return load_tokenizer(*split_revision(arguments.model), trust_remote_code=trust)


def model_of(arguments: argparse.Namespace) -> Any:
    """MODEL itself.

    Raises:
        SparksError: it cannot be loaded, or weights are missing.
    """
    from sparks.models.loading import load_model, split_revision

    return load_model(*split_revision(arguments.model), **loading(arguments))


def wants_color() -> bool:
    """Standard output is a terminal, and the user has not said NO_COLOR."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def say(text: object, *, aside: bool = False) -> None:
    """Print a line that cannot steer the terminal; `aside` goes to standard error."""
    print(printable(text), file=sys.stderr if aside else sys.stdout, flush=True)


def print_frame(frame: Any, form: str) -> None:
    """A pandas frame as csv, or as json records."""
    if frame.index.name is not None:
        frame = frame.reset_index()
    if form == "csv":
        from sparks.ground.csv_text import csv_text

        print(csv_text(frame), end="")
    else:
        print(frame.to_json(orient="records", double_precision=15))


def report_damage(timelines: Iterable[Timeline]) -> int:
    """Name the files of runs that could not be read; 2 if there are any."""
    problems = [problem for timeline in timelines for problem in timeline.damage]
    for problem in problems:
        say(f"sparks: warning: {problem}", aside=True)
    return 2 if problems else 0


def add_tables(command: argparse.ArgumentParser, tables: tuple[str, ...]) -> None:
    """`--format` and `--table`, for `table_of`; the first table is the default."""
    command.set_defaults(tables=tables)
    command.add_argument(
        "--format",
        choices=("text", "csv", "json"),
        default="text",
        help="text, csv or json (default: text)",
    )
    command.add_argument(
        "--table",
        choices=tables,
        help=f"which table csv and json hold (default: {tables[0]})",
    )


def table_of(arguments: argparse.Namespace) -> str | None:
    """The table that the options of `add_tables` ask for; None for the page of text.

    Raises:
        SparksError: a table is named, and no format of tables.
    """
    if arguments.format != "text":
        return arguments.table or arguments.tables[0]
    if arguments.table:
        raise SparksError(
            f"--table {arguments.table} is of csv or json: add --format csv, or leave --table out"
        )
    return None


def named_timelines(
    arguments: argparse.Namespace,
) -> tuple[tuple[str | None, ...], tuple[str, ...], list[Timeline]]:
    """Names, folders and timelines of RUN and NAME=RUN arguments, read as `add_reading` says."""
    from sparks.timeline.comparison import named_runs
    from sparks.timeline.timeline import Timeline

    names, folders = zip(*named_runs(arguments.runs), strict=True)
    reading: dict[str, Any] = {"group": arguments.group, "rule": arguments.rule}
    return names, folders, [Timeline.from_run(folder, **reading) for folder in folders]


def add_settings(
    parser: argparse.ArgumentParser, kind: Any, *, leave_out: Collection[str] = ()
) -> None:
    """One option for each field of a settings class; defaults and help stand there."""
    for item in fields(kind):
        if item.name in leave_out:
            continue
        option = "--" + item.name.replace("_", "-")
        text = item.metadata["help"].replace("%", "%%")
        if item.type == "bool":
            text += " (default: True)" if item.default else ""
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=item.default, help=text
            )
            continue
        needed = item.default is MISSING
        if not needed and item.default not in (None, ""):
            text += f" (default: {item.default})"
        parser.add_argument(
            option,
            dest=item.name,
            required=needed,
            default=None if needed else item.default,
            help=text,
            **_value_type(str(item.type), sys.modules[kind.__module__]),
        )


def _value_type(annotation: str, home: ModuleType) -> dict[str, Any]:
    """What argparse is told of a field's type; `home` is the module that knows its name."""
    name = annotation.split(" | ")[0]
    if name in ("int", "float"):
        return {
            "type": {"int": int, "float": float}[name],
            "metavar": "N" if name == "int" else "X",
        }
    choices = get_args(getattr(home, name, None))
    return {"choices": choices} if choices else {"metavar": "TEXT"}


def settings(arguments: argparse.Namespace, kind: Any) -> Any:
    """The settings class, filled from the options of `add_settings`."""
    return kind(**{item.name: getattr(arguments, item.name) for item in fields(kind)})


def close_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter's own flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quiet_libraries() -> None:
    """Our bars tell what happens; those of model loading, and a hub's retries, would bury them."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()

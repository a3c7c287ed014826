"""The command `sparks`: thin shells over the library.

Exit codes: 0 done, 2 a mistake or a damaged file, 130 interrupted. Nothing heavy is imported before
a command needs it: `timeline`, `report` and `figures` run without torch.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from sparks.cli.heads.ablate import add_ablate
from sparks.cli.heads.effects import add_effects
from sparks.cli.heads.evaluate import add_evaluate
from sparks.cli.help import add_help
from sparks.cli.look.compare import add_compare
from sparks.cli.look.figures import add_figures
from sparks.cli.look.regimes import add_regimes
from sparks.cli.look.report import add_report
from sparks.cli.look.timeline import add_timeline
from sparks.cli.look.wandb import add_wandb
from sparks.cli.look.watch import add_watch
from sparks.cli.measure.check import add_check
from sparks.cli.measure.faithfulness import add_faithfulness
from sparks.cli.measure.null import add_null
from sparks.cli.measure.probes import add_probes
from sparks.cli.measure.replay import add_replay
from sparks.cli.measure.think import add_think
from sparks.cli.options.common import close_output, say
from sparks.ground.errors import SparksError, one_line
from sparks.ground.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is escaped
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    given = sys.argv[1:] if argv is None else argv
    try:
        if not given:
            return _welcome(parser)
        arguments = parser.parse_args(given)
        code = arguments.perform(arguments)
        sys.stdout.flush()  # here, not at exit: a closed pipe or a full disk must show now
        return code
    except SparksError as error:
        say(f"sparks: error: {one_line(error)}", aside=True)
        return 2
    except BrokenPipeError:  # the reader of a pipe has left
        close_output()
        return 0
    except OSError as error:
        close_output()
        say(f"sparks: error: {one_line(error)}", aside=True)
        return 2
    except KeyboardInterrupt:
        print("sparks: interrupted; what is finished is kept", file=sys.stderr)
        return 130


def _welcome(parser: argparse.ArgumentParser) -> int:
    """The help, and the runs that are at hand."""
    from sparks.runs.run_folder import listed_runs, runs_below

    parser.print_help()
    print()
    if below := runs_below("."):
        say(f"below this folder: {listed_runs(below)}")
    return 0


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage, and with the nearest choice."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            known = list(map(str, action.choices or ()))
            if near := difflib.get_close_matches(str(value), known, n=1):
                meant = f", did you mean {near[0]}? (choose"
                error.message = error.message.replace(" (choose", meant, 1)
            raise

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (help: {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="sparks",
        description="See which attention heads post-training brings to life.",
        epilog="Add SparksCallback() to a TRL script, train, then look: sparks timeline "
        "RUN; sparks report RUN; with several, sparks compare RUN RUN; for a paper, sparks figures "
        "RUN. What the heads do: sparks effects MODEL --run RUN --task TASK. COMMAND --help and "
        "sparks help TOPIC tell more.",
    )
    parser.add_argument("--version", action="version", version=f"sparks {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_probes(commands)
    add_check(commands)
    add_replay(commands)
    add_timeline(commands)
    add_watch(commands)
    add_compare(commands)
    add_regimes(commands)
    add_null(commands)
    add_faithfulness(commands)
    add_report(commands)
    add_ablate(commands)
    add_evaluate(commands)
    add_effects(commands)
    add_think(commands)
    add_figures(commands)
    add_wandb(commands)
    add_help(commands)
    return parser

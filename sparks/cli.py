"""The command `sparks`: thin shells over the library.

Exit codes: 0 done, 2 a mistake or a damaged file, 130 interrupted. Nothing heavy is imported before
a command needs it: `timeline` and `report` run without torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, get_args

from sparks import config as config_module
from sparks.config import SnapshotConfig
from sparks.errors import SparksError
from sparks.version import __version__

_FORMATS = ("text", "csv", "json")
_TABLES = ("counts", "events", "cohorts", "heads", "metrics")
_COMPARED = ("runs", "overlap", "heads")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is escaped
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()  # here, not at exit: a closed pipe or a full disk must show now
        return code
    except SparksError as error:
        print(f"sparks: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has left
        _close_output()
        return 0
    except OSError as error:
        _close_output()
        print(f"sparks: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sparks: interrupted; finished snapshots are kept", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (help: {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="sparks",
        description="See which attention heads post-training brings to life.",
        epilog="Add SparksCallback(probes=...) to a TRL script, train, then look: sparks timeline "
        "RUN; sparks report RUN; with several, sparks compare RUN RUN. COMMAND --help tells more.",
    )
    parser.add_argument("--version", action="version", version=f"sparks {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_probes(commands)
    _add_replay(commands)
    _add_timeline(commands)
    _add_compare(commands)
    _add_report(commands)
    return parser


# -- probes ----------------------------------------------------------------------------------------


def _add_probes(commands: Any) -> None:
    from sparks.probe_building import ProbeBuildingConfig

    command = _command(
        commands,
        "probes",
        _run_probes,
        help="build probes from problems and a model, or from two models",
        epilog="""examples:
  sparks probes --data problems.jsonl --model Qwen/Qwen2.5-1.5B --output probes.jsonl
      clean: the reference answers; corrupted: what the model writes before training
  sparks probes --data problems.jsonl --model BASE --clean-model TRAINED --output probes.jsonl
      clean: what the trained model writes; corrupted: what the base writes""",
    )
    _add_settings(command, ProbeBuildingConfig)


def _run_probes(arguments: argparse.Namespace) -> int:
    from sparks.probe_building import ProbeBuildingConfig, write_probes

    _quiet_libraries()
    built = write_probes(_settings(arguments, ProbeBuildingConfig))
    for reason in built.skipped:
        print(f"sparks: passed over {_one_line(reason)}", file=sys.stderr)
    print(
        f"{len(built.probes)} probes in {arguments.output} "
        f"({len(built.skipped)} problems passed over), hash {built.probes.hash[:12]}"
    )
    return 0


# -- replay ----------------------------------------------------------------------------------------


def _add_replay(commands: Any) -> None:
    command = _command(
        commands,
        "replay",
        _run_replay,
        help="take the snapshots of a run that had no callback, from its checkpoints",
        epilog="""examples:
  sparks replay outputs/ --base Qwen/Qwen2.5-1.5B --probes probes.jsonl
      all outputs/checkpoint-*, and the base model as step 0
  sparks replay 0=BASE 100=owner/model@step-100 --probes probes.jsonl --output runs/replayed
A step that the output folder holds is not taken again, so an interrupted replay goes on.""",
    )
    command.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoint folder, trainer's output folder, or hub id (owner/name@revision); "
        "STEP=CHECKPOINT gives the step where neither trainer_state.json nor the name tells it",
    )
    command.add_argument("--probes", required=True, help="JSONL file of probes")
    command.add_argument(
        "--output",
        metavar="FOLDER",
        help="run folder to write (default: `sparks` inside the first checkpoint's run)",
    )
    command.add_argument("--base", help="model before training, measured as step 0")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    command.add_argument(
        "--autocast",
        choices=("no", "bf16", "fp16"),
        default="no",
        help="run the model as a trainer with bf16=True or fp16=True does (default: no)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="take steps again that the folder already holds"
    )
    _add_settings(command, SnapshotConfig)


def _run_replay(arguments: argparse.Namespace) -> int:
    from sparks.replay import replay_checkpoints, resolve_checkpoints

    _quiet_libraries()
    output = arguments.output or _replay_folder(
        resolve_checkpoints(arguments.checkpoints, base=None)[0].name
    )
    store = replay_checkpoints(
        arguments.checkpoints,
        arguments.probes,
        output_dir=output,
        base=arguments.base,
        config=_settings(arguments, SnapshotConfig),
        device=arguments.device,
        autocast=arguments.autocast,
        overwrite=arguments.overwrite,
    )
    print(f"{len(store.steps())} snapshots in {store.path}; next: sparks report {store.path}")
    return 0


def _replay_folder(first: str) -> Path:
    if not Path(first).is_dir():
        raise SparksError(f"where to write? {first} is not a folder: give --output FOLDER")
    return Path(first).resolve().parent / "sparks"


# -- timeline --------------------------------------------------------------------------------------


def _add_timeline(commands: Any) -> None:
    command = _command(
        commands,
        "timeline",
        _run_timeline,
        help="print births, prunings, cohorts and retained heads of a run",
        epilog="""examples:
  sparks timeline outputs/                       what happened, as a table
  sparks timeline outputs/ --format csv --table events > events.csv
A damaged snapshot is named on standard error and left out; the exit code is then 2.""",
    )
    command.add_argument(
        "run_folder", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    command.add_argument("--group", help="use only the probes of this group")
    command.add_argument(
        "--format", choices=_FORMATS, default="text", help="text, csv or json (default: text)"
    )
    command.add_argument(
        "--table",
        choices=_TABLES,
        default="counts",
        help="which table csv and json hold (default: counts)",
    )
    command.add_argument(
        "--max-events", type=int, default=40, help="events listed in text (default: 40)"
    )


def _run_timeline(arguments: argparse.Namespace) -> int:
    from sparks.timeline import Timeline
    from sparks.timeline_text import render

    timeline = Timeline.from_run(arguments.run_folder, group=arguments.group)
    if arguments.format == "text":
        text = render(timeline, color=_wants_color(), max_events=arguments.max_events)
        print(text, end="")
    else:
        _print_frame(getattr(timeline, arguments.table)(), arguments.format)
    return _report_damage(arguments.run_folder)


# -- compare ---------------------------------------------------------------------------------------


def _add_compare(commands: Any) -> None:
    command = _command(
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
    command.add_argument("--group", help="use only the probes of this group")
    command.add_argument(
        "--format", choices=_FORMATS, default="text", help="text, csv or json (default: text)"
    )
    command.add_argument(
        "--table",
        choices=_COMPARED,
        default="runs",
        help="which table csv and json hold (default: runs)",
    )


def _run_compare(arguments: argparse.Namespace) -> int:
    from sparks.comparison import Comparison, named_runs
    from sparks.comparison_text import render
    from sparks.timeline import Timeline

    names, folders = zip(*named_runs(arguments.runs), strict=True)
    timelines = [Timeline.from_run(folder, group=arguments.group) for folder in folders]
    comparison = Comparison.of(timelines, names)
    if arguments.format == "text":
        print(render(comparison, color=_wants_color()), end="")
    else:
        for warning in comparison.warnings:
            print(f"sparks: warning: {_one_line(warning)}", file=sys.stderr)
        _print_frame(getattr(comparison, arguments.table)(), arguments.format)
    return max(_report_damage(folder) for folder in folders)


# -- report ----------------------------------------------------------------------------------------


def _add_report(commands: Any) -> None:
    command = _command(
        commands,
        "report",
        _run_report,
        help="write one HTML file that shows a run, or several",
        epilog="""examples:
  sparks report outputs/                         writes report.html into the run folder
  sparks report sft/ grpo/ --output both.html    one page, a run to choose
The file needs no network and no server: open it, mail it, put it into W&B.""",
    )
    command.add_argument(
        "run_folders", nargs="+", metavar="RUN", help="run folder, or a trainer's output folder"
    )
    command.add_argument("-o", "--output", metavar="FILE", help="the HTML file to write")
    command.add_argument("--title", help="title of the page")
    command.add_argument("--group", help="use only the probes of this group")


def _run_report(arguments: argparse.Namespace) -> int:
    from sparks.report import write_report
    from sparks.store import RunStore
    from sparks.timeline import Timeline

    runs = arguments.run_folders
    timelines = [Timeline.from_run(run, group=arguments.group) for run in runs]
    if arguments.output is None and len(runs) > 1:
        raise SparksError(f"{len(runs)} runs in one report: say where with --output FILE")
    out = (
        Path(arguments.output) if arguments.output else RunStore.find(runs[0]).path / "report.html"
    )
    print(write_report(timelines, out, title=arguments.title))
    return max(_report_damage(run) for run in runs)


# -- shared ----------------------------------------------------------------------------------------


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, help: str, epilog: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _wants_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _print_frame(frame: Any, form: str) -> None:
    """A pandas frame as csv, or as json records."""
    if frame.index.name is not None:
        frame = frame.reset_index()
    if form == "csv":
        print(frame.to_csv(index=False), end="")
    else:
        print(frame.to_json(orient="records", double_precision=15))


def _report_damage(run: str) -> int:
    """Name the files of a run that could not be read; 2 if there are any."""
    from sparks.store import RunStore

    problems = RunStore.find(run).read().problems
    for problem in problems:
        print(f"sparks: warning: {_one_line(problem)}", file=sys.stderr)
    return 2 if problems else 0


def _add_settings(parser: argparse.ArgumentParser, kind: Any) -> None:
    """One option for each field of a settings class; defaults and help stand there."""
    for item in fields(kind):
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
            **_value_type(str(item.type)),
        )


def _value_type(annotation: str) -> dict[str, Any]:
    name = annotation.split(" | ")[0]
    if name in ("int", "float"):
        return {
            "type": {"int": int, "float": float}[name],
            "metavar": "N" if name == "int" else "X",
        }
    choices = get_args(getattr(config_module, name, None))
    return {"choices": choices} if choices else {"metavar": "TEXT"}


def _settings(arguments: argparse.Namespace, kind: Any) -> Any:
    return kind(**{item.name: getattr(arguments, item.name) for item in fields(kind)})


def _one_line(message: object) -> str:
    """Text that stays one line and cannot steer the terminal."""
    text = " ".join(str(message).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _close_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter's own flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quiet_libraries() -> None:
    """Our bars tell what happens; those of model loading, and a hub's retries, would bury them."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())

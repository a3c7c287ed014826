"""Commands that measure a model: `sparks probes` and `sparks replay`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.cli.evaluation_options import add_check, add_sampling, sampling
from sparks.cli.options import (
    add_loading,
    add_settings,
    command_parser,
    loading,
    quiet_libraries,
    say,
    settings,
)
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.evaluation.records import Task


def add_probes(commands: Any) -> None:
    """`sparks probes`."""
    from sparks.probes.building import ProbeBuildingConfig

    command = command_parser(
        commands,
        "probes",
        _run_probes,
        help="build probes from problems and a model, or from two models",
        epilog="""examples:
  sparks probes --data problems.jsonl --model Qwen/Qwen2.5-1.5B --output probes.jsonl
      clean: the reference answers; corrupted: what the model writes before training
  sparks probes --data problems.jsonl --model BASE --clean-model TRAINED --output probes.jsonl
      clean: what the trained model writes; corrupted: what the base writes
  sparks probes --data problems.jsonl --model BASE --control 8 --output probes.jsonl
      16 probes, and 8 control probes (group `control`: copying and plain recall) in one file
  sparks probes --control 8 --model BASE --output control.jsonl
      control probes alone: no data needed""",
    )
    add_settings(command, ProbeBuildingConfig)


def _run_probes(arguments: argparse.Namespace) -> int:
    from sparks.probes.building import ProbeBuildingConfig, write_probes
    from sparks.runs.run_folder import refuse_file_of_run

    quiet_libraries()
    config = settings(arguments, ProbeBuildingConfig)
    refuse_file_of_run(config.output)
    built = write_probes(config)
    for reason in built.skipped:
        say(f"sparks: passed over {reason}", aside=True)
    if built.control_right is not None and built.control_right < arguments.control:
        say(
            f"sparks: in {arguments.control - built.control_right} of {arguments.control} control "
            f"probes the model does not get the next word right: a weak control",
            aside=True,
        )
    control = f", {arguments.control} of them control" if arguments.control else ""
    say(
        f"{len(built.probes)} probes in {arguments.output}{control} "
        f"({len(built.skipped)} problems passed over), hash {built.probes.hash[:12]}"
    )
    return 0


# -- replay ----------------------------------------------------------------------------------------


def add_replay(commands: Any) -> None:
    """`sparks replay`."""
    command = command_parser(
        commands,
        "replay",
        _run_replay,
        help="take the snapshots of a run that had no callback, from its checkpoints",
        epilog="""examples:
  sparks replay outputs/ --base Qwen/Qwen2.5-1.5B --probes probes.jsonl
      all outputs/checkpoint-*, and the base model as step 0
  sparks replay 0=BASE 100=owner/model@step-100 --probes probes.jsonl --output runs/replayed
  sparks replay outputs/ --base BASE --probes probes.jsonl --evaluate gsm8k --limit 32
      answers of every checkpoint too: problems newly solved and missed beside births and prunings
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
    add_loading(command)
    command.add_argument(
        "--autocast",
        choices=("no", "bf16", "fp16"),
        default="no",
        help="run the model as a trainer with bf16=True or fp16=True does (default: no)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="take steps again that the folder already holds"
    )
    add_settings(command, SnapshotConfig)
    answers: Any = command.add_argument_group("evaluation of each checkpoint")
    answers.add_argument(
        "--evaluate", metavar="TASK", help="name of a task, gym:NAME, or a JSONL file"
    )
    add_check(answers)
    add_sampling(answers)


def _evaluation(arguments: argparse.Namespace) -> tuple[str | Task, EvaluationConfig] | None:
    """On what checkpoints are evaluated, and how; None where no task is given.

    Raises:
        SparksError: there are settings and no task, or the task cannot be read.
    """
    if (name := arguments.evaluate) is not None:
        config = sampling(arguments)
        if arguments.check is None:
            return name, config
        from sparks.evaluation.tasks import load_task

        loaded = load_task(name, limit=config.limit, seed=config.seed, check=arguments.check)
        return loaded, config
    usual = {item.name: item.default for item in fields(EvaluationConfig)}
    for option, default in (usual | {"check": None}).items():
        if getattr(arguments, option, default) != default:
            raise SparksError(
                f"--{option.replace('_', '-')} says how to evaluate, but not on what: give "
                f"--evaluate TASK, or leave it out"
            )
    return None


def _run_replay(arguments: argparse.Namespace) -> int:
    from sparks.training.replay import replay_checkpoints, resolve_checkpoints

    task, evaluation = _evaluation(arguments) or (None, None)
    quiet_libraries()
    output = arguments.output or _replay_folder(
        resolve_checkpoints(arguments.checkpoints, base=None)[0].name
    )
    store = replay_checkpoints(
        arguments.checkpoints,
        arguments.probes,
        output_dir=output,
        base=arguments.base,
        config=settings(arguments, SnapshotConfig),
        evaluate=task,
        evaluation=evaluation,
        autocast=arguments.autocast,
        overwrite=arguments.overwrite,
        **loading(arguments),
    )
    evaluated = f" and {len(store.evaluations.steps())} evaluations" if evaluation else ""
    say(
        f"{len(store.steps())} snapshots{evaluated} in {store.path}; next: sparks report "
        f"{store.path}"
    )
    return 0


def _replay_folder(first: str) -> Path:
    from sparks.runs.run_folder import FOLDER

    if not Path(first).is_dir():
        raise SparksError(f"where to write? {first} is not a folder: give --output FOLDER")
    return Path(first).resolve().parent / FOLDER

"""`sparks replay`: snapshots of a run that had no callback."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparks.cli.options.common import (
    add_loading,
    add_settings,
    command_parser,
    loading,
    quiet_libraries,
    say,
    settings,
)
from sparks.cli.options.evaluation import add_check, add_sampling, sampling
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.config import SnapshotConfig
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.evaluation.records import Task


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

"""`sparks effects` with a model: from its options to a study, measured or found finished."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from sparks.cli.options.common import model_of, quiet_libraries, say, settings, tokenizer_of
from sparks.cli.options.evaluation import sampling
from sparks.cli.options.heads import check_doing, in_words, means_of
from sparks.effects.settings import EffectConfig
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError

if TYPE_CHECKING:
    from sparks.effects.plan import Plan
    from sparks.effects.records import EffectTable
    from sparks.effects.sets import ChosenSets, Runs
    from sparks.evaluation.records import Task
    from sparks.timeline.timeline import Timeline

_SETS = ("emergent", "base")
"""Where none are named, and a run is there."""


def studied(arguments: argparse.Namespace) -> tuple[EffectTable, Path]:
    """The table of the study that the options ask for, and its folder.

    Raises:
        SparksError: an option is wrong, or as `run_plan`.
    """
    from sparks.evaluation.tasks import load_task
    from sparks.ground.files import check_writable

    judged, config = settings(arguments, EffectConfig), sampling(arguments)
    _check(arguments, judged, config)
    folder = Path(arguments.output)
    check_writable(folder / "study.json")
    runs = _runs(arguments)
    chosen = _chosen(arguments, runs)
    if runs.shape is not None:
        plan = _plan(arguments, judged, config, chosen, runs.shape)
        if (table := _finished(plan, folder)) is not None:
            return table, folder
    quiet_libraries()
    task = load_task(arguments.task, limit=config.limit, seed=config.seed, check=arguments.check)
    if len(task.problems) < 2:
        raise SparksError(f"effects need at least 2 problems, got {len(task.problems)}: take more")
    return _measured(arguments, judged, config, chosen, runs, task, folder), folder


def _check(arguments: argparse.Namespace, judged: EffectConfig, config: EvaluationConfig) -> None:
    from sparks.effects.judging import Metric

    Metric.named(judged.metric).check(config.samples)
    check_doing(arguments)
    if not (arguments.run or arguments.control_run or arguments.sets):
        raise SparksError(
            "no head sets: give --run FOLDER to read them from, or --sets L5H1,L7H2 by hand"
        )


def _runs(arguments: argparse.Namespace) -> Runs:
    from sparks.effects.sets import Runs
    from sparks.timeline.timeline import Timeline

    def read(folder: str, group: str | None = arguments.group) -> Timeline:
        return Timeline.from_run(folder, group=group, rule=arguments.rule)

    return Runs(
        run=read(arguments.run) if arguments.run else None,
        control=read(arguments.control_run, None) if arguments.control_run else None,
        others=tuple(map(read, arguments.others)),
    )


def _chosen(arguments: argparse.Namespace, runs: Runs) -> ChosenSets:
    from sparks.effects.sets import CONTROL, choose_sets

    sets = arguments.sets
    if not sets:
        sets = [*(_SETS if runs.run else ()), *([CONTROL] if runs.control else ())]
    return choose_sets(sets, runs, most=arguments.most)


def _plan(
    arguments: argparse.Namespace,
    judged: EffectConfig,
    config: EvaluationConfig,
    chosen: ChosenSets,
    shape: tuple[int, int],
) -> Plan:
    from sparks.effects.plan import make_plan, stamp_of

    def words(scale: float) -> str:
        done = in_words(argparse.Namespace(**{**vars(arguments), "scale": scale}))
        return done if arguments.mean is None else f"{done} ({_digest(arguments.mean)})"

    return make_plan(
        chosen,
        shape=shape,
        scales=arguments.scale,
        in_words=words,
        draws=judged.random_draws,
        seed=config.seed,
        model=arguments.model,
        task=arguments.task,
        metric=judged.metric,
        margin=judged.margin,
        settings={**config.as_dict(), "check": arguments.check, "file": _digest(arguments.task)},
        stamp=stamp_of(arguments.model),
    )


def _finished(plan: Plan, folder: Path) -> EffectTable | None:
    """The table, where the folder holds all answers of this plan: no model is loaded."""
    from sparks.effects.plan import FILE, Plan, same_answers
    from sparks.effects.study import finished_table

    if not plan.stamp or not (folder / FILE).exists():
        return None
    if not same_answers(Plan.load(folder), plan):
        return None
    if (table := finished_table(plan, folder)) is not None:
        plan.save(folder)
    return table


def _measured(
    arguments: argparse.Namespace,
    judged: EffectConfig,
    config: EvaluationConfig,
    chosen: ChosenSets,
    runs: Runs,
    task: Task,
    folder: Path,
) -> EffectTable:
    from sparks.effects.run import check_shape, run_plan, shape_of

    tokenizer, model = tokenizer_of(arguments), model_of(arguments)
    if runs.shape is not None:
        check_shape(model, runs.shape)
    plan = _plan(arguments, judged, config, chosen, shape_of(model))
    for line in plan.left_out:
        say(f"sparks: left out: {line}", aside=True)
    means = means_of(arguments, model, tokenizer)
    return run_plan(plan, model, tokenizer, task, config, folder, means=means)


def _digest(name: str) -> str:
    """Of a file's content, so that an edited file is not taken for the old one."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else ""

"""A study's folder, read: the plan, the answers to every condition, and the table. No torch.

    DIR/study.json     the plan
    DIR/answers/*      a file of samples a condition (`evaluation.samples_file`)
    DIR/table.json     what was found

A set is in the table when its own answers and those of all its random draws are there: never
before, so that no set stands without its control.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sparks.effects.plan import INTACT, Condition, Plan
from sparks.effects.records import Answers, EffectTable, Measured
from sparks.evaluation.results import Evaluation, Unfinished
from sparks.ground.errors import SparksError

_Found = Mapping[str, Evaluation | None]
"""File of a condition -> its answers; None where they are not finished."""


def read_study(folder: str | os.PathLike[str]) -> EffectTable:
    """The table of a study, with the sets that are finished.

    Raises:
        SparksError: it is no study, a file is damaged, or no set is finished yet.
    """
    path = Path(folder)
    return read_answers(Plan.load(path), path)


def read_answers(plan: Plan, folder: Path) -> EffectTable:
    """The table of a plan from the answers in a folder.

    Raises:
        SparksError: as `read_study`.
    """
    return _table(plan, folder, _read(plan, folder))


def finished_table(plan: Plan, folder: Path) -> EffectTable | None:
    """The table of a plan; None where answers that it asks for are missing.

    Raises:
        SparksError: a file is damaged.
    """
    found = _read(plan, folder)
    return None if None in found.values() else _table(plan, folder, found)


def _read(plan: Plan, folder: Path) -> _Found:
    return {item.file: load(folder, item) for item in plan.conditions()}


def load(folder: Path, condition: Condition) -> Evaluation | None:
    """The answers under a condition; None where they are not finished.

    Raises:
        SparksError: the file is damaged.
    """
    path = folder / condition.file
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        return Evaluation.load(path)
    except Unfinished:
        return None


def _table(plan: Plan, folder: Path, answers: _Found) -> EffectTable:
    intact = answers[INTACT.file]
    if intact is None:
        raise SparksError(_nothing(folder))
    measured, missing = [], []
    for planned in plan.sets:
        found = [answers[condition.file] for condition in planned.conditions()]
        done = [item for item in found if item is not None]
        if len(done) == len(found):
            own, *random = (_paired(intact, item, folder) for item in done)
            measured.append(Measured(planned=planned, answers=own, random_answers=tuple(random)))
        else:
            missing.append(
                f"{planned.name}, {planned.done}: {len(done)} of {len(found)} conditions are "
                f"finished; run the same command again to go on"
            )
    if not measured:
        raise SparksError(_nothing(folder))
    return EffectTable.of(
        intact.correct_samples,
        measured,
        model=plan.model,
        task=intact.task,
        metric=plan.metric,
        margin=plan.margin,
        left_out=(*plan.left_out, *missing),
    )


def _paired(intact: Evaluation, other: Evaluation, folder: Path) -> Answers:
    """Its answers, once it is sure that they are to the same problems by the same weights."""
    ours, theirs = (
        replace(item, problems=(), intervention="", model="", config={**item.config, "limit": None})
        for item in (intact, other)
    )
    order = [problem.id for problem in intact.problems]
    if ours != theirs or order != [problem.id for problem in other.problems]:
        raise SparksError(
            f"{folder}: answers of different models, problems or settings, without ablation and "
            f"under {other.intervention!r}: run the study anew in another --output"
        )
    return other.correct_samples


def _nothing(folder: Path) -> str:
    return (
        f"{folder}: no head set is finished together with its random heads yet: run the same "
        f"command again to go on"
    )

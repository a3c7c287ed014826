"""Tasks by name: a data set of the hub, a reasoning-gym generator, or a JSONL file. No torch.

1. A registered name (`HUB_TASKS`), `gym:NAME`, or a file; the first `limit` problems, in order.
2. A file: one JSON object a line, with `problem`, `question`, `prompt` or `messages` as in
   `problems.py`, and `answer`: text, a number, or a list of which each is right. `id` is optional.
3. Where answers are checked as mathematics, every right answer must be readable as such: told with
   file and line before any model runs.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparks.evaluation.checks import CheckName, is_mathematics
from sparks.evaluation.gym_tasks import PREFIX, gym_task
from sparks.evaluation.hub_tasks import HUB_TASKS
from sparks.evaluation.records import Task, TaskProblem
from sparks.ground.errors import SparksError
from sparks.ground.files import read_jsonl
from sparks.probes.problems import answer_text, hub_rows, is_local, one_line, read_prompt

__all__ = ["HUB_TASKS", "Task", "TaskProblem", "load_task"]

_Placed = Iterator[tuple[str, TaskProblem]]


def load_task(
    name: str, *, limit: int | None = None, seed: int = 0, check: CheckName | None = None
) -> Task:
    """The problems of a task.

    Args:
        name: a registered name, `gym:NAME`, or a JSONL file.
        limit: only so many problems, the first ones; None takes all (100 of a generator).
        seed: of what the task draws: options of GPQA, problems of a generator.
        check: of a file's answers; `math` where not given. Other tasks have their own.

    Raises:
        SparksError: the task is unknown, its data cannot be read, or a problem breaks a rule.
    """
    if limit is not None and limit < 1:
        raise SparksError(f"limit must be at least 1, got {limit}")
    if check is not None and (name in HUB_TASKS or name.startswith(PREFIX)):
        raise SparksError(f"task {name} has its own check: leave out check {check!r}")
    if name.startswith(PREFIX):
        return gym_task(name.removeprefix(PREFIX), limit=limit, seed=seed)
    if name in HUB_TASKS:
        used: CheckName = HUB_TASKS[name].check
        found = _of_hub(name, seed)
    elif is_local(name):
        used = check or "math"
        found = _of_file(name)
    else:
        raise SparksError(_unknown(name))
    problems = tuple(
        problem if used != "math" else _readable(place, problem)
        for place, problem in itertools.islice(found, limit)
    )
    return Task(name if name in HUB_TASKS else Path(name).stem, problems, used)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), HUB_TASKS, n=2, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}? Known" if near else "known"
    return (
        f"unknown task {name!r}: {meant} are {', '.join(HUB_TASKS)}, gym:NAME for a data set of "
        f"reasoning-gym, and JSONL files"
    )


def _of_hub(name: str, seed: int) -> _Placed:
    task = HUB_TASKS[name]
    rows = hub_rows(task.data, task.subset, task.split)
    for number in itertools.count(1):
        try:
            place, row = next(rows)
        except StopIteration:
            return
        except SparksError as error:
            reason = one_line(error.__cause__) if isinstance(error.__cause__, Exception) else error
            raise SparksError(
                f"task {name} needs the data set {task.data} of the Hugging Face hub ({reason}): "
                f"load it once with a network (a gated one after `hf auth login`), or take a JSONL "
                f"file or a gym: task, which need none"
            ) from error
        try:
            yield place, task.read(row, str(number), seed)
        except (KeyError, AttributeError, TypeError) as error:
            raise SparksError(
                f"{place}: not the columns that task {name} knows ({one_line(error)}): give the "
                f"problems as a JSONL file"
            ) from error


def _of_file(path: str) -> _Placed:
    for number, (place, record) in enumerate(read_jsonl(path, what="problems"), start=1):
        try:
            yield place, _of_record(record, number)
        except SparksError as error:
            raise SparksError(f"{place}: {error}") from error


def _of_record(record: Any, number: int) -> TaskProblem:
    prompt, _ = read_prompt(record)
    answers = _answers(record)
    return TaskProblem(str(record.get("id", number)), prompt, answers[0], tuple(answers[1:]))


def _answers(record: Mapping[str, Any]) -> list[str]:
    value = record.get("answer")
    values = value if isinstance(value, list) else [value]
    answers = [answer_text("answer", item) for item in values]
    if not answers or not all(text.strip() for text in answers):
        raise SparksError(
            "no answer: a problem to evaluate needs the key `answer` with text, a number or a "
            "list of them"
        )
    return answers


def _readable(place: str, problem: TaskProblem) -> TaskProblem:
    """The problem, if math-verify can read all its right answers."""
    for answer in (problem.answer, *problem.also):
        if not is_mathematics(answer):
            raise SparksError(
                f"{place}: the answer {answer!r} cannot be parsed as mathematics: write it in "
                f"LaTeX or as a number, or check answers with exact or contains"
            )
    return problem

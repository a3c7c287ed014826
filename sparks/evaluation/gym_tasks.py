"""Tasks of reasoning-gym, generated here: no hub, no network, no torch.

1. `gym:NAME` is the data set NAME with its own defaults, `limit` problems (100 where not given).
2. The final answer in a text (`checks.final_answer`: `<answer>` tags, a box, "answer is", else the
   last line) goes to the data set's own `score_answer`, as it stands and without the marks around
   a formula. Right is a score of at least 0.99: partial credit counts as wrong.

Source: https://github.com/open-thought/reasoning-gym.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from sparks.evaluation.checks import Verdict, bare, final_answer
from sparks.evaluation.records import Task, TaskProblem
from sparks.ground.errors import SparksError, reason
from sparks.ground.optional import import_optional

PREFIX = "gym:"
RIGHT = 0.99
"""Least score of a right answer."""
_SIZE = 100


def gym_task(name: str, *, limit: int | None = None, seed: int = 0) -> Task:
    """Problems of a reasoning-gym data set.

    Args:
        name: of the data set, without `gym:`.
        limit: how many; 100 where not given.
        seed: of the generator.

    Raises:
        SparksError: reasoning-gym is not installed, does not know the name, or cannot make it.
    """
    gym = import_optional("reasoning_gym.factory", users="gym: tasks", extra="evaluate")
    if name not in gym.DATASETS:
        near = difflib.get_close_matches(name, gym.DATASETS, n=3) or sorted(gym.DATASETS)[:3]
        raise SparksError(
            f"unknown task {PREFIX + name!r}: reasoning-gym has {len(gym.DATASETS)} data sets, "
            f"nearest are {', '.join(PREFIX + item for item in near)}"
        )
    try:
        data = gym.create_dataset(name, size=limit or _SIZE, seed=seed)
        entries = [data[index] for index in range(limit or _SIZE)]
    except Exception as error:  # some need settings, files or packages of their own
        raise SparksError(
            f"reasoning-gym cannot make {name!r} ({reason(error)}): take another data set"
        ) from error
    problems = tuple(
        TaskProblem(
            str(number), [{"role": "user", "content": entry["question"]}], str(entry["answer"])
        )
        for number, entry in enumerate(entries, start=1)
    )
    known = {problem.id: entry for problem, entry in zip(problems, entries, strict=True)}
    return Task(PREFIX + name, problems, f"gym {name}", _Scorer(data, known))


@dataclass(frozen=True)
class _Scorer:
    """The data set's own check."""

    data: Any
    entries: dict[str, Any]
    """By id of the problem."""

    def __call__(self, problem: TaskProblem, text: str) -> Verdict:
        found = final_answer(text)
        if found is None:
            return Verdict(None, False)
        scores = (self._score(problem, candidate) for candidate in (found, bare(found)))
        return Verdict(found, any(score >= RIGHT for score in scores))

    def _score(self, problem: TaskProblem, answer: str) -> float:
        try:
            return float(self.data.score_answer(answer, self.entries[problem.id]))
        except Exception:  # a scorer that an odd answer breaks: the answer is not right
            return 0.0

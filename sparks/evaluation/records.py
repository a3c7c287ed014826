"""A task: problems with their right answers, and how answers are checked. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from sparks.evaluation.checks import CheckName, Verdict, judge
from sparks.ground.config import check_choice
from sparks.ground.errors import SparksError
from sparks.probes.pairs import Message


@dataclass(frozen=True)
class TaskProblem:
    """One problem."""

    id: str
    """Names it within its task."""
    prompt: str | list[Message]
    """Text as it is, or chat messages."""
    answer: str
    also: tuple[str, ...] = ()
    """Other answers that are right."""

    @property
    def text(self) -> str:
        """The prompt without its roles: what the last message says."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


Scorer = Callable[[TaskProblem, str], Verdict]
"""Problem and text of a sample -> verdict."""


@dataclass(frozen=True)
class Task:
    """Problems, and how answers to them are checked.

    Raises:
        SparksError: there are no problems, two have one id, or the check is unknown.
    """

    name: str
    problems: tuple[TaskProblem, ...]
    check: str = "math"
    """One of `CheckName`; or any name for that of `scorer`."""
    scorer: Scorer | None = field(default=None, compare=False, repr=False)
    """The task's own check, in place of those of `checks.py`."""

    def __post_init__(self) -> None:
        if not self.problems:
            raise SparksError(f"task {self.name}: no problems: give at least one")
        seen: set[str] = set()
        for problem in self.problems:
            if problem.id in seen:
                raise SparksError(f"task {self.name}: two problems have the id {problem.id!r}")
            seen.add(problem.id)
        if self.scorer is None:
            check_choice("check", self.check, get_args(CheckName))

    @property
    def hash(self) -> str:
        """sha256 (hex) of the problems with their answers and of the name of the check."""
        problems: list[Any] = [[p.id, p.prompt, p.answer, p.also] for p in self.problems]
        whole = json.dumps([self.check, problems], separators=(",", ":"))
        return hashlib.sha256(whole.encode()).hexdigest()

    def judge(self, problem: TaskProblem, text: str) -> Verdict:
        """The final answer in a text, and whether it is right.

        Raises:
            SparksError: a package that the check needs is not installed.
        """
        if self.scorer is not None:
            return self.scorer(problem, text)
        name: Any = self.check
        return judge(name, text, (problem.answer, *problem.also))

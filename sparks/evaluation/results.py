"""The outcome of an evaluation: every problem with its sampled answers, and the metrics. No torch.

`run.evaluate` makes it; `Evaluation.load` reads it from the file of samples (`samples_file.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from sparks.evaluation.pass_at_k import pass_at, success_at
from sparks.evaluation.samples_file import Header, SampleLine, read_samples
from sparks.ground.errors import SparksError
from sparks.stats.intervals import Interval

__all__ = ["Evaluation", "ProblemResult", "of_samples"]


class Unfinished(SparksError):  # noqa: N818
    """A file of samples lacks some: whoever sampled it can go on."""


@dataclass(frozen=True)
class ProblemResult:
    """One problem with its sampled answers; all tuples have one entry a sample, in order."""

    id: str
    problem: str
    """Text of the problem."""
    answer: str
    """The right answer."""
    correct: tuple[bool, ...]
    texts: tuple[str, ...]
    """What the model wrote, with the `<think>` that its chat template opened."""
    found: tuple[str | None, ...] = ()
    """The final answer found in each text; None where there is none."""
    tokens: tuple[int, ...] = ()
    """Sampled tokens."""
    truncated: tuple[bool, ...] = ()
    """Cut at `max_new_tokens`."""


@dataclass(frozen=True)
class Evaluation:
    """Sampled and checked answers to the problems of a task.

    Raises:
        SparksError: the problems differ in their number of samples.
    """

    task: str
    config: dict[str, Any]
    """The settings that were used, as `EvaluationConfig.as_dict` gives them."""
    problems: tuple[ProblemResult, ...]
    task_hash: str = ""
    model: str = ""
    fingerprint: str = ""
    """Of the model's weights (`models.fingerprint`)."""
    intervention: str = ""
    """What was done to the model while it was sampled from; empty where nothing was."""
    backend: str = "transformers"
    seconds: float = field(default=0.0, compare=False)
    """Time spent on sampling and checking."""

    def __post_init__(self) -> None:
        counts = {len(problem.correct) for problem in self.problems}
        if len(counts) > 1:
            raise SparksError(
                f"all problems need equally many samples, got {sorted(counts)}: sample them anew"
            )

    @property
    def samples(self) -> int:
        """n, samples a problem."""
        return len(self.problems[0].correct) if self.problems else 0

    @cached_property
    def correct_samples(self) -> Bool[np.ndarray, "problems samples"]:
        """Which samples are right."""
        rows = [problem.correct for problem in self.problems]
        return np.array(rows, dtype=bool).reshape(len(rows), self.samples)

    @cached_property
    def correct(self) -> Float[np.ndarray, " problems"]:
        """Share of right samples of each problem."""
        if not self.samples:
            return np.zeros(0)
        return self.correct_samples.mean(axis=1)

    def pass_at(self, k: int = 1) -> Interval:
        """pass@k: chance that one of k samples is right (`metrics`).

        Raises:
            SparksError: k is not from 1 to `samples`.
        """
        return pass_at(self.correct_samples.sum(axis=1), self.samples, k)

    def success_at(self, k: int) -> Interval:
        """success@k: share of problems solved within their first k samples (`metrics`).

        Raises:
            SparksError: k is not from 1 to `samples`.
        """
        return success_at(self.correct_samples, k)

    @property
    def truncated(self) -> int:
        """Samples cut at `max_new_tokens`."""
        return sum(sum(problem.truncated) for problem in self.problems)

    @property
    def unparsed(self) -> int:
        """Samples in which no final answer was found."""
        return sum(text is None for problem in self.problems for text in problem.found)

    @property
    def tokens(self) -> int:
        """Sampled tokens of all samples."""
        return sum(sum(problem.tokens) for problem in self.problems)

    def metrics(self, ks: Sequence[int] | None = None) -> pd.DataFrame:
        """Columns metric, k, value, low, high: pass@k and success@k for each k.

        Args:
            ks: 1, powers of two and the number of samples where not given.

        Raises:
            SparksError: a k is not from 1 to `samples`.
        """
        rows: list[tuple[str, int, float, float, float]] = []
        for name, metric in (("pass", self.pass_at), ("success", self.success_at)):
            for k in default_ks(self.samples) if ks is None else ks:
                found = metric(k)
                rows.append((name, k, found.value, found.low, found.high))
        return pd.DataFrame(rows, columns=["metric", "k", "value", "low", "high"])

    def frame(self) -> pd.DataFrame:
        """One row a problem: id, problem, answer, right, samples, share."""
        return pd.DataFrame(
            {
                "id": [problem.id for problem in self.problems],
                "problem": [problem.problem for problem in self.problems],
                "answer": [problem.answer for problem in self.problems],
                "right": self.correct_samples.sum(axis=1),
                "samples": self.samples,
                "share": self.correct,
            }
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """The evaluation in a file of samples.

        Raises:
            Unfinished: samples are missing.
            SparksError: it cannot be read, or is no such file.
        """
        header, lines = read_samples(path)
        done = {(line.id, line.sample) for line in lines}
        if len(done) < (wanted := header.num_samples):
            raise Unfinished(
                f"{path}: unfinished, {len(done)} of {wanted} samples: run the same command again "
                f"to go on"
            )
        return of_samples(header, lines)


def default_ks(samples: int) -> list[int]:
    """1, powers of two and the number of samples."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return sorted({*powers, samples} - {0})


def of_samples(header: Header, lines: Sequence[SampleLine]) -> Evaluation:
    """The evaluation of samples that stand in any order."""
    problems: dict[str, dict[int, SampleLine]] = {}
    for line in lines:
        problems.setdefault(line.id, {})[line.sample] = line
    return Evaluation(
        task=header.task,
        config=dict(header.settings),
        problems=tuple(_problem(samples) for samples in problems.values()),
        task_hash=header.task_hash,
        model=header.model,
        fingerprint=header.fingerprint,
        intervention=header.intervention,
        backend=header.backend,
        seconds=sum(line.seconds for line in lines),
    )


def _problem(samples: Mapping[int, SampleLine]) -> ProblemResult:
    lines = [samples[index] for index in sorted(samples)]
    return ProblemResult(
        id=lines[0].id,
        problem=lines[0].problem,
        answer=lines[0].answer,
        correct=tuple(line.correct for line in lines),
        texts=tuple(line.text for line in lines),
        found=tuple(line.found for line in lines),
        tokens=tuple(line.tokens for line in lines),
        truncated=tuple(line.truncated for line in lines),
    )

"""Evaluates a model on a task: samples answers, checks them, saves every one.

1. Prompts are encoded, and settings filled in by the rule of `settings.py`.
2. Samples are numbered problem by problem. A batch is so many that follow each other; a batch of
   which all samples stand in the output file is passed over, one of which some do is sampled whole
   again and only what is missing is written. Its seed is that of its first sample, so a run that
   was killed ends with the samples of one that was not.
3. Each text is checked by the task, with the `<think>` that the template opened before it.

The model runs AS IT IS: hooks on it work (`effects.interventions.intervene`). It and all random
states are left as found (`models.guard.undisturbed`).

Source: "Thinking Sparks!", https://arxiv.org/abs/2509.25758: temperature 0.6, top-p 0.95, 4 to 64
samples a problem.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn
from tqdm import tqdm

from sparks.evaluation.prompts import Prompt, encode_prompts
from sparks.evaluation.records import Task, TaskProblem
from sparks.evaluation.results import Evaluation, of_samples
from sparks.evaluation.samplers import Sampler, TransformersSampler
from sparks.evaluation.samples_file import Header, SampleLine, SamplesFile
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.models.generation import Continuation, text_after
from sparks.models.guard import undisturbed

Unit = tuple[int, int]
"""Problem and sample, both from 0."""


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    config: EvaluationConfig | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    intervention: str = "",
) -> Evaluation:
    """Sample answers from a model and check them.

    Args:
        model: a Hugging Face causal language model, hooks on it included.
        tokenizer: of the model.
        task: of `load_task`.
        config: how to sample.
        output: file of samples, written as they come; one of the same run is gone on with.
        progress: show a bar.
        intervention: what is done to the model, in words; part of what a file of samples is of.

    Raises:
        SparksError: prompts do not fit the model, the file cannot be written or is of another run,
            or the model cannot be sampled from.
    """
    config = config or EvaluationConfig()
    if config.backend == "vllm":
        raise SparksError(
            "vllm loads a model by itself, from its folder or hub id: use `sparks evaluate MODEL "
            "--backend vllm`, or backend='transformers' for a model in memory"
        )
    with undisturbed(model):
        sampler = TransformersSampler(model, tokenizer)
        return evaluate_with(
            sampler, tokenizer, task, config,
            output=output, progress=progress, intervention=intervention,
        )  # fmt: skip


def evaluate_with(
    sampler: Sampler,
    tokenizer: Any,
    task: Task,
    config: EvaluationConfig,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    intervention: str = "",
) -> Evaluation:
    """As `evaluate`, with what samples given."""
    return of_samples(
        *sample_task(
            sampler, tokenizer, task, config,
            output=output, progress=progress, intervention=intervention,
        )
    )  # fmt: skip


def sample_task(
    sampler: Sampler,
    tokenizer: Any,
    task: Task,
    config: EvaluationConfig,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    intervention: str = "",
    share: tuple[int, int] = (0, 1),
) -> tuple[Header, list[SampleLine]]:
    """The samples behind an evaluation, in order; see `evaluate_with`.

    `share` (i, N) takes every N-th batch, from the i-th on: a batch has a seed of its own, so N
    processes sample together what one samples alone.
    """
    config = config.settled(sampler.suggested)
    task = replace(task, problems=task.problems[: config.limit])
    prompts = encode_prompts(
        tokenizer, task.problems, config, model=sampler.model, context=sampler.context
    )
    header = Header(
        task=task.name,
        task_hash=task.hash,
        check=task.check,
        num_problems=len(task.problems),
        settings=config.as_dict(),
        backend=sampler.backend,
        model=sampler.model,
        fingerprint=sampler.fingerprint,
        intervention=intervention,
    )
    run = _Run(sampler, tokenizer, task, config, prompts, share)
    with ExitStack() as stack:
        file = stack.enter_context(SamplesFile(output, header)) if output is not None else None
        lines = list(file.lines) if file is not None else []
        bar = stack.enter_context(_Bar(task, config.samples, run.total, lines, show=progress))
        for new in run.missing({(line.id, line.sample) for line in lines}):
            if file is not None:
                file.write(new)
            lines += new
            bar.add(new)
    return header, in_order(task, lines)


def in_order(task: Task, lines: Sequence[SampleLine]) -> list[SampleLine]:
    """Samples problem by problem, as the task has them."""
    order = {problem.id: number for number, problem in enumerate(task.problems)}
    return sorted(lines, key=lambda line: (order[line.id], line.sample))


class _Run:
    """The samples of a run, batch by batch."""

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: Any,
        task: Task,
        config: EvaluationConfig,
        prompts: Sequence[Prompt],
        share: tuple[int, int],
    ) -> None:
        self._sampler, self._tokenizer, self._task = sampler, tokenizer, task
        self._config, self._prompts = config, prompts
        units = [(p, s) for p in range(len(task.problems)) for s in range(config.samples)]
        size, (own, processes) = sampler.batch_size(config), share
        self._batches = [
            (first, units[first : first + size])
            for first in range(own * size, len(units), processes * size)
        ]
        self.total = sum(len(batch) for _, batch in self._batches)
        """Samples of this share."""

    def missing(self, done: set[tuple[str, int]]) -> Iterator[list[SampleLine]]:
        """The samples that are not done, a batch at a time, in order."""
        problems = self._task.problems
        for first, batch in self._batches:
            wanted = [unit for unit in batch if (problems[unit[0]].id, unit[1]) not in done]
            if wanted:
                yield self._batch(batch, first, set(wanted))

    def _batch(self, batch: Sequence[Unit], first: int, wanted: set[Unit]) -> list[SampleLine]:
        start = time.perf_counter()
        rows = [self._prompts[problem].ids for problem, _ in batch]
        found = self._sampler.sample(rows, first, self._config)
        lines = [
            self._line(unit, answer)
            for unit, answer in zip(batch, found, strict=True)
            if unit in wanted
        ]
        share = round((time.perf_counter() - start) / len(lines), 4)
        return [replace(line, seconds=share) for line in lines]

    def _line(self, unit: Unit, answer: Continuation) -> SampleLine:
        prompt, problem = self._prompts[unit[0]], self._task.problems[unit[0]]
        text = prompt.opened + text_after(self._tokenizer, prompt.ids, answer.ids)
        verdict = self._task.judge(problem, text)
        return _line(problem, unit[1], text, answer, verdict.found, verdict.correct)


def _line(
    problem: TaskProblem,
    sample: int,
    text: str,
    answer: Continuation,
    found: str | None,
    correct: bool,
) -> SampleLine:
    return SampleLine(
        id=problem.id,
        sample=sample,
        problem=problem.text,
        answer=problem.answer,
        text=text,
        found=found,
        correct=correct,
        tokens=len(answer.ids),
        truncated=not answer.ended,
        seconds=0.0,
    )


class _Bar:
    """Samples done, problems done, and the share of right answers so far; a context manager."""

    def __init__(
        self, task: Task, samples: int, total: int, lines: Sequence[SampleLine], *, show: bool
    ) -> None:
        self._samples, self._problems = samples, len(task.problems)
        self._done = self._right = 0
        self._bar = tqdm(
            total=total,
            initial=len(lines),
            desc=task.name,
            unit="sample",
            disable=not show,
        )
        self._count(lines)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, lines: Sequence[SampleLine]) -> None:
        """Samples are done."""
        self._count(lines)
        self._bar.update(len(lines))

    def _count(self, lines: Sequence[SampleLine]) -> None:
        self._done += len(lines)
        self._right += sum(line.correct for line in lines)
        if self._done:
            self._bar.set_postfix_str(
                f"{self._done // self._samples}/{self._problems} problems, "
                f"{100 * self._right / self._done:.0f}% right",
                refresh=False,
            )

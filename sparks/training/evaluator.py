"""Evaluates a model in training: the same samples whatever the number of processes.

1. Everything that can be wrong is found first: the task is read when the callback is made, prompts
   are put together before the first step.
2. Every process has the whole model, of a sharded one a copy (`sharding.whole`). Of the batches of
   `run.evaluate`, process i of N samples batches i, i + N, ...; a batch has a seed of its own, so
   that all of them together are what one process alone would have sampled. None waits for another
   but at the end.
3. Process 0 writes the file of samples, whole (`folder`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sparks.evaluation.prompts import encode_prompts
from sparks.evaluation.records import Task
from sparks.evaluation.run import in_order, sample_task
from sparks.evaluation.samplers import TransformersSampler, name_of
from sparks.evaluation.samples_file import Header, SampleLine
from sparks.evaluation.settings import EvaluationConfig
from sparks.evaluation.tasks import load_task
from sparks.ground.errors import SparksError
from sparks.models import processes
from sparks.models.families import context_of
from sparks.models.guard import undisturbed
from sparks.models.sharding import whole
from sparks.runs.evaluations import EvaluationFolder, StepEvaluation

_Samples = tuple[Header, list[SampleLine]]


class CheckpointEvaluator:
    """Evaluates checkpoints of one training on one task.

    Args:
        task: a task, or a name or file for `load_task`.
        config: how answers are sampled; None takes the defaults.

    Raises:
        SparksError: the task is unknown or cannot be read, or `config` cannot be used in training.
    """

    def __init__(
        self, task: str | os.PathLike[str] | Task, config: EvaluationConfig | None = None
    ) -> None:
        config = EvaluationConfig() if config is None else config
        if not isinstance(config, EvaluationConfig):
            raise SparksError(
                f"evaluation must be an EvaluationConfig, got {type(config).__name__}: give "
                f"EvaluationConfig(samples=4, limit=32)"
            )
        if config.backend == "vllm":
            raise SparksError(
                "vllm loads a model by itself and cannot take the one in training: leave backend "
                "vllm out, or evaluate the checkpoints with `sparks evaluate`"
            )
        if not isinstance(task, Task):
            task = load_task(os.fspath(task), limit=config.limit, seed=config.seed)
        self.config = config
        self.task = replace(task, problems=task.problems[: config.limit])

    def check(self, model: nn.Module, tokenizer: Any) -> None:
        """Put all prompts together for this model, and throw them away.

        Raises:
            SparksError: there is no chat template or no thinking mode, or prompts and answers do
                not fit into the model.
        """
        config: Any = getattr(model, "config", None)
        encode_prompts(
            tokenizer, self.task.problems, self.config,
            model=name_of(model), context=context_of(config),
        )  # fmt: skip

    def run(
        self,
        model: nn.Module,
        tokenizer: Any,
        folder: EvaluationFolder,
        step: int,
        *,
        progress: bool = True,
        shared: bool = False,
    ) -> StepEvaluation:
        """Evaluate the model of a step, and keep its samples.

        Args:
            model: left as found, like all random states.
            tokenizer: of the model.
            folder: where it is kept.
            step: that the model stands for.
            progress: show a bar.
            shared: every process that trains makes this call; all of them get the result.

        Raises:
            SparksError: as `run.evaluate` and `sharding.whole`, the file cannot be written, or
                another process failed.
        """
        if not shared:
            header, lines = self._samples(model, tokenizer, folder.part(step), progress=progress)
            return _kept(folder, step, header, lines)
        index, count = processes.index(), processes.count()
        model = alone(whole(model), model)
        parts = processes.together(
            lambda: self._samples(
                model, tokenizer, None, share=(index, count), progress=progress and index == 0
            )
        )
        lines = in_order(self.task, [line for _, found in parts for line in found])
        return processes.first_does(lambda: _kept(folder, step, parts[0][0], lines))

    def _samples(
        self,
        model: nn.Module,
        tokenizer: Any,
        path: Path | None,
        *,
        share: tuple[int, int] = (0, 1),
        progress: bool,
    ) -> _Samples:
        with undisturbed(model):
            return sample_task(
                TransformersSampler(model, tokenizer), tokenizer, self.task, self.config,
                output=path, progress=progress, share=share,
            )  # fmt: skip


def alone(copy: Any, model: nn.Module) -> nn.Module:
    """A whole copy that samples without the steps that transformers adds for a sharded model.

    They would wait for the other processes at every token.
    """
    if copy is not model:
        copy.generate = partial(copy.generate, synced_gpus=False)
    return copy


def _kept(
    folder: EvaluationFolder, step: int, header: Header, lines: Sequence[SampleLine]
) -> StepEvaluation:
    found = StepEvaluation.of(step, header, lines)
    folder.write(step, header, lines)
    folder.part(step).unlink(missing_ok=True)
    return found

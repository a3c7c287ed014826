"""Answers the problems of a task under every condition of a plan.

1. The intact model first, then each set and its random heads (`effects.interventions.intervene`):
   the same problems, settings and seeds.
2. Answers are written as they come. A condition that is finished is passed over, one that was
   killed goes on (`evaluation.samples_file`); a file of another model or of other settings is
   refused.
3. The plan is written once the first answers are in, the table at the end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from sparks.effects.head_means import HeadMeans
from sparks.effects.interventions import intervene
from sparks.effects.plan import INTACT, Condition, Plan
from sparks.effects.records import EffectTable
from sparks.effects.study import load, read_answers
from sparks.effects.tables import to_json
from sparks.evaluation.records import Task
from sparks.evaluation.run import evaluate_with
from sparks.evaluation.samplers import Sampler, TransformersSampler
from sparks.evaluation.settings import EvaluationConfig
from sparks.ground.errors import SparksError
from sparks.ground.files import write_atomically
from sparks.models.anatomy import find
from sparks.models.generation import Continuation
from sparks.models.guard import undisturbed

TABLE = "table.json"


def run_plan(
    plan: Plan,
    model: nn.Module,
    tokenizer: Any,
    task: Task,
    config: EvaluationConfig,
    folder: str | os.PathLike[str],
    *,
    means: HeadMeans | None = None,
    progress: bool = True,
) -> EffectTable:
    """Measure what is missing, and give the table. The model is left as found.

    Args:
        plan: of `make_plan`, for this model.
        model: a Hugging Face causal language model.
        tokenizer: of the model.
        task: the problems.
        config: how to sample.
        folder: of the study; what it holds of this plan is kept.
        means: for mean ablation; None is zero ablation or scaling.
        progress: show a bar over all conditions.

    Raises:
        SparksError: prompts do not fit the model, the folder holds answers of another study, or
            the model cannot be sampled from.
    """
    path = Path(folder)
    conditions = list(plan.conditions())
    with (
        undisturbed(model),
        tqdm(
            total=len(conditions) * config.samples * len(task.problems[: config.limit]),
            unit="answer",
            leave=False,
            disable=not progress,
        ) as bar,
    ):
        sampler = _Counted(TransformersSampler(model, tokenizer), bar)
        for number, condition in enumerate(conditions, start=1):
            bar.set_description_str(f"{number}/{len(conditions)} {condition.label}")
            _answer(condition, model, means, sampler, tokenizer, task, config, path)
            bar.n = bar.total * number // len(conditions)
            bar.refresh()
            if number == 1:
                plan.save(path)
                _warn_of_nothing(path)
    table = read_answers(plan, path)
    write_atomically(path / TABLE, to_json(table))
    return table


def check_shape(model: nn.Module, shape: tuple[int, int]) -> None:
    """Refuse a model that has other layers or heads than the run that the sets were read from.

    Raises:
        SparksError: it has.
    """
    own = shape_of(model)
    if own != shape:
        raise SparksError(
            f"the run is of a model with {shape[0]} layers of {shape[1]} heads, this one has "
            f"{own[0]} of {own[1]}: give the model that the run trained"
        )


def shape_of(model: nn.Module) -> tuple[int, int]:
    """Layers and heads.

    Raises:
        SparksError: an unknown architecture.
    """
    graph = find(model).graph
    return graph.num_layers, graph.num_heads


def _answer(
    condition: Condition,
    model: nn.Module,
    means: HeadMeans | None,
    sampler: Sampler,
    tokenizer: Any,
    task: Task,
    config: EvaluationConfig,
    folder: Path,
) -> None:
    def answered() -> None:
        evaluate_with(
            sampler, tokenizer, task, config, output=folder / condition.file, progress=False,
            intervention=condition.intervention,
        )  # fmt: skip

    if not condition.heads:
        answered()
        return
    with intervene(model, condition.heads, scale=condition.scale, means=means):
        answered()


def _warn_of_nothing(folder: Path) -> None:
    """Say at once that a study cannot tell anything, not after all its conditions."""
    intact = load(folder, INTACT)
    if intact is not None and not intact.correct_samples.any():
        warnings.warn(
            f"without ablation none of {len(intact.problems)} problems is solved, so nothing can "
            f"be taken: give an easier task",
            stacklevel=3,
        )


class _Counted:
    """A sampler that moves a bar."""

    def __init__(self, sampler: Sampler, bar: Any) -> None:
        self._sampler, self._bar = sampler, bar
        self.backend, self.model = sampler.backend, sampler.model
        self.fingerprint, self.context = sampler.fingerprint, sampler.context
        self.suggested: Mapping[str, Any] = sampler.suggested

    def batch_size(self, config: EvaluationConfig) -> int:
        return self._sampler.batch_size(config)

    def sample(
        self, rows: Sequence[list[int]], first: int, config: EvaluationConfig
    ) -> list[Continuation]:
        found = self._sampler.sample(rows, first, config)
        self._bar.update(len(rows))
        return found

"""What a study found: a row a head set, each with its matched random heads inside. No torch.

1. `Control`: the random heads that match a set, and what became of the metric. At least two draws.
2. `Row`: a set beside its `Control`; without one it cannot be made, so no view can show a set
   alone, and no claim (`verdict`) stands without the control that it rests on.
3. `EffectTable`: the rows of one study, whose p-values are corrected together.

All metrics are means over the same problems; larger is better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sparks.effects.judging import Judgement, Metric, beside, holm, judge
from sparks.effects.plan import PlannedSet
from sparks.effects.settings import ALPHA, FEWEST_DRAWS, EffectConfig
from sparks.evaluation.pass_at_k import mean_with_interval
from sparks.ground.errors import SparksError
from sparks.models.heads import Head, names
from sparks.stats.intervals import Interval
from sparks.stats.paired import Contrast, contrast, effect, random_effect

Answers = Bool[np.ndarray, "problems samples"]
"""Which samples are right."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Answers with a set ablated, and with each draw of its random heads."""

    planned: PlannedSet
    answers: Answers
    random_answers: tuple[Answers, ...]
    """A draw each."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """Matched random heads under the same intervention: same number, same layers, several draws.

    Raises:
        SparksError: fewer than two different draws.
    """

    heads: tuple[tuple[Head, ...], ...]
    """A draw each."""
    moved: tuple[int, ...]
    """Of each draw, heads that lie in another layer than those they match."""
    values: tuple[float, ...]
    """Metric of each draw."""
    value: float
    """Metric, mean over draws."""
    effect: Interval
    """metric(intact) - metric(random), mean over draws; interval over problems and draws."""

    def __post_init__(self) -> None:
        _check_draws(self.heads, len(self.values))

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.heads)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One head set under one intervention, beside its matched random heads.

    Raises:
        SparksError: the random heads do not match the set.
    """

    planned: PlannedSet
    value: float
    """Metric with the heads ablated."""
    effect: Interval
    """Delta(H) = metric(intact) - metric(ablated)."""
    control: Control
    contrast: Contrast
    """`effect` - that of the control."""
    p_holm: float
    """Of the contrast, corrected over all rows of the study."""
    judgement: Judgement
    beside: Mapping[str, tuple[float, float]]
    """Other metrics: with the heads ablated, and the mean of the random draws."""

    def __post_init__(self) -> None:
        if not isinstance(self.control, Control):
            raise SparksError(f"set {self.planned.name} has no matched random heads beside it")
        for drawn, moved in zip(self.control.heads, self.control.moved, strict=True):
            _check_match(self.planned.name, self.planned.heads, drawn, moved)


@dataclass(frozen=True, kw_only=True)
class EffectTable:
    """The effects of head sets on one model and task."""

    model: str
    task: str
    metric: str
    problems: int
    samples: int
    """Answers a problem."""
    intact: Interval
    """Metric without ablation."""
    intact_beside: Mapping[str, float]
    """Other metrics without ablation."""
    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()
    """One line each: sets that could not be measured, and why."""
    alpha: float = ALPHA
    margin: float = EffectConfig.margin

    @classmethod
    def of(
        cls,
        intact: Answers,
        measured: Sequence[Measured],
        *,
        model: str,
        task: str,
        metric: str = EffectConfig.metric,
        left_out: Sequence[str] = (),
        alpha: float = ALPHA,
        margin: float = EffectConfig.margin,
    ) -> EffectTable:
        """Work out every row, and correct their p-values together.

        Args:
            intact: answers without ablation.
            measured: answers of each set and of its random heads, to the same problems.
            model: its name.
            task: its name.
            metric: `pass@K` or `success@K`.
            left_out: one line each, of sets that could not be measured.
            alpha: chance of any false claim.
            margin: share of the intact metric that would matter.

        Raises:
            SparksError: fewer than two problems, an unknown metric, problems or samples that
                differ between conditions, or a set without matched random heads.
        """
        problems, samples = intact.shape
        if problems < 2:
            raise SparksError(f"effects need at least 2 problems, got {problems}: take more")
        chosen = Metric.named(metric)
        drafts = [_Draft(intact, item, chosen) for item in measured]
        value = mean_with_interval(
            chosen.values(intact), grades=max(1, round(1 / chosen.grain(samples)))
        )
        corrected = holm([draft.contrast.p_value for draft in drafts])
        return cls(
            model=model,
            task=task,
            metric=str(chosen),
            problems=problems,
            samples=samples,
            intact=value,
            intact_beside={
                str(other): float(other.values(intact).mean()) for other in beside(chosen, samples)
            },
            rows=tuple(
                draft.row(value.value, p_holm, alpha, margin)
                for draft, p_holm in zip(drafts, corrected, strict=True)
            ),
            left_out=tuple(left_out),
            alpha=alpha,
            margin=margin,
        )


class _Draft:
    """A row before the p-values of all rows are known."""

    def __init__(self, intact: Answers, measured: Measured, metric: Metric) -> None:
        for answers in (measured.answers, *measured.random_answers):
            if answers.shape != intact.shape:
                raise SparksError(
                    f"set {measured.planned.name}: {answers.shape} problems and samples, "
                    f"{intact.shape} without ablation: effects need the same problems"
                )
        self.measured, samples = measured, intact.shape[1]
        grain, before = metric.grain(samples), metric.values(intact)
        self.after = metric.values(measured.answers)
        _check_draws(measured.planned.random, len(measured.random_answers))
        random: Float[np.ndarray, "draws problems"] = np.stack(
            [metric.values(answers) for answers in measured.random_answers]
        )
        self.effect = effect(before, self.after, grain=grain)
        self.contrast = contrast(self.after, random, grain=grain)
        self.control = Control(
            heads=measured.planned.random,
            moved=measured.planned.moved,
            values=tuple(random.mean(axis=1).tolist()),
            value=float(random.mean()),
            effect=random_effect(before, random, grain=grain),
        )
        self.beside = {
            str(other): (
                float(other.values(measured.answers).mean()),
                float(np.mean([other.values(draw).mean() for draw in measured.random_answers])),
            )
            for other in beside(metric, samples)
        }

    def row(self, intact: float, p_holm: float, alpha: float, margin: float) -> Row:
        return Row(
            planned=self.measured.planned,
            value=float(self.after.mean()),
            effect=self.effect,
            control=self.control,
            contrast=self.contrast,
            p_holm=p_holm,
            judgement=judge(
                intact=intact,
                effect=self.effect,
                control=self.control.effect,
                contrast=self.contrast.interval,
                p_holm=p_holm,
                alpha=alpha,
                margin=margin,
            ),
            beside=self.beside,
        )


def _check_draws(drawn: tuple[tuple[Head, ...], ...], measured: int) -> None:
    if len({*drawn}) < FEWEST_DRAWS or measured != len(drawn):
        raise SparksError(
            f"a head set needs matched random heads beside it, at least {FEWEST_DRAWS} different "
            f"draws, got {len({*drawn})} and {measured} measurements"
        )


def _check_match(name: str, heads: tuple[Head, ...], drawn: tuple[Head, ...], moved: int) -> None:
    wanted, got = (Counter(layer for layer, _ in some) for some in (heads, drawn))
    if (wanted - got).total() != moved or len(drawn) != len(heads) or {*heads} & {*drawn}:
        raise SparksError(
            f"set {name}: the random heads {names(drawn)} do not match {names(heads)}: as many in "
            f"each layer, none of them"
        )

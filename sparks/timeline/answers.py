"""What a run's evaluations tell over training, joined to births and prunings of heads. No torch.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758), Fig. 4, A.10 and A.11: problems that a
checkpoint newly solves, and newly misses, against the base model. The paper does not say when a
problem counts as solved; ours:

1. Solved: at least one of its samples is right.
2. Newly solved at a step: solved there, and none of the base's samples was right. Newly missed:
   none is right there, and the base solved it. The base is the first evaluation: step 0, where
   there is one.
3. Sure: the share of right samples changed by more than luck (`exact`: Fisher's test, at most 5 %
   false ones expected a step). With few samples most are not; `by_luck` says how many newly solved
   ones, and as many newly missed ones, a model that did not change is expected to give.
4. Births and prunings of a step: those settled after the evaluation before, up to this one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from sparks.ground.errors import SparksError
from sparks.runs.evaluations import StepEvaluation
from sparks.stats.fisher import beyond_luck, by_luck, p_values
from sparks.stats.intervals import NO_INTERVAL, Interval
from sparks.stats.paired import effect
from sparks.timeline.timeline import Rule, Timeline

ChangeKind = Literal["solved", "missed"]
JOINED = ("born", "pruned")
"""Kinds of events that stand beside an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A problem that is newly solved or newly missed at a step."""

    step: int
    kind: ChangeKind
    id: str
    problem: str
    """Its text."""
    answer: str
    right_then: int
    """Right samples of the base."""
    right_now: int
    samples: int
    """Of each."""
    then: str
    """A sample of the base: wrong where newly solved, right where newly missed."""
    now: str
    """One of this step: right where newly solved."""
    p_value: float
    """Of Fisher's test, of this problem alone."""
    sure: bool
    """More than luck, all problems of the step together."""


class EvaluationHistory:
    """The evaluations of one run, in order of step.

    Args:
        evaluations: of one task and with the same settings; at least one.
        timeline: of the same run, for births and prunings; None leaves them out.

    Raises:
        SparksError: there is none, or they cannot be compared.
    """

    def __init__(
        self, evaluations: Sequence[StepEvaluation], timeline: Timeline | None = None
    ) -> None:
        if not evaluations:
            raise SparksError(
                "no evaluations: train with SparksCallback(probes, evaluate=TASK), or evaluate "
                "checkpoints with `sparks replay ... --evaluate TASK`"
            )
        self.evaluations = tuple(sorted(evaluations, key=lambda item: item.step))
        self.timeline = timeline
        self.base = self.evaluations[0]
        """What the others are held against."""
        for item in self.evaluations[1:]:
            if difference := item.differs_from(self.base):
                raise SparksError(
                    f"evaluations of one run must be of one task and settings, step {item.step} is "
                    f"of {difference}: keep each kind in a run folder of its own"
                )
        self.steps = np.array([item.step for item in self.evaluations], dtype=np.int64)
        order = {name: place for place, name in enumerate(self.base.ids)}
        places = [np.argsort([order[name] for name in e.ids]) for e in self.evaluations]
        self._places = places
        self.right: Int[np.ndarray, "evaluations problems"] = np.stack(
            [
                item.correct.sum(axis=1)[place]
                for item, place in zip(self.evaluations, places, strict=True)
            ]
        )
        """Right samples of each problem, in the order of the base."""

    @classmethod
    def from_run(
        cls, path: str | os.PathLike[str], *, group: str | None = None, rule: Rule = "growth"
    ) -> EvaluationHistory:
        """The evaluations of a run folder, or of a trainer's output folder that holds one.

        Raises:
            SparksError: as `Timeline.from_run`, or there is no evaluation.
        """
        return cls.of(Timeline.from_run(path, group=group, rule=rule))

    @classmethod
    def of(cls, timeline: Timeline) -> EvaluationHistory:
        """The evaluations that a timeline came with.

        Raises:
            SparksError: there is none.
        """
        return cls(timeline.evaluations, timeline)

    @property
    def samples(self) -> int:
        """Answers sampled a problem."""
        return self.base.samples

    @property
    def shares(self) -> Float[np.ndarray, "evaluations problems"]:
        """Share of right samples."""
        return self.right / self.samples

    # -- changes -----------------------------------------------------------------------------

    def newly_solved(self, step: int) -> tuple[Change, ...]:
        """Problems newly solved at a step against the base, the surest first.

        Raises:
            SparksError: the step was not evaluated.
        """
        return self._changes(self._index(step), "solved")

    def newly_missed(self, step: int) -> tuple[Change, ...]:
        """Problems newly missed at a step against the base, the surest first.

        Raises:
            SparksError: the step was not evaluated.
        """
        return self._changes(self._index(step), "missed")

    def heads(self, step: int, kind: str) -> tuple[str, ...]:
        """Names of the heads `born` or `pruned` since the evaluation before, up to this one.

        Raises:
            SparksError: the step was not evaluated.
        """
        index = self._index(step)
        if self.timeline is None or index == 0:
            return ()
        events = self._events
        after, upto = self.steps[index - 1], self.steps[index]
        here = (events["step"] > after) & (events["step"] <= upto) & (events["kind"] == kind)
        return tuple(events["head"][here])

    def _index(self, step: int) -> int:
        found = np.flatnonzero(self.steps == step)
        if not len(found):
            known = ", ".join(map(str, self.steps.tolist()))
            raise SparksError(f"step {step} was not evaluated: there are {known}")
        return int(found[0])

    def _changes(self, index: int, kind: ChangeKind) -> tuple[Change, ...]:
        then, now = self.right[0], self.right[index]
        is_changed = (then == 0) & (now > 0) if kind == "solved" else (then > 0) & (now == 0)
        places = np.flatnonzero(is_changed)
        if not len(places):
            return ()
        chances, sure = p_values(then, now, self.samples), self._sure[index]
        item = self.evaluations[index]
        found = [
            Change(
                step=item.step,
                kind=kind,
                id=self.base.ids[place],
                problem=self.base.problems[place],
                answer=self.base.answers[place],
                right_then=int(then[place]),
                right_now=int(now[place]),
                samples=self.samples,
                then=_text(self.base, place, right=kind == "missed"),
                now=_text(item, int(self._places[index][place]), right=kind == "solved"),
                p_value=float(chances[place]),
                sure=bool(sure[place]),
            )
            for place in places.tolist()
        ]
        return tuple(sorted(found, key=lambda change: (not change.sure, change.p_value)))

    @cached_property
    def _sure(self) -> list[np.ndarray]:
        return [beyond_luck(self.right[0], now, self.samples) for now in self.right]

    @cached_property
    def _events(self) -> pd.DataFrame:
        assert self.timeline is not None
        return self.timeline.events()

    # -- frames ------------------------------------------------------------------------------

    def progress(self) -> pd.DataFrame:
        """A row an evaluated checkpoint.

        Columns: step; pass_1, pass_1_low, pass_1_high (95 % over problems); change, change_low,
        change_high (of pass@1 against the base, problem by problem; NaN at the base); problems,
        samples; solved, newly_solved, newly_missed (problems); sure_solved, sure_missed (those
        beyond luck); by_luck (newly solved, and as many newly missed, of an unchanged model); born,
        pruned (heads), born_heads, pruned_heads (their names); seconds.
        """
        return pd.DataFrame([self._row(index) for index in range(len(self.steps))])

    def _row(self, index: int) -> dict[str, object]:
        item, step = self.evaluations[index], int(self.steps[index])
        solved, missed = self._changes(index, "solved"), self._changes(index, "missed")
        heads = {kind: self.heads(step, kind) for kind in JOINED}
        luck = by_luck(self.right[0], self.right[index], self.samples) if index else 0.0
        return {
            "step": step,
            **item.pass_at_1().cells("pass_1"),
            **self._change(index).cells("change"),
            "problems": len(self.base.ids),
            "samples": self.samples,
            "solved": int((self.right[index] > 0).sum()),
            "newly_solved": len(solved),
            "newly_missed": len(missed),
            "sure_solved": sum(change.sure for change in solved),
            "sure_missed": sum(change.sure for change in missed),
            "by_luck": luck,
            **{kind: len(names) for kind, names in heads.items()},
            **{f"{kind}_heads": ",".join(names) for kind, names in heads.items()},
            "seconds": item.seconds,
        }

    def _change(self, index: int) -> Interval:
        if not index or self.right.shape[1] < 2:
            return NO_INTERVAL
        return effect(self.shares[index], self.shares[0], grain=1 / self.samples)

    def problems(self) -> pd.DataFrame:
        """A row a checkpoint and changed problem: newly solved ones, then newly missed ones.

        Columns: step, change (`solved` or `missed`), sure, p_value, id, problem, answer,
        right_then, right_now, samples, then, now (a sampled answer of the base and one of this
        step), born_heads, pruned_heads.
        """
        rows = [
            {
                "step": change.step,
                "change": change.kind,
                **{name: getattr(change, name) for name in _OF_CHANGE},
                **{f"{kind}_heads": ",".join(self.heads(change.step, kind)) for kind in JOINED},
            }
            for index in range(1, len(self.steps))
            for change in (*self._changes(index, "solved"), *self._changes(index, "missed"))
        ]
        names = ("step", "change", *_OF_CHANGE, *(f"{kind}_heads" for kind in JOINED))
        return pd.DataFrame(rows, columns=list(names))


_OF_CHANGE = (
    "sure", "p_value", "id", "problem", "answer", "right_then", "right_now", "samples", "then",
    "now",
)  # fmt: skip


def _text(item: StepEvaluation, place: int, *, right: bool) -> str:
    """A sample of the problem at this place; there is one of that kind."""
    found = (item.right if right else item.wrong)[place]
    return "" if found is None else found

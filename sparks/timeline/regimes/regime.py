"""What kind of run it was, by numbers: heads that accumulate, heads that are tried and dropped.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758) tells two regimes by eye: under SFT and
distillation emergent heads accumulate and most persist; under GRPO few are born, pruned again, and
their number follows the accuracy reward. Here a regime is named only when tests say so. States
(`emergent`, `base`, ...) are those of the timeline, under whatever rule it was read.

Numbers of a run:
1. Survival of births: Kaplan-Meier over the first spell of every born head, from birth to pruning,
   in optimizer steps; censored at the last checkpoint, or where it was last active if its state is
   undecided from there on (`stats.survival`). A revival starts no new subject (a head that
   flickers would count many times); it counts in 3. Asked at the *horizon*: the longest time after
   birth for which half of the births could be followed.
2. Half-life: the median of that curve.
3. Turnover: share of emergent heads, in whatever spell, that fall silent by the next checkpoint.
4. Growth: rank correlation of the emergent count with time (`stats.trends`), without the
   first checkpoint, where it is 0 by definition.
5. Exchange: heads gained (emergent at the last checkpoint) against base heads lost there; exact
   sign test. A set that loses as many as it gains drifts, it does not grow. Ours, not the paper's.
6. Coupling of the active and of the emergent count to the reward, and of the active count to the
   loss (`stats.coupling`).
7. Retained share of base heads at the last checkpoint, with Wilson's interval.
8. Depth of births: mean of layer / last layer over born heads, beside that of all that could have
   been born.

Verdict, with 95 % intervals and tests at 5 % (`RegimeSettings`):
- *accumulates*: enough births; survival at the horizon above 1/2 with its whole interval (1);
  emergent heads rise (4); gains exceed losses (5).
- *searches*: enough births; survival at the horizon below 1/2 with its whole interval; the active
  and the emergent count follow the reward. Without a logged reward this cannot be said, however
  high the turnover: heads that flicker at the edge of the threshold are born and pruned too.
- *undecided*: all else, with the reason. So it is where births or checkpoints are fewer than a test
  needs to decide, births came too late to be followed, or a checkpoint has too little L.

The two exclude each other. Heads, and in 4 checkpoints, count as independent; where they are not,
the single numbers look surer than they are, which is why no regime rests on one of them. What
noise and planted regimes give is measured in `tests/timeline/test_regimes.py`. This sums up a run
that is over: unlike everything on a timeline, it can change when checkpoints are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from sparks.attribution.snapshot import Snapshot
from sparks.ground.config import FRACTION, check_settings, setting
from sparks.stats.coupling import Coupling, Side, at_checkpoints, coupling
from sparks.stats.intervals import LEVEL, proportion_interval
from sparks.stats.survival import Survival, fewest_subjects
from sparks.stats.trends import (
    NO_INTERVAL,
    Interval,
    Trend,
    fewest_for_trend,
    ratio_over_heads,
    rising,
    sign_test,
)
from sparks.timeline.history import Follower, History
from sparks.timeline.regimes.evidence import judged
from sparks.timeline.regimes.turnover import Turnover, TurnoverMeter
from sparks.timeline.timeline import Timeline

Verdict = Literal["accumulates", "searches", "undecided"]


@dataclass(frozen=True, kw_only=True)
class RegimeSettings:
    """When a regime is named. Frozen; ranges are checked when it is made.

    Raises:
        SparksError: a value is outside its range.
    """

    alpha: float = setting(0.05, "p-value up to which a test counts", FRACTION)
    level: float = setting(LEVEL, "coverage of the interval of survival", FRACTION)
    share_kept: float = setting(
        0.5,
        "survival of births that tells the regimes apart: its interval above, or below",
        FRACTION,
    )
    min_births: int = setting(12, "births with fewer of which no regime is named", low=1)
    min_checkpoints: int = setting(8, "checkpoints with fewer of which no regime is named", low=1)
    followed_share: float = setting(
        0.25, "share of the run for which half of the births must have been followed", FRACTION
    )
    max_lag: int = setting(
        3, "checkpoints, at most, by which the count may follow the reward", low=0
    )
    reward: str = setting("reward", "name of the logged curve that a search follows")

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def fewest_births(self) -> int:
        """`min_births`, or more if the half of them that reaches the horizon decides nothing."""
        return max(self.min_births, 2 * fewest_subjects(self.level, self.share_kept) - 1)

    @property
    def fewest_checkpoints(self) -> int:
        """`min_checkpoints`, or more if a rise, which leaves out the first, needs more."""
        return max(self.min_checkpoints, 1 + fewest_for_trend(self.alpha))


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A run in numbers, and what they say."""

    name: str
    rule: str
    """By which the timeline was read."""
    verdict: Verdict
    reason: str
    """Why the verdict is undecided; empty where it is not."""
    evidence: tuple[str, ...]
    """Sentences with the numbers, each of which stands alone."""
    settings: RegimeSettings
    checkpoints: int
    first_step: int
    last_step: int
    births: int
    """Heads that ever emerged."""
    half_born: float
    """Step by which half of the births had happened; NaN without births."""
    kept: int
    """Born heads that are active at the last checkpoint: gained."""
    lost: int
    """Base heads that are inactive there, not merely undecided."""
    exchange_p: float
    """Sign test of kept > lost, one-sided."""
    most_emergent: int
    """At any checkpoint."""
    prunings: int
    revivals: int
    horizon: int
    """Steps after birth at which `survival` is asked; 0 without births that can be followed."""
    survival: Interval
    half_life: Interval
    """In steps; infinite where more than half survive as long as anything was followed."""
    turnover: Interval
    """Share of emergent heads that fall silent by the next checkpoint."""
    growth: Trend
    """Of the emergent count, without the first checkpoint."""
    reward: Coupling | None
    """Of the active count; None where no reward is logged."""
    reward_emergent: Coupling | None
    """Of the emergent count."""
    loss: Coupling | None
    """Of the active count."""
    base: int
    retained: Interval
    """Share of base heads that are active at the last checkpoint; NaN without base heads."""
    depth: Interval
    """Mean depth of births, 0 = first layer, 1 = last."""
    depth_by_chance: float
    undecided: float
    """Share of heads, over all checkpoints, whose state the rule leaves open."""

    @classmethod
    def of(cls, timeline: Timeline, settings: RegimeSettings | None = None) -> Regime:
        """The numbers of a run and their verdict.

        Args:
            timeline: of the run; under either rule.
            settings: when a regime is named; None for the defaults.
        """
        settings = settings or RegimeSettings()
        numbers = _numbers(timeline, settings)
        return cls(settings=settings, **numbers, **judged(timeline, numbers, settings))


def survival_of_births(timeline: Timeline, *, level: float = LEVEL) -> Survival:
    """First spell of every born head, in steps; `first_spells` says when it is censored."""
    spells = first_spells(timeline)
    return Survival(
        durations=spells["duration"].to_numpy(), ended=spells["ended"].to_numpy(), level=level
    )


def first_spells(timeline: Timeline) -> pd.DataFrame:
    """A row a born head, layer by layer.

    Columns: head, layer, index, birth (step), last (step at which it was pruned, or at which it was
    last active), duration (steps), ended (pruned).
    """
    born = timeline.cohort >= 0
    layer, index = np.nonzero(born)
    birth = timeline.cohort[born]
    pruned = timeline.changes("pruned")[:, born]
    ended = pruned.any(axis=0)
    last_active = len(timeline) - 1 - timeline.emergent[::-1, born].argmax(axis=0)
    last = np.where(ended, pruned.argmax(axis=0), last_active)
    return pd.DataFrame(
        {
            "head": np.array([f"L{i}H{j}" for i, j in np.argwhere(born)], dtype=object),
            "layer": layer,
            "index": index,
            "birth": timeline.steps[birth],
            "last": timeline.steps[last],
            "duration": timeline.steps[last] - timeline.steps[birth],
            "ended": ended,
        }
    )


def circuit_turnover(timeline: Timeline) -> list[Turnover]:
    """Of edges and heads of the circuits of the timeline's probes (`timeline.regimes.turnover`)."""
    rows: list[Turnover] = timeline.snapshots.follow(CircuitTurnover(timeline.group))
    return rows


class CircuitTurnover(Follower):
    """Reads `Turnover` off the snapshots of a run."""

    _meter: TurnoverMeter | None = None

    def read(self, history: History, snapshot: Snapshot) -> Turnover:
        """As `TurnoverMeter.add`."""
        self._meter = self._meter or TurnoverMeter(history.chosen(self.group))
        return self._meter.add(snapshot)


def circuit_means(timeline: Timeline) -> dict[str, float]:
    """edges_turnover, edges_stability, heads_turnover, heads_stability.

    Means over checkpoints: of the circuits' turnover from the one before, and of their agreement
    between probes.
    """
    rows = circuit_turnover(timeline)
    means: dict[str, float] = {}
    for kind in ("edges", "heads"):
        moved = [getattr(found, f"{kind}_from_previous").value for found in rows]
        alike = [getattr(found, f"{kind}_stability").value for found in rows]
        means |= {f"{kind}_turnover": _mean(moved), f"{kind}_stability": _mean(alike)}
    return means


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# -- numbers ---------------------------------------------------------------------------------------


def _numbers(timeline: Timeline, settings: RegimeSettings) -> dict[str, Any]:
    born = timeline.cohort >= 0
    spells = first_spells(timeline)
    survival = survival_of_births(timeline, level=settings.level)
    horizon = _horizon(timeline.steps[-1] - spells["birth"].to_numpy())
    emergent = timeline.emergent.sum(axis=(1, 2))
    kept = int(emergent[-1])
    silent = ~timeline.active[-1] & ~timeline.undecided[-1]
    lost = int((timeline.base & silent).sum())
    return {
        "name": timeline.name,
        "rule": timeline.rule,
        "checkpoints": len(timeline),
        "first_step": int(timeline.steps[0]),
        "last_step": int(timeline.steps[-1]),
        "births": int(born.sum()),
        "half_born": _half(spells["birth"].to_numpy()),
        "kept": kept,
        "lost": lost,
        "exchange_p": sign_test(kept, lost),
        "most_emergent": int(emergent.max()),
        "prunings": int(timeline.changes("pruned").sum()),
        "revivals": int(timeline.changes("revived").sum()),
        "horizon": horizon,
        "survival": survival.at(horizon) if horizon else NO_INTERVAL,
        "half_life": survival.median,
        "turnover": _turnover(timeline),
        "growth": rising(emergent[1:]),
        "reward": _coupled(timeline, timeline.active, settings.reward, "positive", settings),
        "reward_emergent": _coupled(
            timeline, timeline.emergent, settings.reward, "positive", settings
        ),
        "loss": _coupled(timeline, timeline.active, "loss", "either", settings),
        "base": int(timeline.base.sum()),
        "retained": _retained(timeline),
        **_depths(timeline),
        "undecided": float(timeline.undecided.mean()),
    }


def _horizon(followed: Int[np.ndarray, " births"]) -> int:
    """The longest time for which at least half of the births could be followed."""
    return int(np.sort(followed)[::-1][(len(followed) - 1) // 2]) if len(followed) else 0


def _half(births: Int[np.ndarray, " births"]) -> float:
    return float(np.sort(births)[(len(births) - 1) // 2]) if len(births) else math.nan


def _turnover(timeline: Timeline) -> Interval:
    born = timeline.cohort >= 0
    fallen = timeline.changes("pruned")[:, born].sum(axis=0)
    return ratio_over_heads(fallen, timeline.emergent[:-1, born].sum(axis=0))


def _coupled(
    timeline: Timeline,
    heads: Bool[np.ndarray, "checkpoints layers heads"],
    name: str,
    side: Side,
    settings: RegimeSettings,
) -> Coupling | None:
    curves = timeline.metrics()
    if name not in curves.columns:
        return None
    return coupling(
        heads.sum(axis=(1, 2)),
        at_checkpoints(curves[name], timeline.steps),
        name=name,
        max_lag=settings.max_lag,
        side=side,
        alpha=settings.alpha,
    )


def _retained(timeline: Timeline) -> Interval:
    if not timeline.base.any():
        return NO_INTERVAL
    still = timeline.retained[-1][timeline.base]
    low, high = proportion_interval(still[:, None], 1)
    return Interval(value=float(still.mean()), low=float(low[0]), high=float(high[0]))


def _depths(timeline: Timeline) -> Mapping[str, Any]:
    layers = timeline.graph.num_layers
    depth = np.broadcast_to(np.arange(layers)[:, None] / max(layers - 1, 1), timeline.cohort.shape)
    births = depth[timeline.cohort >= 0]
    free = depth[~timeline.base]
    return {
        "depth": ratio_over_heads(births, np.ones(len(births))),
        "depth_by_chance": float(free.mean()) if len(free) else math.nan,
    }

"""Regimes of several runs as rows and tidy frames: what `sparks regimes --table` writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sparks.ground.errors import SparksError
from sparks.stats.intervals import Interval
from sparks.stats.trends import Trend
from sparks.timeline.regimes.regime import (
    Regime,
    RegimeSettings,
    circuit_means,
    circuit_turnover,
    survival_of_births,
)
from sparks.timeline.regimes.turnover import turnover_frame
from sparks.timeline.timeline import Timeline

_COUPLINGS = ("reward", "reward_emergent", "loss")


def regime_row(timeline: Timeline, settings: RegimeSettings | None = None) -> dict[str, Any]:
    """The numbers of `Regime.of` as a flat row, for a table of several runs.

    Keys: run, verdict, reason and the fields of `Regime`. Of an interval NAME, NAME_low and
    NAME_high; growth_rho and growth_p; of couplings NAME_rho, NAME_lag, NAME_p and NAME_points, NaN
    where the curve is not logged. Half-lives that were not reached are NaN. edges_turnover and
    heads_turnover are the means over checkpoints of the circuits' turnover from the checkpoint
    before, edges_stability and heads_stability those of the circuits' agreement between probes
    (`timeline.regimes.turnover`). circuit_growth, _low and _high: heads that a circuit gained by
    the last checkpoint, and its 95 % interval over probes.
    """
    regime = Regime.of(timeline, settings)
    row: dict[str, Any] = {"run": regime.name}
    for item in fields(regime):
        if item.name not in ("name", "evidence", "settings"):
            row |= _cells(item.name, getattr(regime, item.name))
    row |= circuit_means(timeline)
    last = timeline.counts().iloc[-1]
    return row | {key: float(last[key]) for key in last.index if key.startswith("circuit_growth")}


def spread(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """How the numbers of several runs of a kind differ, such as those of seeds.

    Args:
        rows: of `regime_row`, with a column `by` that names the kind.
        by: name of that column.

    Returns:
        A row a kind and number. Columns: `by`, number (name of a column), runs (that have it),
        mean, sd (NaN for one run), lowest, highest.

    Raises:
        SparksError: there is no column `by`.
    """
    if by not in rows.columns:
        raise SparksError(
            f"rows must have a column {by!r}, got {', '.join(map(str, rows.columns))}"
        )
    names = [name for name in rows.select_dtypes("number").columns if name != by]
    long = rows.melt(id_vars=by, value_vars=names, var_name="number", value_name="value")
    long["value"] = long["value"].astype(np.float64)
    grouped = long.groupby([by, "number"], sort=False)["value"]
    summary = grouped.agg(runs="count", mean="mean", sd="std", lowest="min", highest="max")
    return summary.reset_index()


def _cells(name: str, value: object) -> Mapping[str, Any]:
    if isinstance(value, Interval):
        ends = value.cells(name).items()
        return {end: math.nan if math.isinf(number) else number for end, number in ends}
    if isinstance(value, Trend):
        return {f"{name}_rho": value.rho, f"{name}_p": value.p_value}
    if name in _COUPLINGS:
        parts = {"rho": "rho", "lag": "lag", "p": "p_value", "points": "points"}
        return {f"{name}_{key}": getattr(value, part, math.nan) for key, part in parts.items()}
    return {name: value}


class RegimeTables:
    """Runs with a name each, in this order; they need not be alike.

    Raises:
        SparksError: no runs, or as many names as runs are not given, or two are alike.
    """

    timelines: tuple[Timeline, ...]
    names: tuple[str, ...]
    settings: RegimeSettings

    def __init__(
        self,
        timelines: Sequence[Timeline],
        names: Sequence[str],
        settings: RegimeSettings | None = None,
    ) -> None:
        if not timelines or len(timelines) != len(names):
            raise SparksError(
                f"runs need a name each, got {len(timelines)} runs and {len(names)} names"
            )
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise SparksError(f"names of runs must differ, got {twice[0]!r} twice: rename one")
        self.timelines, self.names = tuple(timelines), tuple(names)
        self.settings = settings or RegimeSettings()

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """Of each run."""
        return tuple(Regime.of(timeline, self.settings) for timeline in self.timelines)

    def runs(self) -> pd.DataFrame:
        """A row a run: the columns of `regime_row`."""
        rows = [
            regime_row(timeline, self.settings) | {"run": name}
            for name, timeline in zip(self.names, self.timelines, strict=True)
        ]
        return pd.DataFrame(rows)

    def evidence(self) -> pd.DataFrame:
        """A row a sentence. Columns: run, verdict, sentence."""
        return pd.DataFrame(
            [
                {"run": name, "verdict": regime.verdict, "sentence": sentence}
                for name, regime in zip(self.names, self.regimes, strict=True)
                for sentence in regime.evidence
            ]
        )

    def survival(self) -> pd.DataFrame:
        """The Kaplan-Meier curve of each run's births: run, and the columns of `Survival.frame`.

        Times are optimizer steps after birth.
        """
        level = self.settings.level
        return self._each(lambda timeline: survival_of_births(timeline, level=level).frame())

    def turnover(self) -> pd.DataFrame:
        """Turnover and stability of circuits: run, and the columns of `turnover_frame`."""
        return self._each(lambda timeline: turnover_frame(circuit_turnover(timeline)))

    def _each(self, frame_of: Callable[[Timeline], pd.DataFrame]) -> pd.DataFrame:
        frames = []
        for name, timeline in zip(self.names, self.timelines, strict=True):
            frame = frame_of(timeline)
            frame.insert(0, "run", pd.Series(name, index=frame.index, dtype=object))
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

"""Regimes of several runs as tidy frames: what `sparks regimes --table` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import pandas as pd

from sparks.ground.errors import SparksError
from sparks.timeline.regimes import (
    Regime,
    RegimeSettings,
    circuit_turnover,
    regime_row,
    survival_of_births,
)
from sparks.timeline.timeline import Timeline
from sparks.timeline.turnover import turnover_frame


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

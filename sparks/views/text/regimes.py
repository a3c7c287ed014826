"""Regimes of runs as plain text: what `sparks regimes RUN ...` prints.

Every name that a file or a caller gives passes `inert` first, as everywhere in the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparks.ground.plain_text import decimals, inert, number, percent
from sparks.stats.coupling import Coupling
from sparks.stats.intervals import Interval
from sparks.timeline.regimes.regime import Regime, circuit_turnover
from sparks.timeline.regimes.tables import RegimeTables
from sparks.timeline.regimes.turnover import Turnover
from sparks.views.text.page import Page

_LONGEST_NAME = 24
_GIVEN_UP_FIRST = (
    "retained", "rise", "half-life", "kept", "follows reward", "turnover", "births", "survival"
)  # fmt: skip
_MOVED_FIRST = (
    "heads since first", "edges since first", "heads alike", "edges alike", "heads moved"
)  # fmt: skip


def render(tables: RegimeTables, *, width: int | None = None, color: bool = False) -> str:
    """Table of runs, then of each run the verdict, its evidence and the circuits' turnover.

    Args:
        tables: what to show; ends in a newline.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.

    Raises:
        SparksError: `width` is under 40.
    """
    page = Page(width, color)
    names = [_name(page, name) for name in tables.names]
    page.table(_runs(names, tables.regimes), _GIVEN_UP_FIRST)
    for name, regime, timeline in zip(names, tables.regimes, tables.timelines, strict=True):
        _verdict(page, name, regime)
        _circuits(page, circuit_turnover(timeline))
        for problem in timeline.problems:
            page.labelled("Problem", inert(problem), style="warning")
    return "\n".join(page.lines) + "\n"


def _runs(names: Sequence[str], regimes: Sequence[Regime]) -> dict[str, list[str]]:
    return {
        "run": list(names),
        "verdict": [regime.verdict for regime in regimes],
        "births": [str(regime.births) for regime in regimes],
        "kept": [str(regime.kept) for regime in regimes],
        "survival": [_share(regime.survival) for regime in regimes],
        "half-life": [_steps(regime.half_life.value) for regime in regimes],
        "turnover": [percent(regime.turnover.value) for regime in regimes],
        "rise": [decimals(regime.growth.rho) for regime in regimes],
        "follows reward": [_coupled(regime.reward) for regime in regimes],
        "retained": [percent(regime.retained.value) for regime in regimes],
    }


def _verdict(page: Page, name: str, regime: Regime) -> None:
    page.heading(f"{name}: {regime.verdict}")
    rule = "growth" if regime.rule == "growth" else "the paper's"
    page.labelled("Rule", f"{rule}; steps {regime.first_step} to {regime.last_step}", indent=2)
    if regime.reason:
        page.labelled("Why undecided", inert(regime.reason, 600), style="warning", indent=2)
    for sentence in regime.evidence:
        page.labelled("-", inert(sentence), style="quiet", indent=2)


def _circuits(page: Page, rows: Sequence[Turnover]) -> None:
    page.heading("Circuits: share moved from the checkpoint before, and agreement of two probes")
    page.table(
        {
            "step": [str(row.step) for row in rows],
            "edges moved": [_share(row.edges_from_previous) for row in rows],
            "heads moved": [_share(row.heads_from_previous) for row in rows],
            "edges since first": [_share(row.edges_from_first) for row in rows],
            "heads since first": [_share(row.heads_from_first) for row in rows],
            "edges alike": [_share(row.edges_stability) for row in rows],
            "heads alike": [_share(row.heads_stability) for row in rows],
        },
        _MOVED_FIRST,
    )


# -- cells -----------------------------------------------------------------------------------------


def _share(interval: Interval) -> str:
    """`79% (53-93)`."""
    if math.isnan(interval.value):
        return "–"
    ends = f" ({100 * interval.low:.0f}-{100 * interval.high:.0f})"
    return f"{interval.value:.0%}" + ("" if math.isnan(interval.low) else ends)


def _steps(value: float) -> str:
    return "> run" if math.isinf(value) else number(value)


def _coupled(found: Coupling | None) -> str:
    """`0.71, p 0.034`, or `0.71, untested`."""
    if found is None or math.isnan(found.rho):
        return "–"
    p_value = "untested" if math.isnan(found.p_value) else f"p {found.p_value:.3f}"
    return f"{found.rho:.2f}, {p_value}"


def _name(page: Page, name: str) -> str:
    return inert(name, min(_LONGEST_NAME, page.width // 3))

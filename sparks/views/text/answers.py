"""Evaluations over training as plain text, a part of `sparks timeline RUN`. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparks.ground.plain_text import count, inert, percent
from sparks.timeline.answers import Change, EvaluationHistory
from sparks.timeline.timeline import Timeline
from sparks.views.text.page import Page

_SHOWN = 3
"""Changed problems named of the last evaluation, of each kind."""
_GIVEN_UP_FIRST = ("change", "by luck", "pruned", "born", "newly missed", "newly solved")


def add_history(page: Page, timeline: Timeline) -> None:
    """pass@1 and changed problems beside births and prunings, then the surest ones of the last.

    Raises:
        SparksError: the timeline has no evaluation.
    """
    history = EvaluationHistory.of(timeline)
    base = history.base
    page.heading(
        f"Evaluations on {inert(base.task, 60)}: {count(len(base.ids), 'problem')}, "
        f"{count(base.samples, 'sample')} each, 95% intervals over problems"
    )
    page.table(_columns(history), _GIVEN_UP_FIRST, named=False)
    if len(history.steps) == 1:
        return
    page.labelled(
        " ",
        f"newly solved: by no sample at step {base.step}, by at least one now; newly missed: the "
        f"reverse; sure: beyond the luck of {count(base.samples, 'sample')}; by luck: of each, "
        f"what an unchanged model gives",
        style="quiet",
    )
    last = int(history.steps[-1])
    _problems(page, f"solved at {last}", history.newly_solved(last))
    _problems(page, f"missed at {last}", history.newly_missed(last))


def _columns(history: EvaluationHistory) -> dict[str, list[str]]:
    rows = history.progress().to_dict("records")
    return {
        "step": [str(row["step"]) for row in rows],
        "pass@1": [
            f"{percent(row['pass_1'])} [{percent(row['pass_1_low'])}, "
            f"{percent(row['pass_1_high'])}]"
            for row in rows
        ],
        "change": [_change(row) for row in rows],
        "newly solved": [_with_sure(row, "solved") for row in rows],
        "newly missed": [_with_sure(row, "missed") for row in rows],
        "by luck": [f"{row['by_luck']:.1f}" for row in rows],
        "born": [str(row["born"]) for row in rows],
        "pruned": [str(row["pruned"]) for row in rows],
    }


def _change(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["change"]):
        return "–"
    return f"{row['change']:+.1%} [{row['change_low']:+.1%}, {row['change_high']:+.1%}]"


def _with_sure(row: Mapping[Any, Any], kind: str) -> str:
    return f"{row[f'newly_{kind}']} ({row[f'sure_{kind}']} sure)"


def _problems(page: Page, label: str, changes: Sequence[Change]) -> None:
    for change in changes[:_SHOWN]:
        page.labelled(label, _line(change), indent=2)
    if (left := len(changes) - _SHOWN) > 0:
        page.lines.append(page.styled(f"  ... and {left} more {label}", "quiet"))


def _line(change: Change) -> str:
    sure = ", sure" if change.sure else ""
    counts = f"{change.right_then} to {change.right_now} of {change.samples} right{sure}"
    problem = inert(" ".join(change.problem.split()), 120)
    return f"{problem} ({counts}; answer {inert(change.answer, 40)})"

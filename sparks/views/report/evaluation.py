"""What the page is given of evaluations: pass@1 a step, and the problems that changed, with texts.

Texts are a model's own, long and of any content: they are cut, lose control characters, and stand
in a deflated JSON of their own, each once. Of a step so many changed problems of each kind are sent
as all steps together can afford, the surest first; the numbers are those of all.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sparks.runs.evaluations import ends_of
from sparks.timeline.answers import Change, EvaluationHistory
from sparks.timeline.timeline import Timeline
from sparks.views.report.packing import Packed, packed
from sparks.views.report.words import clean_text

MOST_CHANGES = 12
"""Changed problems of a kind sent of a step."""
MOST_CHANGES_TOGETHER = 180
"""Of all steps, of a kind; a step has at least `FEWEST_CHANGES`."""
FEWEST_CHANGES = 3
MOST_TEXT = 500
"""Characters of a text."""

_KINDS = ("solved", "missed")


def evaluation_data(timeline: Timeline) -> dict[str, Any]:
    """`evaluation` of a run's record; nothing where the run was not evaluated."""
    if not timeline.evaluations:
        return {}
    history = EvaluationHistory.of(timeline)
    frame = history.progress()
    return {
        "evaluation": {
            "task": clean_text(history.base.task, 80),
            "problems": len(history.base.ids),
            "samples": history.samples,
            "steps": history.steps.tolist(),
            **{
                name: frame[column].round(4).tolist()
                for name, column in (
                    ("pass_1", "pass_1"),
                    ("low", "pass_1_low"),
                    ("high", "pass_1_high"),
                    ("luck", "by_luck"),
                )
            },
            "change": [
                None if np.isnan(row).any() else np.round(row, 4).tolist()
                for row in frame[["change", "change_low", "change_high"]].to_numpy()
            ],
            "newly": {kind: frame[f"newly_{kind}"].tolist() for kind in _KINDS},
            "sure": {kind: frame[f"sure_{kind}"].tolist() for kind in _KINDS},
            "detail": _detail(history),
        }
    }


def _detail(history: EvaluationHistory) -> Packed:
    """Deflated JSON: `texts`, and of each step its changes, which name texts by their place."""
    places: dict[str, int] = {}

    def place(text: str) -> int:
        return places.setdefault(_shown(text), len(places))

    def entry(change: Change) -> list[Any]:
        return [
            change.kind, change.sure, place(change.problem), place(change.answer),
            change.right_then, change.right_now, place(change.then), place(change.now),
        ]  # fmt: skip

    afford = MOST_CHANGES_TOGETHER // len(history.steps)
    most = max(FEWEST_CHANGES, min(MOST_CHANGES, afford))
    steps = [
        [
            entry(change)
            for found in (history.newly_solved(step), history.newly_missed(step))
            for change in found[:most]
        ]
        for step in history.steps.tolist()
    ]
    text = json.dumps({"texts": list(places), "steps": steps}, separators=(",", ":"))
    return packed(np.frombuffer(text.encode("ascii"), dtype=np.uint8))


def _shown(text: str) -> str:
    """Cut, its lines kept, without control and text-direction characters."""
    lines = ends_of(text, MOST_TEXT).splitlines()
    return "\n".join(clean_text(line, MOST_TEXT) for line in lines)

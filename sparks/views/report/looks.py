"""What one rule says of a run: states, births, words, the null, the control probes, the regime.

The page holds a look of each rule and changes between them without asking anybody. The states of
the paper's rule follow from the activation frequency, which the page has: they are not sent. Of the
rule of growth, a bit a head and checkpoint says who is active and who is undecided (bits that
differ from those of the checkpoint before are 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt16

from sparks.runs.null_band import NullBand
from sparks.timeline.nulls import null_of, nulls_of, sentence
from sparks.timeline.regimes.regime import Regime
from sparks.timeline.timeline import EVENT_KINDS, Timeline
from sparks.views.cohort_groups import cohort_groups
from sparks.views.report.cells import by_head, packed_turns
from sparks.views.report.packing import Packed, packed, packed_planes
from sparks.views.report.words import clean_text, headline_numbers, notes, summary, trust

SPECIFICITY = ("", "specific", "shared", "undecided")
"""Codes of `Timeline.specificity()`."""


def look(timeline: Timeline) -> dict[str, Any]:
    """The record of one rule, ready for `json.dumps(..., allow_nan=False)`."""
    control, regime, null = timeline.control, Regime.of(timeline), null_of(timeline)
    return {
        **(_states(timeline) if timeline.rule == "growth" else {}),
        "cohort_groups": cohort_groups(timeline),
        "specificity": _specificity(timeline),
        "control": None if control is None else _control(control),
        "null": None if null is None else _null(null),
        "regime": {
            "verdict": regime.verdict,
            "reason": clean_text(regime.reason, 600),
            "evidence": [clean_text(line, 400) for line in regime.evidence],
        },
        "numbers": headline_numbers(timeline, null),
        "summary": summary(timeline) + trust(timeline),
        "notes": notes(timeline) + _null_notes(timeline, null),
        "problems": [clean_text(problem, 600) for problem in timeline.problems],
    }


def _null(band: NullBand) -> dict[str, Any]:
    return {
        "births": [band.births_low, band.births_median, band.births_high],
        "source": clean_text(band.source, 300),
    }


def _null_notes(timeline: Timeline, band: NullBand | None) -> list[str]:
    """Whether births exceed the band that is drawn, then what other nulls there are."""
    others = [other for other in nulls_of(timeline) if other != band and band is not None]
    lines = [sentence(timeline, item) for item in (band, *others)]
    return [clean_text(f"Null: {line}.", 600) for line in lines]


def _states(timeline: Timeline) -> dict[str, Any]:
    return {
        "active": packed_turns(by_head(timeline.active)),
        "undecided": packed_turns(by_head(timeline.undecided)),
        "base": packed(np.packbits(timeline.base)),
        "undated": packed(np.packbits(timeline.states.undated)),
        "cohort": packed_planes(timeline.cohort.astype("<i2")),
        "events": packed_planes(_events(timeline).T),
    }


def _events(timeline: Timeline) -> UInt16[np.ndarray, "events four"]:
    """A row an event, in time: row of the head (layer * heads + head), checkpoint, kind, and by how
    many checkpoints it is settled later than it shows."""
    rows = []
    for kind, name in enumerate(EVENT_KINDS):
        time, layer, head = np.nonzero(timeline.changes(name))
        row = layer * timeline.graph.num_heads + head
        late = time - timeline.states.onset[time, layer, head]
        rows.append(np.stack([row, time, np.full_like(time, kind), late], axis=1))
    events = np.concatenate(rows)
    return events[np.lexsort((events[:, 0], events[:, 2], events[:, 1]))].astype("<u2")


def _specificity(timeline: Timeline) -> Packed | None:
    """A byte a head: index in `SPECIFICITY`; None where there are no control probes."""
    if timeline.control is None:
        return None
    words = timeline.specificity().ravel()
    return packed(np.array([SPECIFICITY.index(word) for word in words], dtype=np.uint8))


def _control(control: Timeline) -> dict[str, list[int]]:
    counts = control.counts()
    return {name: counts[name].tolist() for name in ("active", "undecided", "emergent", "born")}

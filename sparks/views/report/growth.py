"""Growth of heads, packed small: the verdict, and a picture of the heads that grew or shrank."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparks.timeline.growth_tables import NOW, GrowthCounts
from sparks.timeline.timeline import Timeline
from sparks.views.report.cells import packed_turns
from sparks.views.report.packing import packed
from sparks.views.report.words import clean_text
from sparks.views.words import growth_in_words

MOST_GROWN_HEADS = 120
"""Heads on the picture: those whose share changed by the largest factors."""
OCTAVE = 32
"""Steps of a factor of 2 that are told apart."""


def growth_data(timeline: Timeline) -> dict[str, Any]:
    """What the page is given, whatever the rule.

    Returns:
        `verdict`: the sentence. `growth`: None where no head ever grew or shrank, else `heads`
        (indices, the most grown first), `left` (heads that are left out), `at` (checkpoint of the
        verdict), `factors` (head by head, log2 in 1 / `OCTAVE`, int8, differences in time), `named`
        (a bit a cell, beyond luck: `packed_turns`), `ends` (factor, low, high and what the head is
        at `at`, a head each), `changes` (place in `heads`, checkpoint, 1 born or -1 pruned), and
        `grew` and `shrank` (heads at each checkpoint).
    """
    grown = timeline.grown
    ever = np.flatnonzero((grown.moved != 0).any(axis=0))
    words: dict[str, Any] = {"verdict": clean_text(growth_in_words(timeline), 600), "growth": None}
    if not len(ever):
        return words
    at = GrowthCounts.of(grown).at
    size = np.log2(grown.factor[at, ever])
    most = np.argsort(-np.abs(size), kind="stable")[:MOST_GROWN_HEADS]
    heads = ever[most[np.argsort(-size[most], kind="stable")]]
    octaves = np.rint(np.log2(grown.factor[:, heads].T) * OCTAVE).clip(-127, 127).astype(np.int8)
    time, place = np.nonzero(grown.change[:, heads])
    ends = np.stack([getattr(grown, f"factor{end}")[at, heads] for end in ("", "_low", "_high")])
    words["growth"] = {
        "heads": heads.tolist(),
        "left": len(ever) - len(heads),
        "at": at,
        "octave": OCTAVE,
        "factors": packed(np.diff(octaves, axis=1, prepend=np.int8(0))),
        "named": packed_turns(grown.moved[:, heads].T != 0),
        "ends": [
            [*(float(f"{end:.3g}") for end in row), NOW[now]]
            for row, now in zip(ends.T.tolist(), grown.now[at, heads].tolist(), strict=True)
        ],
        "changes": np.stack([place, time, grown.change[time, heads[place]]], axis=1).tolist(),
        "grew": (grown.moved > 0).sum(axis=1).tolist(),
        "shrank": (grown.moved < 0).sum(axis=1).tolist(),
    }
    return words

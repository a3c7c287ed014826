"""Growth of heads, packed small: the verdict, and a picture of the heads that grew or shrank."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparks.timeline.growth.tables import NOW
from sparks.timeline.timeline import Timeline
from sparks.views.report.cells import packed_turns
from sparks.views.report.packing import packed
from sparks.views.report.words import clean_text
from sparks.views.words import growth_in_words

MOST_GROWN_HEADS = 100
"""Heads on the picture: those whose share changed by the largest factors."""
OCTAVE = 16
"""Steps of a factor of 2 that are told apart."""
MOST_TOLD = 12
"""Heads with a factor and its interval in numbers."""


def growth_data(timeline: Timeline) -> dict[str, Any]:
    """What the page is given, whatever the rule.

    Returns:
        `verdict`: the sentence. `growth`: None where no head ever grew or shrank, else `heads`
        (indices, the most grown first), `left` (heads that are left out), `at` (checkpoint of the
        verdict), `factors` (head by head, log2 in 1 / `OCTAVE`, int8, differences in time), `named`
        (a bit a cell, beyond luck: `packed_turns`), `told` (place in `heads`, factor, low, high and
        what the head is, all at `at`, the largest factors first), `changes` (place in `heads`,
        checkpoint, 1 born or -1 pruned), and `grew` and `shrank` (heads at each checkpoint).
    """
    grown = timeline.grown
    ever = np.flatnonzero((grown.moved != 0).any(axis=0))
    words: dict[str, Any] = {"verdict": clean_text(growth_in_words(timeline), 600), "growth": None}
    if not len(ever):
        return words
    at = timeline.growth_counts.at
    size = np.log2(grown.factor[at, ever])
    most = np.argsort(-np.abs(size), kind="stable")[:MOST_GROWN_HEADS]
    heads = ever[most[np.argsort(-size[most], kind="stable")]]
    octaves = np.nan_to_num(np.log2(grown.factor[:, heads].T) * OCTAVE)
    octaves = np.rint(octaves).clip(-127, 127).astype(np.int8)
    time, place = np.nonzero(grown.change[:, heads])
    told = [i for i in np.argsort(-np.abs(np.log(grown.factor[at, heads])), kind="stable").tolist()
            if grown.moved[at, heads[i]]][:MOST_TOLD]  # fmt: skip
    ends = np.stack([grown.factor, grown.factor_low, grown.factor_high], axis=-1)[at, heads]
    words["growth"] = {
        "heads": heads.tolist(),
        "left": len(ever) - len(heads),
        "at": at,
        "octave": OCTAVE,
        "factors": packed(np.diff(octaves, axis=1, prepend=np.int8(0))),
        "named": packed_turns(grown.moved[:, heads].T != 0),
        "told": [
            [i, *(float(f"{end:.3g}") for end in ends[i].tolist()), NOW[grown.now[at, heads[i]]]]
            for i in told
        ],
        "changes": np.stack([place, time, grown.change[time, heads[place]]], axis=1).tolist(),
        "grew": (grown.moved > 0).sum(axis=1).tolist(),
        "shrank": (grown.moved < 0).sum(axis=1).tolist(),
    }
    return words

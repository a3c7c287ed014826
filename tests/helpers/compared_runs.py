"""Two runs of the same heads: one keeps what it adds, one drops it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factories import Heads, make_run

from sparks.timeline.timeline import Timeline

BASE = ["L0H0", "L0H1", "L1H0"]


SFT: dict[int, Heads] = {
    0: BASE,
    10: ["L0H0", "L0H1", "L1H1", "L2H0"],  # L1H1 and L2H0 born, L1H0 silenced
    20: ["L0H0", "L1H1", "L2H0", "L2H3"],  # L2H3 born, L0H1 silenced
}


GRPO: dict[int, Heads] = {
    0: BASE,
    5: [*BASE, "L1H1", "L2H1"],  # both born
    10: [*BASE, "L2H1"],  # L1H1 pruned
    15: [*BASE, "L1H1"],  # L1H1 revived, L2H1 pruned
}


def timeline(checkpoints: Mapping[int, Heads], name: str = "", **keywords: Any) -> Timeline:
    return Timeline(make_run(checkpoints, **keywords), name=name)

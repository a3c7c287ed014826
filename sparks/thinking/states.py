"""What a head is with thinking on and off, from both modes' circuits. No torch, no files.

1. Reading of a mode: active where the interval of the head's share of all score mass lies above an
   even one, inactive where it lies below, else undecided (`timeline.growth.rule`, point 8).
2. `shared`: active under both. `neither`: inactive under both.
3. `only on`: active with thinking on, inactive with it off, AND its share is higher on than off,
   probe by probe, by more than luck and by the smallest change that matters: the rule of growth,
   with off as the base and on as the checkpoint after it. `only off` the other way round.
4. `undecided`: all others; and all where L is too little under either mode.

By the paper's rule: active = in any probe's circuit; no test, none undecided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8, Num

from sparks.timeline.growth.rule import growth
from sparks.timeline.growth.settings import GrowthConfig

STATES = ("shared", "only on", "only off", "neither", "undecided")
"""What a head is; arrays hold the index."""
SHARED, ONLY_ON, ONLY_OFF, NEITHER, UNDECIDED = range(len(STATES))


@dataclass(frozen=True, eq=False)
class Measured:
    """What a mode's probes say."""

    totals: Num[np.ndarray, "probes all"]
    """Score mass of each head."""
    loss: Num[np.ndarray, " probes"]
    """L, nats."""


def judged(
    on: Measured, off: Measured, config: GrowthConfig
) -> tuple[Int8[np.ndarray, " all"], Int8[np.ndarray, " all"]]:
    """States of heads, and under which mode the paired test says that they are higher.

    Args:
        on: thinking on.
        off: the same probes with thinking off.
        config: of the rule.

    Returns:
        Index into `STATES`; 1 (on), -1 (off) or 0.
    """
    totals, loss = np.stack([off.totals, on.totals]), np.stack([off.loss, on.loss])
    found = growth(totals, loss, config)
    second, first = found.now
    higher = found.moved[1]
    state = np.full(len(higher), UNDECIDED, dtype=np.int8)
    if not found.enough_loss.all():
        return state, np.zeros_like(higher)
    state[(first == 1) & (second == 1)] = SHARED
    state[(first == -1) & (second == -1)] = NEITHER
    state[(first == 1) & (second == -1) & (higher == 1)] = ONLY_ON
    state[(first == -1) & (second == 1) & (higher == -1)] = ONLY_OFF
    return state, higher


def by_paper(
    on: Bool[np.ndarray, "probes all"], off: Bool[np.ndarray, "probes all"]
) -> Int8[np.ndarray, " all"]:
    """States by the paper's rule, from which heads each probe's circuit holds."""
    first, second = on.any(axis=0), off.any(axis=0)
    return np.select([first & second, first, second], [SHARED, ONLY_ON, ONLY_OFF], NEITHER).astype(
        np.int8
    )


def num_exclusive(states: Int8[np.ndarray, " all"]) -> int:
    """Heads of one mode alone."""
    return int(((states == ONLY_ON) | (states == ONLY_OFF)).sum())


def exchanged_modes(
    on: Num[np.ndarray, "probes ..."],
    off: Num[np.ndarray, "probes ..."],
    mask: Bool[np.ndarray, " probes"],
) -> tuple[Num[np.ndarray, "probes ..."], Num[np.ndarray, "probes ..."]]:
    """Both modes' values, exchanged for the probes of the mask."""
    chosen = mask[:, None] if on.ndim > 1 else mask
    return np.where(chosen, off, on), np.where(chosen, on, off)

"""What a head is with thinking on and off, from both modes' circuits. No torch, no files.

1. Reading of a mode, as in `timeline.calibration`: active where the interval of the head's
   inclusion lies above one half, inactive where it lies below, else undecided.
2. `shared`: active under both. `neither`: inactive under both.
3. `only on`: active with thinking on, inactive with it off, AND its inclusion is higher on than
   off, probe by probe, by more than luck (`stats.sign_flips`); `only off` the other way round. Each
   direction is tested over all heads at half the false discovery rate, so that of the heads called
   higher under a mode at most `fdr` are expected to be false (for independent heads).
4. `undecided`: all others.

By the paper's rule: active = in any probe's circuit; no test, none undecided.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int8, Num

from sparks.stats.intervals import inclusion_interval
from sparks.stats.sign_flips import changed
from sparks.timeline.calibration import HALF, CalibrationConfig

STATES = ("shared", "only on", "only off", "neither", "undecided")
"""What a head is; arrays hold the index."""
SHARED, ONLY_ON, ONLY_OFF, NEITHER, UNDECIDED = range(len(STATES))


def judged(
    on: Num[np.ndarray, "probes all"],
    off: Num[np.ndarray, "probes all"],
    settings: int,
    config: CalibrationConfig,
) -> tuple[Int8[np.ndarray, " all"], Int8[np.ndarray, " all"]]:
    """States of heads, and under which mode the paired test says that they are higher.

    Args:
        on: in how many of the circuit settings the head is in the probe's circuit, thinking on.
        off: the same with thinking off.
        settings: how many there are.
        config: level of the intervals and false discovery rate.

    Returns:
        Index into `STATES`; 1 (on), -1 (off) or 0.
    """
    readings = []
    for values in (on, off):
        low, high = inclusion_interval(values, settings, level=config.level)
        readings.append((low > HALF).astype(np.int8) - (high < HALF))
    difference = on.astype(np.int64) - off.astype(np.int64)
    every = np.ones(difference.shape[1], dtype=bool)
    up, down = (changed(way * difference.T, every, config.fdr / 2) for way in (1, -1))
    higher = up.astype(np.int8) - down.astype(np.int8)
    state = np.full(len(higher), UNDECIDED, dtype=np.int8)
    first, second = readings
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
    on: Num[np.ndarray, "probes all"],
    off: Num[np.ndarray, "probes all"],
    mask: Bool[np.ndarray, " probes"],
) -> tuple[Num[np.ndarray, "probes all"], Num[np.ndarray, "probes all"]]:
    """Both modes' values, exchanged for the probes of the mask."""
    chosen = mask[:, None]
    return np.where(chosen, off, on), np.where(chosen, on, off)

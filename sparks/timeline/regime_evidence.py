"""The numbers of a run in plain sentences, each of which stands alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sparks.ground.plain_text import count
from sparks.stats.coupling import Coupling
from sparks.stats.intervals import Interval


def evidence(numbers: Mapping[str, Any], share_kept: float, reward: str) -> Iterator[str]:
    """What stands for and against each regime.

    Args:
        numbers: named as the fields of `timeline.regimes.Regime`.
        share_kept: survival that tells the regimes apart.
        reward: name of the curve that a search follows.
    """
    births, base = numbers["births"], numbers["base"]
    yield _births_in_words(numbers)
    if births:
        yield _survival_in_words(numbers, share_kept)
        yield (
            f"{_share(numbers['turnover'])} of emergent heads fall silent by the next checkpoint: "
            f"{count(numbers['prunings'], 'pruning')} and "
            f"{count(numbers['revivals'], 'revival')} in all."
        )
    trend = numbers["growth"]
    if not math.isnan(trend.rho):
        yield (
            f"The emergent count against time, from the second checkpoint on: rank correlation "
            f"{trend.rho:.2f}, one-sided p {_p(trend.p_value)}; at most {numbers['most_emergent']} "
            "at once."
        )
    yield (
        f"Exchange at the last checkpoint: {count(numbers['kept'], 'head')} gained, "
        f"{numbers['lost']} of {count(base, 'base head')} lost; that more are gained: one-sided p "
        f"{_p(numbers['exchange_p'])}."
    )
    if base:
        yield f"{_share(numbers['retained'])} of base heads are retained."
    if numbers["reward"] is None:
        yield f"No {reward!r} is logged."
    for name, heads in (("reward", "active"), ("reward_emergent", "emergent"), ("loss", "active")):
        if numbers[name] is not None:
            yield _coupling_in_words(numbers[name], heads)
    if births:
        yield (
            f"Births lie at a mean depth of {_plain(numbers['depth'])} (0 first layer, 1 last); "
            f"heads that could be born lie at {numbers['depth_by_chance']:.2f}."
        )
    if numbers["undecided"]:
        yield f"{numbers['undecided']:.1%} of states are undecided."


def _births_in_words(numbers: Mapping[str, Any]) -> str:
    births = numbers["births"]
    if not births:
        return f"No head was born in {numbers['checkpoints']} checkpoints."
    return (
        f"{count(births, 'birth')} in {numbers['checkpoints']} checkpoints, half of them by step "
        f"{numbers['half_born']:.0f}; {count(numbers['kept'], 'born head')} active at the last."
    )


def _survival_in_words(numbers: Mapping[str, Any], share_kept: float) -> str:
    if not numbers["horizon"]:
        return "Births came too late to be followed."
    life = numbers["half_life"]
    half = (
        "half-life not reached"
        if math.isinf(life.value)
        else f"half-life {life.value:.0f} steps ({life.low:.0f} to "
        f"{'beyond the run' if math.isinf(life.high) else f'{life.high:.0f}'})"
    )
    return (
        f"{_share(numbers['survival'])} of births survive {numbers['horizon']} steps "
        f"(the line between the regimes: {share_kept:.0%}); {half}."
    )


def _coupling_in_words(found: Coupling, heads: str) -> str:
    start = f"The {heads} count against {found.curve!r}"
    if math.isnan(found.rho):
        return f"{start}: one of the two only rises, only falls or stays: nothing to compare."
    later = f", {found.lag} checkpoint{'s'[: found.lag > 1]} later" if found.lag else ""
    text = (
        f"{start}{later}, both without their line: rank correlation {found.rho:.2f} over "
        f"{found.points} checkpoints"
    )
    if math.isnan(found.p_value):
        return f"{text}, too few to test ({found.fewest_points} are needed)."
    return f"{text}, p {_p(found.p_value)} by circular shifts."


def _share(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "–" if math.isnan(interval.value) else f"{interval.value:.0%}"
    return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def _plain(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"

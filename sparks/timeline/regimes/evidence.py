"""What the numbers of a run say: a regime or none, and plain sentences that stand alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparks.ground.plain_text import count
from sparks.stats.coupling import Coupling
from sparks.stats.intervals import Interval

if TYPE_CHECKING:
    from sparks.timeline.regimes.regime import RegimeSettings
    from sparks.timeline.timeline import Timeline


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


# -- verdict ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """One thing that a regime needs."""

    holds: bool
    lacking: str
    """What is missing if it does not hold."""


def judged(
    timeline: Timeline, numbers: Mapping[str, Any], settings: RegimeSettings
) -> dict[str, Any]:
    """Verdict, reason and evidence of a run with these numbers."""
    if reason := timeline.little_in_words():
        return {"verdict": "undecided", "reason": reason, "evidence": ()}
    sentences = tuple(evidence(numbers, settings.share_kept, settings.reward))
    if reason := _too_few(numbers, settings):
        return {"verdict": "undecided", "reason": reason, "evidence": sentences}
    claims = {
        "accumulates": _accumulating(numbers, settings),
        "searches": _searching(numbers, settings),
    }
    missing = {
        verdict: ", ".join(claim.lacking for claim in needed if not claim.holds)
        for verdict, needed in claims.items()
    }
    for verdict, lacking in missing.items():
        if not lacking:
            return {"verdict": verdict, "reason": "", "evidence": sentences}
    reason = "; ".join(f"not {verdict!r}: {lacking}" for verdict, lacking in missing.items())
    return {"verdict": "undecided", "reason": reason, "evidence": sentences}


def _too_few(numbers: Mapping[str, Any], settings: RegimeSettings) -> str:
    """Why no test can decide; empty where they can."""
    checkpoints, births, horizon = (numbers[key] for key in ("checkpoints", "births", "horizon"))
    if checkpoints < settings.fewest_checkpoints:
        return f"too few checkpoints: {checkpoints}, at least {settings.fewest_checkpoints} decide"
    if not births:
        return "no births"
    if births < settings.fewest_births:
        return f"too few births: {births}, at least {settings.fewest_births} decide"
    needed = settings.followed_share * (numbers["last_step"] - numbers["first_step"])
    if horizon < needed:
        return (
            f"births came late: half of them could be followed for {horizon} steps at most, "
            f"{needed:.0f} are needed"
        )
    return ""


def _accumulating(numbers: Mapping[str, Any], settings: RegimeSettings) -> list[_Claim]:
    return [
        _Claim(
            holds=numbers["survival"].low > settings.share_kept,
            lacking=f"survival of births is not surely above {settings.share_kept:.0%}",
        ),
        _Claim(
            holds=numbers["growth"].p_value <= settings.alpha,
            lacking="the emergent count does not surely rise",
        ),
        _Claim(
            holds=numbers["exchange_p"] <= settings.alpha,
            lacking="heads gained do not surely exceed base heads lost",
        ),
    ]


def _searching(numbers: Mapping[str, Any], settings: RegimeSettings) -> list[_Claim]:
    name, found = repr(settings.reward), numbers["reward"]
    counts = {"active": found, "emergent": numbers["reward_emergent"]}
    apart = [kind for kind, one in counts.items() if one and not one.p_value <= settings.alpha]
    if found is None:
        lacking = f"no {name} is logged, which the counts could follow"
    elif found.points < found.fewest_points:
        lacking = (
            f"{found.points} checkpoints with a {name} are too few to tell whether the counts "
            f"follow it ({found.fewest_points} decide)"
        )
    else:
        lacking = f"the {' and the '.join(apart)} count does not surely follow {name}"
    return [
        _Claim(
            holds=numbers["survival"].high < settings.share_kept,
            lacking=f"survival of births is not surely below {settings.share_kept:.0%}",
        ),
        _Claim(holds=found is not None and not apart, lacking=lacking),
    ]

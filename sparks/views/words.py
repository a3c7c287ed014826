"""What every view says beside its counts: the rule, doubt, the paper's rule, control probes, null.

No view decides anything here: the numbers are the timeline's. What is shown live stays true, as
nothing at a checkpoint depends on a later one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sparks.attribution.snapshot import Snapshot
from sparks.ground.plain_text import count, inert, percent
from sparks.timeline.nulls import null_of, sentence
from sparks.timeline.regimes.turnover import Turnover, TurnoverMeter
from sparks.timeline.timeline import Timeline


def rule_in_words(timeline: Timeline) -> str:
    """How heads are called active, born and pruned, in a line."""
    if timeline.rule == "paper":
        return (
            "paper's: active = in the circuit of any probe; no test, so that the counts grow with "
            "the number of probes"
        )
    return (
        "growth: active = more than an even share of all |score|; births and prunings are changes "
        f"of side beyond luck, of which at most {percent(timeline.growth_config.fdr)} are expected "
        "to be false; undecided = not active, but its 95% interval over probes does not say so"
    )


def can_call_growth(timeline: Timeline) -> bool:
    """There are enough probes for a head to be called grown, shrunk, born or pruned at all."""
    return timeline.num_probes >= timeline.growth_config.fewest_probes


def growth_in_words(timeline: Timeline, *, brief: bool = False) -> str:
    """The verdict on a run: how many heads changed since the base.

    Where nothing can be called, why. `brief` is for where there is one line.
    """
    config, probes = timeline.growth_config, timeline.num_probes
    if not can_call_growth(timeline):
        return (
            f"No change of a head can be called, too few probes: {probes}, at least "
            f"{config.fewest_probes} are needed"
        )
    found, last = timeline.growth_counts, len(timeline) - 1
    base = timeline.grown.base
    if base is None:
        return f"No change of a head can be called, {_little(timeline, 0)}"
    if not last:
        return "One checkpoint so far, so no head can have changed yet"
    if not found.at:
        return f"No change of a head can be called, {_little(timeline, last)}"
    if brief:
        return (
            f"{count(found.grew, 'head')} grew, {found.shrank} shrank, {found.born} born, "
            f"{found.fell} fell silent by step {timeline.steps[found.at]}"
        )
    since = f"step {timeline.steps[base]}" + (", the first with enough L" if base else "")
    text = (
        f"{count(found.grew, 'head')} grew, {found.shrank} shrank (of {timeline.base.size}, "
        f"{_by_how_much(config.smallest)} since {since}, at most "
        f"{percent(config.fdr)} of those named false); {found.born} "
        f"{'was' if found.born == 1 else 'were'} born (rose above an even share), {found.fell} "
        "fell silent (below it); "
    )
    text += "an unchanged model gives 0; " if config.smallest > 1 else "rounding counts too; "
    text += f"L is {timeline.loss[found.at]:.3g} nats, {count(probes, 'probe')}"
    if found.at == last:
        return text
    later = (
        "" if timeline.grown.enough_loss[last] else f"; nothing later, {_little(timeline, last)}"
    )
    return f"By step {timeline.steps[found.at]} {text}{later}"


def _little(timeline: Timeline, checkpoint: int) -> str:
    return (
        f"too little L at step {timeline.steps[checkpoint]} ({timeline.loss[checkpoint]:.2g} nats, "
        f"at least {timeline.growth_config.least_loss:g} are needed)"
    )


def _by_how_much(smallest: float) -> str:
    return f"by {percent(smallest - 1)} or more" if smallest > 1 else "by any amount"


def head_range(active: int, undecided: int) -> str:
    """Such as `9` or `9-17`: the heads that are active, and with them those that may be."""
    return f"{active}-{active + undecided}" if undecided else str(active)


def range_meaning(undecided: Iterable[int]) -> dict[str, str]:
    """The footnote of a column `active` of `head_range`; none where no cell is a range."""
    return {"active": "from - to, with the undecided"} if any(undecided) else {}


def heads_at(timeline: Timeline, checkpoint: int) -> str:
    """The heads of a checkpoint in a few words, as a line about it begins.

    Such as `9-17 active heads, 2 emergent`.
    """
    active, undecided, emergent = (
        int(heads[checkpoint].sum())
        for heads in (timeline.active, timeline.undecided, timeline.emergent)
    )
    shown = head_range(active, undecided)
    text = f"{shown} active {'head' if shown == '1' else 'heads'}, {emergent} emergent"
    text += " by the paper's rule" if timeline.rule == "paper" else ""
    if timeline.too_little[checkpoint]:
        text += f" (L of {timeline.loss[checkpoint]:.2g} nats is too little to say)"
    return text


def no_change_in_words(timeline: Timeline) -> str:
    """What stands in the place of changes where there are none."""
    if (~timeline.too_little).sum() < 2:
        return "No change can be called: too little L"
    return "No head was born, pruned or silenced"


def with_onset(head: str, onset: int, step: int) -> str:
    """The head's name, and since when its change shows where it was settled later."""
    return head if onset >= step else f"{head} (since {onset})"


def control_in_words(timeline: Timeline) -> str:
    """What the control probes did, and which births are the behaviour's own; empty without any."""
    control = timeline.control
    if control is None:
        return ""
    kinds = timeline.specificity()
    named = [f"{(kinds == kind).sum()} {kind}" for kind in ("specific", "shared", "undecided")]
    text = (
        f"{count(control.num_probes, 'probe')}: "
        f"{count(int(control.active[-1].sum()), 'active head')}, "
        f"{int((control.cohort >= 0).sum())} born there"
    )
    born = int((timeline.cohort >= 0).sum())
    if not born:
        return text
    return f"{text}; of {count(born, 'birth')} on the other probes {', '.join(named)}"


def circuits_in_words(counts: pd.DataFrame) -> str:
    """How many heads a circuit has, and whether that changed; of `Timeline.counts()`.

    Many small rises, of which no single one is a birth, show here.
    """
    first, last = counts.iloc[0], counts.iloc[-1]
    text = f"{last['circuit_heads']:.1f} heads on average at step {last['step']:.0f}"
    if len(counts) == 1:
        return text
    if np.isnan(last["circuit_growth"]):
        return f"{text}; too little L to say whether that changed"
    gain, low, high = (last[f"circuit_growth{end}"] for end in ("", "_low", "_high"))
    sure = "beyond luck" if low > 0 or high < 0 else "no more than luck"
    return (
        f"{text}, {gain:+.1f} since step {first['step']:.0f} ({low:+.1f} to {high:+.1f} by its 95% "
        f"interval over probes: {sure})"
    )


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """Share of L that circuits keep with all outside them patched; median over the probes."""

    share: float
    """At `step`: the number that every view names as the run's."""
    step: int
    """The last checkpoint at which it was measured."""
    least: float
    least_step: int


def faithfulness_of(counts: pd.DataFrame) -> Faithfulness | None:
    """Of a run, from `Timeline.counts()`; None where no checkpoint has it."""
    known = counts.dropna(subset="faithfulness")
    if known.empty:
        return None
    steps, shares = known["step"].tolist(), known["faithfulness"].tolist()
    least = min(shares)
    return Faithfulness(
        share=shares[-1], step=steps[-1], least=least, least_step=steps[shares.index(least)]
    )


def points_in_words(timeline: Timeline, counts: pd.DataFrame) -> str:
    """m over the probes and checkpoints of a run: `100 points`, `12 to 324 points (median 36)`."""
    if timeline.metas[-1].settings.method == "secant":
        return "secants between both ends"
    least, most = counts["points_min"].min(), counts["points_max"].max()
    if least == most:
        return f"{most:.0f} points"
    median = counts["points_median"].median()
    return f"{least:.0f} to {most:.0f} points (median {median:.0f})"


def null_in_words(timeline: Timeline) -> str:
    """Whether the run has more births than an unchanged model gives, and how that was measured."""
    band = null_of(timeline)
    source = "" if band is None else f" ({inert(band.source)})"
    return sentence(timeline, band) + source


def circuits_now(timeline: Timeline, snapshots: Iterable[Snapshot] | None = None) -> Turnover:
    """How far the circuits moved to the last checkpoint, and how alike the probes' are.

    Args:
        timeline: of the run.
        snapshots: its first and last two, in order; None takes the timeline's. With them it costs
            the same at every length of a run.
    """
    meter = TurnoverMeter(timeline.chosen)
    rows = [meter.add(snapshot) for snapshot in snapshots or ends_of(timeline)]
    return rows[-1]


def ends_of(timeline: Timeline) -> list[Snapshot]:
    """The first snapshot and the last two, each once."""
    last = len(timeline) - 1
    return [timeline.snapshots[index] for index in sorted({0, max(0, last - 1), last})]

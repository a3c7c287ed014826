"""A timeline as plain text: what `sparks timeline RUN` prints.

Every name that a file may hold passes `inert` first (`plain_text`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Num

from sparks.ground.errors import SparksError
from sparks.ground.plain_text import count, inert, number, percent
from sparks.timeline.growth.tables import most_moved
from sparks.timeline.regimes.regime import Regime, circuit_turnover
from sparks.timeline.timeline import EVENT_KINDS, Timeline
from sparks.views.text.answers import add_history
from sparks.views.text.page import Page, column_sizes
from sparks.views.words import (
    circuits_in_words,
    control_in_words,
    faithfulness_of,
    growth_in_words,
    head_range,
    no_change_in_words,
    null_in_words,
    points_in_words,
    range_meaning,
    rule_in_words,
    with_onset,
)

_CURVES = ("loss", "reward")
_BARS = "▁▂▃▄▅▆▇█"
_GIVEN_UP_FIRST = (
    "seconds", "points", "alike", "revived", "gap", "moved", "paper", "reward", "loss",
    "pruned", "born",
)  # fmt: skip
_MEANINGS = {
    "paper": "active by the paper's rule",
    "moved": "share of edges that changed since the checkpoint before",
    "alike": "agreement of the circuits of two probes",
}
"""Of columns whose name does not say it."""
_LESS_ABOUT_HEADS = ("importance", "specificity", "born", "state")


def render(
    timeline: Timeline,
    *,
    width: int | None = None,
    color: bool = False,
    max_events: int = 40,
    max_heads: int = 20,
) -> str:
    """Verdict, title, checkpoints, strips, growth, regime, cohorts, heads, evaluations, events.

    It ends in a newline.

    Args:
        timeline: what to show.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.
        max_events: heads named in the list of events; the rest is counted.
        max_heads: rows of the tables of heads.

    Raises:
        SparksError: `width` is under 40, or `max_events` or `max_heads` is negative.
    """
    for name, value in (("max_events", max_events), ("max_heads", max_heads)):
        if value < 0:
            raise SparksError(f"{name} must be at least 0, got {value!r}")
    page = Page(width, color)
    counts = timeline.counts()
    page.labelled("Verdict    ", growth_in_words(timeline))
    _title(page, timeline, counts)
    _table(page, timeline, counts)
    _problems(page, timeline)
    _strips(page, counts)
    _growth(page, timeline, max_heads)
    _regime(page, timeline)
    _cohorts(page, timeline)
    _heads(page, timeline, max_heads)
    if timeline.evaluations:
        add_history(page, timeline)
    _events(page, timeline, max_events)
    return "\n".join(page.lines) + "\n"


# -- title -----------------------------------------------------------------------------------


def _title(page: Page, timeline: Timeline, counts: pd.DataFrame) -> None:
    meta, graph = timeline.metas[0], timeline.graph
    steps = counts["step"].tolist()
    span = f"{count(len(steps), 'checkpoint')}, "
    span += f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
    group = "" if timeline.group is None else f" of group {inert(repr(timeline.group), 60)}"
    page.labelled("Run        ", f"{inert(timeline.name, 120) or '(no name)'}: {span}")
    page.labelled(
        "Model      ",
        f"{inert(meta.model_name, 120)} ({inert(meta.model_type, 40)}, {graph.num_layers} layers x "
        f"{graph.num_heads} heads, {graph.num_kv_heads} key/value heads, {inert(meta.precision)})",
    )
    hash_text = inert(meta.probes_hash[:12])
    page.labelled("Probes     ", f"{timeline.num_probes}{group}, set {hash_text}")
    page.labelled("Settings   ", settings_in_words(timeline))
    page.labelled("Rule       ", rule_in_words(timeline))
    page.labelled("Heads      ", _heads_in_words(timeline, counts))
    page.labelled("Circuits   ", circuits_in_words(counts))
    if timeline.rule != "paper":
        page.labelled("Paper      ", _paper_in_words(timeline))
    if control := control_in_words(timeline):
        page.labelled("Control    ", control)
    page.labelled("Null       ", null_in_words(timeline))
    page.labelled("Exactness  ", _gap_in_words(timeline, counts) + _faithfulness_in_words(counts))


def settings_in_words(timeline: Timeline) -> str:
    """What was measured, and how, in a line."""
    config = timeline.metas[0].settings
    kept = f"the {config.top_n} strongest edges"
    if config.top_share is not None:
        kept = f"the strongest {percent(config.top_share)} of edges"
    unit = " of the largest" if config.threshold_mode == "relative" else ""
    where = "at the last position" if config.positions == "last" else "averaged over positions"
    swapped = "; roles swapped at step 0" if timeline.metas[0].roles_swapped else ""
    points = f"{config.points} points"
    if config.tolerance is not None:
        points += f" or more (gap of {percent(config.tolerance)}, at most {config.max_points})"
    method = f"EAP-IG with {points} ({config.quadrature})"
    if config.method == "secant":
        method = "secants between both ends"
    return (
        f"{method}, KL {where}, at most "
        f"{config.max_suffix_tokens} tokens; a circuit is {kept} with |score| >= "
        f"{config.threshold:g}{unit}, pruned{swapped}"
    )


def _heads_in_words(timeline: Timeline, counts: pd.DataFrame) -> str:
    first, last = counts.iloc[0], counts.iloc[-1]
    when = "before training" if first["step"] == 0 else f"at step {first['step']:.0f}"
    text = f"{_range(first)} of {timeline.base.size} active {when} (base)"
    if timeline.too_little[0]:
        text = f"too little L {when} to say which of {timeline.base.size} are active"
    if len(counts) == 1:
        return f"{text}; one checkpoint, so nothing to compare yet"
    sums = {kind: int(counts[kind].sum()) for kind in EVENT_KINDS}
    old = "the base" if timeline.base.any() else "those active at first"
    undated = int((timeline.active[-1] & timeline.states.undated).sum())
    more = f", {undated} active as soon as one could tell" if undated else ""
    return (
        f"{text}, {_range(last)} at step {last['step']:.0f}: {last['retained']:.0f} retained "
        f"and {last['emergent']:.0f} emergent{more}. On the way {sums['born']} born, "
        f"{sums['pruned']} pruned, {sums['revived']} revived; of {old} {sums['silenced']} "
        f"silenced, {sums['returned']} returned"
    )


def _range(row: pd.Series) -> str:
    return head_range(*(int(row[name]) for name in ("active", "undecided")))


def _paper_in_words(timeline: Timeline) -> str:
    counts = timeline.paper_counts()
    active = " to ".join(str(value) for value in dict.fromkeys(counts["active"].iloc[[0, -1]]))
    text = f"by the paper's rule (active = in the circuit of any probe) {active} active"
    if len(counts) == 1:
        return text
    return (
        f"{text}, {counts['emergent'].iloc[-1]} emergent at the end; {counts['born'].sum()} born, "
        f"{counts['pruned'].sum()} pruned"
    )


def _faithfulness_in_words(counts: pd.DataFrame) -> str:
    if (found := faithfulness_of(counts)) is None:
        return ""
    return (
        f"; with all outside them patched, circuits keep {percent(found.share)} of L (step "
        f"{found.step}, median over probes; below 0: worse than the corrupted run)"
    )


def _gap_in_words(timeline: Timeline, counts: pd.DataFrame) -> str:
    gaps = counts["completeness_gap_max"].to_numpy()
    if np.isnan(gaps).all():
        return "completeness gap unknown"
    worst = int(np.nanargmax(gaps))
    missed = f"that the points on the path miss ({points_in_words(timeline, counts)})"
    if timeline.metas[-1].settings.method == "secant":
        missed = "that rounding takes"
    return (
        f"completeness gap at worst {percent(gaps[worst])} (step {counts['step'][worst]}), median "
        f"{percent(counts['completeness_gap_median'].median())}: the part of L {missed}"
    )


# -- table -----------------------------------------------------------------------------------


def _table(page: Page, timeline: Timeline, counts: pd.DataFrame) -> None:
    columns = {"step": [str(step) for step in counts["step"]]}
    curves = timeline.metrics()
    logged = [name for name in _CURVES if name in curves.columns]
    for name in logged:
        columns[name] = [number(value) for value in _latest(curves[name], counts["step"])]
    ranges = map(head_range, counts["active"], counts["undecided"])
    columns["active"] = [
        "–" if too_little else text
        for too_little, text in zip(timeline.too_little, ranges, strict=True)
    ]
    if timeline.rule != "paper":
        columns["paper"] = [str(value) for value in timeline.paper_counts()["active"]]
    for name in ("emergent", "born", "pruned", "revived"):
        columns[name] = [str(value) for value in counts[name]]
    columns["retained"] = [
        f"{kept}/{base}" for kept, base in zip(counts["retained"], counts["base"], strict=True)
    ]
    circuits = circuit_turnover(timeline)
    columns["moved"] = [percent(round(row.edges_from_previous.value, 3)) for row in circuits]
    columns["alike"] = [_two(row.edges_stability.value) for row in circuits]
    columns["gap"] = [percent(value) for value in counts["completeness_gap_max"]]
    columns["points"] = [f"{value:.0f}" for value in counts["points_max"]]
    columns["seconds"] = [f"{value:.1f}" for value in counts["seconds"]]
    page.heading(f"Checkpoints ({' and '.join(logged)}: last logged)" if logged else "Checkpoints")
    page.grid(_grid(columns, page.width, _GIVEN_UP_FIRST))
    shown = column_sizes(columns, page.width, _GIVEN_UP_FIRST)
    meanings = range_meaning(counts["undecided"]) | _MEANINGS
    if meant := [f"{name}: {text}" for name, text in meanings.items() if name in shown]:
        page.labelled(" ", "; ".join(meant), style="quiet")


def _two(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _grid(
    columns: dict[str, list[str]], width: int, given_up_first: Sequence[str] = ()
) -> Iterator[str]:
    """Header and rows, right-aligned; the least important columns go until the rest fits."""
    sizes = column_sizes(columns, width, given_up_first)
    yield "".join(f"  {name:>{size}}" for name, size in sizes.items())
    for row in zip(*(columns[name] for name in sizes), strict=True):
        yield "".join(f"  {cell:>{size}}" for cell, size in zip(row, sizes.values(), strict=True))


def _latest(curve: pd.Series, steps: pd.Series) -> list[float]:
    """The last number logged up to each step; NaN before the first."""
    known = curve.dropna()
    places = np.searchsorted(known.index.to_numpy(), steps.to_numpy(), side="right")
    found: list[float] = np.concatenate([[math.nan], known.to_numpy(np.float64)])[places].tolist()
    return found


def _problems(page: Page, timeline: Timeline) -> None:
    if timeline.problems:
        page.lines.append("")
    for problem in timeline.problems:
        page.labelled("Problem", inert(problem), style="warning")


# -- strips, regime, cohorts, heads, events ---------------------------------------------------


def _strips(page: Page, counts: pd.DataFrame) -> None:
    if len(counts) < 2:
        return
    page.heading("Heads over checkpoints, first to last, from 0 to the highest")
    for name, style in (("active", "quiet"), ("emergent", "born"), ("retained", "silenced")):
        values = counts[name].to_numpy()
        tail = f"  {values[0]} to {values[-1]}, highest {values.max()}"
        room = page.width - 12 - len(tail)
        page.lines.append(f"  {name:<8}  {page.styled(strip(values, room), style)}{tail}")


def strip(values: Num[np.ndarray, " checkpoints"], room: int) -> str:
    """A bar a value, from 0 to the largest; neighbours are averaged where there is no room."""
    heights = np.asarray(values, dtype=np.float64)
    if len(heights) > room:
        heights = np.array([part.mean() for part in np.array_split(heights, room)])
    top = heights.max()
    scaled = heights / top if top > 0 else heights
    return "".join(_BARS[round(value * (len(_BARS) - 1))] for value in scaled)


def _growth(page: Page, timeline: Timeline, max_heads: int) -> None:
    """Heads that grew or shrank, those first whose share changed by the largest factor."""
    at = timeline.growth_counts.at
    found = most_moved(timeline.growth(at))
    if found.empty or not max_heads:
        return
    rows = found.head(max_heads).to_dict("records")
    columns = {
        "head": [row["head"] for row in rows],
        "verdict": [row["verdict"] for row in rows],
        "factor": [_with_ends(row, "factor", "factor") for row in rows],
        "now": [row["now"] for row in rows],
    }
    first = timeline.steps[timeline.grown.base or 0]
    page.heading(
        f"Heads that grew or shrank by step {timeline.steps[at]}: share of all |score| against "
        f"step {first}, with its 95% interval"
    )
    page.grid(_grid(columns, page.width, ("now",)))
    if left := len(found) - len(rows):
        page.lines.append(page.styled(f"  ... and {left} more", "quiet"))


def _regime(page: Page, timeline: Timeline) -> None:
    if len(timeline) < 2:
        return
    regime = Regime.of(timeline)
    page.heading(f"Regime: {regime.verdict}")
    if regime.reason:
        page.labelled("Why", inert(regime.reason, 600), style="warning", indent=2)
    for line in regime.evidence:
        page.labelled("-", inert(line), style="quiet", indent=2)


def _cohorts(page: Page, timeline: Timeline) -> None:
    heads = timeline.heads().dropna(subset="cohort_step")
    if heads.empty:
        return
    grouped = heads.groupby("cohort_step")["active_at_end"].agg(["size", "sum"])
    page.heading("Cohorts: emergent heads by the checkpoint at which they were born")
    columns = {
        "step": [str(step) for step in grouped.index],
        "born": [str(size) for size in grouped["size"]],
        "alive at end": [str(alive) for alive in grouped["sum"]],
        "share kept": [percent(share) for share in grouped["sum"] / grouped["size"]],
    }
    page.grid(_grid(columns, page.width))


def _heads(page: Page, timeline: Timeline, max_heads: int) -> None:
    """Heads that are active or may be, or that were born: the most important first."""
    heads = timeline.heads()
    heads = heads[(heads["state"] != "inactive") | heads["cohort_step"].notna()]
    if heads.empty or not max_heads:
        return
    rows = heads.nlargest(max_heads, "importance_last").to_dict("records")
    columns = {
        "head": [row["head"] for row in rows],
        "state": [row["state"] for row in rows],
        "born": [_born(row) for row in rows],
        "share": [_with_ends(row, "share", "share") for row in rows],
        "importance": [_with_ends(row, "importance_last", "importance") for row in rows],
    }
    if timeline.control is not None:
        columns["specificity"] = [
            "–" if pd.isna(row["specificity"]) else row["specificity"] for row in rows
        ]
    page.heading(f"Heads at step {timeline.steps[-1]}, with 95% intervals over probes")
    page.grid(_grid(columns, page.width, _LESS_ABOUT_HEADS))
    page.labelled(" ", "share: of all |score|, in even shares", style="quiet")
    if left := len(heads) - len(rows):
        page.lines.append(page.styled(f"  ... and {left} more", "quiet"))


def _born(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["cohort_step"]):
        return "base" if row["base"] else "–"
    return with_onset(str(row["cohort_step"]), row["onset_step"], row["cohort_step"])


def _with_ends(row: Mapping[Any, Any], name: str, ends: str) -> str:
    low, high = row[f"{ends}_low"], row[f"{ends}_high"]
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"


def _events(page: Page, timeline: Timeline, max_events: int) -> None:
    events = timeline.events()
    if events.empty:
        if len(timeline) > 1:
            page.heading(no_change_in_words(timeline))
        return
    page.heading("Births, prunings and other changes")
    width, shown, last = len(str(events["step"].iloc[-1])), events.head(max_events), None
    for (step, kind), group in shown.groupby(["step", "kind"], sort=False):
        label = f"{'' if step == last else step:>{width}}  {kind:<8}"
        named = map(with_onset, group["head"], group["onset"], group["step"])
        page.labelled(label, ", ".join(named), style=str(kind), indent=2)
        last = step
    if left := len(events) - len(shown):
        page.lines.append(page.styled(f"  ... and {left} more", "quiet"))

"""A timeline as plain text: what `sparks timeline RUN` prints.

Every name that a file may hold passes `inert` first (`text_page`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Num

from sparks.config import SnapshotConfig
from sparks.errors import SparksError
from sparks.text_page import Page, column_sizes, count, inert, number, percent
from sparks.timeline import EVENT_KINDS, Timeline

FEW_PROBES = 12
"""At most this many probes: the note on noisy births is shown. It was measured with 12."""
NOISE_NOTE = (
    "births by the paper's rule are noisy: on one unchanged model (SmolLM2-135M), two disjoint "
    'sets of 12 probes differ by about 24 "emergent" heads of 128'
)

_CURVES = ("loss", "reward")
_BARS = "▁▂▃▄▅▆▇█"
_GIVEN_UP_FIRST = ("seconds", "revived", "gap", "reward", "loss", "pruned", "born")


def render(
    timeline: Timeline, *, width: int | None = None, color: bool = False, max_events: int = 40
) -> str:
    """Title, table of checkpoints, strips, cohorts and events, as text that ends in a newline.

    Args:
        timeline: what to show.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.
        max_events: heads named in the list of events; the rest is counted.

    Raises:
        SparksError: `width` is under 40, or `max_events` is negative.
    """
    if max_events < 0:
        raise SparksError(f"max_events must be at least 0, got {max_events!r}")
    page = Page(width, color)
    counts = timeline.counts()
    _title(page, timeline, counts)
    _table(page, timeline, counts)
    _notes(page, timeline)
    _strips(page, counts)
    _cohorts(page, timeline)
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
    page.labelled("Heads      ", _heads_in_words(timeline, counts))
    page.labelled("Exactness  ", _gap_in_words(counts) + _faithfulness_in_words(counts))


def settings_in_words(timeline: Timeline) -> str:
    """What was measured, and how, in a line."""
    config = SnapshotConfig.from_dict(timeline.metas[0].config)
    kept = f"the {config.top_n} strongest edges"
    if config.top_share is not None:
        kept = f"the strongest {percent(config.top_share)} of edges"
    unit = " of the largest" if config.threshold_mode == "relative" else ""
    where = "at the last position" if config.positions == "last" else "averaged over positions"
    swapped = "; roles swapped at step 0" if timeline.metas[0].roles_swapped else ""
    return (
        f"EAP-IG with {config.steps} points ({config.rule}), KL {where}, at most "
        f"{config.max_suffix_tokens} tokens; a circuit is {kept} with |score| >= "
        f"{config.threshold:g}{unit}, pruned{swapped}"
    )


def _heads_in_words(timeline: Timeline, counts: pd.DataFrame) -> str:
    first, last = counts.iloc[0], counts.iloc[-1]
    when = "before training" if first["step"] == 0 else f"at step {first['step']:.0f}"
    total = timeline.graph.num_layers * timeline.graph.num_heads
    text = f"{first['active']:.0f} of {total} in a circuit {when} (base)"
    if len(counts) == 1:
        return f"{text}; one checkpoint, so nothing to compare yet"
    sums = {kind: int(counts[kind].sum()) for kind in EVENT_KINDS}
    return (
        f"{text}, {last['active']:.0f} at step {last['step']:.0f}: {last['retained']:.0f} retained "
        f"and {last['emergent']:.0f} emergent. On the way {sums['born']} born, {sums['pruned']} "
        f"pruned, {sums['revived']} revived; of the base {sums['silenced']} silenced, "
        f"{sums['returned']} returned"
    )


def _faithfulness_in_words(counts: pd.DataFrame) -> str:
    share = counts["faithfulness"].to_numpy()
    if np.isnan(share).all():
        return ""
    last = int(np.flatnonzero(~np.isnan(share))[-1])
    return (
        f"; with all outside them patched, circuits keep {percent(share[last])} of L (step "
        f"{counts['step'][last]}, median; below 0: worse than the corrupted run)"
    )


def _gap_in_words(counts: pd.DataFrame) -> str:
    gaps = counts["completeness_gap_max"].to_numpy()
    if np.isnan(gaps).all():
        return "completeness gap unknown"
    worst = int(np.nanargmax(gaps))
    return (
        f"completeness gap at worst {percent(gaps[worst])} (step {counts['step'][worst]}), median "
        f"{percent(counts['completeness_gap_median'].median())}: the part of L that the points on "
        "the path miss"
    )


# -- table -----------------------------------------------------------------------------------


def _table(page: Page, timeline: Timeline, counts: pd.DataFrame) -> None:
    columns = {"step": [str(step) for step in counts["step"]]}
    curves = timeline.metrics()
    logged = [name for name in _CURVES if name in curves.columns]
    for name in logged:
        columns[name] = [number(_latest(curves[name], step)) for step in counts["step"]]
    for name in ("active", "emergent", "born", "pruned", "revived"):
        columns[name] = [str(value) for value in counts[name]]
    columns["retained"] = [
        f"{kept}/{base}" for kept, base in zip(counts["retained"], counts["base"], strict=True)
    ]
    columns["gap"] = [percent(value) for value in counts["completeness_gap_max"]]
    columns["seconds"] = [f"{value:.1f}" for value in counts["seconds"]]
    page.heading(f"Checkpoints ({' and '.join(logged)}: last logged)" if logged else "Checkpoints")
    page.grid(_grid(columns, page.width))


def _grid(columns: dict[str, list[str]], width: int) -> Iterator[str]:
    """Header and rows, right-aligned; the least important columns go until the rest fits."""
    sizes = column_sizes(columns, width, _GIVEN_UP_FIRST)
    yield "".join(f"  {name:>{size}}" for name, size in sizes.items())
    for row in zip(*(columns[name] for name in sizes), strict=True):
        yield "".join(f"  {cell:>{size}}" for cell, size in zip(row, sizes.values(), strict=True))


def _latest(curve: pd.Series, step: int) -> float:
    """The last number logged up to `step`."""
    known = curve.dropna()
    known = known[known.index <= step]
    return float(known.iloc[-1]) if len(known) else math.nan


def _notes(page: Page, timeline: Timeline) -> None:
    if timeline.num_probes <= FEW_PROBES:
        text = f"with {count(timeline.num_probes, 'probe')}, {NOISE_NOTE}."
        page.lines.append("")
        page.labelled("Note", text, style="warning")
    if timeline.problems:
        page.lines.append("")
    for problem in timeline.problems:
        page.labelled("Problem", inert(problem), style="warning")


# -- strips, cohorts, events -----------------------------------------------------------------


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


def _events(page: Page, timeline: Timeline, max_events: int) -> None:
    events = timeline.events()
    if events.empty:
        if len(timeline) > 1:
            page.heading("No head was born, pruned or silenced")
        return
    page.heading("Births, prunings and other changes")
    width, shown, last = len(str(events["step"].iloc[-1])), events.head(max_events), None
    for (step, kind), group in shown.groupby(["step", "kind"], sort=False):
        label = f"{'' if step == last else step:>{width}}  {kind:<8}"
        page.labelled(label, ", ".join(group["head"]), style=str(kind), indent=2)
        last = step
    if left := len(events) - len(shown):
        page.lines.append(page.styled(f"  ... and {left} more", "quiet"))

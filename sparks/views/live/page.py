"""What `sparks watch` says about a run so far: a page for a terminal, a line for a log file.

Every name that a file may hold passes `inert` first (`plain_text`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import pandas as pd

from sparks.ground.plain_text import count, inert, number, percent
from sparks.stats.intervals import Interval
from sparks.timeline.answers import EvaluationHistory
from sparks.timeline.nulls import exceeds, null_of
from sparks.timeline.regimes.turnover import Turnover
from sparks.timeline.timeline import RULE_NAMES, Timeline
from sparks.views.live.follower import pace, taken_at
from sparks.views.text.page import Page
from sparks.views.text.timeline import strip
from sparks.views.words import (
    control_in_words,
    growth_in_words,
    head_range,
    heads_at,
    no_change_in_words,
    with_onset,
)

CURVES = ("loss", "reward")
_NAMES = 12  # heads of one kind that are named in a line
_ROOMY = 20  # lines of a page that has room for more than heads, cost and changes
_LATE = 3  # intervals without a snapshot after which the training may have stopped


class View:
    """A timeline in a few lines. Numbers are worked out once, the time to come at each drawing.

    Args:
        timeline: of the run so far.
        max_steps: the trainer's last step; None where it is not known.
        circuits: how far the circuits moved to the last checkpoint; None where it is not known.
    """

    def __init__(
        self, timeline: Timeline, max_steps: int | None, circuits: Turnover | None = None
    ) -> None:
        self.steps = [int(step) for step in timeline.steps]
        """Of the checkpoints."""
        self.problems = timeline.problems
        self._timeline, self._max_steps = timeline, max_steps
        self._counts = timeline.counts().set_index("step")
        self._changes = _changes(timeline)
        logged = timeline.metrics()
        self._curves = {name: logged[name].dropna() for name in CURVES if name in logged}
        self._pace = pace(timeline.metas, max_steps)
        self._beside = list(_beside(timeline, self._counts.iloc[-1], circuits))
        self._answers = _answers(timeline)

    @property
    def title(self) -> str:
        """The run, how far it is and the rule in use, in a line."""
        name, steps = inert(self._timeline.name, 120) or "(no name)", self.steps
        span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        end = "" if self._max_steps is None else f" of {self._max_steps}"
        rule = RULE_NAMES[self._timeline.rule]
        return f"{name}: {count(len(steps), 'snapshot')}, {span}{end} ({rule})"

    def line(self, step: int) -> str:
        """One checkpoint in one line, for a log file."""
        index = self.steps.index(step)
        meta = self._timeline.metas[index]
        parts = [heads_at(self._timeline, index)]
        parts += [f"{kind} {names}" for kind, names in self._changes.get(step, ())]
        for name, curve in self._curves.items():
            known = curve[curve.index <= step]
            if len(known):
                parts.append(f"{name} {number(known.iloc[-1])}")
        parts.append(f"{meta.seconds:.1f} s")
        if meta.overhead is not None:
            parts[-1] += f" ({percent(meta.overhead)} of the time so far)"
        at = taken_at(meta)
        stamp = "" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ} "
        return f"{stamp}step {step}: {'; '.join(parts)}"

    def write(self, page: Page, now: float, *, notes: Iterable[str] = (), rows: int) -> None:
        """Put the lines on a page.

        Args:
            page: where to.
            now: seconds since 1970.
            notes: what to say about the folder, beside the timeline's problems.
            rows: lines that the page may have; the oldest changes are left out.
        """
        meta, graph = self._timeline.metas[-1], self._timeline.graph
        last = self._counts.iloc[-1]
        is_roomy = rows >= _ROOMY
        page.labelled("Verdict", growth_in_words(self._timeline, brief=not is_roomy))
        page.labelled("Run    ", self.title)
        if is_roomy:
            page.labelled(
                "Model  ",
                f"{inert(meta.model_name, 120)} ({inert(meta.model_type, 40)}, {graph.num_layers} "
                f"layers x {graph.num_heads} heads)",
            )
        page.labelled(
            "Heads  ",
            f"{_range(last)} active: {last['retained']:.0f} of {last['base']:.0f} base heads "
            f"retained, {last['emergent']:.0f} emergent",
        )
        for label, text in self._beside if is_roomy else ():
            page.labelled(label, text)
        if self._answers:
            page.labelled("Answers", self._answers)
        page.labelled("Cost   ", self._cost())
        page.labelled("Next   ", self._next(now))
        for note in dict.fromkeys((*self.problems, *notes)):
            page.labelled("Note   ", inert(note), style="warning")
        self._strips(page)
        self._last_changes(page, rows - len(page.lines))

    def _cost(self) -> str:
        seconds, share = self._counts["seconds"], self._timeline.metas[-1].overhead
        text = f"{seconds.iloc[-1]:.1f} s for the last snapshot, {seconds.median():.1f} s median"
        return text if share is None else f"{text}; {percent(share)} of the time so far"

    def _next(self, now: float) -> str:
        if self._max_steps is not None and self.steps[-1] >= self._max_steps:
            return f"nothing: step {self._max_steps} is the trainer's last"
        if self._pace is None:
            return "not known so far"
        step, due, last = self._pace.next_step, self._pace.next_at, self._pace.last_at
        if now - due > _LATE * (due - last):
            return (
                f"step {step} is {duration(now - due)} late: has the training stopped? The last "
                f"snapshot is {duration(now - last)} old"
            )
        text = f"step {step} " + ("is due" if now >= due else f"in about {duration(due - now)}")
        end = self._pace.end_at
        if end is not None and end > now:
            text += f"; the end, step {self._max_steps}, in about {duration(end - now)}"
        return text

    def _strips(self, page: Page) -> None:
        lines = []
        if len(self.steps) > 1:
            for name, style in (("active", "quiet"), ("emergent", "born")):
                values = self._counts[name].to_numpy()
                lines.append((name, values, f"{values[0]} to {values[-1]}", style))
        for name, curve in self._curves.items():
            values = curve.to_numpy()
            if len(values) > 1:  # from its lowest, which may be negative
                tail = f"{number(values[0])} to {number(values[-1])}"
                lines.append((name, values - values.min(), tail, "silenced"))
        if lines:
            page.lines.append("")
        for name, values, tail, style in lines:
            bars = strip(values, max(1, page.width - 14 - len(tail)))
            page.lines.append(f"  {name:<8}  {page.styled(bars, style)}  {tail}")

    def _last_changes(self, page: Page, rows: int) -> None:
        """Newest first, as far as there is room."""
        if rows < 3 or len(self.steps) < 2:
            return
        page.heading("Last changes" if self._changes else no_change_in_words(self._timeline))
        limit, width = len(page.lines) + rows - 2, len(str(self.steps[-1]))
        for step in sorted(self._changes, reverse=True):
            for index, (kind, names) in enumerate(self._changes[step]):
                label = f"{'' if index else step:>{width}}  {kind:<8}"
                page.labelled(label, names, style=kind, indent=2)
            if len(page.lines) >= limit:
                break
        del page.lines[limit:]


def _beside(
    timeline: Timeline, last: pd.Series, circuits: Turnover | None
) -> Iterator[tuple[str, str]]:
    """What tells how far the counts carry: a label and a short line each."""
    if timeline.rule != "paper":
        paper = timeline.paper_counts().iloc[-1]
        yield "Paper  ", f"{paper['active']} active, {paper['emergent']} emergent by its rule"
    if control := control_in_words(timeline):
        yield "Control", control
    if (band := null_of(timeline)) is not None:
        ends = dict.fromkeys(f"{end:.0f}" for end in (band.births_low, band.births_high))
        verdict = "more" if exceeds(timeline, band) else "no more"
        here = "too little L to compare" if timeline.too_little[-1] else f"here {verdict}"
        yield "Null   ", f"{' to '.join(ends)} emergent on an unchanged model: {here}"
    if circuits is not None:
        yield "Edges  ", _edges(circuits)
    gaps = [percent(last[f"completeness_gap_{name}"]) for name in ("median", "max")]
    yield (
        "Error  ",
        f"{gaps[0]} completeness gap (median; {gaps[1]} at most), up to "
        f"{last['points_max']:.0f} points",
    )


def _answers(timeline: Timeline) -> str:
    """How the last evaluated checkpoint answers its task; empty where none was evaluated."""
    if not timeline.evaluations:
        return ""
    history = EvaluationHistory.of(timeline)
    row = history.progress().iloc[-1]
    found = Interval(value=row["pass_1"], low=row["pass_1_low"], high=row["pass_1_high"])
    text = f"pass@1 {_share(found)} on {inert(history.base.task, 60)} at step {row['step']}"
    if len(history.steps) == 1:
        return text
    return (
        f"{text}; {row['newly_solved']} newly solved, {row['newly_missed']} newly missed, "
        f"{row['by_luck']:.1f} of each by luck"
    )


def _range(row: pd.Series) -> str:
    return head_range(int(row["active"]), int(row["undecided"]))


def _edges(circuits: Turnover) -> str:
    """Turnover of the last checkpoint, and how alike the circuits of two probes are."""
    moved, alike = circuits.edges_from_previous, circuits.edges_stability
    text = f"two probes share {_share(alike)}"
    return text if math.isnan(moved.value) else f"{_share(moved)} moved; {text}"


def _share(interval: Interval) -> str:
    """Such as `79% (53 to 93)`."""
    text = percent(round(interval.value, 3))
    if math.isnan(interval.low):
        return text
    return f"{text} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def _changes(timeline: Timeline) -> dict[int, list[tuple[str, str]]]:
    """Kinds of events at each checkpoint that has any, and the heads' names."""
    events = timeline.events()
    columns = [events[name].tolist() for name in ("step", "kind", "head", "onset")]
    heads: dict[int, dict[str, list[str]]] = {}
    for step, kind, head, onset in zip(*columns, strict=True):
        heads.setdefault(step, {}).setdefault(kind, []).append(with_onset(head, onset, step))
    return {step: [(kind, _named(names)) for kind, names in k.items()] for step, k in heads.items()}


def _named(heads: list[str]) -> str:
    more = f" and {len(heads) - _NAMES} more" if len(heads) > _NAMES else ""
    return ", ".join(heads[:_NAMES]) + more


def duration(seconds: float) -> str:
    """Such as "45 s", "3 min", "2 h 10 min" and "3 d 4 h"; 0 s below 0."""
    seconds = max(0.0, seconds)
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

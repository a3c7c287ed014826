"""The report in plain words: what happened, how far to trust it, how it was measured."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from sparks.runs.null_band import NullBand
from sparks.timeline.timeline import EventKind, Timeline
from sparks.views.words import circuits_in_words, faithfulness_of, points_in_words

FALLS: tuple[EventKind, ...] = ("pruned", "silenced")
"""Changes at which a head falls silent."""


def clean_text(text: str, limit: int) -> str:
    """One line of at most `limit` characters, without control and text-direction characters."""
    line = "".join(_visible(c) for c in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def headline(timeline: Timeline) -> str:
    """What the page is about: the run, its model, the group of its probes, the day it ended."""
    meta = timeline.metas[-1]
    known = [timeline.name or "unnamed run", Path(meta.model_name).name, timeline.group or "",
             meta.created[:10]]  # fmt: skip
    return " \u00b7 ".join(clean_text(text, 60) for text in known if text)


def summary(timeline: Timeline) -> list[str]:
    """Sentences with the run's numbers: its start and end, then what changed between."""
    first, last = int(timeline.steps[0]), int(timeline.steps[-1])
    total = timeline.base.size
    start, end = int(timeline.base.sum()), int(timeline.active[-1].sum())
    when = "before training (step 0)" if first == 0 else f"at the first checkpoint (step {first})"
    if len(timeline) == 1:
        return [
            f"Of {total} heads, {start} {_were(start)} active {when}.",
            "There is one checkpoint so far, so nothing can have changed yet.",
        ]
    born = timeline.cohort[timeline.cohort >= 0]
    stayed = int(timeline.emergent[-1].sum())
    kept = int(timeline.retained[-1].sum())
    lines = [
        f"Of {total} heads, {start} {_were(start)} active {when} and {end} {_are(end)} at step "
        f"{last}."
    ]
    if open_now := int(timeline.undecided[-1].sum()):
        lines.append(
            f"{open_now} more {_are(open_now)} undecided there, so {end} to {end + open_now}."
        )
    if len(born):
        lines.append(
            f"{len(born)} {_plural(len(born), 'head')} {_were(len(born))} born "
            f"on the way; {stayed} {_are(stayed)} active at the end, "
            f"{len(born) - stayed} not."
        )
        lines += _late_births(timeline)
    else:
        lines.append("No head was born.")
    if start:
        share = _percent(kept / start)
        lines.append(f"{kept} of the {start} base heads ({share}) {_are(kept)} still active.")
    counts = timeline.counts()
    if counts["circuit_growth"].to_numpy().any():  # NaN too: it cannot be said
        lines.append(f"A circuit has {circuits_in_words(counts)}.")
    if len(born) > 1:
        half = int(timeline.steps[int(np.sort(born)[(len(born) - 1) // 2])])
        lines.append(f"Half of the births had happened by step {half}.")
    return lines


def _late_births(timeline: Timeline) -> list[str]:
    time, layer, head = np.nonzero(timeline.changes("born"))
    late = int((timeline.states.onset[time, layer, head] < time).sum())
    if not late:
        return []
    since = "it shows" if late == 1 else "they show"
    return [
        f"{late} of these births {_were(late)} settled later than {since}: the step of a birth is "
        "the one at which it was sure."
    ]


def trust(timeline: Timeline) -> list[str]:
    """Sentences on how far the numbers carry and what they cost, where it was measured."""
    counts, lines = timeline.counts(), []
    if (found := faithfulness_of(counts)) is not None:
        lines.append(
            f"Alone, the circuits carry {_percent(found.share)} of the effect that they explain "
            f"(step {found.step}, median over probes; least {_percent(found.least)} at step "
            f"{found.least_step})."
        )
    overhead = counts["overhead"].dropna()
    if len(overhead):
        lines.append(f"Snapshots took {_percent(float(overhead.iloc[-1]))} of the run's time.")
    return lines


def notes(timeline: Timeline) -> list[str]:
    """By which rule the births are called, and what that means for a single one."""
    probes = f"{timeline.num_probes} {_plural(timeline.num_probes, 'probe')}"
    if timeline.rule == "paper":
        return [
            f"Paper\u2019s rule: active = in any of the circuits of {probes}. It has no test: the "
            "number of active heads grows with that of the probes, and a single birth is a hint, "
            "not a finding."
        ]
    return [
        "Rule of growth: active = more than an even share of all |score|. Births and prunings are "
        f"changes of side beyond luck, tested over {probes}; at most "
        f"{_percent(timeline.growth_config.fdr)} of those shown are expected to be false. "
        "Undecided heads are not active as far as is settled, but they may be."
    ]


def headline_numbers(timeline: Timeline, null: NullBand | None = None) -> list[dict[str, str]]:
    """Numbers in tiles: `value`, `label`, and `detail` below it. The first three stand at the top.

    Args:
        timeline: by the rule of the numbers.
        null: of the same rule; None where there is none.
    """
    counts = timeline.counts()
    born = int((timeline.cohort >= 0).sum())
    start = int(timeline.base.sum())
    fell = sum(int(timeline.changes(kind).sum()) for kind in FALLS)
    tiles = [
        _tile(
            f"{start} \u2192 {int(timeline.active[-1].sum())}",
            "active heads",
            f"first \u2192 last checkpoint, of {timeline.base.size}{_open(timeline.undecided[-1])}",
        ),
        _tile(
            f"{born} / {fell}",
            "born / fell silent",
            f"{int(timeline.emergent[-1].sum())} of the born active at the end{_beside(null)}",
        ),
        _faithfulness_tile(counts),
        _tile(
            f"{int(timeline.retained[-1].sum())} of {start}",
            "base heads retained",
            f"active at start and end{_open(timeline.undecided[-1] & timeline.base)}",
        ),
    ]
    median = counts["completeness_gap_median"].to_numpy(dtype=np.float64)
    worst = counts["completeness_gap_max"].to_numpy(dtype=np.float64)
    if not np.isnan(worst).all():
        at = int(np.nanargmax(worst))
        tiles.append(
            _tile(
                _percent(float(np.nanmedian(median))),
                "completeness gap",
                f"median; worst {_percent(worst[at])} at step {timeline.steps[at]}; "
                f"{points_in_words(timeline, counts)}",
            )
        )
    else:
        tiles.append(_tile("?", "completeness gap", "not measured"))
    group = "" if timeline.group is None else f"group {clean_text(timeline.group, 40)}, "
    tiles.append(
        _tile(
            str(timeline.num_probes),
            _plural(timeline.num_probes, "probe"),
            f"{group}{len(timeline)} {_plural(len(timeline), 'checkpoint')}",
        )
    )
    return tiles


def describe_settings(timeline: Timeline) -> list[tuple[str, str]]:
    """How the numbers were made: name and text."""
    meta, counts = timeline.metas[-1], timeline.counts()
    config = meta.settings
    swapped = any(item.roles_swapped for item in timeline.metas)
    method = points_in_words(timeline, counts)
    if config.method == "eap-ig":
        method = f"EAP-IG, {method} ({config.quadrature})"
    rows = [
        ("Model", f"{meta.model_name} ({meta.model_type}, {meta.precision})"),
        (
            "Attribution",
            f"{method}, KL divergence at "
            + ("the last position" if config.positions == "last" else "all positions"),
        ),
        ("Circuit of a probe", f"{circuit_words(timeline)}, isolated nodes removed"),
        ("Probes", f"{timeline.num_probes}, hash {meta.probes_hash}"),
        ("Roles", "clean and corrupted swapped at step 0" if swapped else "fixed over time"),
        (
            "Cost",
            f"{counts['seconds'].median():.3g} s a snapshot (median), {_overhead(counts)}"
            f"peak memory {counts['peak_memory_gib'].max():.3g} GiB",
        ),
        ("Taken by", ", ".join(sorted({item.source for item in timeline.metas}))),
        ("Versions", ", ".join(f"{k} {v}" for k, v in sorted(meta.versions.items()))),
    ]
    if timeline.group is not None:
        rows.insert(4, ("Probe group", timeline.group))
    return [(name, clean_text(text, 400)) for name, text in rows if text]


def circuit_words(timeline: Timeline) -> str:
    """Which edges a probe's circuit keeps: `top 5000 edges, |score| at least 0.1`."""
    config = timeline.metas[-1].settings
    size = f"top {config.top_n} edges"
    if config.top_share is not None:
        size = f"top {_percent(config.top_share)} of the edges"
    relative = config.threshold_mode == "relative"
    floor = f"{config.threshold}" + (" of the probe's largest" if relative else "")
    return clean_text(f"{size}, |score| at least {floor}", 120)


def _beside(null: NullBand | None) -> str:
    if null is None:
        return ""
    low, high = f"{null.births_low:.0f}", f"{null.births_high:.0f}"
    return f"; an unchanged model gives {low if low == high else f'{low} to {high}'}"


def _open(undecided: Bool[np.ndarray, "layers heads"]) -> str:
    count = int(undecided.sum())
    return f"; {count} undecided" if count else ""


def _faithfulness_tile(counts: pd.DataFrame) -> dict[str, str]:
    if (found := faithfulness_of(counts)) is None:
        return _tile("?", "faithfulness", "not measured")
    return _tile(
        _percent(found.share),
        "faithfulness",
        f"step {found.step}, median over probes; least {_percent(found.least)} at step "
        f"{found.least_step}",
    )


def _overhead(counts: pd.DataFrame) -> str:
    known = counts["overhead"].dropna()
    return f"{known.iloc[-1]:.1%} of the run's time, " if len(known) else ""


def _visible(character: str) -> str:
    """The character, or a mark in its place; joiners inside words stay."""
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs")
    return "\ufffd" if hidden and character not in "\u200c\u200d" else character


def _tile(value: str, label: str, detail: str) -> dict[str, str]:
    return {"value": value, "label": label, "detail": detail}


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "not finite"
    points = 100 * share
    if abs(points) < 0.005:
        return "0 %"
    text = f"{points:.0f} %" if abs(points) >= 10 else f"{points:.2g} %"
    return text.replace("-", "\N{MINUS SIGN}")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"

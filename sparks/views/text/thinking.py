"""Heads with thinking on and off as plain text: what `sparks think` prints.

Every name that a file or a caller gives passes `inert` first, as everywhere in the terminal.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparks.effects.choose_heads import select_heads
from sparks.ground.plain_text import count, inert, percent
from sparks.models.heads import names
from sparks.probes.thinking_switch import MODES, Mode
from sparks.thinking.comparison import ThinkComparison
from sparks.timeline.timeline import RULE_NAMES
from sparks.views.text.page import Page
from sparks.views.text.timeline import settings_in_words

_GIVEN_UP_FIRST = ("neither", "undecided", "off", "on", "luck")
_OF_HEADS = ("by paper", "state", "thinking off")
_OF_OVERLAP = ("shared", "off", "on", "split: two modes", "split: one mode")
"""Columns that a narrow terminal leaves out, of each table."""
_CONTRASTS = {
    "beginnings": "what is swapped is the mode's marker and the model's own words behind it",
    "words": "what is swapped is the model's own words alone, behind each mode's own prompt",
}


def render(
    comparison: ThinkComparison,
    folder: str | Path | None = None,
    *,
    width: int | None = None,
    color: bool = False,
    max_heads: int = 20,
) -> str:
    """Title, counts by both rules, heads of one mode, overlap, next commands; ends in a newline.

    Args:
        comparison: what to show.
        folder: of the measurement, for the commands to go on with; None leaves them out.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.
        max_heads: rows of the table of heads.

    Raises:
        SparksError: `width` is under 40.
    """
    page = Page(width, color)
    counts = comparison.counts()
    _title(page, comparison)
    _counts(page, comparison, counts)
    _heads(page, comparison, max_heads)
    _overlap(page, comparison.overlap())
    if folder is not None:
        _next(page, comparison, Path(folder))
    return "\n".join(page.lines) + "\n"


# -- parts -----------------------------------------------------------------------------------


def _title(page: Page, comparison: ThinkComparison) -> None:
    line, record = comparison.on, comparison.record
    meta, graph = line.metas[-1], line.graph
    name = inert(record.model if record else meta.model_name, 120)
    page.labelled(
        "Model   ",
        f"{name} ({inert(meta.model_type, 40)}, {graph.num_layers} layers x {graph.num_heads} "
        f"heads), thinking on against off",
    )
    about = ""
    if record is not None:
        passed = f"; {count(len(record.skipped), 'problem')} passed over" if record.skipped else ""
        about = (
            f", switched by {inert(record.switch, 60)}; {_CONTRASTS.get(record.contrast, '')}"
            f"{passed}"
        )
    page.labelled("Probes  ", f"{comparison.num_probes} problems under both modes{about}")
    page.labelled("Settings", settings_in_words(line))
    if record is not None and record.marker_tokens:
        page.labelled(
            "Marker  ",
            f"up to {count(record.marker_tokens, 'token')} of each beginning; "
            f"{count(int(record.request['max_suffix_tokens']), 'token')} of own words behind it",
        )
    page.labelled(
        "Rule    ",
        f"growth: of one mode alone = more than an even share of all |score| under that mode and "
        f"less under the other, both beyond doubt, and a paired test over probes tells them "
        f"apart (at most {percent(line.growth_config.fdr)} false ones expected)",
    )
    if comparison.num_probes < comparison.fewest_probes:
        page.labelled(
            "Warning",
            f"with {count(comparison.num_probes, 'probe')} no head can be called exclusive, at "
            f"least {comparison.fewest_probes} are needed; 64 are good",
            style="warning",
        )
    for mode in MODES:
        for problem in (comparison.on if mode == "on" else comparison.off).by("paper").problems:
            page.labelled(f"Thinking {mode}", inert(problem), style="warning")


def _counts(page: Page, comparison: ThinkComparison, counts: pd.DataFrame) -> None:
    rows = counts.to_dict("records")
    page.heading(f"Heads of {comparison.states.size}")
    columns = {
        "rule": [str(row["rule"]) for row in rows],
        "on": [str(row["on"]) for row in rows],
        "off": [str(row["off"]) for row in rows],
        "shared": [str(row["shared"]) for row in rows],
        "only on": [str(row["only_on"]) for row in rows],
        "only off": [str(row["only_off"]) for row in rows],
        "undecided": [str(row["undecided"]) for row in rows],
        "neither": [str(row["neither"]) for row in rows],
        "luck": [_range(row, "luck", 0) for row in rows],
    }
    page.table(columns, _GIVEN_UP_FIRST)
    page.labelled(
        " ",
        "on, off: heads that are active under the mode; luck: heads of one mode alone if each "
        "probe's modes are exchanged at random, median (middle 95%)",
        style="quiet",
    )
    for row in rows:
        page.labelled(
            f"By the {RULE_NAMES[row['rule']]}:", f"{luck_in_words(row)}.", style="born", indent=2
        )


def luck_in_words(row: Mapping[Any, Any]) -> str:
    """Whether heads of one mode alone are more than luck, from a row of `counts`."""
    found = count(row["exclusive"], "head")
    few = "is" if row["exclusive"] == 1 else "are"
    band = f"{row['luck_low']:.0f} to {row['luck_high']:.0f}"
    if row["exclusive"] > row["luck_high"]:
        return f"{found} {few} of one mode alone, more than luck gives ({band})"
    return f"{found} {few} of one mode alone, no more than luck gives ({band})"


def _heads(page: Page, comparison: ThinkComparison, most: int) -> None:
    page.heading("Heads of one mode alone (rule of growth)")
    for mode in MODES:
        heads = comparison.exclusive(mode)
        page.labelled(
            f"only {mode} ({len(heads)})",
            names(heads).replace(",", ", ") or "–",
            style="born",
            indent=2,
        )
    frame = comparison.heads()
    shown = frame[frame["state"].isin(["only on", "only off"]) | (frame["higher"] != "")]
    size = np.log(shown["factor"]).abs()
    order = size.sort_values(ascending=False, kind="stable").index[:most]
    if not len(order):
        return
    rows = shown.loc[order].to_dict("records")
    page.heading("Heads that the paired test tells apart, the largest factor first")
    columns = {
        "head": [str(row["head"]) for row in rows],
        "state": [str(row["state"]) for row in rows],
        "thinking on": [_range(row, "on", 2) for row in rows],
        "thinking off": [_range(row, "off", 2) for row in rows],
        "by paper": [str(row["paper_state"]) for row in rows],
    }
    page.table(columns, _OF_HEADS)
    rest = f"; {len(shown) - len(rows)} more in --format csv" if len(shown) > len(rows) else ""
    page.labelled(" ", f"share of all |score|, in even shares (95%){rest}", style="quiet")


def _overlap(page: Page, overlap: pd.DataFrame) -> None:
    rows = overlap.to_dict("records")
    page.heading("Overlap of the two modes' circuits")
    columns = {
        "held by": [_WHERE[row["counted"]].format(row["what"]) for row in rows],
        "on": [f"{row['on']:.0f}" for row in rows],
        "off": [f"{row['off']:.0f}" for row in rows],
        "shared": [f"{row['shared']:.0f}" for row in rows],
        "Jaccard": [_range(row, "jaccard", 2, "") for row in rows],
        "split: one mode": [_range(row, "one_mode", 2) for row in rows],
        "split: two modes": [_range(row, "two_modes", 2) for row in rows],
    }
    page.table(columns, _OF_OVERLAP)
    page.labelled(
        " ",
        "Jaccard: shared / union, of single probes the mean with its 95% interval. Split: the same "
        "between two halves of the probes with none in common, under one mode and under two: hold "
        "these two against each other, not against the Jaccard of all probes",
        style="quiet",
    )
    row = rows[0]
    if not math.isnan(row["two_modes_lower"]):
        page.labelled(
            "In words:",
            f"circuits of different problems agree less across modes than within one in "
            f"{percent(round(row['two_modes_lower'], 3))} of the splits for heads, "
            f"{percent(round(rows[1]['two_modes_lower'], 3))} for edges (half is no difference).",
            style="born",
            indent=2,
        )


_WHERE = {"each": "{} of a probe", "majority": "{}, most circuits", "any": "{}, any circuit"}


def _next(page: Page, comparison: ThinkComparison, folder: Path) -> None:
    model = comparison.record.model if comparison.record else comparison.on.metas[-1].model_name
    page.heading("What do they do? Ablate them")
    lines = [
        next_command(comparison, model, folder, mode)
        for mode in MODES
        if comparison.exclusive(mode)
    ]
    if not lines:
        page.labelled(
            "None",
            "no head is of one mode alone beyond doubt: there is nothing to ablate; more problems "
            "(--count) decide more heads",
            indent=2,
        )
    page.lines += [f"  {inert(line, 600)}" for line in lines]


def next_command(comparison: ThinkComparison, model: str, folder: Path, mode: Mode) -> str:
    """The command line that ablates the heads of one mode alone.

    They are named by the rule `exclusive` where it finds the same ones: it reads the intervals of
    both modes, not the paired test.
    """
    other = MODES[1 - MODES.index(mode)]
    heads = comparison.exclusive(mode)
    first, second = (comparison.on, comparison.off)[:: 1 if mode == "on" else -1]
    by_rule = select_heads(first, "exclusive", others=[second]).heads
    sets = "exclusive" if by_rule == heads else f"only-{mode}={names(heads)}"
    run, against, out = (
        shlex.quote(str(folder / name)) for name in (mode, other, f"effects-{mode}")
    )
    return (
        f"sparks effects {shlex.quote(model)} --run {run} --others {against} --sets {sets} "
        f"--task TASK --thinking {mode} --output {out}"
    )


# -- cells -----------------------------------------------------------------------------------


def _range(row: Mapping[Any, Any], name: str, digits: int, prefix: str | None = None) -> str:
    """Such as `0.41 (0.36-0.47)`; without the ends where they are unknown."""
    ends = [row[f"{name}_{end}" if prefix is None else end] for end in ("low", "high")]
    if math.isnan(row[name]):
        return "–"
    value = f"{row[name]:.{digits}f}"
    if any(map(math.isnan, ends)):
        return value
    return f"{value} ({ends[0]:.{digits}f}-{ends[1]:.{digits}f})"

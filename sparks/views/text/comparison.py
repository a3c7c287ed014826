"""A comparison of runs as plain text: what `sparks compare RUN RUN` prints.

Every name that a file or a caller gives passes `inert` first, as everywhere in the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparks.ground.plain_text import count, decimals, inert, number, percent
from sparks.timeline.comparison import Comparison, When
from sparks.views.text.page import Page
from sparks.views.text.timeline import settings_in_words
from sparks.views.words import head_range, null_in_words, range_meaning, rule_in_words

_LONGEST_NAME = 24
_GIVEN_UP_FIRST = (
    "alike", "moved", "survival", "revived", "loss", "reward", "base", "paper", "active",
    "by chance", "specific", "pruned", "steps", "null", "regime", "undecided",
)  # fmt: skip
_CURVES = ("reward", "loss")
_MEANINGS = {
    "paper": "active by the paper's rule",
    "null": "emergent heads on an unchanged model",
    "specific": "births that the control probes do not show",
    "survival": "of births, to the horizon of `sparks regimes`",
    "moved": "share of edges that change between checkpoints",
    "alike": "agreement of two probes' circuits",
}
"""Of columns whose name does not say it."""
_SETS: Mapping[When, str] = {
    "end": "emergent at the end of each run",
    "ever": "born at any time",
}


def render(comparison: Comparison, *, width: int | None = None, color: bool = False) -> str:
    """Title, table of runs, a sentence a run, overlaps and exclusive heads; ends in a newline.

    Args:
        comparison: what to show.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.

    Raises:
        SparksError: `width` is under 40.
    """
    page, runs = Page(width, color), comparison.runs()
    _title(page, comparison)
    _runs(page, runs)
    _sentences(page, runs)
    overlap = comparison.overlap()
    for when, words in _SETS.items():
        _overlap(page, overlap[overlap["heads"] == when], words)
        _exclusive(page, comparison, when)
    _notes(page, comparison)
    return "\n".join(page.lines) + "\n"


def sentence(run: Mapping[Any, Any]) -> str:
    """What a run did in plain words, from a row of `Comparison.runs`; without its name."""
    births = count(run["born"], "birth")
    if run["born"]:
        births += f", {run['kept']} kept ({percent(run['kept_share'])})"
    base = count(run["base"], "base head")
    if run["base"]:
        base = f"{run['retained']} of {base} retained ({percent(run['retained_share'])})"
    curves = [
        f"{name} {_span(run, name, ' to ')}"
        for name in _CURVES
        if not math.isnan(run[f"{name}_first"])
    ]
    return "; ".join([births, base, *curves])


# -- parts -----------------------------------------------------------------------------------


def _title(page: Page, comparison: Comparison) -> None:
    first = comparison.timelines[0]
    meta, graph = first.metas[0], first.graph
    group = "" if first.group is None else f" of group {inert(repr(first.group), 60)}"
    models = dict.fromkeys(inert(t.metas[0].model_name, 120) for t in comparison.timelines)
    page.labelled("Runs       ", ", ".join(_name(page, name) for name in comparison.names))
    page.labelled(
        "Model      ",
        f"{', '.join(models)} ({inert(meta.model_type, 40)}, {graph.num_layers} layers x "
        f"{graph.num_heads} heads)",
    )
    page.labelled("Probes     ", f"{first.num_probes}{group}, set {inert(meta.probes_hash[:12])}")
    page.labelled("Settings   ", settings_in_words(first))
    page.labelled("Rule       ", rule_in_words(first))
    for warning in comparison.warnings:
        page.labelled("Warning", inert(warning, 600), style="warning")


def _runs(page: Page, runs: pd.DataFrame) -> None:
    rows = runs.to_dict("records")
    columns = {
        "run": [_name(page, row["run"]) for row in rows],
        "steps": [f"{row['first_step']}-{row['last_step']}" for row in rows],
        "base": [str(row["base"]) for row in rows],
        "active": [head_range(row["active"], row["undecided"]) for row in rows],
        **_by_paper(rows),
        "born": [str(row["born"]) for row in rows],
        "null": [_null(row) for row in rows],
        "kept": [str(row["kept"]) for row in rows],
        "kept/born": [percent(row["kept_share"]) for row in rows],
        "pruned": [str(row["pruned"]) for row in rows],
        "revived": [str(row["revived"]) for row in rows],
        "retained": [f"{row['retained']}/{row['base']}" for row in rows],
        "regime": [row["regime"] for row in rows],
        "survival": [percent(round(row["survival"], 3)) for row in rows],
        "moved": [percent(round(row["edges_turnover"], 3)) for row in rows],
        "alike": [decimals(row["edges_stability"]) for row in rows],
    }
    if runs["specific"].notna().any():
        columns["specific"] = [_whole(row["specific"]) for row in rows]
    logged = [name for name in _CURVES if runs[f"{name}_first"].notna().any()]
    for name in logged:
        columns[name] = [_span(row, name, " > ") for row in rows]
    more = f" ({' and '.join(logged)}: first > last logged)" if logged else ""
    page.heading(f"Runs, each to its own end{more}")
    shown = page.table(columns, _GIVEN_UP_FIRST)
    meanings = range_meaning(runs["undecided"]) | _MEANINGS
    if meant := [f"{name}: {text}" for name, text in meanings.items() if name in shown]:
        page.labelled(" ", "; ".join(meant), style="quiet")


def _by_paper(rows: Sequence[Mapping[Any, Any]]) -> dict[str, list[str]]:
    if rows[0]["rule"] == "paper":
        return {}
    return {"paper": [str(row["paper_active"]) for row in rows]}


def _null(row: Mapping[Any, Any]) -> str:
    ends = dict.fromkeys(_whole(row[f"null_births_{end}"]) for end in ("low", "high"))
    return "-".join(ends)


def _whole(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}"


def _sentences(page: Page, runs: pd.DataFrame) -> None:
    page.heading("In words")
    for row in runs.to_dict("records"):
        page.labelled(f"{_name(page, row['run'])}:", f"{sentence(row)}.", style="born", indent=2)


def _overlap(page: Page, rows: pd.DataFrame, words: str) -> None:
    columns = {
        "runs": [
            f"{_name(page, a)} & {_name(page, b)}"
            for a, b in zip(rows["run"], rows["other"], strict=True)
        ],
        "heads": [f"{a}, {b}" for a, b in zip(rows["count"], rows["other_count"], strict=True)],
        "shared": [str(shared) for shared in rows["shared"]],
        "undecided": [str(apart) for apart in rows["undecided"]],
        "by chance": [number(value) for value in rows["shared_by_chance"]],
        "Jaccard": [decimals(value) for value in rows["jaccard"]],
    }
    page.heading(f"Overlap of heads {words}")
    page.table(columns, _GIVEN_UP_FIRST)


def _exclusive(page: Page, comparison: Comparison, when: When) -> None:
    for name in comparison.names:
        heads = comparison.exclusive(name, when)
        label = f"only {_name(page, name)} ({len(heads)})"
        page.labelled(label, ", ".join(heads) or "–", style="born", indent=2)
    heads = comparison.common(when)
    label = "both" if len(comparison) == 2 else f"all {len(comparison)}"
    page.labelled(f"{label} ({len(heads)})", ", ".join(heads) or "–", style="returned", indent=2)


def _notes(page: Page, comparison: Comparison) -> None:
    page.lines.append("")
    for name, timeline in zip(comparison.names, comparison.timelines, strict=True):
        page.labelled(f"Null of {_name(page, name)}", f"{null_in_words(timeline)}.")
    page.labelled(
        "Note",
        "by chance: what two random draws of as many heads that are not base would share. "
        "Undecided: emergent in one run, and the other's probes cannot tell: neither shared nor "
        "of one run alone.",
        style="warning",
    )
    for name, timeline in zip(comparison.names, comparison.timelines, strict=True):
        for problem in timeline.problems:
            page.labelled(f"Problem in {_name(page, name)}", inert(problem), style="warning")


# -- cells -----------------------------------------------------------------------------------


def _span(run: Mapping[Any, Any], curve: str, between: str) -> str:
    """First and last logged number of a curve."""
    first, last = run[f"{curve}_first"], run[f"{curve}_last"]
    return number(first) if math.isnan(first) else f"{number(first)}{between}{number(last)}"


def _name(page: Page, name: str) -> str:
    """Short enough to leave room for what stands beside it."""
    return inert(name, min(_LONGEST_NAME, page.width // 3))

"""Faithfulness of circuits as plain text: what `sparks faithfulness MODEL` prints. No torch.

Every kind of circuits stands beside its random control; no number of one is printed alone. Names
that a file or a caller gives pass `inert` first, as everywhere in the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sparks.attribution.faithfulness.results import KINDS, Curve, FaithfulnessCurves
from sparks.attribution.faithfulness.settings import METRICS, Metric
from sparks.ground.config import check_choice
from sparks.ground.plain_text import count, inert, number, percent
from sparks.stats.intervals import Interval
from sparks.views.text.page import Page

_MEANS = {"kl": "-L, KL from the clean run", "logit-diff": "logit difference of the next token"}
_TITLES = {
    "shared": "Shared circuit: one ranking of the edges for all probes",
    "own": "Own circuits: each probe by its own scores",
}
_GIVEN_UP_FIRST = ("heads",)


def render(
    curves: FaithfulnessCurves,
    *,
    metric: Metric = "kl",
    width: int | None = None,
    color: bool = False,
) -> str:
    """Curves of the shared and of the own circuits beside the control, then the areas.

    Args:
        curves: what to show; ends in a newline.
        metric: of the curves; the areas are shown for all.
        width: characters a line; None takes the terminal's. Columns are left out where it is small.
        color: with ANSI colours. They add nothing that the text does not say.

    Raises:
        SparksError: `width` is under 40, an unknown metric, or one that no probe has.
    """
    check_choice("metric", metric, METRICS)
    page = Page(width, color)
    settings = curves.settings["circuits"]
    draws = count(curves.sets.count("random"), "draw")
    page.labelled(
        "Faithfulness",
        f"{inert(curves.model, 120) or '(no name)'}: {_probes(curves, metric)}; metric {metric} "
        f"({_MEANS[metric]}); {curves.num_edges} edges, {curves.num_heads} heads; edges ranked "
        f"{_ranked(settings)}",
    )
    control = curves.curve("random", metric)
    for kind, title in _TITLES.items():
        page.heading(title)
        page.table(_points(curves.curve(kind, metric), control), _GIVEN_UP_FIRST, named=False)
    page.heading("Areas")
    page.table(_areas(curves), _GIVEN_UP_FIRST, named=False)
    page.heading("What it says")
    for line in _verdicts(curves):
        page.labelled("-", line, indent=2)
    page.heading("How it was found")
    for label, text in _notes(settings, draws):
        page.labelled(f"{label:<12}", text, indent=2)
    return "\n".join(page.lines) + "\n"


def _probes(curves: FaithfulnessCurves, metric: Metric) -> str:
    used, total = int(curves.usable(metric).sum()), len(curves.probe_ids)
    if used == total:
        return count(total, "probe")
    return f"{used} of {count(total, 'probe')} (in the others both runs say the same next token)"


def _ranked(settings: dict[str, object]) -> str:
    by = {
        "mean-absolute": "by mean |score|",
        "absolute-mean": "by |mean score|",
        "signed": "by mean score, the most helpful first",
    }[str(settings["ranking"])]
    return f"{by} of the other probes" if settings["held_out"] else f"{by} of these very probes"


def _points(curve: Curve, control: Curve) -> dict[str, list[str]]:
    return {
        "edges (left)": [
            f"{percent(share)} ({left:.0f})"
            for share, left in zip(curve.shares, curve.edges, strict=True)
        ],
        "heads": [f"{heads:.0f}" for heads in curve.heads],
        "faithfulness": [_with_ends(item) for item in curve.faithfulness],
        "random": [_with_ends(item) for item in control.faithfulness],
        "necessity": [_with_ends(item) for item in curve.necessity],
        "its random": [_with_ends(item) for item in control.necessity],
    }


def _areas(curves: FaithfulnessCurves) -> dict[str, list[str]]:
    rows = []
    for metric in curves.measurable:
        for kind in KINDS:
            curve = curves.curve(kind, metric)
            rows.append((metric, kind, curve.cpr, curve.cmd))
        for kind in KINDS[:-1]:
            rows.append((metric, f"{kind} - random", *curves.minus(kind, "random", metric)))
    return {
        "metric": [row[0] for row in rows],
        "circuits": [row[1] for row in rows],
        "CPR": [_with_ends(row[2], 3) for row in rows],
        "CMD": [_with_ends(row[3], 3) for row in rows],
    }


def _verdicts(curves: FaithfulnessCurves) -> Iterator[str]:
    for metric in curves.measurable:
        for kind in KINDS[:-1]:
            _, cmd = curves.minus(kind, "random", metric)
            if math.isnan(cmd.low):
                said = "one probe gives no interval: nothing can be said"
            elif cmd.high < 0:
                said = "nearer to the model than random circuits of the same sizes"
            elif cmd.low > 0:
                said = "further from the model than random circuits of the same sizes"
            else:
                said = "not told apart from random circuits of the same sizes"
            yield f"{kind} circuits ({metric}): {said} (CMD differs by {_with_ends(cmd, 3)})."


def _notes(settings: dict[str, object], draws: str) -> Iterator[tuple[str, str]]:
    yield (
        "faithfulness",
        "all outside the circuit patched to its corrupted value: 0 none, 1 all of it is kept.",
    )
    yield "necessity", "all inside patched, the rest clean: 0 none, 1 all of it is lost."
    yield (
        "edges",
        "the strongest share of them, and how many are left when nodes without an edge in or out "
        "are pruned. Keys and values count once a KV head.",
    )
    if settings["control"] == "layers":
        drawn = "as many edges between any two layers, which are the same where there is but one"
    else:
        drawn = "as many edges, from anywhere"
    yield "random", f"{drawn}; drawn by chance ({draws}), pruned likewise."
    yield (
        "CPR, CMD",
        "as in the MIB benchmark: the area under the curve, and that between it and 1, over the "
        "shares of edges. The larger the CPR and the smaller the CMD, the better.",
    )
    yield "brackets", "95 % intervals, bootstrap over probes."
    chosen = "own circuits are" if settings["held_out"] else "circuits are"
    way_out = "" if settings["held_out"] else "; --held-out ranks the shared one by other probes"
    yield "mind", f"{chosen} chosen by the probes that they are measured on{way_out}."


def _with_ends(estimate: Interval, digits: int = 2) -> str:
    if math.isnan(estimate.value):
        return number(estimate.value)
    value = f"{estimate.value:.{digits}f}"
    if math.isnan(estimate.low):
        return value
    return f"{value} [{estimate.low:.{digits}f},{estimate.high:.{digits}f}]"

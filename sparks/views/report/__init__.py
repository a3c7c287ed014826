"""One HTML file that shows how attention heads came and went: no network, no server, no torch.

The file holds a page (`page/page.html`), its style (`page.css`) and script (the parts in
`SCRIPTS`), both deflated, `load.js` that inflates them, and the timelines as JSON. The parts in the
order of the flow: `read/` the arrays, `draw/` pictures, fill `tables/`, `steer/` what is on view.
What a run wrote is never markup or code here:

1. The JSON stands in `<script type="application/json">` with `<`, `>` and `&` escaped; the page
   puts text on screen through `textContent` only.
2. A content security policy allows the loader, the script and the style by their hashes and nothing
   else: no network, no image, no form.
3. The file is pure ASCII, so that a reader's guess of its encoding does not matter.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.ground.files import write_atomically
from sparks.runs.run_folder import refuse_file_of_run
from sparks.timeline.growth.settings import GrowthConfig
from sparks.timeline.history import Follower
from sparks.timeline.regimes.regime import CircuitTurnover
from sparks.timeline.timeline import Timeline
from sparks.views.report.cells import ImportanceEnds
from sparks.views.report.compared import compared_by_rule
from sparks.views.report.data import run_data
from sparks.views.report.edges import EdgeCandidates
from sparks.views.report.packing import deflated
from sparks.views.report.words import clean_text, headline

__all__ = ["followers", "render_report", "write_report"]

SCRIPTS = (
    "read/decode.js",
    "read/states.js",
    "read/curves.js",
    "read/edges.js",
    "draw/colours.js",
    "draw/axes.js",
    "draw/time.js",
    "draw/shift.js",
    "draw/heads.js",
    "draw/circuit.js",
    "tables/tables.js",
    "tables/headpage.js",
    "tables/compare.js",
    "steer/link.js",
    "steer/views.js",
    "steer/pointer.js",
    "steer/controls.js",
)
"""Parts of the script that draws the page, in this order."""
GROWN, EVALUATED = "draw/growth.js", "tables/evaluation.js"
MEASURED = "tables/measured.js"
"""Stand before the last part where a head grew or shrank, where a run was evaluated, and where it
keeps its probes: other pages need not carry their weight."""
FOLLOWING = "steer/follow.js"
"""Stands before the last part of a page that is kept up to date by the server that sent it."""


def followers(group: str | None) -> list[Follower]:
    """What a report asks of every snapshot of a run that is going to be read for it.

    Args:
        group: whose probes are counted, as for `Timeline`.
    """
    return [
        CircuitTurnover(group),
        EdgeCandidates(group, GrowthConfig()),
        ImportanceEnds(group),
    ]


def render_report(
    timelines: Sequence[Timeline],
    *,
    title: str | None = None,
    follow: Mapping[str, Any] | None = None,
) -> str:
    """The report on one or several runs as one self-contained HTML document.

    Args:
        timelines: a run each; the page shows one at a time, and above it a table of all, or why
            they cannot be compared.
        title: of the page; None for what is known of the run, or the number of runs.
        follow: of a page that asks the server it came from for a newer one: `version`, its own, and
            `seconds` from one question to the next. Such a page may ask that server, and no other.

    Raises:
        SparksError: there is no timeline.
    """
    if not timelines:
        raise SparksError("a report needs at least one timeline, got none: give a run folder")
    runs = [run_data(timeline) for timeline in timelines]
    _make_names_unique(runs)
    comparison = compared_by_rule(timelines, [run["name"] for run in runs])
    if title is None:
        title = headline(timelines[0]) if len(runs) == 1 else f"{len(runs)} runs"
    title = clean_text(title, 200) or "Attention heads over training"
    is_evaluated = any(timeline.evaluations for timeline in timelines)
    style = _without_notes(_part("page.css") + (_part("evaluation.css") if is_evaluated else ""))
    more = [MEASURED] * any(run["texts"] for run in runs)
    more += [GROWN] * any(run["growth"] for run in runs) + [EVALUATED] * is_evaluated
    more += [FOLLOWING] * bool(follow)
    script = f"(() => {{\n{_script((*SCRIPTS[:-1], *more, SCRIPTS[-1]))}}})();"
    loader = _script(("load.js",))
    data = {"title": title, "runs": runs, "comparison": comparison, "follow": follow}
    connect = "connect-src 'self'; " if follow else ""
    fill = {
        "policy": (
            f"default-src 'none'; script-src {_source_hash(loader)} {_source_hash(script)}; "
            f"style-src {_source_hash(style)}; {connect}"
            "base-uri 'none'; form-action 'none'"
        ),
        "title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "style": deflated(style.encode("ascii")),
        "data": _script_safe_json(data),
        "code": deflated(script.encode("ascii")),
        "loader": loader,
    }
    # One pass: a title that reads `{{script}}` is text, not a place to fill.
    page = _without_notes(_part("page.html"))
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], page)


def write_report(timelines: Sequence[Timeline], out: Path, *, title: str | None = None) -> Path:
    """Write `render_report` to a file, whole or not at all; missing folders are made.

    Args:
        timelines: a run each.
        out: the HTML file; one that exists is replaced.
        title: of the page; None for what is known of the run, or the number of runs.

    Returns:
        `out`.

    Raises:
        SparksError: there is no timeline, or `out` cannot be written or belongs to a run.
    """
    out = Path(out)
    refuse_file_of_run(out)
    page = render_report(timelines, title=title)
    way_out = "give a file in a folder you own, such as report.html"
    if out.is_dir():
        raise SparksError(f"cannot write the report to {out}: it is a folder; {way_out}")
    return write_atomically(out, page, what="the report to", way_out=way_out)


@cache
def _part(name: str) -> str:
    return files(__name__).joinpath("page", name).read_text(encoding="ascii")


@cache
def _script(parts: tuple[str, ...]) -> str:
    return '"use strict";\n' + "".join(_without_notes(_part(name)) for name in parts)


def _without_notes(text: str) -> str:
    """Without indentation, empty lines, and comments that have lines of their own.

    No part holds text of several lines, where that would be a change.
    """
    text = re.sub(r"^\s*(//.*|/\*.*\*/)?$", "", text, flags=re.MULTILINE)
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def _source_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _script_safe_json(value: Any) -> str:
    """JSON that cannot end its script element; all but ASCII (U+2028 too) is escaped by `dumps`."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _make_names_unique(runs: list[dict[str, Any]]) -> None:
    seen: dict[str, int] = {}
    for run in runs:
        name = run["name"]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            run["name"] = f"{name} ({seen[name]})"

"""What trackio gets: what W&B gets, in the run that the trainer's reporter has opened.

trackio counts logged rows and draws curves over that count unless told otherwise. A row of ours
therefore takes the number of the row before it: the trainer's rows keep the numbers they have
without us, and our curves lie under the trainer's. Before any row that is -1.

The trainer's reporter ends the run before other callbacks see the end of the training: the closing
row must be sent before. trackio turns what goes wrong while it logs into warnings of its own.
trackio and matplotlib (the extra `trackio`) are imported when a function first needs them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparks.ground.errors import SparksError
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import pictures
from sparks.views.trackers.data import (
    ARTIFACT_TYPE,
    HEADS_KEY,
    REPORT_KEY,
    STEP_KEY,
    VERDICT_KEY,
    alert_of,
    head_rows,
    name_in_artifact,
    optional_module,
    origin,
    scalars,
)
from sparks.views.words import growth_in_words

LABEL = "trackio"
_EXTRA = "trackio"
_MOST_HEADS = 10_000  # rows of the closing table


def start(args: Any, state: Any) -> Any:
    """The run that the trainer's reporter has opened.

    Raises:
        SparksError: there is none, or trackio or matplotlib is not installed.
    """
    run = _current_run()
    if run is None:
        raise SparksError(
            "report_to names trackio, but no trackio run is open when training begins: leave the "
            "trainer's own TrackioCallback in place, or take trackio out of report_to"
        )
    optional_module("matplotlib", extra=_EXTRA)
    return run


def log(run: Any, timeline: Timeline) -> None:
    """Put the last checkpoint into the run: one row, the numbers and the two pictures.

    Raises:
        SparksError: the run is finished, or trackio or matplotlib is not installed.
    """
    trackio = optional_module("trackio", extra=_EXTRA)
    caption = pictures.caption(timeline)
    drawn = {
        key: trackio.Image(found, caption=caption) for key, found in pictures.draw(timeline).items()
    }
    _log_row(run, timeline, {**scalars(timeline), **drawn})


def alert(run: Any, timeline: Timeline) -> None:
    """Tell of the births and prunings of the last checkpoint; trackio prints it, too."""
    if (found := alert_of(timeline)) is not None:
        trackio = optional_module("trackio", extra=_EXTRA)
        title, text = found
        run.alert(title=title, text=text, level=trackio.AlertLevel.INFO)


def finish(run: Any, timeline: Timeline, report: Path | None, snapshots: Sequence[Path]) -> None:
    """One row with the verdict, the table of heads and the report, and one artifact `sparks-RUN`.

    Args:
        run: the open run, which stays open.
        timeline: of the whole run.
        report: the HTML report; None to leave it out.
        snapshots: files to keep, evaluations too; none to log no artifact.

    Raises:
        SparksError: the run is finished, or trackio is not installed.
    """
    trackio = optional_module("trackio", extra=_EXTRA)
    columns, rows = head_rows(timeline, most=_MOST_HEADS)
    row: dict[str, Any] = {
        VERDICT_KEY: growth_in_words(timeline),
        HEADS_KEY: trackio.Table(columns=columns, data=rows),
    }
    if report:
        row[REPORT_KEY] = trackio.Html(report.read_text(encoding="utf-8"), inject=False)
    _log_row(run, timeline, row)
    if snapshots:
        artifact = trackio.Artifact(
            name=re.sub(r"[^\w.-]", "-", f"sparks-{run.name}"),
            type=ARTIFACT_TYPE,
            metadata=dict(origin(timeline)),
        )
        for path in snapshots:
            artifact.add_file(path, name=name_in_artifact(path))
        run.log_artifact(artifact)


def close(run: Any) -> None:
    """Nothing: the run is the trainer's."""


def _current_run() -> Any:
    return optional_module("trackio.context_vars", extra=_EXTRA).current_run.get()


def _log_row(run: Any, timeline: Timeline, row: dict[str, Any]) -> None:
    if _current_run() is not run:
        raise SparksError("the trackio run is finished")
    rows_so_far = getattr(run, "_next_step", None)  # private: without it trackio goes on counting
    step = None if rows_so_far is None else rows_so_far - 1
    run.log({**row, STEP_KEY: int(timeline.steps[-1])}, step=step)

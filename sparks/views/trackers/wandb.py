"""What Weights & Biases gets: some numbers and two pictures a checkpoint, the rest at the end.

Every call puts `train/global_step`, the trainer's own x axis, into the row it logs, and leaves
W&B's internal step alone: `step=` would move or drop the trainer's rows.

This module raises what W&B raises; `trackers` decides whether training goes on. wandb and
matplotlib (the extra `wandb`) are imported when a function first needs them, never with the module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import wandb

LABEL = "W&B"


def start(args: Any, state: Any) -> wandb.Run:
    """The run that the trainer's reporter has opened.

    Raises:
        SparksError: there is none, or wandb or matplotlib is not installed.
    """
    run = optional_module("wandb").run
    if run is None:
        raise SparksError(
            "report_to names wandb, but no W&B run is open when training begins: leave the "
            "trainer's own WandbCallback in place, or take wandb out of report_to"
        )
    optional_module("matplotlib")
    return run


def images(timeline: Timeline) -> dict[str, wandb.Image]:
    """The two pictures of `pictures.draw`.

    Raises:
        SparksError: wandb or matplotlib is not installed.
    """
    wandb = optional_module("wandb")
    caption = pictures.caption(timeline)
    return {
        key: wandb.Image(found, caption=caption) for key, found in pictures.draw(timeline).items()
    }


def log(run: wandb.Run, timeline: Timeline) -> None:
    """Put the last checkpoint into the run's history: one row, `scalars` and `images`.

    Like any `run.log`, it completes a row that the user left open with `commit=False`.

    Raises:
        SparksError: wandb or matplotlib is not installed.
        wandb.errors.UsageError: the run is finished.
    """
    step = int(timeline.steps[-1])
    run.log({**scalars(timeline), **images(timeline), STEP_KEY: step})


def alert(run: wandb.Run, timeline: Timeline) -> None:
    """Tell of the births and prunings of the last checkpoint, where there are any."""
    if (found := alert_of(timeline)) is not None:
        title, text = found
        run.alert(title=title, text=text, level="INFO")


def finish(
    run: wandb.Run, timeline: Timeline, report: Path | None, snapshots: Sequence[Path]
) -> None:
    """Log what is known only at the end; call it while the run is open. The run stays open.

    One row with `sparks/verdict` (a sentence), `sparks/heads` (the table of `Timeline.heads()`, a
    row a head) and `sparks/report` (the HTML page), and one artifact `sparks-RUN_ID` with the
    snapshot files.

    Args:
        run: an open run.
        timeline: of the whole run.
        report: the HTML report; None to leave it out.
        snapshots: files to keep, evaluations too; none to log no artifact.

    Raises:
        SparksError: wandb is not installed, or a file is missing; nothing is logged then.
        wandb.errors.UsageError: the run is finished.
    """
    wandb = optional_module("wandb")
    files = [*snapshots, *([report] if report else [])]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise SparksError(
            f"report and snapshots must be files, {missing[0]} is none: write it first"
        )
    columns, rows = head_rows(timeline, most=wandb.Table.MAX_ROWS)
    row: dict[str, Any] = {
        VERDICT_KEY: growth_in_words(timeline),
        HEADS_KEY: wandb.Table(columns=columns, data=rows),
    }
    if report:
        with report.open(encoding="utf-8") as page:
            row[REPORT_KEY] = wandb.Html(page, inject=False)
    run.log({**row, STEP_KEY: int(timeline.steps[-1])})
    if snapshots:
        name = re.sub(r"[^\w.-]", "-", f"sparks-{run.id}")
        artifact = wandb.Artifact(name, type=ARTIFACT_TYPE, metadata=origin(timeline))
        for path in snapshots:
            artifact.add_file(str(path), name=name_in_artifact(path), skip_cache=True)
        run.log_artifact(artifact)


def close(run: wandb.Run) -> None:
    """Nothing: the run is the trainer's."""

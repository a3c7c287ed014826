"""What TensorBoard gets: the numbers and the two pictures, over the training step; nothing else.

Each training has a run of its own beside the trainer's, named by date and host as the trainer's is:
`OUTPUT_DIR/runs/sparks/Nov30_21-33-32_HOST`, or below `$TENSORBOARD_LOGGING_DIR/sparks` where the
trainer's reporter is told so. A resumed training goes on in the last one, and what it measures
again replaces what stood there. tensorboard (or tensorboardX) and
matplotlib, the extra `tensorboard`, are imported when a function first needs them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparks.ground.errors import SparksError
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import pictures
from sparks.views.trackers.data import optional_module, scalars

LABEL = "TensorBoard"
_EXTRA = "tensorboard"
_FOLDER = "sparks"


def start(args: Any, state: Any) -> Any:
    """A writer of our own; later steps that a resumed training takes again are taken back.

    Args:
        args: the trainer's.
        state: the trainer's, when training begins.

    Raises:
        SparksError: tensorboard or matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    optional_module("matplotlib", extra=_EXTRA)
    step, folder = state.global_step, _folder(args)
    if step and (earlier := [path for path in folder.glob("*") if path.is_dir()]):
        last = max(earlier, key=lambda path: path.stat().st_mtime_ns)
        return _writer()(log_dir=str(last), purge_step=step + 1)
    return _writer()(log_dir=str(_own(folder)))


def _folder(args: Any) -> Path:
    """Where the runs of all trainings lie."""
    told = os.environ.get("TENSORBOARD_LOGGING_DIR")
    base = Path(told).expanduser() if told else Path(args.output_dir or ".") / "runs"
    return base / _FOLDER


def _own(folder: Path) -> Path:
    """Of a new training; of two in one second the later one gets a number."""
    from transformers.integrations.integration_utils import default_logdir

    name = Path(default_logdir()).name
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(
        p for p in map(folder.joinpath, itertools.chain([name], numbered)) if not p.exists()
    )


def _writer() -> Any:
    """The class that the trainer's reporter takes, too."""
    try:
        return optional_module("torch.utils.tensorboard", extra=_EXTRA).SummaryWriter
    except SparksError:
        return optional_module("tensorboardX", extra=_EXTRA).SummaryWriter


def log(run: Any, timeline: Timeline) -> None:
    """Put the last checkpoint into the run, at its training step.

    Raises:
        SparksError: matplotlib is not installed.
    """
    step = int(timeline.steps[-1])
    for key, value in scalars(timeline).items():
        run.add_scalar(key, value, step)
    for key, picture in pictures.draw(timeline).items():
        run.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
    run.flush()


def alert(run: Any, timeline: Timeline) -> None:
    """Nothing: TensorBoard has no alerts."""


def finish(run: Any, timeline: Timeline, report: Path | None, snapshots: Sequence[Path]) -> None:
    """Nothing: TensorBoard shows neither pages nor tables; both lie in the run folder."""


def close(run: Any) -> None:
    """Close our writer."""
    run.close()

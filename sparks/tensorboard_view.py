"""What TensorBoard gets: the numbers and the two pictures, over the training step; nothing else.

They go to a run of their own, `sparks`, beside the trainer's: `OUTPUT_DIR/runs/sparks`, or
`$TENSORBOARD_LOGGING_DIR/sparks` where the trainer's reporter is told so. A resumed training goes
on in it, and what it measures again replaces what stood there. tensorboard (or tensorboardX) and
matplotlib, the extra `tensorboard`, are imported when a function first needs them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparks import pictures
from sparks.errors import SparksError
from sparks.timeline import Timeline
from sparks.trackers_data import optional_module, scalars

LABEL = "TensorBoard"
_EXTRA = "tensorboard"
_FOLDER = "sparks"


def start(args: Any, state: Any) -> Any:
    """A writer of our own; later steps that a resumed training will take again are taken back.

    Args:
        args: the trainer's.
        state: the trainer's, when training begins.

    Raises:
        SparksError: tensorboard or matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    optional_module("matplotlib", extra=_EXTRA)
    step = state.global_step
    return _writer()(log_dir=str(_folder(args)), purge_step=step + 1 if step else 0)


def _folder(args: Any) -> Path:
    told = os.environ.get("TENSORBOARD_LOGGING_DIR")
    base = Path(told).expanduser() if told else Path(args.output_dir or ".") / "runs"
    return base / _FOLDER


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

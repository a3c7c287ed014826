"""Which trackers a training reports to, and what happens when one of them fails.

A view is a module with the functions of `View`; a tracker that a view needs is imported by its
`start`, so none is imported that `report_to` does not name. The failure policy stands here, once:

1. A tracker that cannot start stops the training before its first step: nothing is lost yet.
2. One that fails later is told of in one warning and left alone from then on. Training, snapshots
   and the other trackers go on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sparks.ground.errors import SparksError, one_line
from sparks.timeline.timeline import Timeline
from sparks.views.trackers import tensorboard as tensorboard_view
from sparks.views.trackers import trackio as trackio_view
from sparks.views.trackers import wandb as wandb_view


class View(Protocol):
    """What a module shows of a timeline in its tracker; `run` is whatever `start` returned."""

    LABEL: str
    """Name of the tracker, for messages."""

    def start(self, args: Any, state: Any) -> Any:
        """The place to log to; training is about to begin."""

    def log(self, run: Any, timeline: Timeline) -> None:
        """Show the last checkpoint."""

    def alert(self, run: Any, timeline: Timeline) -> None:
        """Tell of births and prunings at the last checkpoint."""

    def finish(
        self, run: Any, timeline: Timeline, report: Path | None, snapshots: Sequence[Path]
    ) -> None:
        """Show what is known only at the end."""

    def close(self, run: Any) -> None:
        """Give back what `start` opened."""


VIEWS: dict[str, View] = {
    "wandb": wandb_view,
    "trackio": trackio_view,
    "tensorboard": tensorboard_view,
}
"""By the name that `report_to` has for it."""


def chosen(report_to: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names in `VIEWS` that a trainer's `report_to` asks for, as the trainer reads it.

    Args:
        report_to: a name, several, `all` (those that are installed) or `none`. Names of other
            trackers are passed over.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if names == ["all"]:
        return tuple(name for name in VIEWS if find_spec(name) is not None)
    return tuple(name for name in VIEWS if name in names)


class Trackers:
    """The trackers of one training, in process 0.

    Args:
        args: the trainer's arguments.
        state: the trainer's state, when training begins and its reporters have begun.
        alerts: tell of births and prunings where the tracker can.
        folder: the run folder, for messages.

    Raises:
        SparksError: a tracker that `report_to` names cannot start.
    """

    def __init__(self, args: Any, state: Any, *, alerts: bool, folder: Path) -> None:
        self.alerts, self.folder = alerts, folder
        self._runs: dict[str, Any] = {}
        """Of the trackers that have not failed."""
        for name in chosen(args.report_to):
            self._runs[name] = _start(name, args, state)

    def __bool__(self) -> bool:
        return bool(self._runs)

    def log(self, timeline: Callable[[], Timeline]) -> None:
        """Show the last checkpoint of what `timeline` returns; its failure is the trackers'."""

        def show(view: View, run: Any) -> None:
            view.log(run, timeline())
            if self.alerts:
                view.alert(run, timeline())

        self._each(show)

    def finish(
        self, timeline: Callable[[], Timeline], report: Path | None, snapshots: Sequence[Path]
    ) -> None:
        """Show what is known only at the end, while the trainer's runs are still open."""
        self._each(lambda view, run: view.finish(run, timeline(), report, snapshots))

    def close(self) -> None:
        """Give back what was opened; nothing more is shown."""
        self._each(lambda view, run: view.close(run))
        self._runs.clear()

    def _each(self, show: Callable[[View, Any], None]) -> None:
        for name, run in list(self._runs.items()):
            try:
                show(VIEWS[name], run)
            except Exception as error:  # trackers fail in many classes; hours may be at stake
                del self._runs[name]
                warnings.warn(
                    f"sparks: nothing more goes to {VIEWS[name].LABEL} ({_reason(error)}); "
                    f"snapshots go on to {self.folder}",
                    stacklevel=4,
                )


def _start(name: str, args: Any, state: Any) -> Any:
    try:
        return VIEWS[name].start(args, state)
    except SparksError:
        raise
    except Exception as error:
        raise SparksError(
            f"{VIEWS[name].LABEL} cannot start ({_reason(error)}): mend it, or take {name} out of "
            f"report_to"
        ) from error


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")

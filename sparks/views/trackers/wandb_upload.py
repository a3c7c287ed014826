"""A finished run in Weights & Biases, and a workspace that shows such runs.

1. `upload` writes a run as a training with `report_to="wandb"` would have written it: the trainer's
   log and our rows in order of step, then table, report and snapshots. Offline it needs no login;
   `wandb sync` sends it later.
2. `save_workspace` saves the panels of `workspace` in the project: W&B wants a login for that.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from tqdm import tqdm

from sparks.ground.errors import SparksError, reason
from sparks.runs.run_folder import RunStore
from sparks.timeline.timeline import Rule, Timeline
from sparks.views.report import write_report
from sparks.views.trackers import wandb as wandb_view
from sparks.views.trackers.data import (
    CIRCUIT_KEYS,
    COHORT_KEYS,
    CONTROL_KEYS,
    EVALUATION_KEYS,
    GROWTH_KEYS,
    HEADS_KEY,
    NULL_KEYS,
    PAPER_KEYS,
    REPORT_KEY,
    STEP_KEY,
    optional_module,
)
from sparks.views.trackers.pictures import PICTURES

Mode = Literal["online", "offline"]

WORKSPACE = "Attention heads"
"""Name of the saved workspace."""

_ENDS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
_SUMMARY = (*_ENDS, "total_flos")
"""Numbers of the whole training: the trainer's reporter puts them into the summary, too."""


def upload(
    run_folder: str | os.PathLike[str],
    *,
    project: str,
    entity: str | None = None,
    mode: Mode | None = None,
    name: str | None = None,
    group: str | None = None,
    rule: Rule = "growth",
    progress: bool = True,
) -> str:
    """Write a finished run as a new run of W&B; a run that is open in this process is left alone.

    Args:
        run_folder: a run folder, or the trainer's output folder around it.
        project: of W&B; made where there is none.
        entity: user or team; None for the default of whoever is logged in.
        mode: None for `$WANDB_MODE`, or online.
        name: of the W&B run; None for the name of the run.
        group: count only the probes of this group.
        rule: how heads are judged: `growth` or `paper`.
        progress: show a bar.

    Returns:
        The run's address; offline its folder, for `wandb sync`.

    Raises:
        SparksError: no snapshots; no login, or W&B cannot be reached; wandb or matplotlib is not
            installed; `mode` is unknown.
    """
    if mode is not None and mode not in get_args(Mode):
        raise SparksError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    timeline = Timeline.from_run(run_folder, group=group, rule=rule)
    store = RunStore.find(run_folder)
    wandb = optional_module("wandb")
    optional_module("matplotlib")
    run = _open(wandb, project, entity, mode, name or timeline.name, _config(timeline))
    where = str(Path(run.dir).parent) if run.offline else str(run.url)
    try:
        _fill(run, timeline, store, progress=progress)
    except BaseException as error:
        run.finish(exit_code=1)
        if isinstance(error, wandb.errors.Error):
            raise SparksError(f"the upload to {where} broke off ({reason(error)})") from error
        raise
    run.finish()
    return where


def is_offline(mode: Mode | None) -> bool:
    """What `upload` writes in this mode stays on this machine."""
    return (mode or os.environ.get("WANDB_MODE", "online")) != "online"


def _fill(run: Any, timeline: Timeline, store: RunStore, *, progress: bool) -> None:
    """The trainer's rows and ours in order of step, then what is known at the end."""
    run.define_metric(STEP_KEY)
    run.define_metric("*", step_metric=STEP_KEY, step_sync=True)
    logged = {int(step): row for step, row in _rows(timeline)}
    taken = {snapshot.step: index for index, snapshot in enumerate(timeline.snapshots, start=1)}
    steps = sorted(logged.keys() | taken.keys())
    for step in tqdm(steps, desc="sparks: W&B", unit="step", disable=not progress):
        if row := logged.get(step):
            _log_trainers(run, row, step)
        if index := taken.get(step):
            wandb_view.log(run, _until(timeline, index))
    with TemporaryDirectory() as folder:
        report = write_report([timeline], Path(folder) / "report.html")
        wandb_view.finish(run, timeline, report, store.kept_files(taken))


def _until(timeline: Timeline, checkpoints: int) -> Timeline:
    """What was known at this checkpoint."""
    step = timeline.snapshots[checkpoints - 1].step
    return Timeline(
        timeline.snapshots[:checkpoints],
        name=timeline.name,
        group=timeline.group,
        rule=timeline.rule,
        nulls=timeline.nulls,
        evaluations=[item for item in timeline.evaluations if item.step <= step],
    )


def _open(
    wandb: Any, project: str, entity: str | None, mode: str | None, name: str, config: Any
) -> Any:
    settings = wandb.Settings(console="off", x_disable_stats=True, disable_git=True)
    try:
        return wandb.init(
            project=project, entity=entity, mode=mode, name=name or None, config=config,
            job_type="sparks", reinit="create_new", settings=settings,
        )  # fmt: skip
    except (wandb.errors.Error, OSError) as error:
        raise SparksError(
            f"cannot open a W&B run in project {project!r} ({reason(error)}): log in with `wandb "
            f"login`, or use mode offline and send it later with `wandb sync`"
        ) from error


def _config(timeline: Timeline) -> dict[str, Any]:
    """What was measured, as the run's config."""
    meta = timeline.metas[-1]
    return {
        "model_name": meta.model_name,
        "model_type": meta.model_type,
        "sparks": {
            "probes_hash": meta.probes_hash,
            "source": meta.source,
            "heads_rule": timeline.rule,
            **meta.config,
        },
    }


def _rows(timeline: Timeline) -> Iterator[tuple[Any, Mapping[str, float]]]:
    """The trainer's log: a step and its numbers."""
    frame = timeline.metrics()
    for step, row in zip(frame.index.tolist(), frame.to_dict("records"), strict=True):
        yield step, {str(key): value for key, value in row.items() if value == value}


def _log_trainers(run: Any, row: Mapping[str, float], step: int) -> None:
    """A row of the trainer's log, under the names that its reporter gives them."""
    for key in _SUMMARY:
        if key in row:
            run.summary[key] = row[key]
    named = {_tracker_key(key): value for key, value in row.items() if key not in _SUMMARY}
    run.log({**named, STEP_KEY: step})


def _tracker_key(key: str) -> str:
    for prefix in ("eval", "test"):
        if key.startswith(f"{prefix}_"):
            return f"{prefix}/{key.removeprefix(f'{prefix}_')}"
    return f"train/{key}"


# -- workspace -----------------------------------------------------------------------------------


def workspace(*, project: str, entity: str, metric: str = "train/reward") -> Any:
    """Panels for our keys: cohorts as stacked areas beside `metric`, pictures with a step slider.

    Args:
        project: of W&B.
        entity: user or team.
        metric: key of the curve beside the cohorts, such as `train/loss`.

    Returns:
        A `wandb_workspaces.workspaces.Workspace`; nothing is sent.

    Raises:
        SparksError: wandb-workspaces is not installed.
    """
    ws = _workspaces("wandb_workspaces.workspaces")
    wr = _workspaces("wandb_workspaces.reports.v2")

    def curves(title: str, *keys: str, **settings: Any) -> Any:
        return wr.LinePlot(title=title, x=STEP_KEY, y=list(keys), **settings)

    heads = [
        curves("Emergent heads by cohort", *COHORT_KEYS, plot_type="stacked-area"),
        curves(metric, metric),
        curves("Heads", "sparks/heads_active", "sparks/heads_emergent", "sparks/base_retained"),
        curves("Grew, shrank, born and pruned since the base", *GROWTH_KEYS),
        curves("Born and pruned", "sparks/heads_new", "sparks/heads_pruned"),
    ]
    doubt = [
        curves("Emergent, and on an unchanged model", "sparks/heads_emergent", *NULL_KEYS),
        curves(
            "Active, undecided",
            "sparks/heads_active",
            "sparks/heads_undecided",
        ),
        curves("By the paper's rule", *PAPER_KEYS),
        curves("On control probes", *CONTROL_KEYS, "sparks/heads_specific"),
        curves("Edges that changed; agreement of probes", *CIRCUIT_KEYS),
    ]
    solved = [
        curves("pass@1, with its 95 % interval", *EVALUATION_KEYS[:3]),
        curves("Problems newly solved and newly missed", *EVALUATION_KEYS[3:]),
    ]  # fmt: skip
    pictures = [
        wr.MediaBrowser(title=title, media_keys=[key], num_columns=1, gallery_axis="step")
        for key, title in zip(PICTURES, ("Heads over training", "Heads at a step"), strict=True)
    ]
    closing = [
        wr.MediaBrowser(title="Report", media_keys=[REPORT_KEY], num_columns=1),
        wr.WeavePanelSummaryTable(table_name=HEADS_KEY),
    ]
    trust = [
        curves("Carried by the circuits", "sparks/faithfulness"),
        curves("Error of the scores", "sparks/completeness_gap"),
        curves("Points on the path", "sparks/points"),
        curves("Left to explain, in nats", "sparks/loss_corrupted"),
        curves("Seconds a snapshot", "sparks/seconds"),
        curves("Share of the run's time", "sparks/overhead"),
    ]
    named = {
        "Heads": heads,
        "How sure": doubt,
        "Evaluation": solved,
        "Pictures": pictures,
        "At the end": closing,
        "Trust and cost": trust,
    }
    return ws.Workspace(
        name=WORKSPACE,
        entity=entity,
        project=project,
        sections=[ws.Section(name=name, panels=panels) for name, panels in named.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP_KEY),
    )


def save_workspace(*, project: str, entity: str | None = None, metric: str = "train/reward") -> str:
    """Save `workspace` in the project as a view of its own; returns its address.

    Args:
        project: of W&B.
        entity: user or team; None for the default of whoever is logged in.
        metric: key of the curve beside the cohorts.

    Raises:
        SparksError: wandb-workspaces is not installed, no login, or W&B refuses it.
    """
    _workspaces("wandb_workspaces")
    wandb = optional_module("wandb")
    try:
        owner = entity or wandb.Api().default_entity
        return str(workspace(project=project, entity=owner, metric=metric).save().url)
    except SparksError:
        raise
    except Exception as error:  # the client raises its own, GraphQL's and the network's errors
        raise SparksError(
            f"cannot save a workspace in project {project!r} ({reason(error)}): it needs a login "
            f"(`wandb login`) that may write there"
        ) from error


def metric_of(run_folder: str | os.PathLike[str]) -> str:
    """Key of the metric to look at beside the cohorts: the reward where one was logged.

    Raises:
        SparksError: no snapshots.
    """
    logged = Timeline.from_run(run_folder).metrics().columns
    return _tracker_key("reward" if "reward" in logged else "loss")


def _workspaces(name: str) -> Any:
    try:
        with warnings.catch_warnings():  # about its own use of pydantic
            warnings.simplefilter("ignore", DeprecationWarning)
            return optional_module(name)
    except SparksError as error:
        raise SparksError(
            f"saving a workspace needs wandb-workspaces ({error.__cause__}): "
            f"`pip install wandb-workspaces`"
        ) from error

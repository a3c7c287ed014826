"""What every tracker is told: numbers of a checkpoint, a row a head, an alert.

A history only grows: what is logged at a checkpoint is known at that checkpoint and stays true.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sparks.ground.optional import import_optional
from sparks.runs.evaluations import FOLDER
from sparks.timeline.answers import EvaluationHistory
from sparks.timeline.nulls import null_of
from sparks.timeline.timeline import Timeline
from sparks.views.words import can_call_growth, circuits_now, with_onset

STEP_KEY = "train/global_step"
"""The trainer's own x axis in W&B and trackio: it stands in every row."""

NUM_COHORTS = 4
"""Cohorts with a curve of their own; later ones share `sparks/cohort/later`."""

COHORT_KEYS = (
    *(f"sparks/cohort/{i:02d}" for i in range(1, NUM_COHORTS + 1)),
    "sparks/cohort/later",
)

HEADS_KEY, REPORT_KEY, VERDICT_KEY = "sparks/heads", "sparks/report", "sparks/verdict"
"""The closing table, page and sentence."""

ARTIFACT_TYPE = "sparks-snapshots"

_COLUMNS = {
    # Heads with more than an even share of all |score|: a collapse of training shows here first.
    "sparks/heads_active": "active",
    # Heads that may be active too: with the active ones the upper end of their number.
    "sparks/heads_undecided": "undecided",
    # Births at this checkpoint: the paper's curve of newly active heads.
    "sparks/heads_new": "born",
    # What training has added and still uses: the height of the paper's stacked areas.
    "sparks/heads_emergent": "emergent",
    # Emergent heads that fell silent at this checkpoint: GRPO prunes, SFT hardly does.
    "sparks/heads_pruned": "pruned",
    # Base heads still in use: the paper's dashed curve.
    "sparks/base_retained": "retained",
    # What the scores explain, in nats: near 0 the two answers no longer differ to the model.
    "sparks/loss_corrupted": "loss_corrupted",
    # How much of it the kept circuits carry alone, median over probes: 1 all, 0 nothing.
    "sparks/faithfulness": "faithfulness",
    # Error of the scores, median over probes: above some percent, raise `points`.
    "sparks/completeness_gap": "completeness_gap_median",
    # What that took: points on the path, median over probes; it grows where the gap asks for it.
    "sparks/points": "points_median",
    # What the snapshot cost the run.
    "sparks/seconds": "seconds",
    # Share of the run's time that snapshots have taken so far.
    "sparks/overhead": "overhead",
}
"""Key in a tracker -> column of `Timeline.counts()`."""

_GROWTH = {
    # Heads whose share of all |score| is larger than at the base, beyond luck: what training did.
    "sparks/heads_grew": "grew",
    "sparks/heads_shrank": "shrank",
    # Heads born so far, and times that a head fell silent.
    "sparks/births": "born",
    "sparks/prunings": "fell",
}
"""Key in a tracker -> field of `timeline.growth.tables.GrowthCounts`."""

_PAPER = {
    # The paper's number, to hold against the paper: heads in the circuit of any probe.
    "sparks/paper/heads_active": "active",
    # The paper's births, noise included: the distance to `sparks/heads_new` is what a test takes.
    "sparks/paper/heads_born": "born",
}
"""Key in a tracker -> column of `Timeline.paper_counts()`, whatever the timeline's rule."""

_NULL = {
    # Emergent heads that an unchanged model gives, by the same rule: a run within this band has
    # shown nothing. Found at the first checkpoint, so it is flat.
    "sparks/null/births_low": "births_low",
    "sparks/null/births_high": "births_high",
}
"""Key in a tracker -> field of `runs.null_band.NullBand`."""

_CIRCUITS = {
    # Share of the kept edges that changed since the checkpoint before, mean over probes: circuits
    # are rewired where no head is born or pruned.
    "sparks/edge_turnover": "edges_from_previous",
    # How alike the circuits of two probes are (Jaccard of edges): low, and no circuit stands for
    # the task.
    "sparks/circuit_stability": "edges_stability",
}
"""Key in a tracker -> field of `timeline.regimes.turnover.Turnover`."""

_CONTROL = {
    # The same on the control probes: births that appear here too are not the behaviour's own.
    "sparks/control/heads_active": "active",
    "sparks/control/heads_emergent": "emergent",
    "sparks/control/heads_new": "born",
}
"""Key in a tracker -> column of `counts()` of `Timeline.control`, where there are such probes."""

_EVALUATION = {
    # Does it get better at all? Mean share of right samples; the ends are those over problems.
    "sparks/pass_1": "pass_1",
    "sparks/pass_1_low": "pass_1_low",
    "sparks/pass_1_high": "pass_1_high",
    # Problems that no sample of the base solved and one does now, and the reverse (Fig. 4).
    "sparks/problems_newly_solved": "newly_solved",
    "sparks/problems_newly_missed": "newly_missed",
    # How many of each an unchanged model gives: no more than that is the luck of few samples.
    "sparks/problems_by_luck": "by_luck",
}
"""Key in a tracker -> column of `EvaluationHistory.progress()`, where the checkpoint has one."""

GROWTH_KEYS, PAPER_KEYS, NULL_KEYS, CIRCUIT_KEYS, CONTROL_KEYS, EVALUATION_KEYS = map(
    tuple, (_GROWTH, _PAPER, _NULL, _CIRCUITS, _CONTROL, _EVALUATION)
)

_NAMED = 20  # heads that an alert names


def scalars(timeline: Timeline) -> dict[str, float]:
    """Numbers of the LAST checkpoint; a number that is not finite is left out.

    Keys: those of `_COLUMNS`, `_GROWTH` (absent where nothing can be called: too few probes or too
    little L), `_PAPER`, `_NULL` (absent with too few probes), `_CIRCUITS` (turnover
    from the second checkpoint on), `_EVALUATION` (where the checkpoint was evaluated) and
    `_CONTROL` (absent without control probes, as is `sparks/heads_specific`: emergent heads that
    were not born there too);
    `sparks/base_retained_share` (of the base heads, so that runs of different models compare;
    absent if there is none); `sparks/cohort/01` .. `04` and `sparks/cohort/later`: active heads by
    cohort, in order of emergence, which sum to `sparks/heads_emergent`. These are there from the
    start, so that stacked areas have no gaps.
    """
    last = timeline.counts().iloc[-1]
    values = {key: float(last[column]) for key, column in _COLUMNS.items()}
    values |= _beside(timeline)
    if last["base"]:
        values["sparks/base_retained_share"] = float(last["retained"] / last["base"])
    sizes = timeline.cohorts().iloc[-1].tolist()
    first = sizes[:NUM_COHORTS] + [0] * (NUM_COHORTS - len(sizes))
    cohorts = [*first, sum(sizes[NUM_COHORTS:])]
    values |= {key: float(size) for key, size in zip(COHORT_KEYS, cohorts, strict=True)}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _beside(timeline: Timeline) -> Iterator[tuple[str, float]]:
    """What tells how far the counts of the last checkpoint carry."""
    if can_call_growth(timeline) and timeline.grown.enough_loss[-1]:
        growth = timeline.growth_counts
        yield from ((key, float(getattr(growth, field))) for key, field in _GROWTH.items())
    paper = timeline.paper_counts().iloc[-1]
    yield from ((key, float(paper[column])) for key, column in _PAPER.items())
    if (band := null_of(timeline)) is not None:
        yield from ((key, getattr(band, field)) for key, field in _NULL.items())
    circuits = circuits_now(timeline)
    yield from ((key, getattr(circuits, field).value) for key, field in _CIRCUITS.items())
    if timeline.evaluations and timeline.evaluations[-1].step == timeline.steps[-1]:
        row = EvaluationHistory.of(timeline).progress().iloc[-1]
        yield from ((key, float(row[column])) for key, column in _EVALUATION.items())
    if timeline.control is not None:
        control = timeline.control.counts().iloc[-1]
        yield from ((key, float(control[column])) for key, column in _CONTROL.items())
        specific = timeline.emergent[-1] & (timeline.specificity() == "specific")
        yield "sparks/heads_specific", float(specific.sum())


def head_rows(timeline: Timeline, *, most: int) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of `Timeline.heads()`, a row a head; None where a head has no value.

    Of more than `most` heads those are kept that were active at most checkpoints: W&B would cut
    the last layers.
    """
    heads = timeline.heads()
    if len(heads) > most:
        heads = heads.nlargest(most, "checkpoints_active").sort_index()
    rows = [
        [None if pd.isna(value) else value for value in row]
        for row in zip(*(heads[name].tolist() for name in heads.columns), strict=True)
    ]
    return [str(name) for name in heads.columns], rows


def alert_of(timeline: Timeline) -> tuple[str, str] | None:
    """Title and text on the births and prunings of the LAST checkpoint; None where there is none.

    Those that are settled there: one that shows since an earlier checkpoint is marked with it.
    The title has less than 64 characters, as W&B wants.
    """
    step = int(timeline.steps[-1])
    events = [event for event in timeline.event_list() if event.step == step]
    names = {
        kind: [with_onset(e.name, e.onset, e.step) for e in events if e.kind == kind]
        for kind in ("born", "pruned")
    }
    changed = {kind: heads for kind, heads in names.items() if heads}
    if not changed:
        return None
    counts = ", ".join(f"{len(heads)} {kind}" for kind, heads in changed.items())
    text = "; ".join(f"{kind}: {_listed(heads)}" for kind, heads in changed.items())
    return f"Attention heads at step {step}: {counts}", text


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def origin(timeline: Timeline) -> Mapping[str, Any]:
    """What tells the snapshots of this run from those of another."""
    meta = timeline.metas[-1]
    return {
        "model_name": meta.model_name,
        "probes_hash": meta.probes_hash,
        "steps": timeline.steps.tolist(),
    }


def optional_module(name: str, *, extra: str = "wandb") -> Any:
    """A module of an optional package, imported now.

    Args:
        name: full name of the module.
        extra: of `thinking-sparks` that installs it.

    Raises:
        SparksError: it cannot be imported.
    """
    return import_optional(name, users="views in trackers", extra=extra)


def name_in_artifact(path: Path) -> str:
    """Where a file of the run folder lies in an artifact: as in the run folder."""
    return f"{FOLDER}/{path.name}" if path.parent.name == FOLDER else path.name

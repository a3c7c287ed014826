"""The numbers behind each figure, as tidy frames: what is drawn, and what its CSV file holds.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758). Figures, and our readings where the paper
leaves one open:

1. 2A, 3A: active heads by cohort, newly active heads, retained base heads = `cohorts`. The paper's
   rule has neither a null nor undecided heads: both stand beside.
2. 2B, 3C: base heads fade as they fall silent, emergent heads deepen: both by the share of all the
   run's circuits, over probes and checkpoints, that hold the head = `head_map`.
3. 3B: accuracy reward = `reward`, over the steps of the timeline.
4. 12: effect E of A.6 per layer = `component_shift`, on each component's share of all |score| (see
   `Timeline.component_totals`). The residual stream is no node of our graph: its place takes what
   the layer adds to it, attention and MLP together. E is the mean over the checkpoints.
5. 13: mean E of each head over the checkpoints = `effect_map`.
6. 14: emergent heads at the end of each run, shared and exclusive = `shared_heads`.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from sparks.ground.errors import SparksError
from sparks.timeline.comparison import Comparison
from sparks.timeline.nulls import null_of
from sparks.timeline.timeline import Timeline

_SURENESS = ("share", "share_low", "share_high", "specificity")
_ACCURACY = re.compile(r"rewards/\w*accuracy\w*/mean")
_EPSILON = 1e-6


def cohorts(timeline: Timeline) -> pd.DataFrame:
    """A row a checkpoint and curve of Fig. 2A and 3A.

    Columns: step; rule; curve (`cohort`: active heads of one cohort; `newly_active`: heads that
    emerge here for the first time; `retained_base`: base heads that are active; `emergent`: the
    sum of the cohorts; `undecided`: heads that the rule leaves open; `paper_active`,
    `paper_newly_active`: by the paper's rule); cohort (step at which the cohort emerged, nullable
    Int64: none for the other curves); heads; null_low, null_high (of `emergent`: what an unchanged
    model gives, `timeline.nulls`; NaN elsewhere, and with too few probes).
    """
    counts, paper, band = timeline.counts(), timeline.paper_counts(), null_of(timeline)
    stacked = timeline.cohorts()
    parts = [
        pd.DataFrame(
            {"step": timeline.steps, "curve": "cohort", "cohort": step, "heads": stacked[step]}
        )
        for step in stacked.columns
    ]
    for curve, heads in (
        ("newly_active", counts["born"]),
        ("retained_base", counts["retained"]),
        ("emergent", counts["emergent"]),
        ("undecided", counts["undecided"]),
        ("paper_active", paper["active"]),
        ("paper_newly_active", paper["born"]),
    ):
        parts.append(
            pd.DataFrame(
                {"step": timeline.steps, "curve": curve, "cohort": pd.NA, "heads": heads.to_numpy()}
            )
        )
    typed = [part.astype({"curve": object, "cohort": "Int64", "heads": np.int64}) for part in parts]
    frame = pd.concat(typed, ignore_index=True)
    frame.insert(1, "rule", pd.Series(timeline.rule, index=frame.index, dtype=object))
    for end in ("low", "high"):
        given = np.nan if band is None else getattr(band, f"births_{end}")
        frame[f"null_{end}"] = np.where(frame["curve"] == "emergent", given, np.nan)
    return frame


def head_map(timeline: Timeline) -> pd.DataFrame:
    """A row a head of Fig. 2B and 3C, layer by layer.

    Columns: head (`L5H1`), rule, layer, index, state (`base`, `emergent`, `undated`: active at some
    checkpoint, but undecided at the first; or `never`: active at no checkpoint), frequency (share
    of the circuits of all checkpoints that hold it), frequency_last (of the last checkpoint's),
    cohort_step (nullable Int64), onset_step (since when that birth shows), active_at_end,
    undecided_at_end, share, share_low, share_high (at the last checkpoint),
    specificity (`Timeline.specificity`; None where it has nothing to say).
    """
    heads = timeline.heads()
    emergent, ever = heads["cohort_step"].notna(), heads["checkpoints_active"] > 0
    state = np.select([heads["base"], emergent, ever], ["base", "emergent", "undated"], "never")
    return pd.DataFrame(
        {
            "head": heads["head"],
            "rule": np.full(len(heads), timeline.rule, dtype=object),
            "layer": heads["layer"],
            "index": heads["index"],
            "state": state.astype(object),
            "frequency": heads["frequency_mean"],
            "frequency_last": timeline.frequency[-1].ravel(),
            "cohort_step": heads["cohort_step"],
            "onset_step": heads["onset_step"],
            "active_at_end": heads["active_at_end"],
            "undecided_at_end": heads["state"] == "undecided",
            **{name: heads[name] for name in _SURENESS},
        }
    )


def reward_metric(timeline: Timeline) -> str | None:
    """The logged metric of Fig. 3B: an accuracy reward (`rewards/*accuracy*/mean`) or `reward`.

    None where neither was logged between the first and the last checkpoint.
    """
    logged = _between_checkpoints(timeline).dropna(axis="columns", how="all")
    names = [str(name) for name in logged.columns]
    accuracy = [name for name in names if _ACCURACY.fullmatch(name)]
    return next(iter([*accuracy, *(["reward"] if "reward" in names else [])]), None)


def reward(timeline: Timeline, *, metric: str | None = None) -> pd.DataFrame:
    """A row a logged number of Fig. 3B, from the first checkpoint to the last.

    Columns: step, metric (its name in the trainer's log), value.

    Args:
        timeline: of the run.
        metric: which to take; None for `reward_metric`.

    Raises:
        SparksError: it was not logged.
    """
    logged = _between_checkpoints(timeline)
    name = metric or reward_metric(timeline)
    if name is None or name not in logged or logged[name].isna().all():
        wanted = repr(metric) if metric else "'reward' and no 'rewards/*accuracy*/mean'"
        raise SparksError(
            f"the log of {timeline.name!r} holds no {wanted} from its first checkpoint to its last"
        )
    values = logged[name].dropna()
    return pd.DataFrame(
        {
            "step": values.index.tolist(),
            "metric": [name] * len(values),
            "value": values.tolist(),
        }
    )


def component_shift(timeline: Timeline) -> pd.DataFrame:
    """A row a layer and component of Fig. 12.

    Columns: component (`attention`, `mlp`, or `both`: what the layer adds to the residual stream);
    layer; share_first, share_last (of all |score| at the first and last checkpoint); effect_mean
    (E of A.6 on the share, mean over the checkpoints after the first; NaN if there is none);
    effect_last.
    """
    totals = timeline.component_totals()
    wide = totals[totals["component"] != "embed"].pivot(
        index="step", columns=["component", "layer"], values="share"
    )
    parts = []
    shares: dict[str, np.ndarray] = {
        name: wide[name].to_numpy(dtype=float) for name in ("attention", "mlp")
    }
    shares["both"] = shares["attention"] + shares["mlp"]
    for name, share in shares.items():
        effect = (share - share[:1]) / (share + share[:1] + _EPSILON)
        later = effect[1:]
        parts.append(
            pd.DataFrame(
                {
                    "component": [name] * share.shape[1],
                    "layer": np.arange(share.shape[1]),
                    "share_first": share[0],
                    "share_last": share[-1],
                    "effect_mean": later.mean(axis=0) if len(later) else np.nan,
                    "effect_last": effect[-1],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def effect_map(timeline: Timeline) -> pd.DataFrame:
    """A row a head of Fig. 13, layer by layer.

    Columns: head, layer, index, importance_first, importance_last, effect_mean (E of A.6, mean over
    the checkpoints after the first; NaN if there is none), effect_last, ever_active.
    """
    heads = timeline.heads()
    frame = heads[["head", "layer", "index", "importance_first", "importance_last", "effect_mean"]]
    return frame.assign(
        effect_last=timeline.effect()[-1].ravel(), ever_active=heads["checkpoints_active"] > 0
    )


def shared_heads(comparison: Comparison) -> pd.DataFrame:
    """A row a run and head of Fig. 14, run by run.

    Columns: run, rule, head, layer, index, base, emergent_at_end (emergent at the run's last
    checkpoint), runs_at_end (in how many runs it is), exclusive_at_end (in this one alone, and
    undecided in none), born (emerged in this run at any time), exclusive_ever (born in this one
    alone, and undecided in none).
    """
    heads = comparison.heads()
    emergent = pd.Series(
        np.concatenate([timeline.emergent[-1].ravel() for timeline in comparison.timelines]),
        index=heads.index,
    )
    frame = heads[["run", "head", "layer", "index", "base"]]
    frame.insert(1, "rule", pd.Series(comparison.rule, index=frame.index, dtype=object))
    return frame.assign(
        emergent_at_end=emergent,
        runs_at_end=emergent.groupby(heads["head"]).transform("sum").astype(np.int64),
        exclusive_at_end=heads["exclusive_at_end"],
        born=heads["born"],
        exclusive_ever=heads["exclusive_ever"],
    )


def _between_checkpoints(timeline: Timeline) -> pd.DataFrame:
    return timeline.metrics().loc[int(timeline.steps[0]) : int(timeline.steps[-1])]

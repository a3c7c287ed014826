"""Attention heads over training: snapshots of one run, ordered, and what the paper reads off them.

"Thinking Sparks!" (https://arxiv.org/abs/2509.25758). Definitions, and our names:

1. Active head at a checkpoint: by the rule of growth (`timeline.growth.rule`, the default) it has
   more than an even share of all score mass, as settled beyond luck since the base; by the paper's
   rule it is in the circuit of at least one probe = `active`. Activation frequency: the share of
   the probes' circuits that hold it = `frequency`.                        ("Heads over time")
2. Base heads: active before post-training, here at the first checkpoint = `base`. Emergent at t:
   active at t and not base (growth: and born) = `emergent`. Retained: active at t and base =
   `retained`.
3. Cohort of a head: the checkpoint at which it first emerged = `cohort`.                  (Fig. 2A)
4. Importance: I~(l, h) = sum over probes and kept edges that leave the head of |score|;
   I = I~ / sum I~ = `importance`.                                                             (A.6)
5. Effect: E = (I_t - I_pre) / (I_t + I_pre + 1e-6) = `effect()`; over checkpoints its mean.  (A.6)
6. Component shift: share of each layer's attention and MLP in all |score|, and E on these shares
   = `component_totals()`. The paper does not say how it normalises: ours is per checkpoint.
                                                                                      (Fig. 12)

Events name the changes between checkpoints. Of heads that are not base: `born` (emerges for the
first time), `pruned` (falls silent), `revived` (emerges again). Of base heads: `silenced` and
`returned`. The paper speaks of births and prunings; the other names are ours.

What stands at a checkpoint never depends on a later one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int

from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.probes.probes import CONTROL_GROUP, ProbeSet
from sparks.runs.evaluations import StepEvaluation
from sparks.runs.null_band import NullBand
from sparks.runs.run_folder import RunStore
from sparks.timeline.growth.rule import Growth
from sparks.timeline.growth.settings import GrowthConfig, too_little
from sparks.timeline.growth.tables import GrowthCounts, growth_frame
from sparks.timeline.history import Follower, History
from sparks.timeline.input import (
    caveats,
    check_group,
    doubts,
    floor_caveat,
    little_in_words,
    metric_frame,
    probes_of_group,
    rows_of_snapshots,
)
from sparks.timeline.numbers import (
    PER_CHECKPOINT,
    component_totals,
    effect_of,
    frozen,
    importance_interval,
)
from sparks.timeline.states import EVENT_KINDS, Event, EventKind, States, specificity

__all__ = ["EVENT_KINDS", "RULES", "RULE_NAMES", "Event", "EventKind", "Rule", "Timeline"]

Rule = Literal["growth", "paper"]
RULES: tuple[Rule, ...] = ("growth", "paper")
RULE_NAMES: dict[Rule, str] = {"growth": "rule of growth", "paper": "paper's rule"}
"""In words."""


class Timeline:
    """Snapshots of one run in order of step. Arrays are read-only; checkpoints come first."""

    name: str
    group: str | None
    """Only probes of this group were counted; None for all but those of the group `control`."""
    rule: Rule
    growth_config: GrowthConfig
    """Of `growth()`, whatever `rule` is, and of the floor of L."""
    graph: Graph
    problems: tuple[str, ...]
    """One line each: files that were skipped, and what makes the numbers less than they seem."""
    nulls: tuple[NullBand, ...]
    """What `sparks null` found and the run folder keeps; `timeline.nulls.null_of` picks."""
    evaluations: tuple[StepEvaluation, ...]
    """Of checkpoints that were evaluated, in order of step: see `timeline.answers`."""
    probes: ProbeSet | None
    """Texts of what was measured; None where nobody kept them. No number depends on them."""
    damage: tuple[str, ...]
    """Those of `problems` that tell of files that could not be read, and of missing snapshots."""
    snapshots: History
    """In order of step; all their probes, whatever the group. One that lies in a file is read when
    it is asked for."""
    metas: tuple[SnapshotMeta, ...]
    probe_ids: tuple[str, ...]
    """Probes that were counted."""
    chosen: Int[np.ndarray, " probes"]
    """Their indices in the snapshots."""
    groups: tuple[str, ...]
    """Groups that the snapshots hold, sorted; `""` where a probe has none."""
    steps: Int[np.ndarray, " checkpoints"]
    frequency: Float32[np.ndarray, "checkpoints layers heads"]
    """Share of the probes' circuits that hold the head."""
    importance: Float32[np.ndarray, "checkpoints layers heads"]
    """I of A.6: sums to 1 over the heads of a checkpoint; all zero where nothing is kept."""
    loss: Float[np.ndarray, " checkpoints"]
    """L, nats: median over the probes."""
    too_little: Bool[np.ndarray, " checkpoints"]
    """L is below the floor (`GrowthConfig.least_loss`): nothing is called there, and nothing is
    compared with it."""
    states: States
    active: Bool[np.ndarray, "checkpoints layers heads"]
    undecided: Bool[np.ndarray, "checkpoints layers heads"]
    """Not active as far as is settled, but it may be; nowhere by the paper's rule."""
    base: Bool[np.ndarray, "layers heads"]
    emergent: Bool[np.ndarray, "checkpoints layers heads"]
    retained: Bool[np.ndarray, "checkpoints layers heads"]
    cohort: Int[np.ndarray, "layers heads"]
    """Index of the checkpoint of first emergence; -1 for base heads and heads never born."""

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        *,
        metrics: Sequence[Mapping[str, Any]] = (),
        name: str = "",
        problems: Sequence[str] = (),
        group: str | None = None,
        rule: Rule = "growth",
        growth_config: GrowthConfig | None = None,
        nulls: Sequence[NullBand] = (),
        evaluations: Sequence[StepEvaluation] = (),
        probes: ProbeSet | None = None,
    ) -> None:
        """Order the snapshots and work out the state of every head.

        Args:
            snapshots: of one run, in any order.
            metrics: rows of the trainer's log, each with a `step`.
            name: of the run.
            problems: one line for each thing that went wrong while reading.
            group: count only the probes of this group; None counts all but those of the group
                `control`.
            rule: how heads are judged: `growth` or `paper`.
            growth_config: settings of the rule of growth; None takes the defaults.
            nulls: what `sparks null` found.
            evaluations: of checkpoints of the run.
            probes: texts of what was measured.

        Raises:
            SparksError: no snapshots; two of one step; different probes, graphs or settings; no
                probe is in `group`; an unknown rule.
        """
        if rule not in RULES:
            raise SparksError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
        if not snapshots:
            raise SparksError(
                "a timeline needs at least one snapshot, got none: take one with SparksCallback "
                "or `sparks replay`"
            )
        history = History.of(snapshots)
        history.check()
        outlines = history.outlines
        first = outlines[0]
        chosen = probes_of_group(first.probe_groups, group)
        if group is not None:
            check_group(outlines, group)
        self.name, self.group, self.graph = name, group, first.graph
        self.rule, self.growth_config = rule, growth_config or GrowthConfig()
        self.nulls = tuple(nulls)
        self.evaluations = tuple(sorted(evaluations, key=lambda evaluation: evaluation.step))
        self.probes = probes
        self.groups = tuple(sorted(set(first.probe_groups)))
        self.snapshots = history
        self.metas = tuple(outline.meta for outline in outlines)
        probe_ids = history[0].probe_ids
        self.chosen, self.probe_ids = frozen(chosen), tuple(probe_ids[index] for index in chosen)
        self.steps = frozen(np.array(history.steps, dtype=np.int64))
        self._read_states()
        self._metrics = metric_frame(metrics or rows_of_snapshots(self.metas))
        self.damage, self._logged = tuple(problems), tuple(metrics)
        measured = caveats(outlines, self._measured("is_finite"), self._measured("gap"), rule)
        self.problems = (*problems, *measured)
        if self.too_little.any():
            self.problems += (floor_caveat(self.little_in_words(), rule),)
        if rule == "growth":
            self.problems += tuple(doubts(self.num_probes, self.growth_config))

    @classmethod
    def from_run(
        cls,
        path: str | os.PathLike[str],
        *,
        group: str | None = None,
        rule: Rule = "growth",
        growth_config: GrowthConfig | None = None,
        followers: Sequence[Follower] = (),
    ) -> Timeline:
        """The timeline of a run folder, or of a trainer's output folder that holds one.

        Files that cannot be read are skipped and named in `problems`; `group`, `rule` and
        `growth_config` as for `Timeline`, `followers` as for `History.read`.

        Raises:
            SparksError: no snapshot is there or none can be read, or they do not fit together.
        """
        store = RunStore.find(path)
        history, run = History.read(store, group=group, followers=followers)
        if not history:
            more = f" (and {len(run.problems) - 1} more)" if len(run.problems) > 1 else ""
            raise SparksError(f"no snapshot can be read: {run.problems[0]}{more}")
        return cls(
            history,
            metrics=run.metrics,
            name=store.name,
            problems=run.problems,
            group=group,
            rule=rule,
            growth_config=growth_config,
            nulls=run.nulls,
            evaluations=run.evaluations,
            probes=run.probes,
        )

    def by(self, rule: Rule, *, group: str | None = None) -> Timeline:
        """The same snapshots by this rule; of another group of probes where one is given."""
        group = self.group if group is None else group
        if (rule, group) == (self.rule, self.group):
            return self
        return Timeline(
            self.snapshots,
            metrics=self._logged,
            name=self.name,
            problems=self.damage,
            group=group,
            rule=rule,
            growth_config=self.growth_config,
            nulls=self.nulls,
            evaluations=self.evaluations,
            probes=self.probes,
        )

    @cached_property
    def control(self) -> Timeline | None:
        """The timeline of the probes of group `control`; None where there are none beside."""
        beside = CONTROL_GROUP in self.groups and len(self.groups) > 1
        return self.by(self.rule, group=CONTROL_GROUP) if beside and self.group is None else None

    def _read_states(self) -> None:
        self._measured = self.snapshots.measured(self.group)
        self.frequency = self._measured("frequency")
        self.importance = self._measured("importance")
        self.loss = self._measured("loss")
        self.too_little = frozen(too_little(self.loss, self.growth_config))
        states, self._rows = self.snapshots.states(self.rule, self.group, self.growth_config)
        self.states = states
        self.active, self.undecided, self.base = states.active, states.undecided, states.base
        self.emergent, self.retained, self.cohort = states.emergent, states.retained, states.cohort

    @property
    def share(self) -> Float32[np.ndarray, "checkpoints layers heads"]:
        """Of all score mass, in even shares (1 is one over the number of heads)."""
        return self.grown.share.reshape(self.active.shape)

    @property
    def share_low(self) -> Float32[np.ndarray, "checkpoints layers heads"]:
        """Lower end of the interval of `share` over probes, of each head by itself."""
        return self.grown.share_low.reshape(self.active.shape)

    @property
    def share_high(self) -> Float32[np.ndarray, "checkpoints layers heads"]:
        """Upper end of that interval."""
        return self.grown.share_high.reshape(self.active.shape)

    def per_checkpoint(self, name: str) -> np.ndarray:
        """A number, or an array, a checkpoint: of those of `timeline_numbers.checkpoint`."""
        return self._measured(name)

    def heads_counted(self, name: str, rule: Rule) -> Int[np.ndarray, " checkpoints"]:
        """Heads that are `active`, `emergent`, ... or `born`, `pruned` ... by a rule.

        Args:
            name: of an array of `States`, or a kind of change.
            rule: whatever the timeline's own.
        """
        return self.snapshots.states(rule, self.group, self.growth_config)[1](f"num_{name}")

    def paper_counts(self) -> pd.DataFrame:
        """Numbers of heads by the paper's rule, whatever the timeline's. Index: step.

        Columns: active (in the circuit of any probe), emergent, born, pruned.
        """
        names = ("active", "emergent", "born", "pruned")
        return pd.DataFrame(
            {name: self.heads_counted(name, "paper") for name in names},
            index=pd.Index(self.steps, name="step"),
        )

    # -- sizes -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def num_probes(self) -> int:
        """Probes that were counted."""
        return len(self.probe_ids)

    def little_in_words(self) -> str:
        """At which checkpoints L is too little, how much it is, and the floor; empty for none."""
        little = self.too_little
        if not little.any():
            return ""
        return little_in_words(
            self.steps[little].tolist(), self.loss[little].tolist(), self.growth_config.least_loss
        )

    # -- changes -----------------------------------------------------------------------------

    def changes(self, kind: EventKind) -> Bool[np.ndarray, "checkpoints layers heads"]:
        """Where an event of this kind is settled. At the first checkpoint nothing is.

        Raises:
            SparksError: the kind is unknown.
        """
        if kind not in EVENT_KINDS:
            raise SparksError(f"kind must be one of {', '.join(EVENT_KINDS)}, got {kind!r}")
        return self.states.changes[kind]

    def events(self) -> pd.DataFrame:
        """A row an event, by step, then kind in the order of `EVENT_KINDS`, then layer and head.

        Columns: step, head (`L5H1`), layer, index, kind, cohort (step; nullable Int64), onset (step
        since which the change shows; before `step` where it was settled later), frequency,
        importance, share, share_low, share_high (of all score mass, in even shares; all at that
        checkpoint).
        """
        found = [np.argwhere(self.changes(kind)) for kind in EVENT_KINDS]
        kinds = np.repeat(np.arange(len(EVENT_KINDS)), [len(rows) for rows in found])
        rows = np.concatenate(found)
        order = np.lexsort((rows[:, 2], rows[:, 1], kinds, rows[:, 0]))
        time, layer, head = rows[order].T
        return pd.DataFrame(
            {
                "step": self.steps[time],
                "head": self._head_names()[layer, head],
                "layer": layer,
                "index": head,
                "kind": np.array(EVENT_KINDS, dtype=object)[kinds[order]],
                "cohort": self._cohort_steps(self.cohort[layer, head]),
                "onset": self.steps[self.states.onset[time, layer, head]],
                "frequency": self.frequency[time, layer, head],
                "importance": self.importance[time, layer, head],
                "share": self.share[time, layer, head],
                "share_low": self.share_low[time, layer, head],
                "share_high": self.share_high[time, layer, head],
            }
        )

    @cached_property
    def grown(self) -> Growth:
        """What the rule of growth says of every head, layer by layer, at every checkpoint."""
        return self.snapshots.growth(self.group, self.growth_config)

    @cached_property
    def growth_counts(self) -> GrowthCounts:
        """The run's growth in numbers, whatever `rule` is."""
        born, pruned, silenced = (
            int(self.heads_counted(kind, "growth").sum()) for kind in ("born", "pruned", "silenced")
        )
        return GrowthCounts.of(self.grown, born=born, fell=pruned + silenced)

    def growth(self, checkpoint: int | None = None) -> pd.DataFrame:
        """A row a checkpoint and head: how its share of all score mass changed since the base.

        `timeline.growth.rule` has the rule; base: the first checkpoint with enough L. Columns:
        step, head (`L5H1`), factor, factor_low, factor_high (share against the base's, with its
        95 % interval), verdict (`grew`, `shrank`, `none`, `too little L`), change (kind of the
        event that is called at this checkpoint, else empty) and now (`in`, `out`, `unsure`: as the
        interval of its share says).

        Args:
            checkpoint: its index, for its rows alone; None for all.
        """
        at = None if checkpoint is None else range(len(self))[checkpoint]
        rows = slice(None) if at is None else slice(at, at + 1)
        states, _ = self.snapshots.states("growth", self.group, self.growth_config)
        changes = np.full(states.active[rows].shape, "", dtype=object)
        for kind, where in states.changes.items():
            changes[where[rows]] = kind
        names = self._head_names().ravel().tolist()
        return growth_frame(self.grown.of_checkpoints(rows), changes, self.steps[rows], names)

    def event_list(self) -> list[Event]:
        """`events()` as records."""
        frame = self.events()
        frame = frame.drop(columns="head").rename(columns={"index": "head"})
        columns = [frame[name].tolist() for name in frame.columns]
        rows = [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]
        return [
            Event(**(row | {"cohort": None if pd.isna(row["cohort"]) else int(row["cohort"])}))
            for row in rows
        ]

    # -- frames ------------------------------------------------------------------------------

    def counts(self) -> pd.DataFrame:
        """A row a checkpoint.

        Columns: step; numbers of heads: active, undecided (not active as far as is settled, but
        they may be), base (active at the first checkpoint, constant), emergent, retained, born,
        pruned, revived, silenced, returned; circuit_heads (heads of a circuit, mean
        over probes and settings) and circuit_growth (since the first checkpoint, probe by probe),
        each with _low and _high (95 % bootstrap interval); edges (mean of kept edges a
        probe); loss_corrupted (mean over probes, nats); faithfulness (median over probes: how much
        of L the circuit carries alone, NaN where not measured); completeness_gap_median and
        completeness_gap_max (over probes whose gap is a number; NaN if none is); points_min,
        points_median and points_max (m over probes: points on the path); seconds; overhead (share
        of the training's time that snapshots had taken, NaN where unknown); peak_memory_gib.
        """
        frame = pd.DataFrame({"step": self.steps})
        frame["active"] = self._rows("num_active")
        frame["undecided"] = self._rows("num_undecided")
        frame["base"] = int(self.base.sum())
        kinds = ("emergent", "retained", "born", "pruned", "revived", "silenced", "returned")
        for kind in kinds:
            frame[kind] = self._rows(f"num_{kind}")
        for name in PER_CHECKPOINT:
            frame[name] = self._measured(name)
        for name, values in self.snapshots.circuits(self.group, self.growth_config).items():
            frame[name] = values
        frame["seconds"] = [float(meta.seconds) for meta in self.metas]
        frame["overhead"] = [
            np.nan if meta.overhead is None else float(meta.overhead) for meta in self.metas
        ]
        frame["peak_memory_gib"] = [float(meta.peak_memory_gib) for meta in self.metas]
        return frame

    def cohorts(self) -> pd.DataFrame:
        """Active heads of each cohort (paper Fig. 2A). Index: step.

        A column a cohort that has heads, named by the step at which it emerged. A row sums to the
        emergent heads of that checkpoint.
        """
        members = np.unique(self.cohort[self.cohort >= 0])
        columns = {
            int(self.steps[index]): self.emergent[:, self.cohort == index].sum(axis=1)
            for index in members
        }
        index = pd.Index(self.steps, name="step")
        return pd.DataFrame(columns, index=index, dtype=np.int64).rename_axis(columns="cohort")

    def heads(self) -> pd.DataFrame:
        """A row a head, layer by layer.

        Columns: head, layer, index, base, cohort_step (nullable Int64), onset_step (of that birth:
        the checkpoint since which it shows), births (times born or revived), prunings,
        checkpoints_active, frequency_mean (over checkpoints), importance_first, importance_last,
        effect_mean (over the checkpoints after the first; NaN if there is none), active_at_end,
        state (at the last checkpoint: active, inactive, undecided), share, share_low, share_high
        (of all score mass, in even shares), importance_low, importance_high (at the last
        checkpoint), specificity (`specificity()`; None where it says nothing).
        """
        layer, index = np.indices(self.base.shape)
        low, high = self.importance_interval(-1)
        births = (self.changes("born") | self.changes("revived")).sum(axis=0)
        later = self.effect()[1:]
        mean = later.mean(axis=0) if len(later) else np.full(self.base.shape, np.nan)
        columns = {
            "head": self._head_names(),
            "layer": layer,
            "index": index,
            "base": self.base,
            "cohort_step": self._cohort_steps(self.cohort.ravel()),
            "onset_step": self._cohort_steps(self._birth_onset().ravel()),
            "births": births,
            "prunings": self.changes("pruned").sum(axis=0),
            "checkpoints_active": self.active.sum(axis=0),
            "frequency_mean": self.frequency.mean(axis=0),
            "importance_first": self.importance[0],
            "importance_last": self.importance[-1],
            "effect_mean": mean,
            "active_at_end": self.active[-1],
            "state": _state_names(self.active[-1], self.undecided[-1]),
            "share": self.share[-1],
            "share_low": self.share_low[-1],
            "share_high": self.share_high[-1],
            "importance_low": low,
            "importance_high": high,
            "specificity": np.array([[name or None for name in row] for row in self.specificity()]),
        }
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()})

    def state_names(self) -> np.ndarray:
        """`active`, `inactive` or `undecided`; [checkpoints, layers, heads], of strings."""
        return _state_names(self.active, self.undecided)

    def specificity(self) -> np.ndarray:
        """Whether a born head is specific to the behaviour; [layers, heads], of strings.

        `specific`: on the control probes it was not born and is inactive. `shared`: it was born
        there too, or is active there. `undecided`: the control cannot tell. `""`: not born, or
        there are no control probes. As known at the last checkpoint.
        """
        control = None if self.control is None else self.control.states
        return specificity(self.states, control)

    def importance_interval(
        self, checkpoint: int
    ) -> tuple[Float32[np.ndarray, "layers heads"], Float32[np.ndarray, "layers heads"]]:
        """Ends of the 95 % bootstrap interval of `importance` over probes.

        Args:
            checkpoint: its index; -1 is the last one.
        """
        return importance_interval(self.snapshots[checkpoint], self.chosen)

    def effect(self) -> Float32[np.ndarray, "checkpoints layers heads"]:
        """E = (I_t - I_pre) / (I_t + I_pre + 1e-6), pre = first checkpoint (A.6); in [-1, 1]."""
        return effect_of(self.importance.astype(np.float64)).astype(np.float32)

    def metrics(self) -> pd.DataFrame:
        """The trainer's log. Index: step; a column a metric; NaN where it was not logged.

        Without a log, the numbers that the snapshots carry.
        """
        return self._metrics.copy()

    def importance_frame(self) -> pd.DataFrame:
        """A row a checkpoint and head.

        Columns: step, head, layer, index, frequency, importance, importance_low, importance_high,
        share, share_low, share_high, state, active, emergent.
        """
        time, layer, head = (axis.ravel() for axis in np.indices(self.active.shape))
        ends = [self.importance_interval(checkpoint) for checkpoint in range(len(self))]
        return pd.DataFrame(
            {
                "step": self.steps[time],
                "head": self._head_names()[layer, head],
                "layer": layer,
                "index": head,
                "frequency": self.frequency.ravel(),
                "importance": self.importance.ravel(),
                "importance_low": np.ravel([low for low, _ in ends]),
                "importance_high": np.ravel([high for _, high in ends]),
                "share": self.share.ravel(),
                "share_low": self.share_low.ravel(),
                "share_high": self.share_high.ravel(),
                "state": self.state_names().ravel(),
                "active": self.active.ravel(),
                "emergent": self.emergent.ravel(),
            }
        )

    def component_totals(self) -> pd.DataFrame:
        """Share of all |score|, kept edges or not, that leaves each component (paper Fig. 12).

        Columns: step, component (`embed`, `attention`, `mlp`), layer (nullable Int64; none for
        embed), share (sums to 1 over a checkpoint, 0 if there is no score), effect (of the share,
        as in A.6, against the first checkpoint).
        """
        return component_totals(self.steps, self._measured("node_totals"), self.graph.num_layers)

    def _head_names(self) -> np.ndarray:
        return np.array(self.graph.sources, dtype=object)[self.graph.head_sources]

    def _birth_onset(self) -> Int[np.ndarray, "layers heads"]:
        """Index of the checkpoint since which the birth shows; -1 for heads that were not born."""
        at = np.maximum(self.cohort, 0)[None]
        return np.where(self.cohort < 0, -1, np.take_along_axis(self.states.onset, at, axis=0)[0])

    def _cohort_steps(self, cohort: Int[np.ndarray, " rows"]) -> Any:
        """Steps of cohort indices, as a nullable column."""
        return pd.arrays.IntegerArray(self.steps[cohort], cohort < 0)


def _state_names(
    active: Bool[np.ndarray, "*any heads"], undecided: Bool[np.ndarray, "*any heads"]
) -> np.ndarray:
    names = np.where(active, "active", "inactive").astype(object)
    names[undecided] = "undecided"
    return names

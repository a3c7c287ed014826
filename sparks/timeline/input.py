"""What goes into a timeline: what its snapshots must share, what weakens it, the trainer's log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from sparks.attribution.snapshot import Snapshot, SnapshotMeta
from sparks.ground.errors import SparksError
from sparks.models.graph import Graph
from sparks.probes.probes import members
from sparks.timeline.growth.settings import GrowthConfig

_LARGEST_STEP = 2**53
COARSE_GAP = {"paper": 0.2, "growth": 1.0}
"""By rule: median completeness gap above which a reader is told that the path has too few points. A
coarse integral is wrong by a factor that all heads of a probe have nearly in common: shares are
free of it, circuits with an absolute tau are not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """What a timeline keeps of a snapshot beside the numbers of its probes."""

    meta: SnapshotMeta
    graph: Graph
    probe_groups: tuple[str, ...]
    grid: tuple[tuple[float, float], ...]
    alike: object
    """Equal where two snapshots of a run may stand on one timeline."""

    @classmethod
    def of(cls, snapshot: Snapshot, first: Outline | None) -> Outline:
        """Of a snapshot; what is equal to that of the first one is held once."""
        groups = snapshot.probe_groups
        if first is not None and first.probe_groups == groups:
            groups = first.probe_groups
        settings: tuple[Any, ...]
        try:
            settings = tuple(sorted(snapshot.meta.settings.measurement().items()))
        except SparksError:
            settings = (object(),)  # like no other: `check_comparable` says why
        return cls(
            meta=snapshot.meta,
            graph=snapshot.graph,
            probe_groups=groups,
            grid=snapshot.grid,
            alike=(snapshot.meta.probes_hash, snapshot.num_probes, snapshot.graph, settings),
        )

    @property
    def step(self) -> int:
        """Optimizer step of the checkpoint."""
        return self.meta.step

    @property
    def num_probes(self) -> int:
        """Probes measured."""
        return len(self.probe_groups)


def check_comparable(ordered: Sequence[Outline]) -> None:
    """Snapshots may stand on one timeline.

    Raises:
        SparksError: two are of one step, or they differ in run, probes, graph or settings.
    """
    counts = Counter(snapshot.step for snapshot in ordered)
    if twice := [step for step, count in counts.items() if count > 1]:
        raise SparksError(
            f"a timeline needs one snapshot a step, got several of {steps_text(twice)}: keep one"
        )
    named = [snapshot for snapshot in ordered if snapshot.meta.run_id]  # not in older files
    _refuse_mixed("run", named, [snapshot.meta.run_id for snapshot in named])
    _refuse_mixed("probes", ordered, [_probes_text(snapshot) for snapshot in ordered])
    _refuse_mixed("graph", ordered, [str(snapshot.graph) for snapshot in ordered])
    settings = [snapshot.meta.settings.measurement() for snapshot in ordered]
    for name in settings[0]:
        _refuse_mixed("settings", ordered, [f"{name}={values[name]!r}" for values in settings])


def probes_of_group(groups: Sequence[str], group: str | None) -> Int[np.ndarray, " chosen"]:
    """Indices of the probes of `group`, or of all but the control probes.

    A set of control probes alone is counted.

    Args:
        groups: of the probes.
        group: None for all but the control probes.

    Raises:
        SparksError: there are no probes, or none is in the group.
    """
    if not groups:
        raise SparksError("a timeline needs probes, got snapshots without any: take them again")
    return np.array(members(groups, group), dtype=np.int64)


def check_group(ordered: Sequence[Outline], group: str) -> None:
    """The same probes are in the group at every checkpoint.

    Raises:
        SparksError: they are not.
    """
    if all(one.probe_groups is ordered[0].probe_groups for one in ordered):
        return
    everywhere = [np.flatnonzero(np.array(one.probe_groups) == group) for one in ordered]
    texts = [f"probes {', '.join(map(str, indices))} (from 0)" for indices in everywhere]
    _refuse_mixed(f"probes in group {group!r}", ordered, texts)


def caveats(
    ordered: Sequence[Outline],
    is_finite: Bool[np.ndarray, " checkpoints"],
    gap: Float[np.ndarray, " checkpoints"],
    rule: str,
) -> list[str]:
    """What a reader must know before believing the numbers, a line each.

    Args:
        ordered: the checkpoints.
        is_finite: all scores of the counted probes are.
        gap: median over these of the completeness gap.
        rule: by which heads are called.
    """
    lines = []
    if (first := ordered[0].step) != 0:
        lines.append(
            f"there is no snapshot of step 0: base heads are those of step {first}, "
            "which training has already changed"
        )
    if broken := [s.step for s, fine in zip(ordered, is_finite, strict=True) if not fine]:
        lines.append(f"scores are not finite at {steps_text(broken)}: importance there reads 0")
    precisions = sorted({snapshot.meta.precision for snapshot in ordered})
    if len(precisions) > 1:
        lines.append(
            f"the model ran in different precisions ({', '.join(precisions)}): part of the change "
            "between checkpoints is rounding"
        )
    gaps = {s.step: value for s, value in zip(ordered, gap.tolist(), strict=True)}
    if coarse := [step for step, gap in gaps.items() if gap > COARSE_GAP[rule]]:
        worst = max(coarse, key=lambda step: gaps[step])
        points = ordered[0].meta.settings.points
        lines.append(
            f"the scores are coarse at {steps_text(coarse)}: half of the probes miss at least "
            f"{gaps[worst]:.0%} of L at step {worst} (completeness gap); raise points, now {points}"
        )
    return lines


def little_in_words(steps: Sequence[int], loss: Sequence[float], floor: float) -> str:
    """That L is too little at these steps, and how much it is there (nats)."""
    most = "" if len(steps) == 1 else "at most "
    return (
        f"L is too little at {steps_text(steps)} ({most}{max(loss):.2g} nats, median over probes; "
        f"the floor is {floor:g})"
    )


def floor_caveat(little: str, rule: str) -> str:
    """What too little L means under a rule, and the way out; `little` is of `little_in_words`."""
    meaning = (
        "no head has a state there, and nothing is compared with it"
        if rule == "growth"
        else "the paper's rule counts heads there all the same, and no verdict rests on them"
    )
    return (
        f"{little}, so that there is nothing to attribute: {meaning}; take probes whose two "
        "beginnings the model tells apart, or a floor of your own (GrowthConfig.least_loss)"
    )


def doubts(probes: int, config: GrowthConfig) -> list[str]:
    """What the rule of growth cannot decide with so few probes, a line each."""
    fewest = config.fewest_probes
    if probes >= fewest:
        return []
    return [
        f"{probes} probes cannot settle a change, none is called: at least {fewest} are needed, "
        "64 are better (`--rule paper` shows the paper's rule)"
    ]


def rows_of_snapshots(metas: Sequence[SnapshotMeta]) -> list[dict[str, Any]]:
    """The numbers that snapshots carry, in the form of a trainer's log."""
    return [{**meta.metrics, "step": meta.step} for meta in metas if meta.metrics]


def metric_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Index: step; a column a metric. NaN where it is missing, no number or not finite.

    Of several rows of one step the last number of each metric counts.
    """
    merged: dict[int, dict[str, float]] = {}
    for row in rows:
        step = row.get("step")
        if _is_number(step) and abs(step) < _LARGEST_STEP:
            numbers = {_name(k): float(v) for k, v in row.items() if k != "step" and _is_number(v)}
            merged.setdefault(int(step), {}).update(numbers)
    steps = sorted(merged)
    columns = dict.fromkeys(name for step in steps for name in merged[step])
    return pd.DataFrame(
        {name: [merged[step].get(name, np.nan) for step in steps] for name in columns},
        index=pd.Index(steps, name="step", dtype=np.int64),
        dtype=np.float64,
    )


def steps_text(steps: Sequence[int]) -> str:
    """`step 0`, `steps 0, 10`; long lists are cut in the middle."""
    shown = [str(step) for step in steps]
    if len(shown) > 6:
        shown = [*shown[:4], "...", shown[-1]]
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(shown)}"


def _refuse_mixed(what: str, ordered: Sequence[Outline], values: Sequence[str]) -> None:
    """All values are the same; `values` are texts that an error can show."""
    steps_of: dict[str, list[int]] = {}
    for snapshot, value in zip(ordered, values, strict=True):
        steps_of.setdefault(value, []).append(snapshot.step)
    if len(steps_of) > 1:
        kinds = [f"{value} at {steps_text(steps)}" for value, steps in steps_of.items()]
        found = "; ".join(kinds[:3]) + (f"; and {len(kinds) - 3} more" if len(kinds) > 3 else "")
        raise SparksError(
            f"snapshots of one timeline must have the same {what}, got {found}: keep each kind in "
            "a run folder of its own"
        )


def _probes_text(snapshot: Outline) -> str:
    return f"{snapshot.num_probes} of hash {snapshot.meta.probes_hash[:12]!r}"


def _name(text: object) -> str:
    """Lone surrogates, which JSON may hold and a frame may not, as escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _is_number(value: Any) -> TypeGuard[float]:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False

"""Several runs side by side: what each regime brought to life, and which heads are its own.

The comparison of "Thinking Sparks!" (https://arxiv.org/abs/2509.25758, Fig. 14, Table 3), over
timelines that were measured alike. Definitions, and our names:

1. The words of `timeline.timeline` keep their meaning, each run against its own base: `born` counts
   heads that ever emerged, `kept` those of them that are active at the run's last checkpoint, so
   kept = born + revived - pruned.
2. Overlap of two runs: emergent heads that both hold, `shared`; Jaccard = shared / union. Once for
   the heads that are emergent at each run's last checkpoint ("end"), once for all ever born
   ("ever").
3. Shared by chance: two draws of a and b heads from the n that are not base share a * b / n in the
   mean. Without it an overlap of large sets says nothing. Ours, not the paper's.
4. Exclusive to a run: emergent there, and in no other run that is compared.
5. Undecided in a run: not base, and its probes cannot tell whether the head is emergent there
   (undecided at the last checkpoint, or active but not placed by the first). A head that is
   emergent in one run and undecided in another is neither shared nor exclusive: it is counted
   apart, and not in the union. By the paper's rule there is none.

Runs are judged by one rule. Verdicts on regimes are those of `timeline.regimes`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool

from sparks.ground.errors import SparksError
from sparks.timeline.nulls import null_of
from sparks.timeline.regimes.regime import Regime, circuit_means
from sparks.timeline.timeline import Rule, Timeline

When = Literal["end", "ever"]
"""Emergent at the last checkpoint, or ever born."""


class Comparison:
    """Runs that share probes, graph and settings. Every frame is tidy; needs no torch."""

    timelines: tuple[Timeline, ...]
    names: tuple[str, ...]
    """One a run, no two alike."""
    warnings: tuple[str, ...]
    """One line each: what makes the runs less comparable than they seem."""

    def __init__(self, timelines: Sequence[Timeline], names: Sequence[str]) -> None:
        """As `Comparison.of`, which gives names too.

        Raises:
            SparksError: fewer than two runs, names that do not tell them apart, or runs that differ
                in probes, graph or settings.
        """
        if len(timelines) < 2:
            raise SparksError(
                f"a comparison needs at least two runs, got {len(timelines)}: give another RUN"
            )
        if len(names) != len(timelines):
            raise SparksError(f"{len(timelines)} runs need a name each, got {len(names)}")
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise SparksError(f"names of runs must differ, got {twice[0]!r} twice: rename one")
        self.timelines, self.names = tuple(timelines), tuple(names)
        self._check_alike()
        self.warnings = tuple(self._caveats())

    @classmethod
    def of(cls, timelines: Sequence[Timeline], names: Sequence[str | None] = ()) -> Comparison:
        """Compare the runs, in this order.

        Args:
            timelines: a run each, at least two.
            names: of the runs; where one is None or missing, that of its timeline, told apart by
                a number where two are alike.

        Raises:
            SparksError: fewer than two runs; given names that are alike; runs that differ in
                probes, graph or settings.
        """
        return cls(timelines, distinct_names(timelines, names))

    def __len__(self) -> int:
        return len(self.timelines)

    @property
    def rule(self) -> Rule:
        """By which all runs are judged."""
        return self.timelines[0].rule

    # -- frames ------------------------------------------------------------------------------

    def runs(self) -> pd.DataFrame:
        """A row a run.

        Columns: run; rule; checkpoints; first_step; last_step; base (heads active at the first
        checkpoint); active (heads, at the last), undecided (as in `Timeline.counts`, at the
        last); born (heads that ever emerged); kept (those of them active at the last checkpoint);
        kept_share (kept / born, NaN without births); pruned and revived (times that an emergent
        head fell silent, came back); retained (base heads active at the last checkpoint);
        retained_share (NaN without base heads); paper_active (at the last) and paper_born by the
        paper's rule; null_births_low, null_births_high (emergent heads on an unchanged model,
        `timeline.nulls`; NaN with too few probes); specific (born heads that were not born on the
        control probes too; NaN without any); regime (`accumulates`, `searches`, `undecided`),
        survival, survival_low, survival_high (share of births that survive to the regime's
        horizon), half_life (steps; NaN where not reached); edges_turnover, edges_stability (means
        over checkpoints, `timeline.regimes.turnover`); reward_first, reward_last, loss_first,
        loss_last (first and last logged number; NaN if there is none).
        """
        rows = zip(self.names, self.timelines, self.regimes, strict=True)
        return pd.DataFrame([_row(*row) for row in rows]).astype({"run": object})

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """What kind of run each was, with its evidence."""
        return tuple(Regime.of(timeline) for timeline in self.timelines)

    def overlap(self) -> pd.DataFrame:
        """A row a pair of runs and a set of emergent heads, pairs in the order of the runs.

        Columns: run, other; heads ("end" or "ever"); count, other_count (emergent heads of either);
        shared; undecided (emergent in one run, undecided in the other: in neither `shared` nor
        `union`); union; jaccard (NaN where neither has any); shared_by_chance (mean of two random
        draws of that size; NaN where the runs' base heads differ).
        """
        rows = []
        for when, (left, right) in itertools.product(
            get_args(When), itertools.combinations(range(len(self)), 2)
        ):
            a, b = self._emergent(left, when), self._emergent(right, when)
            apart = (a & self._undecided(right, when)) | (b & self._undecided(left, when))
            shared, union = int((a & b).sum()), int(((a | b) & ~apart).sum())
            rows.append(
                {
                    "run": self.names[left],
                    "other": self.names[right],
                    "heads": when,
                    "count": int(a.sum()),
                    "other_count": int(b.sum()),
                    "shared": shared,
                    "undecided": int(apart.sum()),
                    "union": union,
                    "jaccard": shared / union if union else math.nan,
                    "shared_by_chance": self._by_chance(left, right, int(a.sum()), int(b.sum())),
                }
            )
        return pd.DataFrame(rows)

    def heads(self) -> pd.DataFrame:
        """A row a run and head: the columns of `Timeline.heads`, and in front of them the run.

        Three more columns follow: born (it ever emerged), exclusive_at_end (emergent at this run's
        last checkpoint, at no other's, and undecided in none) and exclusive_ever (born in this run
        alone).
        """
        frames = []
        for index, timeline in enumerate(self.timelines):
            frame = timeline.heads()
            frame.insert(0, "run", pd.Series(self.names[index], index=frame.index, dtype=object))
            frame["born"] = self._emergent(index, "ever").ravel()
            frame["exclusive_at_end"] = self._only(index, "end").ravel()
            frame["exclusive_ever"] = self._only(index, "ever").ravel()
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    # -- heads by name -----------------------------------------------------------------------

    def exclusive(self, name: str, when: When = "end") -> list[str]:
        """Heads that only this run brought to life, layer by layer, such as `L5H1`.

        Heads that are undecided in another run are left out.

        Args:
            name: of the run.
            when: heads that are emergent at the end, or that ever were.

        Raises:
            SparksError: there is no such run.
        """
        if name not in self.names:
            known = ", ".join(map(repr, self.names))
            raise SparksError(f"run must be one of {known}, got {name!r}")
        return self._named(self._only(self.names.index(name), when))

    def common(self, when: When = "end") -> list[str]:
        """Heads that every run brought to life, layer by layer."""
        return self._named(np.logical_and.reduce(self._sets(when)))

    def _emergent(self, index: int, when: When) -> Bool[np.ndarray, "layers heads"]:
        timeline = self.timelines[index]
        return timeline.emergent[-1] if when == "end" else timeline.cohort >= 0

    def _sets(self, when: When) -> Bool[np.ndarray, "runs layers heads"]:
        return np.stack([self._emergent(index, when) for index in range(len(self))])

    def _undecided(self, index: int, when: When) -> Bool[np.ndarray, "layers heads"]:
        """Heads of which the run cannot tell whether they are emergent."""
        timeline = self.timelines[index]
        if when == "end":
            unplaced = timeline.active[-1] & timeline.states.undated
            return (timeline.undecided[-1] | unplaced) & ~timeline.base
        unborn = (timeline.cohort < 0) & ~timeline.base
        return unborn & (timeline.undecided[-1] | timeline.states.undated)

    def _only(self, index: int, when: When) -> Bool[np.ndarray, "layers heads"]:
        sets = self._sets(when)
        doubt = np.stack([self._undecided(other, when) for other in range(len(self))])
        return sets[index] & (sets.sum(axis=0) == 1) & ~doubt.any(axis=0)

    def _named(self, chosen: Bool[np.ndarray, "layers heads"]) -> list[str]:
        return [f"L{layer}H{head}" for layer, head in np.argwhere(chosen).tolist()]

    def _by_chance(self, left: int, right: int, a: int, b: int) -> float:
        base, other = self.timelines[left].base, self.timelines[right].base
        free = int((~base).sum())
        if not np.array_equal(base, other) or not free:
            return math.nan
        return a * b / free

    # -- what the runs must share ------------------------------------------------------------

    def _check_alike(self) -> None:
        again = "`sparks replay` can measure one of them again, with the other's"
        self._refuse_mixed(
            "the same probes",
            [_probes_text(timeline) for timeline in self.timelines],
            f"{again} probes",
        )
        self._refuse_mixed(
            "the same graph",
            [
                f"{t.graph.num_layers} layers x {t.graph.num_heads} heads, "
                f"{t.graph.num_kv_heads} key/value heads"
                for t in self.timelines
            ],
            "heads of different architectures have no counterpart, compare each with its own kind",
        )
        rules = [timeline.rule for timeline in self.timelines]
        self._refuse_mixed("the same rule", rules, "read all of them with the same --rule")
        settings = [timeline.metas[0].settings.measurement() for timeline in self.timelines]
        for setting in settings[0]:
            texts = [f"{setting}={values[setting]!r}" for values in settings]
            self._refuse_mixed("the same settings", texts, f"{again} settings")

    def _refuse_mixed(self, what: str, texts: Sequence[str], way_out: str) -> None:
        """All texts are the same, or the first two runs that differ are told."""
        for index, text in enumerate(texts):
            if text != texts[0]:
                raise SparksError(
                    f"runs to compare must have {what}, got {texts[0]} in {self.names[0]!r} and "
                    f"{text} in {self.names[index]!r}: {way_out}"
                )

    def _caveats(self) -> list[str]:
        lines = []
        if late := [
            f"{name!r} (step {timeline.steps[0]})"
            for name, timeline in zip(self.names, self.timelines, strict=True)
            if timeline.steps[0] != 0
        ]:
            lines.append(
                f"no snapshot of step 0 in {', '.join(late)}: base heads and births there are "
                "against a model that training has already changed"
            )
        lines += [
            f"{name!r}: {timeline.little_in_words()}, nothing is called there"
            for name, timeline in zip(self.names, self.timelines, strict=True)
            if timeline.too_little.any()
        ]
        hashes = [t.metas[0].model_hash for t in self.timelines if t.steps[0] == 0]
        names = [n for n, t in zip(self.names, self.timelines, strict=True) if t.steps[0] == 0]
        if different := _groups(names, hashes, 12):
            lines.append(
                f"the models at step 0 differ ({different}; a LoRA run's hash counts its adapter): "
                "each run's births are against its own base"
            )
        precisions = [timeline.metas[0].precision for timeline in self.timelines]
        if different := _groups(self.names, precisions):
            lines.append(
                f"the models ran in different precisions ({different}): part of the difference "
                "between runs is rounding"
            )
        return lines


def distinct_names(timelines: Sequence[Timeline], names: Sequence[str | None] = ()) -> list[str]:
    """The given names; where one is None or missing, that of its timeline, with a number if taken.

    Args:
        timelines: a run each.
        names: at most as many; given ones stay as they are, alike or not.
    """
    given = [*names, *[None] * (len(timelines) - len(names))]
    taken = {name for name in given if name is not None}
    chosen: list[str] = []
    for name, timeline in zip(given, timelines, strict=True):
        if name is None:
            name = _free_name(timeline.name or "unnamed run", taken)
            taken.add(name)
        chosen.append(name)
    return chosen


def named_runs(texts: Sequence[str]) -> list[tuple[str | None, str]]:
    """Names and folders of `NAME=RUN` or `RUN`, as the command line gives them.

    A folder that exists is taken as it is written, so that its name may hold `=`.

    Raises:
        SparksError: a name or folder is empty.
    """
    found: list[tuple[str | None, str]] = []
    for text in texts:
        name, mark, folder = text.partition("=")
        if not mark or Path(text).exists() or os.sep in name:
            found.append((None, text))
            continue
        if not name or not folder:
            raise SparksError(f"a run is RUN or NAME=RUN, got {text!r}: give both name and folder")
        found.append((name, folder))
    return found


def _row(name: str, timeline: Timeline, regime: Regime) -> Mapping[str, object]:
    curves, last = timeline.metrics(), timeline.counts().iloc[-1]
    born, kept = int((timeline.cohort >= 0).sum()), int(timeline.emergent[-1].sum())
    base, retained = int(timeline.base.sum()), int(timeline.retained[-1].sum())
    row: dict[str, object] = {
        "run": name,
        "rule": timeline.rule,
        "checkpoints": len(timeline),
        "first_step": int(timeline.steps[0]),
        "last_step": int(timeline.steps[-1]),
        "base": base,
        "active": int(last["active"]),
        "undecided": int(last["undecided"]),
        "born": born,
        "kept": kept,
        "kept_share": kept / born if born else math.nan,
        "pruned": int(timeline.changes("pruned").sum()),
        "revived": int(timeline.changes("revived").sum()),
        "retained": retained,
        "retained_share": retained / base if base else math.nan,
        **_beside(timeline),
        "regime": regime.verdict,
        **regime.survival.cells("survival"),
        "half_life": math.nan if math.isinf(regime.half_life.value) else regime.half_life.value,
    }
    circuits = circuit_means(timeline)
    row |= {name: circuits[name] for name in ("edges_turnover", "edges_stability")}
    for curve in ("reward", "loss"):
        logged = curves[curve].dropna().tolist() if curve in curves.columns else []
        row[f"{curve}_first"] = logged[0] if logged else math.nan
        row[f"{curve}_last"] = logged[-1] if logged else math.nan
    return row


def _beside(timeline: Timeline) -> Mapping[str, object]:
    """What the paper's rule, an unchanged model and the control probes give."""
    paper, band = timeline.paper_counts(), null_of(timeline)
    specific = int((timeline.specificity() == "specific").sum())
    return {
        "paper_active": int(paper["active"].iloc[-1]),
        "paper_born": int(paper["born"].sum()),
        "null_births_low": math.nan if band is None else band.births_low,
        "null_births_high": math.nan if band is None else band.births_high,
        "specific": math.nan if timeline.control is None else specific,
    }


def _probes_text(timeline: Timeline) -> str:
    group = "" if timeline.group is None else f" (group {timeline.group!r})"
    return f"{timeline.num_probes}{group} of hash {timeline.metas[0].probes_hash[:12]!r}"


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or `name (2)` and so on."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(text for text in itertools.chain([name], numbered) if text not in taken)


def _groups(names: Sequence[str], values: Sequence[str], shown: int = 60) -> str:
    """`'sft', 'grpo': a; 'other': b`; nothing where all values are the same."""
    runs_of: dict[str, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        runs_of.setdefault(value, []).append(repr(name))
    if len(runs_of) < 2:
        return ""
    return "; ".join(f"{', '.join(runs)}: {value[:shown]}" for value, runs in runs_of.items())
